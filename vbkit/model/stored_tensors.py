"""Safetensors files that say in their metadata what they hold, and in which version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vbkit.errors import ModelError
from vbkit.files import renamed

__all__ = ["read_tensors", "write_tensors"]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file; it is whole or absent.

    Raises:
        ModelError: it cannot be written.
    """
    try:
        with renamed(path) as temporary:
            save_file({name: tensor.detach().cpu().contiguous()
                       for name, tensor in tensors.items()}, temporary, metadata=dict(metadata))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be written: {error}; free some space, or name another "
                         "folder") from error


def read_tensors(path: Path, what: str, file_format: str, version: str, *, renew: str,
                 missing: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file.

    Args:
        path: the file.
        what: it should hold, in words.
        file_format: its `format` in the metadata.
        version: its `version` there, which this vbkit reads.
        renew: how another one is made, in words: `build it anew`.
        missing: what to do where there is no file, after `no such file`.

    Raises:
        ModelError: it is missing, damaged, of another format or version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != file_format:
                raise ModelError(f"{path} is no {what}")
            if metadata.get("version") != version:
                raise ModelError(f"{path} has version {metadata.get('version')}, but this vbkit "
                                 f"reads version {version}: update vbkit, or {renew}")
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file{missing}") from error
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is no whole {what}: {error}") from error
