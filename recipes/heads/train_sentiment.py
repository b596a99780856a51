"""Train the sentiment head that `vbkit_sentiment` ships, and measure it.

    python recipes/heads/train_sentiment.py --data DATA \
        --out plugins/vbkit_sentiment/weights --cache .cache/heads

Text is trained by `branches.py`: MELD's training dialogues (three classes, read in dialogue) and
MOSI (positive or negative reviews, in the order of each video), sentences of lectures and cooking
videos as weak examples of neutral, and tweets that a larger encoder judged. A sixth of MELD's
training dialogues is held out, and sets the temperature; MELD's dev set trains nothing; MOSI is
scored in five folds by video.

Pictures: Flickr8k, where captions mention a sign of feeling ("smiling", "crying", "fighting").

Prints one JSON object of measured numbers, which is also kept in the head's settings.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from branches import SENTIMENT_BRANCH, branch_tensors, sentiment_passages
from encode import MEANS, Encoder
from report import markdown_table, replace_block
from torch import Tensor, nn

from vbkit.heads import save_head
from vbkit_sentiment.model import PictureSentiment, trusted

POSITIVE = re.compile(
    r"\b(smil\w+|laugh\w*|happy|happily|celebrat\w+|cheer(?:ing|s|ful)|excited\w*|joy\w*"
    r"|grin(?:s|ning)?|having fun|hug(?:s|ging)?|kiss(?:es|ing)?)\b", re.IGNORECASE)
NEGATIVE = re.compile(
    r"\b(cry|crying|cries|sad|sadly|angry|angrily|upset|scream\w*|fights?|fighting|scared"
    r"|frighten\w*|frown\w*|yell(?:s|ing)?|worried|injured|hurt|distress\w*|grimac\w*"
    r"|crash(?:es|ing|ed)?|snarl\w*|growl\w*|in pain)\b", re.IGNORECASE)
WEAK_NEUTRAL = 0.3
"""Weight of a sentence that is only presumed neutral."""
BINARY = 1.5
"""Weight of a sentence whose label is positive or negative only."""
TRUST = 0.7
"""How far the picture model is believed: a film is not a captioned photograph (set by hand)."""
PENALTIES = (0.01, 0.03, 0.1, 0.3)
"""Penalties on the weights of the picture model, of which one is chosen."""


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def temperature(logits: Tensor, loss: Callable[[Tensor], Tensor]) -> float:
    """The temperature in 0.5–3 at which `loss` is least."""
    values = torch.linspace(0.5, 3.0, 126)
    return float(values[int(torch.stack([loss(logits / t) for t in values]).argmin())])


def bootstrap(groups: np.ndarray, score: Callable[[np.ndarray], float], seed: int = 0,
              times: int = 500) -> list[float]:
    """`[score, low, high]`: the score and its 95 % interval, groups drawn with replacement."""
    rng = np.random.default_rng(seed)
    _, numbers = np.unique(groups, return_inverse=True)
    members = [np.flatnonzero(numbers == k) for k in range(numbers.max() + 1)]
    drawn = [
        score(np.concatenate([members[k] for k in rng.integers(0, len(members), len(members))]))
        for _ in range(times)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return [round(float(x), 4) for x in (score(np.arange(len(groups))), low, high)]


def f1_weighted(labels: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, average="weighted"))


def calibration_error(p: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error of the likeliest class (Guo et al., ICML 2017)."""
    sure, right = p.max(1), p.argmax(1) == labels
    which = np.minimum((sure * bins).astype(int), bins - 1)
    return float(sum(
        abs(sure[which == b].mean() - right[which == b].mean()) * (which == b).mean()
        for b in np.unique(which)
    ))


@torch.no_grad()
def logits_of(model: nn.Module, inputs: Tensor) -> Tensor:
    result: Tensor = model(inputs)
    return result


