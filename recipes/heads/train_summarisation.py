"""Trains the head of `vbkit_summarisation`: the selector, and the names of what is shown.

    python recipes/heads/train_summarisation.py --data DATA \
        --out plugins/vbkit_summarisation/weights

Data: VT-SSum (Lv et al., 2021), lecture passages whose summary sentences are those that the slides
repeat; `branches.py` trains the selector. VT-SSum's dev part, other lectures, is split by lecture:
one half calibrates, the other gives the numbers. The logistic functions of the vocabulary are
fitted on Flickr8k's training captions and ImageNet pictures, and checked on Flickr8k's validation
part.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from branches import SUMMARISATION_BRANCH, branch_tensors, vtssum
from encode import Encoder

from vbkit.heads import save_head
from vbkit_summarisation.selector import SelectorConfig
from vbkit_summarisation.text import rarities, words
from vbkit_summarisation.visual import Concepts, load_phrases

CONFIG = SelectorConfig()
PRIOR = 0.05
"""How common a phrase of the vocabulary is taken to be, at most, before a picture is seen."""

Passage = tuple[list[str], Tensor]  # sentences, selected (S,)


def top_k(scores: list[Tensor], items: list[Passage], k: int) -> dict[str, float]:
    """Precision, recall and F1 (%) of the k best sentences, as VT-SSum counts them.

    Precision and recall are means over passages, F1 is made of these means.
    """
    precision, recall = [], []
    for score, (_, target) in zip(scores, items, strict=True):
        hits = float(target[score.argsort(descending=True, stable=True)[:k]].sum())
        precision.append(hits / k)
        recall.append(hits / float(target.sum()))
    p, r = 100 * np.mean(precision), 100 * np.mean(recall)
    return {"precision": round(p, 2), "recall": round(r, 2), "f1": round(2 * p * r / (p + r), 2)}


def interval(scores: list[Tensor], items: list[Passage], groups: list[str], k: int) -> list[float]:
    """95 % interval of the Top-k F1 from 300 bootstrap samples of lectures."""
    random = np.random.default_rng(0)
    of: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        of.setdefault(group, []).append(i)
    names = list(of)
    values = []
    for _ in range(300):
        chosen = [i for g in random.integers(0, len(names), len(names)) for i in of[names[g]]]
        values.append(top_k([scores[i] for i in chosen], [items[i] for i in chosen], k)["f1"])
    return [round(float(v), 2) for v in np.percentile(values, [2.5, 97.5])]


def logistic(x: Tensor, y: Tensor, decay: float = 0.0, start: tuple[float, float] = (1.0, 0.0),
             ) -> tuple[float, float]:
    """Slope and bias of a logistic function of one variable, pulled towards `start` by `decay`."""
    origin = torch.tensor(start, dtype=torch.double)
    parameters = origin.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(
            x.double() * parameters[0] + parameters[1], y.double(), reduction="sum")
        value = value + decay * (((parameters - origin) / origin.abs().clamp(min=1)) ** 2).sum()
        value.backward()
        return value

    optimizer.step(closure)
    slope, bias = parameters.detach().tolist()
    return slope, bias


def bears_out(caption_words: set[str], proof: tuple[str, ...]) -> bool:
    """Whether a caption's words say that a phrase holds (see `concepts.txt`)."""
    def has(pattern: str) -> bool:
        if pattern.endswith("*"):
            return any(word.startswith(pattern[:-1]) for word in caption_words)
        return pattern in caption_words

    return any(all(has(part) for part in alternative.split("+")) for alternative in proof)


