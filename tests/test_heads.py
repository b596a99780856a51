"""Saving and loading of heads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vbkit.errors import ModelError
from vbkit.heads import HEAD_SETTINGS, HEAD_WEIGHTS, load_head, save_head


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "new" / "head"
    save_head(path, {"w": torch.tensor([[1.0, 2.5]]).T, "ids": torch.tensor([70000])},
              {"model": "mini", "model_fingerprint": "abc", "names": ["größe"]})
    return path


def test_round_trip(folder: Path) -> None:
    tensors, settings = load_head(folder, model_name="mini", model_fingerprint="abc")
    assert tensors["w"].dtype == torch.float32
    assert tensors["w"].tolist() == [[1.0], [2.5]]
    assert tensors["ids"].tolist() == [70000]
    assert settings["names"] == ["größe"]
    assert load_head(folder)[1] == settings


def test_other_model_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="trained on model 'mini', not on 'large'"):
        load_head(folder, model_name="large")
    with pytest.raises(ModelError, match="other weights of model 'mini'"):
        load_head(folder, model_name="mini", model_fingerprint="def")


@pytest.mark.parametrize("name", [HEAD_SETTINGS, HEAD_WEIGHTS])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"{name} is missing"):
        load_head(folder)


@pytest.mark.parametrize(("name", "content"), [
    (HEAD_SETTINGS, b"{"), (HEAD_SETTINGS, b"\xff\xfe"), (HEAD_SETTINGS, b"[1]"),
    (HEAD_WEIGHTS, b""), (HEAD_WEIGHTS, b"PK\x03\x04 no safetensors"),
])
def test_damaged_file_is_one_clear_line(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_head(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
