"""Train the sentiment head that `vbkit_sentiment` ships, and measure it.

    python recipes/heads/train_sentiment.py --data DATA \
        --out plugins/vbkit_sentiment/weights --cache .cache/heads

Text: MELD's training dialogues (three classes, read in dialogue) and MOSI (positive or negative
reviews, in the order of each video; the loss compares these two classes only), with sentences of
lectures and cooking videos as weak examples of neutral. A sixth of MELD's training dialogues
is held out, and sets the temperature; MELD's dev set trains nothing; MOSI is scored in five folds
by video.

Pictures: Flickr8k, where captions mention a sign of feeling ("smiling", "crying", "fighting").

Prints one JSON object of measured numbers, which is also kept in the head's settings.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from encode import MEANS, Encoder
from report import markdown_table, replace_block
from torch import Tensor, nn

from vbkit.heads import save_head
from vbkit_sentiment import LABELS
from vbkit_sentiment.model import PictureSentiment, TextSentiment, neighbours, trusted

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


@dataclass(frozen=True)
class Texts:
    """Sentences in order: their class (0, 1, 2), the dialogue or video each is of, its weight.

    `binary`: the class is known only as negative or positive.
    """

    inputs: Tensor
    labels: Tensor
    groups: np.ndarray
    weights: Tensor
    binary: Tensor

    def take(self, mask: np.ndarray) -> Texts:
        index = torch.as_tensor(np.flatnonzero(mask))
        return Texts(self.inputs[index], self.labels[index], self.groups[mask],
                     self.weights[index], self.binary[index])

    def __add__(self, other: Texts) -> Texts:
        return Texts(
            torch.cat([self.inputs, other.inputs]), torch.cat([self.labels, other.labels]),
            np.concatenate([self.groups, other.groups]),
            torch.cat([self.weights, other.weights]), torch.cat([self.binary, other.binary]),
        )

def texts_of(
    encoder: Encoder, texts: list[str], labels: list[int], groups: list[str],
    weight: float = 1.0, binary: bool = False,
) -> Texts:
    """Encode sentences and put each beside its neighbours of the same group."""
    _, numbers = np.unique(groups, return_inverse=True)
    embeddings = torch.from_numpy(encoder.text_embeddings(texts))
    return Texts(neighbours(embeddings, numbers.tolist()), torch.tensor(labels),
                 np.array(groups), torch.full((len(texts),), weight),
                 torch.full((len(texts),), binary))


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def meld(encoder: Encoder, path: Path) -> Texts:
    """MELD's utterances, in the order of each dialogue."""
    rows = sorted(read_csv(path), key=lambda r: (int(r["Dialogue_ID"]), int(r["Utterance_ID"])))
    return texts_of(encoder, [r["Utterance"] for r in rows],
                    [LABELS.index(r["Sentiment"]) for r in rows], [r["Dialogue_ID"] for r in rows])


def mosi(encoder: Encoder, path: Path) -> Texts:
    """MOSI's utterances, in the order of each video."""
    rows = sorted(read_csv(path),
                  key=lambda r: (r["video"], int(r["id"].rsplit("_", 1)[1])))
    return texts_of(encoder, [r["text"] for r in rows], [LABELS.index(r["label"]) for r in rows],
                    [r["video"] for r in rows], BINARY, binary=True)