def concepts(encoder: Encoder, data: Path, least: float = 0.65,
             ) -> tuple[dict[str, Tensor], list[str], dict[str, Any]]:
    """The vocabulary's embeddings and logistic functions, and how often its names are right."""
    phrases = load_phrases()
    names = [phrase for phrase, _ in phrases]
    vectors = torch.from_numpy(encoder.text_embeddings(names))
    folder = data / "flickr8k"
    (images,) = [path for path in folder.iterdir() if path.is_dir()]
    said: dict[str, dict[str, set[str]]] = {"train": {}, "val": {}}
    with (folder / "captions.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            said[row["split"]].setdefault(row["image"], set()).update(words(row["caption"]))

    def labels(part: str) -> Tensor:
        return torch.tensor([[bears_out(every, proof) for _, proof in phrases]
                             for every in said[part].values()], dtype=torch.float)

    near = {part: torch.from_numpy(
        encoder.clip_embeddings([images / name for name in said[part]])[0]) @ vectors.T
        for part in ("train", "val")}
    truth = {part: labels(part) for part in ("train", "val")}
    other = torch.from_numpy(encoder.clip_embeddings(
        sorted((data / "imagenet_sample").rglob("*.jpg")))[0]) @ vectors.T
    # A phrase's own scale: mean and spread of its similarity to ordinary pictures.
    both = torch.cat([near["train"], other])
    mean, spread = both.mean(0), both.std(0) + 0.01
    z = {part: (value - mean) / spread for part, value in near.items()}
    common = truth["train"].sum(0) >= 15
    pooled = logistic(z["train"][:, common].reshape(-1), truth["train"][:, common].reshape(-1),
                      start=(1.0, -4.0))
    slope, bias = torch.zeros(len(names)), torch.zeros(len(names))
    for k in range(len(names)):
        a, b = pooled[0], pooled[1] - 1.0  # rare in what could be checked, so asked for more
        if common[k]:
            a, b = logistic(z["train"][:, k], truth["train"][:, k], decay=3.0, start=pooled)
            a = max(a, 0.05)
            # Flickr8k is full of dogs and people. What is named elsewhere must not rest on that.
            share = float(truth["train"][:, k].mean())
            b += min(0.0, float(np.log(PRIOR / (1 - PRIOR)) - np.log(share / (1 - share))))
        slope[k], bias[k] = a / spread[k], b - a * mean[k] / spread[k]
    vocabulary = Concepts(names, vectors, slope, bias)

    def named(similar: Tensor, correct: Tensor) -> dict[str, Any]:
        p = torch.sigmoid(similar * slope + bias)
        # Pictures stand for themselves here, so that `name` sees one at a time.
        rows = [[(k, float(p[i, k])) for k in p[i].argsort(descending=True)[:6].tolist()
                 if p[i, k] >= least] for i in range(len(p))]
        kept: list[tuple[int, int]] = []
        for i, row in enumerate(rows):
            chosen: list[int] = []
            for k, _ in row:
                if len(chosen) < 2 and all(
                        float(vectors[k] @ vectors[j]) < 0.55 for j in chosen):
                    chosen.append(k)
            kept += [(i, k) for k in chosen]
        right = [bool(correct[i, k]) for i, k in kept]
        return {"pictures": len(p), "named": round(len({i for i, _ in kept}) / len(p), 3),
                "names": len(kept), "precision": round(float(np.mean(right)), 3) if right else None}

    numbers = {"flickr8k_val": named(near["val"], truth["val"]), "least": least,
               "phrases": len(names), "fitted_alone": int(common.sum())}
    clips_file = data / "captioned_clips" / "captions.csv"
    if clips_file.exists():
        with clips_file.open(newline="", encoding="utf-8") as file:
            table = list(csv.DictReader(file))
        where = {path.name: path for path in (data / "captioned_clips").rglob("*.mp4")}
        table = [row for row in table if row["video"] in where]
        shown, index = encoder.clip_embeddings([where[row["video"]] for row in table])
        pictures = F.normalize(torch.stack([
            torch.from_numpy(shown[index == k]).mean(0) for k in range(len(table))]), dim=-1)
        correct = torch.tensor([[bears_out(set(words(row["caption"])), proof)
                                 for _, proof in phrases] for row in table], dtype=torch.float)
        numbers["captioned_clips"] = named(pictures @ vectors.T, correct)
    return {"concepts.embeddings": vocabulary.embeddings, "concepts.slope": slope,
            "concepts.bias": bias}, names, numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path(".cache/heads"))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--branches", type=Path, default=Path(".cache/branches"),
                        help="what branches.py wrote")
    arguments = parser.parse_args()
    run(Encoder(arguments.cache, arguments.model), arguments)


def run(encoder: Encoder, arguments: argparse.Namespace) -> None:
    """Measure, calibrate and write the head; prints the numbers as JSON."""
    data, seed = arguments.data, arguments.seed
    rarity = rarities([row["text"] for row in vtssum(data, "train")])
    with np.load(arguments.branches / "summarisation-all.npz") as stored:
        ids = stored["ids"].tolist()
        parts_of = np.split(stored["logits"], np.cumsum(stored["lengths"])[:-1])
    dev = {row["id"]: row for row in vtssum(data, "dev")}
    items: list[Passage] = []
    for name in ids:
        target = torch.zeros(len(dev[name]["text"]))
        target[dev[name]["selected"]] = 1
        items.append((dev[name]["text"], target))
    logits = [torch.from_numpy(part.astype(np.float32)) for part in parts_of]
    lectures = [name.split("/clip_")[0] for name in ids]
    half = np.array([zlib.crc32(name.encode()) % 2 == 0 for name in lectures])

    def chosen(mask: np.ndarray) -> tuple[list[Passage], list[Tensor]]:
        return ([items[i] for i in np.flatnonzero(mask)],
                [logits[i] for i in np.flatnonzero(mask)])

    tune, before = chosen(half)
    test, scores = chosen(~half)
    groups = [lectures[i] for i in np.flatnonzero(~half)]
    slope, bias = logistic(torch.cat(before), torch.cat([target for _, target in tune]))
    p = torch.sigmoid(torch.cat(scores) * slope + bias).numpy()
    y = torch.cat([target for _, target in test]).numpy()
    parts = np.array_split(np.argsort(p, kind="stable"), 10)
    numbers: dict[str, Any] = {
        "passages": {"tune": len(tune), "test": len(test)},
        "top3": top_k(scores, test, 3), "top3_f1_interval": interval(scores, test, groups, 3),
        "top5": top_k(scores, test, 5), "top3_tune": top_k(before, tune, 3),
        "lead3": top_k([-torch.arange(len(item[0])).float() for item in test], test, 3),
        "oracle3": top_k([item[1] for item in test], test, 3),
        "ece": round(float(sum(len(q) * abs(p[q].mean() - y[q].mean()) for q in parts) / len(p)),
                     4),
    }
    tensors, names, shown = concepts(encoder, data)
    numbers["concepts"] = shown
    trained = branch_tensors(arguments.branches / "summarisation-all.safetensors", "")
    tensors |= {name if name.startswith("branch.") else f"selector.{name}": value
                for name, value in trained.items()}
    tensors["rarity"] = torch.tensor(list(rarity.values()))
    save_head(arguments.out, tensors, {
        "model": encoder.model_name,
        "model_fingerprint": encoder.fingerprint("summarisation"), "language": "en",
        "selector": asdict(CONFIG), "branch": asdict(SUMMARISATION_BRANCH),
        "stems": list(rarity), "concepts": names,
        "calibration": [round(slope, 5), round(bias, 5)], "validation": numbers, "seed": seed,
        "data": "VT-SSum (CC BY-NC-ND 4.0), Flickr8k (research use), ImageNet sample (research "
                "use)",
    })
    print(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
