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


def test_weights_in_int8_are_half_as_large_and_nearly_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = {"branch.up": torch.randn(512, 64) * torch.logspace(-3, 1, 512)[:, None],
               "branch.bias": torch.randn(64), "output": torch.randn(8, 64)}
    save_head(tmp_path / "half", weights, {})
    save_head(tmp_path / "int8", weights, {}, int8=["branch."])
    found, half = load_head(tmp_path / "int8")[0], load_head(tmp_path / "half")[0]
    assert found.keys() == weights.keys()
    off = (found["branch.up"] - weights["branch.up"]).abs().amax(1)
    assert (off <= weights["branch.up"].abs().amax(1) / 250).all()
    assert off.max() > 0  # it is stored in int8 indeed
    for name in ("branch.bias", "output"):
        assert torch.equal(found[name], half[name])
    sizes = [(tmp_path / kind / HEAD_WEIGHTS).stat().st_size for kind in ("int8", "half")]
    assert sizes[0] < 0.55 * sizes[1]


def test_what_is_called_a_scale_but_is_none_of_int8_weights_stays(tmp_path: Path) -> None:
    weights = {"norm": torch.ones(2, 2), "norm.scale": torch.full((3,), 5.0),
               "ids": torch.tensor([[3, -4]], dtype=torch.int8)}
    save_head(tmp_path, weights, {})
    found = load_head(tmp_path)[0]
    assert {name: value.tolist() for name, value in found.items()} == {
        name: value.tolist() for name, value in weights.items()}


def test_scales_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_head(tmp_path, {"w": torch.ones(3, 2, dtype=torch.int8), "w.scale": torch.ones(2)}, {})
    with pytest.raises(ModelError, match=r"scales have shape \(2,\), but must have \(3,\)"):
        load_head(tmp_path)


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
