"""Fit the shipped heads to a new model that has the same text tower, without training them anew.

    python recipes/heads/refit.py --data DATA --model DIR

What a head learnt of text stays as it is, since the new model embeds text as the old one did. What
reads the shared space of pictures is fitted again, by the code of the head's own script: names
of things (`summarisation`) and the calibration of moments (`qa`). `moderation` and `sentiment`
read clip features by their places, the first and the last ones, which are the same where the
backbone is. With another text tower or backbone, train the heads by their scripts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from encode import Encoder
from safetensors.torch import load_file
from torch import Tensor
from train_qa import visual
from train_summarisation import concepts

from vbkit.heads import save_head

PLUGINS = Path(__file__).parent.parent.parent / "plugins"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--cache", type=Path, default=Path(".cache/heads"))
    parser.add_argument("--plugins", type=Path, default=PLUGINS, help="heads are read there")
    parser.add_argument("--out", type=Path, default=PLUGINS, help="and written there")
    arguments = parser.parse_args()
    encoder = Encoder(arguments.cache, arguments.model)
    for task in ("moderation", "sentiment", "summarisation", "qa"):
        folder = arguments.plugins / f"vbkit_{task}" / "weights"
        tensors, settings = load_file(folder / "head.safetensors"), read(folder / "head.json")
        if task == "summarisation":
            tensors, settings = refit_names(encoder, arguments.data, tensors, settings)
        elif task == "qa":
            tensors, settings = refit_moments(encoder, arguments.data, tensors, settings)
        settings |= {"model": "mini", "model_fingerprint": encoder.fingerprint(task)}
        save_head(arguments.out / f"vbkit_{task}" / "weights", tensors, settings)
        print(task, json.dumps(settings.get("validation", {}).get("concepts")
                               or settings.get("validation", {}).get("picture")), flush=True)


def read(path: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(path.read_text())
    return settings


def refit_names(encoder: Encoder, data: Path, tensors: dict[str, Tensor],
                settings: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    fitted, names, numbers = concepts(encoder, data)
    validation = settings["validation"] | {"concepts": numbers}
    return tensors | fitted, settings | {"concepts": names, "validation": validation}


def refit_moments(encoder: Encoder, data: Path, tensors: dict[str, Tensor],
                  settings: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    shown, background, numbers = visual(encoder, data, settings["seed"])
    validation = settings["validation"] | {"picture": numbers}
    return (tensors | {"visual.background": background},
            settings | {"shown": shown.to_settings(), "validation": validation})


if __name__ == "__main__":
    main()