def presumed_neutral(encoder: Encoder, data: Path, rng: np.random.Generator) -> Texts:
    """Sentences of lectures (VT-SSum) and cooking videos (YouCook2), in order."""
    passages: list[tuple[str, list[str]]] = []
    with gzip.open(data / "vtssum" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        for index, line in enumerate(file):
            if index % 200 == 0:
                passages.append((f"lecture {index}", json.loads(line)["text"][:6]))
    cooking: dict[str, list[str]] = {}
    for row in read_csv(data / "youcook2" / "asr_sentences.csv"):
        sentences = cooking.setdefault(row["video_id"], [])
        if len(sentences) < 8:
            sentences.append(row["Sentence"])
    passages += [(f"cooking {video}", sentences) for video, sentences in cooking.items()]
    rng.shuffle(passages)  # type: ignore[arg-type]
    texts = [text for _, sentences in passages for text in sentences]
    groups = [name for name, sentences in passages for _ in sentences]
    return texts_of(encoder, texts, [1] * len(texts), groups, WEAK_NEUTRAL)


def text_loss(logits: Tensor, texts: Texts) -> Tensor:
    """Cross-entropy over three classes, over two where only these are known."""
    three = F.cross_entropy(logits, texts.labels, reduction="none")
    two = F.cross_entropy(logits[:, [0, 2]], texts.labels.clamp(0, 2) // 2, reduction="none")
    return (torch.where(texts.binary, two, three) * texts.weights).sum() / texts.weights.sum()


def train(module: nn.Module, size: int, loss: Callable[[Tensor], Tensor], seed: int,
          epochs: int, learning_rate: float, decay: float, batch: int = 512) -> None:
    """Minimise `loss(indices)` with AdamW and a one-cycle schedule."""
    torch.manual_seed(seed)
    steps = epochs * -(-size // batch)
    optimiser = torch.optim.AdamW(module.parameters(), learning_rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps + 1)
    module.train()
    for _ in range(epochs):
        for index in torch.randperm(size).split(batch):
            optimiser.zero_grad()
            loss(index).backward()
            optimiser.step()
            schedule.step()
    module.eval()


def train_text(texts: Texts, seed: int) -> TextSentiment:
    torch.manual_seed(seed)
    model = TextSentiment(texts.inputs.shape[-1])

    def loss(index: Tensor) -> Tensor:
        part = Texts(texts.inputs[index], texts.labels[index], texts.groups, texts.weights[index],
                     texts.binary[index])
        return text_loss(model(part.inputs), part)

    train(model, len(texts.labels), loss, seed, epochs=14, learning_rate=1e-3, decay=0.05)
    return model


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


def folds(groups: np.ndarray, count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    names = np.unique(groups)
    number = dict(zip(names, rng.permutation(len(names)) % count, strict=True))
    fold = np.array([number[name] for name in groups])
    for k in range(count):
        yield fold == k


@torch.no_grad()
def logits_of(model: nn.Module, inputs: Tensor) -> Tensor:
    result: Tensor = model(inputs)
    return result


def do_text(encoder: Encoder, data: Path, seed: int) -> tuple[TextSentiment, dict[str, Any]]:
    """Train and measure the text model."""
    rng = np.random.default_rng(seed)
    spoken = meld(encoder, data / "sentiment" / "meld" / "train_sent_emo.csv")
    dev = meld(encoder, data / "sentiment" / "meld" / "dev_sent_emo.csv")
    reviews = mosi(encoder, data / "sentiment" / "mosi" / "transcripts.csv")
    plain = presumed_neutral(encoder, data, rng)
    held = next(folds(spoken.groups, 6, rng))
    held_plain = next(folds(plain.groups, 4, rng))
    base = spoken.take(~held) + plain.take(~held_plain)

    right = np.zeros(len(reviews.labels), dtype=bool)
    for fold in folds(reviews.groups, 5, rng):
        part = reviews.take(fold)
        two = logits_of(train_text(base + reviews.take(~fold), seed), part.inputs)[:, [0, 2]]
        right[fold] = (two.argmax(1) * 2 == part.labels).numpy()

    model = train_text(base + reviews, seed)
    val = spoken.take(held)
    sharp = temperature(logits_of(model, val.inputs), lambda x: text_loss(x, val))
    p = (logits_of(model, dev.inputs) / sharp).softmax(1).numpy()
    alone = dev.inputs.clone()
    alone[:, 1:] = 0
    labels = dev.labels.numpy()
    single = logits_of(model, alone).argmax(1).numpy()
    neutral = logits_of(model, plain.take(held_plain).inputs).argmax(1).numpy() == 1
    measured = {
        "meld_dev_f1_weighted": bootstrap(
            dev.groups, lambda i: f1_weighted(labels[i], p.argmax(1)[i])),
        "meld_dev_f1_weighted_no_context": bootstrap(
            dev.groups, lambda i: f1_weighted(labels[i], single[i])),
        "meld_dev_calibration_error": round(calibration_error(p, labels), 4),
        "meld_val_f1_weighted": round(
            f1_weighted(val.labels.numpy(), logits_of(model, val.inputs).argmax(1).numpy()), 4),
        "mosi_accuracy_5_folds": bootstrap(reviews.groups, lambda i: float(right[i].mean())),
        "plain_sentences_called_neutral": bootstrap(
            plain.take(held_plain).groups, lambda i: float(neutral[i].mean())),
    }
    settings = {"width": model.linear.in_features, "hidden": model.output.in_features,
                "temperature": round(sharp, 3), "measured": measured}
    return model, settings


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
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    encoder = Encoder(arguments.cache, arguments.model)
    text, text_settings = do_text(encoder, arguments.data, arguments.seed)
    picture, picture_settings = do_picture(encoder, arguments.data)
    settings = {
        "task": "sentiment", "model": encoder.model_name,
        "model_fingerprint": encoder.fingerprint("sentiment"), "seed": arguments.seed,
        "text": text_settings, "picture": picture_settings,
        "trained_on": {"text": ["MELD", "MOSI", "VT-SSum", "YouCook2"], "picture": ["Flickr8k"]},
    }
    tensors = {f"text.{name}": value for name, value in text.state_dict().items()}
    tensors |= {f"picture.{name}": value for name, value in picture.state_dict().items()}
    save_head(arguments.out, tensors, settings)
    replace_block(arguments.docs, report(settings))
    print(json.dumps(settings, indent=1))


if __name__ == "__main__":
    main()