def do_text(data: Path, branches: Path) -> dict[str, Any]:
    """Measure the text branch on what it did not learn from, and set its temperature."""
    sets = sentiment_passages(data)
    labels = {name: np.array(found) for groups in sets.values() for name, _, found in groups}
    with np.load(branches / "sentiment.npz") as stored:
        logits = {name: stored[name] for name in stored.files}

    def rows(kind: str, how: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        names = [name for name, _, _ in sets[kind] if f"{how}/{name}" in logits]
        return (np.concatenate([logits[f"{how}/{name}"] for name in names]),
                np.concatenate([labels[name] for name in names]),
                np.concatenate([np.full(len(labels[name]), name) for name in names]))

    val, truth, _ = rows("meld_train", "with")
    sharp = temperature(torch.from_numpy(val),
                        lambda x: F.cross_entropy(x, torch.from_numpy(truth)))
    measured: dict[str, Any] = {}
    for how, tail in (("with", ""), ("alone", "_no_context")):
        x, y, groups = rows("meld_dev", how)
        measured[f"meld_dev_f1_weighted{tail}"] = bootstrap(
            groups, lambda i, x=x, y=y: f1_weighted(y[i], x.argmax(1)[i]))
        two, signs, videos = rows("mosi", how)
        right = (two[:, 2] > two[:, 0]) == (signs == 2)
        measured[f"mosi_accuracy_5_folds{tail}"] = bootstrap(
            videos, lambda i, right=right: float(right[i].mean()))
    x, y, _ = rows("meld_dev", "with")
    p = torch.from_numpy(x / sharp).softmax(1).numpy()
    measured["meld_dev_calibration_error"] = round(calibration_error(p, y), 4)
    plain, _, groups = rows("plain", "with")
    neutral = plain.argmax(1) == 1
    measured["plain_sentences_called_neutral"] = bootstrap(
        groups, lambda i: float(neutral[i].mean()))
    return {"branch": asdict(SENTIMENT_BRANCH), "temperature": round(sharp, 3),
            "measured": measured}


def fit_picture(features: Tensor, target: Tensor, penalty: float) -> PictureSentiment:
    """Logistic regression over three classes, at their own shares."""
    width = MEANS
    model = PictureSentiment(width)
    model.mean.copy_(features[:, :width].mean(0))
    model.scale.copy_(features[:, :width].std(0) + 0.05)
    torch.nn.init.zeros_(model.linear.weight)
    optimiser = torch.optim.LBFGS(model.linear.parameters(), max_iter=50,
                                  line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(model(features), target)
        loss = loss + penalty * model.linear.weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return model.eval()


def do_picture(encoder: Encoder, data: Path) -> tuple[PictureSentiment, dict[str, Any]]:
    """Train and measure the picture model."""
    captions: dict[str, list[str]] = {}
    split: dict[str, str] = {}
    for row in read_csv(data / "flickr8k" / "captions.csv"):
        captions.setdefault(row["image"], []).append(row["caption"])
        split[row["image"]] = row["split"]
    names, labels = [], []
    for name, texts in sorted(captions.items()):
        happy = sum(bool(POSITIVE.search(text)) for text in texts)
        unhappy = sum(bool(NEGATIVE.search(text)) for text in texts)
        if happy and unhappy:
            continue
        names.append(name)
        labels.append(2 if happy >= 2 else 0 if unhappy else 1)
    features = torch.from_numpy(
        encoder.image_features([data / "flickr8k" / "images" / name for name in names]))
    target = torch.tensor(labels)
    is_val = np.array([split[name] == "val" for name in names])
    # A fifth of the training pictures sets penalty and temperature; val is scored once.
    tune = ~is_val & (np.arange(len(names)) % 5 == 0)
    fit = torch.as_tensor(np.flatnonzero(~is_val & ~tune))
    width = MEANS
    known = torch.as_tensor(np.flatnonzero(tune))
    models = [fit_picture(features[fit], target[fit], penalty) for penalty in PENALTIES]
    losses = [float(F.cross_entropy(logits_of(model, features[known]), target[known]))
              for model in models]
    model = models[int(np.argmin(losses))]
    sharp = temperature(logits_of(model, features[known]),
                        lambda x: F.cross_entropy(x, target[known]))
    prior = (torch.bincount(target[fit], minlength=3) / len(fit)).tolist()
    p = trusted(logits_of(model, features[is_val]) / sharp, prior, TRUST).exp().numpy()
    truth = np.array(labels)[is_val]
    every = np.arange(len(truth))

    def auroc(kind: int) -> Callable[[np.ndarray], float]:
        from sklearn.metrics import roc_auc_score

        return lambda i: float(roc_auc_score(truth[i] == kind, p[i, kind]))

    measured = {
        "flickr8k_val_roc_auc_negative": bootstrap(every, auroc(0)),
        "flickr8k_val_roc_auc_positive": bootstrap(every, auroc(2)),
        "flickr8k_val_calibration_error": round(calibration_error(p, truth), 4),
        "flickr8k_val_called_neutral": round(float((p.argmax(1) == 1).mean()), 4),
        "flickr8k_val_counts": np.bincount(truth, minlength=3).tolist(),
    }
    settings = {"width": width, "temperature": round(sharp, 3), "trust": TRUST,
                "prior": [round(share, 4) for share in prior], "measured": measured}
    return model, settings


def report(settings: dict[str, Any]) -> str:
    """The measured numbers as a Markdown table."""
    text, picture = settings["text"]["measured"], settings["picture"]["measured"]
    negative, neutral, positive = picture["flickr8k_val_counts"]
    return markdown_table(
        ("what", "measured", "plain baseline"),
        [
            ("MELD dev, weighted F1", text["meld_dev_f1_weighted"], "0.642"),
            ("MELD dev, weighted F1, each utterance by itself",
             text["meld_dev_f1_weighted_no_context"], "–"),
            ("MELD dev, expected calibration error", text["meld_dev_calibration_error"], "–"),
            ("MOSI, positive or negative, accuracy", text["mosi_accuracy_5_folds"], "0.78"),
            ("MOSI, each utterance by itself", text["mosi_accuracy_5_folds_no_context"], "–"),
            ("sentences of lectures and cooking videos called neutral",
             text["plain_sentences_called_neutral"], "–"),
            (f"Flickr8k val, AUROC of positive ({positive} of {negative + neutral + positive})",
             picture["flickr8k_val_roc_auc_positive"], "0.5"),
            (f"Flickr8k val, AUROC of negative ({negative})",
             picture["flickr8k_val_roc_auc_negative"], "0.5"),
            ("Flickr8k val, called neutral", picture["flickr8k_val_called_neutral"], "–"),
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("plugins/vbkit_sentiment/weights"))
    parser.add_argument("--cache", type=Path, default=Path(".cache/heads"))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--docs", type=Path, default=Path("docs/tasks/sentiment.md"))
    parser.add_argument("--branches", type=Path, default=Path(".cache/branches"),
                        help="what branches.py wrote")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    encoder = Encoder(arguments.cache, arguments.model)
    text_settings = do_text(arguments.data, arguments.branches)
    picture, picture_settings = do_picture(encoder, arguments.data)
    settings = {
        "task": "sentiment", "model": encoder.model_name,
        "model_fingerprint": encoder.fingerprint("sentiment"), "seed": arguments.seed,
        "text": text_settings, "picture": picture_settings,
        "trained_on": {"text": ["MELD", "MOSI", "VT-SSum", "YouCook2", "VADER ratings"],
                       "picture": ["Flickr8k"]},
    }
    tensors = branch_tensors(arguments.branches / "sentiment.safetensors", "text.")
    tensors |= {f"picture.{name}": value for name, value in picture.state_dict().items()}
    save_head(arguments.out, tensors, settings, int8=["text.branch."])
    replace_block(arguments.docs, report(settings))
    print(json.dumps(settings, indent=1))


if __name__ == "__main__":
    main()
