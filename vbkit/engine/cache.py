"""Encoder outputs on disk, keyed by content, so that no video is read twice.

One safetensors file an entry, `FOLDER/ab/abcdef…/KIND-KEY.safetensors`, under the hash of the
content that it was computed from. A write is a rename, so an entry is whole or absent; several
processes may share a folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vbkit.errors import StoreError
from vbkit.files import renamed

__all__ = ["FeatureCache"]


class FeatureCache:
    """A folder of encoder outputs.

    Args:
        folder: made when the first entry is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, content_id: str, kind: str, key: str) -> Path:
        return self.folder / content_id[:2] / content_id / f"{kind}-{key}.safetensors"

    def has(self, content_id: str, kind: str, key: str) -> bool:
        return self.path(content_id, kind, key).is_file()

    def load(self, content_id: str, kind: str,
             key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and metadata of an entry; None where there is none, or it is damaged."""
        path = self.path(content_id, kind, key)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = json.loads((file.metadata() or {}).get("vbkit", "{}"))
                return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
        except (OSError, SafetensorError, json.JSONDecodeError):
            return None

    def save(self, content_id: str, kind: str, key: str, tensors: Mapping[str, Tensor],
             metadata: Mapping[str, Any]) -> None:
        """Write an entry.

        Raises:
            StoreError: the folder cannot be written, or the disk is full.
        """
        path = self.path(content_id, kind, key)
        try:
            with renamed(path) as temporary:
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()},
                          temporary, metadata={"vbkit": json.dumps(metadata)})
        except (OSError, SafetensorError) as error:
            raise StoreError(f"cannot write to the feature cache {self.folder}: {error}; free some "
                             "space, or name another folder with --cache") from error
