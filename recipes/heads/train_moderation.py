"""Train the moderation head that `vbkit_moderation` ships, and measure it.

    python recipes/heads/train_moderation.py --data DATA \
        --out plugins/vbkit_moderation/weights --cache .cache/heads \
        --branches .cache/branches --motion .cache/motion

Pictures and clips: guns and fire against ordinary pictures (Flickr8k, ImageNet, the normal
pictures of the fire set) and ordinary clips; fights against the surveillance scenes without one
and ordinary clips. What could be told by its origin alone, because positives come from one
collection, meets negatives of several. Near-copies stay on one side of a split; fight clips are
split by blocks of neighbouring numbers, since neighbours share a scene.

Pictures are cut into five folds, and a model trained on four scores the fifth. What a fight looks
like in motion was learnt with the motion network (recipes/motion), by a network for each fold too;
here its linear map is only taken over. Text was trained by
`branches.py`, once without a fifth of each set, which is scored by it. From these scores come the
calibration (Platt, at one positive in ten), the thresholds and the measured numbers. The shipped
weights are trained on all folds. Threats are a linear map of what the shipped branch reads and of
the shared embedding beside it, as the branch forgets what is of no use to find insults. It is
learnt from labels of our own (`threats.py`), calibrated and given thresholds in five folds, and
measured on a quarter that none of this reads. What a set itself keeps for validation (TweetEval
val, MultiHateClip valid, Flickr8k val) trains nothing.

Prints one JSON object of measured numbers, which is also kept in the head's settings.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from branches import MODERATION_BRANCH, branch_tensors, moderation_texts
from encode import MEANS, Encoder
from report import markdown_table, replace_block
from safetensors.torch import load_file
from threats import HELD, Texts, labelled, ordinary, states, written
from torch import Tensor

import vbkit
from vbkit.heads import save_head
from vbkit_moderation.model import VisualModel, supported

FOLDS = 5
PRIOR = 0.1
"""Share of positives at which scores are calibrated."""
STILL, MOVING, TEXT = ("fire", "gun"), ("fight",), ("hate", "offensive")
THREAT = "threat"
UNKNOWN = -1
FALSE_ALARMS = {"fire": 0.011, "gun": 0.011, "fight": 0.01, "hate": 0.01, "offensive": 0.02,
                "threat": 0.01}
"""Share of ordinary videos (pictures, sentences; for threats passages) that `review` may flag."""
SCENE_ALARMS = 0.25
"""Share of surveillance scenes without a fight that `review` may flag for one, at most."""
LOOK = 0.5
"""Probability of the setting from which on motion is looked at (0.3 to 0.5: the same accuracy)."""
BLOCK_PRECISION = 0.99
"""Precision that `block` must reach with one positive in ten; else it is never used."""

SHOWS = {
    "gun": (
        r"\b(guns?|rifles?|pistols?|weapons?|shotguns?|paintball|soldiers?)\b",
        r"rifle|revolver|holster|cannon|military_uniform|bulletproof",
    ),
    "fire": (
        r"\b(fires?|flames?|bonfires?|campfires?|fireworks?|torch|torches|burning|sparklers?)\b",
        r"volcano|torch|stove|candle|jack-o|matchstick|lighter|fire_screen",
    ),
}
"""Ordinary pictures that may show the thing: by words in captions, by ImageNet class."""
CLIPS_WITH = {"fire": ("6AXZJTgpusY.3.mp4", "Kb8ON0iCs38.97.mp4", "Vg7WOOQrErw.28.mp4"),
              "fight": ("h4RJ0Kv8n_Y.75.mp4",)}
"""Captioned clips of lava, a rocket's launch, welding, a fight in a game: neither one nor other."""


@dataclass
class Samples:
    """Clips (or sentences) with what is known of them.

    Args:
        features: (N, width).
        video: (N,) which video or picture each is of, unique over all sources.
        fold: (N,) 0 to 4; -1 trains nothing.
        labels: by category, (N,) 1, 0 or UNKNOWN.
        source: (N,) name of the set.
        motion: (N, M) of clips, by the motion network of their fold; NaN where there is none.
    """

    features: Tensor
    video: np.ndarray
    fold: np.ndarray
    labels: dict[str, np.ndarray]
    source: np.ndarray
    motion: Tensor | None = None


@dataclass
class Collector:
    """Joins sets into `Samples`."""

    categories: tuple[str, ...]
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray], str]] = field(
        default_factory=list)
    videos: int = 0

    def add(self, source: str, features: np.ndarray, video: np.ndarray, fold: np.ndarray,
            **labels: np.ndarray | int) -> None:
        """Add a set: `video` and `labels` for each row, `fold` for each row."""
        count = len(features)
        full = {name: np.broadcast_to(np.asarray(labels.get(name, UNKNOWN)), count)
                for name in self.categories}
        self.parts.append((features, video + self.videos, fold, full, source))
        self.videos += int(video.max()) + 1 if count else 0

    def samples(self) -> Samples:
        parts = self.parts
        return Samples(
            torch.from_numpy(np.concatenate([p[0] for p in parts])),
            np.concatenate([p[1] for p in parts]), np.concatenate([p[2] for p in parts]),
            {name: np.concatenate([p[3][name] for p in parts]) for name in self.categories},
            np.concatenate([np.full(len(p[0]), p[4]) for p in parts]),
        )


def folds_of(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A fold for each row; rows of one group share it."""
    _, numbers = np.unique(groups, return_inverse=True)
    of_group: np.ndarray = (rng.permutation(int(numbers.max()) + 1) % FOLDS)[numbers]
    return of_group


def near_copies(features: np.ndarray, similarity: float = 0.92) -> np.ndarray:
    """Groups of pictures whose features are nearly the same."""
    from scipy.sparse.csgraph import connected_components

    mean = features[:, : features.shape[1] // 2]
    unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    groups: np.ndarray = connected_components(unit @ unit.T > similarity)[1]
    return groups


def motion_of(encoder: Encoder, paths: Sequence[Path], network: Path) -> list[Tensor]:
    """(C, M) of each video's clips, by a motion network that is not the model's own."""
    with tempfile.TemporaryDirectory() as folder:
        for file in encoder.engine.bundle.path.iterdir():
            (Path(folder) / file.name).symlink_to(file)
        own = Path(folder) / "motion.safetensors"
        own.unlink(missing_ok=True)
        own.symlink_to(network.resolve())
        engine = vbkit.Engine(model=folder)
        rows = []
        for features in engine.encode(paths, needs={"clip_times", "motion"}):
            if features.error is not None:
                raise features.error
            rows.append(features.motion(range(len(features.clip_times))).cpu())
        return rows


def look_at_motion(samples: Samples, encoder: Encoder, clips: dict[str, Sequence[Path]],
                   networks: Path) -> None:
    """Fill in `samples.motion` of the sets of `clips`, each fold's by its network."""
    for source, paths in clips.items():
        rows = np.flatnonzero(samples.source == source)
        first = int(samples.video[rows].min())
        for fold in np.unique(samples.fold[rows]):
            held = rows[samples.fold[rows] == fold]
            videos = np.unique(samples.video[held])
            found = torch.cat(motion_of(encoder, [paths[video - first] for video in videos],
                                        networks / f"fold-{fold}.safetensors"))
            if samples.motion is None:
                samples.motion = torch.full((len(samples.video), found.shape[1]), torch.nan)
            samples.motion[torch.as_tensor(held)] = found


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def visual_samples(encoder: Encoder, data: Path, rng: np.random.Generator,
                   networks: Path) -> Samples:
    """All pictures and clips, with folds, and the motion of the clips."""
    collector = Collector((*STILL, *MOVING))

    guns = sorted((data / "moderation" / "guns").iterdir())
    x = encoder.image_features(guns)
    collector.add("guns", x, np.arange(len(x)), folds_of(near_copies(x), rng), gun=1, fire=0)

    fires = sorted((data / "moderation" / "fire").iterdir())
    x = encoder.image_features(fires)
    burns = np.array(["__fire_images__" in path.name for path in fires])
    collector.add("fire", x[burns], np.arange(burns.sum()), folds_of(near_copies(x[burns]), rng),
                  fire=1, gun=0)
    collector.add("fire_normal", x[~burns], np.arange((~burns).sum()),
                  folds_of(near_copies(x[~burns]), rng), fire=0, gun=0)

    captions: dict[str, str] = {}
    split: dict[str, str] = {}
    for row in read_csv(data / "flickr8k" / "captions.csv"):
        captions[row["image"]] = captions.get(row["image"], "") + " " + row["caption"]
        split[row["image"]] = row["split"]
    names = sorted(captions)
    x = encoder.image_features([data / "flickr8k" / "images" / name for name in names])
    shown = {
        kind: np.array([bool(re.search(words, captions[n], re.IGNORECASE)) for n in names])
        for kind, (words, _) in SHOWS.items()
    }
    val = np.array([split[name] == "val" for name in names])
    fold = np.where(val, -1, rng.integers(0, FOLDS, len(names)))
    unsure = {kind: np.where(mask, UNKNOWN, 0) for kind, mask in shown.items()}
    collector.add("flickr8k", x, np.arange(len(x)), fold, **unsure)

    pictures = sorted((data / "imagenet_sample").iterdir())
    x = encoder.image_features(pictures)
    unsure = {
        kind: np.where([bool(re.search(classes, p.name)) for p in pictures], UNKNOWN, 0)
        for kind, (_, classes) in SHOWS.items()
    }
    collector.add("imagenet", x, np.arange(len(x)), rng.integers(0, FOLDS, len(x)), **unsure)

    clips = sorted((data / "captioned_clips").glob("*.mp4"))
    x, video = encoder.video_features(clips)
    unsure = {
        kind: np.where([clips[v].name in CLIPS_WITH.get(kind, ()) for v in video], UNKNOWN, 0)
        for kind in (*STILL, *MOVING)
    }
    collector.add("captioned_clips", x, video, folds_of(np.arange(len(clips)), rng)[video],
                  **unsure)

    scenes = [*sorted((data / "moderation" / "fight_clips" / "fight").iterdir()),
              *sorted((data / "moderation" / "fight_clips" / "noFight").iterdir())]
    x, video = encoder.video_features(scenes)
    fights = np.array([path.parent.name == "fight" for path in scenes]).astype(int)
    numbers = np.array([int(re.sub(r"\D", "", path.stem)) for path in scenes])
    block = ((numbers - 1) // 24).clip(0, FOLDS - 1)  # 120 of each kind, in five blocks
    # Whether a surveillance scene shows a gun is not known, but hardly any does.
    collector.add("fight_clips", x, video, block[video], fight=fights[video], fire=0,
                  gun=np.where(fights[video] == 1, UNKNOWN, 0))
    samples = collector.samples()
    look_at_motion(samples, encoder, {"captioned_clips": clips, "fight_clips": scenes}, networks)
    return samples


def text_samples(data: Path, branches: Path) -> tuple[Samples, np.ndarray]:
    """Sentences that the branch `moderation-0` did not learn from, and its logits of them."""
    said = moderation_texts(data)
    with np.load(branches / "moderation-0.npz") as stored:
        index, logits = stored["index"], stored["logits"]
    labels = {name: said.target[index, column].astype(int) for column, name in enumerate(TEXT)}
    return Samples(torch.zeros(len(index), 0), np.arange(len(index)), said.fold[index], labels,
                   said.source[index]), logits


def weights_of(labels: Tensor, share: float) -> Tensor:
    """Weights by which positives make up `share` of the known rows, with mean one over these."""
    known = labels >= 0
    positive = labels == 1
    p, n = positive.sum().clamp(min=1), (known & ~positive).sum().clamp(min=1)
    weight = torch.where(positive, share / p, (1 - share) / n) * known
    result: Tensor = weight * (p + n)
    return result


def masked_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy over known labels."""
    finite = torch.isfinite(logits)
    each = F.binary_cross_entropy_with_logits(
        torch.where(finite, logits, 0.0), labels.clamp(min=0).float(), reduction="none")
    weights = weights * finite
    return (each * weights).sum() / weights.sum().clamp(min=1e-6)


def train_visual(samples: Samples, rows: np.ndarray, seed: int, fight: Path) -> VisualModel:
    """Train linear maps on `rows`, by full batches; that of motion is the file `fight`."""
    torch.manual_seed(seed)
    index = torch.as_tensor(rows)
    x = samples.features[index]
    known = load_file(fight)
    model = VisualModel(MEANS, known["weight"].shape[1], len(STILL), len(MOVING))
    model.motion.load_state_dict(known)
    model.mean.copy_(x[:, : model.width].mean(0))
    model.scale.copy_(x[:, : model.width].std(0) + 0.05)
    means = model.standardised(x)
    labels = torch.from_numpy(np.stack([samples.labels[name][rows] for name in STILL], 1))
    fit_linear(model.still, means, labels, 3e-2)
    # Motion was learnt among scenes of one kind, fight or not; the kind is learnt apart.
    alike = torch.from_numpy(samples.source[rows] == "fight_clips")
    fit_linear(model.scene, means, alike.long()[:, None], 3e-2, 0.5)
    return model.eval()


def fit_linear(part: torch.nn.Linear, x: Tensor, labels: Tensor, decay: float,
               share: float = 0.25) -> None:
    """Logistic regression of every column of `labels`, positives counted as `share`.

    `decay` is chosen by hand: there are more inputs than positives.
    """
    weights = torch.stack([weights_of(column, share) for column in labels.T], 1)
    optimiser = torch.optim.LBFGS(part.parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        logits = part(x)
        loss = decay * part.weight.square().sum()
        for k in range(labels.shape[1]):
            loss = loss + masked_loss(logits[:, k], labels[:, k], weights[:, k])
        loss.backward()
        return loss

    optimiser.step(closure)


@torch.no_grad()
def out_of_fold(samples: Samples, train: Callable[[np.ndarray, Path], VisualModel],
                networks: Path) -> np.ndarray:
    """Logits (N, categories) by models that saw other folds; of fold -1 by one that saw all folds.

    Motion is looked at where the head does so.
    """
    assert samples.motion is not None
    logits = np.zeros((len(samples.video), len(STILL) + len(MOVING)))
    for fold in range(-1, FOLDS):
        held = torch.as_tensor(np.flatnonzero(samples.fold == fold))
        with torch.enable_grad():
            model = train(np.flatnonzero((samples.fold != fold) & (samples.fold >= 0)),
                          networks / f"fold-{max(fold, 0)}.fight.safetensors")
        features, motion = samples.features[held], samples.motion[held]
        looked = (model.setting(features) >= LOOK).any(1, keepdim=True)
        logits[held.numpy()] = model(features, torch.where(looked, motion, torch.nan)).numpy()
    return logits


def by_video(samples: Samples, logits: np.ndarray) -> np.ndarray:
    """Logits of clips judged with their neighbours, as the head does."""
    result = logits.copy()
    for video in np.unique(samples.video[samples.source == "captioned_clips"]):
        rows = np.flatnonzero(samples.video == video)
        result[rows] = supported(torch.from_numpy(logits[rows])).numpy()
    for video in np.unique(samples.video[samples.source == "fight_clips"]):
        rows = np.flatnonzero(samples.video == video)
        result[rows] = supported(torch.from_numpy(logits[rows])).numpy()
    return result


def platt(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Slope and offset of calibrated logits, positives counted as `PRIOR` (Platt, 1999)."""
    x, y = torch.from_numpy(logits), torch.from_numpy(labels)
    weight = weights_of(y, PRIOR).double()
    values = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([values], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        each = F.binary_cross_entropy_with_logits(
            values[0] * x + values[1], y.double(), reduction="none")
        loss = (each * weight).sum() / weight.sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    slope, offset = values.tolist()
    return round(slope, 5), round(offset, 5)


def interval(score: Callable[[np.ndarray], float], groups: np.ndarray,
             times: int = 300) -> list[float]:
    """`[score, low, high]`: the score and its 95 % bootstrap interval, groups redrawn."""
    rng = np.random.default_rng(0)
    _, numbers = np.unique(groups, return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(numbers))[:-1])
    alone = len(members) == len(groups)
    drawn = []
    for _ in range(times):
        chosen = rng.integers(0, len(members), len(members))
        drawn.append(score(chosen if alone else np.concatenate([members[k] for k in chosen])))
    low, high = np.nanquantile(np.array(drawn), [0.025, 0.975])
    return [round(float(v), 4) for v in (score(np.arange(len(groups))), low, high)]


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores)) if 0 < labels.sum() < len(labels) else np.nan


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(labels, scores)) if labels.any() else np.nan


def f1_macro(labels: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, average="macro"))


def per_video(samples: Samples, scores: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of the videos with one of `rows`: their greatest score and their greatest label index."""
    videos, numbers = np.unique(samples.video[rows], return_inverse=True)
    best = np.full(len(videos), -np.inf)
    np.maximum.at(best, numbers, scores[rows])
    first = np.zeros(len(videos), dtype=int)
    first[numbers[::-1]] = rows[::-1]
    return best, first


def thresholds(
    ordinary: dict[str, np.ndarray], positive: np.ndarray, negative: np.ndarray, alarms: float,
    least: float = 0.3,
) -> tuple[float, float | None]:
    """Scores for review and for block.

    Args:
        ordinary: by set, the greatest scores of ordinary videos. Of all together `review` may flag
            a share of `alarms`, of each set that of `STRICT`.
        positive, negative: greatest scores of labelled videos, for the precision of block.
        least: `review` is never lower.
    """
    everything = np.concatenate(list(ordinary.values()))
    review = float(np.quantile(everything, 1 - alarms))
    for name, values in ordinary.items():
        review = max(review, float(np.quantile(values, 1 - STRICT.get(name, 1.0))))
    review = max(review, least) + 0.002
    review = min(np.ceil(review * 100) / 100, 0.99)
    for candidate in np.arange(review + 0.1, 0.996, 0.01):
        hits, misses = (positive >= candidate).mean(), (negative >= candidate).mean()
        precision = PRIOR * hits / max(PRIOR * hits + (1 - PRIOR) * misses, 1e-9)
        clean_ = (everything >= candidate).mean() <= alarms / 10
        if hits >= 0.05 and precision >= BLOCK_PRECISION and clean_:
            return float(review), round(float(candidate), 2)
    return float(review), None


def common_threshold(samples: Samples, p: np.ndarray, name: str) -> float:
    """The threshold that holds across labelled sets: where none loses much against its own best.

    What counts is macro-F1 in the folds; sets with fewer than 30 positives are too small to have
    a say.
    """
    grid = np.arange(0.05, 0.6, 0.01)
    losses = []
    for source in np.unique(samples.source):
        rows = (samples.source == source) & (samples.labels[name] >= 0) & (samples.fold >= 0)
        y = samples.labels[name][rows]
        if 30 <= y.sum() < len(y):
            scores = np.array([f1_macro(y, p[rows] >= t) for t in grid])
            losses.append(scores.max() - scores)
    return float(grid[np.max(losses, 0).argmin()])


STRICT = {"captioned_clips": 0.011, "fire_normal": 0.02, "lectures": 0.01, "cooking": 0.01,
          "captions": 0.01, "conversations": 0.03, "dialogues": 0.015}
"""Sets that keep a rate of false alarms each by itself, whatever the others do."""

ORDINARY = {
    "fire": ("flickr8k", "imagenet", "fire_normal", "captioned_clips"),
    "gun": ("flickr8k", "imagenet", "fire_normal", "captioned_clips"),
    "fight": ("captioned_clips",),
    "hate": ("lectures", "cooking", "captions", "conversations"),
    "offensive": ("lectures", "cooking", "captions", "conversations"),
    "threat": ("lectures", "cooking", "dialogues", "reviews", "tutorials"),
}
"""Sets of ordinary pictures, clips and sentences, for thresholds."""


def settle(samples: Samples, logits: np.ndarray, names: Sequence[str], modality: str,
           text: bool) -> dict[str, Any]:
    """Calibration, thresholds and measured quality of each category, from out-of-fold logits."""
    settled: dict[str, Any] = {}
    for column, name in enumerate(names):
        labels = samples.labels[name]
        scored = np.isfinite(logits[:, column])
        # Text is calibrated on labelled sets; plain sentences alone would make it look sharp.
        known = (labels >= 0) & scored & (samples.fold >= 0)
        slope, offset = platt(logits[known, column], labels[known])
        p = 1 / (1 + np.exp(-(slope * np.where(scored, logits[:, column], -50) + offset)))
        plain = np.isin(samples.source, ORDINARY[name])
        rows = np.flatnonzero(plain & (labels == 0) & scored)
        ordinary, first = per_video(samples, p, rows)
        rows = np.flatnonzero((labels == 1) & scored)
        positive, _ = per_video(samples, p, rows)
        rows = np.flatnonzero((labels == 0) & scored & ~plain)
        others, others_first = per_video(samples, p, rows)
        sets = {str(source): ordinary[samples.source[first] == source]
                for source in np.unique(samples.source[first])}
        if name in MOVING:
            # Scenes of the same kind are where it would be wrong most often.
            scenes = others[samples.source[others_first] == "fight_clips"]
            sets = {"ordinary": ordinary}
            review, block = thresholds(sets, positive, np.concatenate([others, ordinary]),
                                       FALSE_ALARMS[name], 0.05)
            review = max(review, round(float(np.quantile(scenes, 1 - SCENE_ALARMS)) + 0.005, 2))
            # Above, where fights and scenes without one are told apart best.
            told = {t: (positive >= t).mean() - (scenes >= t).mean()
                    for t in np.arange(review, 0.8, 0.01).round(2).tolist()}
            review = max(told, key=lambda t: (told[t], t))
        else:
            review, block = thresholds(sets, positive, np.concatenate([others, ordinary]),
                                       FALSE_ALARMS[name],
                                       common_threshold(samples, p, name) if text else 0.3)
        settled[name] = {"calibration": [slope, offset], "review": review, "block": block,
                         "modality": modality,
                         "measured": measure(samples, p, scored, name, review, block, text)}
    return settled


def measure(samples: Samples, p: np.ndarray, scored: np.ndarray, name: str, review: float,
            block: float | None, text: bool) -> dict[str, Any]:
    """Measured quality of a category, from the probabilities `p` of what was `scored`."""
    labels = samples.labels[name]
    plain = np.isin(samples.source, ORDINARY[name])
    ordinary, first = per_video(samples, p, np.flatnonzero(plain & (labels == 0) & scored))
    positive, positive_first = per_video(samples, p, np.flatnonzero((labels == 1) & scored))
    others, others_first = per_video(
        samples, p, np.flatnonzero((labels == 0) & scored & ~plain))
    # Against ordinary material for things; against the labelled negatives for the rest.
    against, against_first = (ordinary, first) if name in STILL else (others, others_first)
    y = np.r_[np.ones(len(positive)), np.zeros(len(against))]
    s = np.r_[positive, against]
    where = np.r_[samples.video[positive_first], samples.video[against_first]]
    measured: dict[str, Any] = {
        "roc_auc": interval(lambda i, y=y, s=s: auroc(y[i], s[i]), where),
        "average_precision": interval(
            lambda i, y=y, s=s: average_precision(y[i], s[i]), where, 100),
        "recall_at_review": interval(
            lambda i, v=positive, t=review: float((v[i] >= t).mean()),
            samples.video[positive_first]),
        "recall_at_block": 0.0 if block is None else round(float((positive >= block).mean()),
                                                           4),
        "n_positive": len(positive), "n_negative": len(against),
    }
    hits, misses = (positive >= review).mean(), (against >= review).mean()
    measured["precision_at_review_one_in_ten"] = round(
        float(PRIOR * hits / max(PRIOR * hits + (1 - PRIOR) * misses, 1e-9)), 4)
    measured["false_alarms_at_review"] = {
        source: round(float((ordinary[samples.source[first] == source] >= review).mean()), 4)
        for source in ORDINARY[name] if (samples.source[first] == source).any()
    } | {
        source: round(
            float((others[samples.source[others_first] == source] >= review).mean()), 4)
        for source in np.unique(samples.source[others_first]).tolist()
    }
    if name == "fight":
        both = np.r_[positive, others]
        truth = np.r_[np.ones(len(positive)), np.zeros(len(others))]
        measured["accuracy"] = interval(
            lambda i, b=both, t=truth, m=review: float(((b[i] >= m) == t[i]).mean()),
            np.arange(len(both)))
    if text:
        measured["by_set"] = by_set(samples, p, name, review)
    return measured


def by_set(samples: Samples, p: np.ndarray, name: str, review: float) -> dict[str, Any]:
    """AUROC, and macro-F1 of `review`, on each labelled set."""
    result: dict[str, Any] = {}
    for source in np.unique(samples.source).tolist():
        rows = np.flatnonzero((samples.source == source) & (samples.labels[name] >= 0))
        y = samples.labels[name][rows]
        if not 0 < y.sum() < len(y):
            continue
        s = p[rows]
        held = samples.fold[rows] < 0
        result[source] = {
            "roc_auc": interval(lambda i, y=y, s=s: auroc(y[i], s[i]), np.arange(len(y)), 100),
            "f1_macro": interval(lambda i, y=y, s=s: f1_macro(y[i], s[i] >= review),
                                 np.arange(len(y)), 100),
            "accuracy": round(float(((s >= review) == y).mean()), 4),
            "n": len(y),
        }
        if held.any() and not held.all():
            result[source]["held_out"] = {
                "f1_macro": round(f1_macro(y[held], s[held] >= review), 4),
                "accuracy": round(float(((s[held] >= review) == y[held]).mean()), 4),
                "n": int(held.sum()),
            }
        best = max((f1_macro(y, s >= t), t) for t in np.linspace(0.02, 0.9, 45))
        result[source]["best_threshold"] = [round(float(best[1]), 2), round(float(best[0]), 4)]
    return result


DECAYS = (1e-2, 2e-2, 4e-2, 8e-2)
EMPHASES = (0.5, 1.0, 2.0)
"""For threats: penalties, and deviations of the embedding beside that of what the branch reads, of
which those with the greatest average precision in the folds are taken."""


def threat_map(texts: Texts, read: np.ndarray, embedded: np.ndarray, rows: np.ndarray,
               decay: float, emphasis: float) -> torch.nn.Linear:
    """Logistic regression of threats, from some of the rows.

    Args:
        texts: N sentences.
        read: (N, H), by the branch.
        embedded: (N, D), their shared embeddings.
        rows: to learn from.
        decay: penalty of squared weights.
        emphasis: deviation that the embeddings are given; the penalty bears less on a greater one.

    Returns:
        The map of both, (H + D) to 1.
    """
    both = [torch.from_numpy(x[rows]) for x in (read, embedded)]
    chosen = torch.cat(both, 1)
    mean = chosen.mean(0)
    scale = torch.cat([both[0].std(0) + 0.05, (both[1].std(0) + 0.005) / emphasis])
    part = torch.nn.Linear(chosen.shape[1], 1)
    torch.nn.init.zeros_(part.weight)
    torch.nn.init.zeros_(part.bias)
    fit_linear(part, (chosen - mean) / scale, torch.from_numpy(texts.threat[rows])[:, None],
               decay)
    with torch.no_grad():
        part.weight /= scale
        part.bias -= part.weight @ mean
    return part


def threats(encoder: Encoder, data: Path, branch: Path) -> tuple[dict[str, Any], torch.nn.Linear]:
    """Settings of the category and its map, (H + D) to 1, which all folds train."""
    known = labelled(data)
    texts = known + ordinary(data, known) + written()
    read = states(encoder, branch, texts.texts)
    embedded = encoder.text_embeddings(texts.texts)
    learn = np.flatnonzero(texts.fold != HELD)

    def logits_of(part: torch.nn.Linear, rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return part(torch.from_numpy(np.concatenate([read[rows], embedded[rows]], 1))).numpy()

    def samples_of(rows: np.ndarray) -> Samples:
        part = texts.part(rows)
        return Samples(torch.zeros(len(rows), 0), part.passage, part.fold,
                       {THREAT: part.threat}, part.source)

    said = learn[texts.source[learn] != "written"]
    best = -1.0
    for candidate in itertools.product(DECAYS, EMPHASES):
        tried = np.zeros((len(texts.texts), 1), np.float32)
        for fold in range(FOLDS):
            held = np.flatnonzero(texts.fold == fold)
            tried[held] = logits_of(threat_map(
                texts, read, embedded, learn[texts.fold[learn] != fold], *candidate), held)
        if (found := average_precision(texts.threat[said], tried[said, 0])) > best:
            best, chosen, logits = found, candidate, tried
    settled = settle(samples_of(said), logits[said], (THREAT,), "text", True)[THREAT]
    settled["decay"], settled["emphasis"] = chosen
    final = threat_map(texts, read, embedded, learn, *chosen)
    held = np.flatnonzero(texts.fold == HELD)
    slope, offset = settled["calibration"]
    p = 1 / (1 + np.exp(-(slope * logits_of(final, held)[:, 0] + offset)))
    samples = samples_of(held)
    settled["measured"] = measure(samples, p, np.ones(len(held), bool), THREAT,
                                  settled["review"], settled["block"], True)
    plain = np.isin(samples.source, ORDINARY[THREAT])
    settled["measured"]["roc_auc_ordinary_sentences"] = round(
        auroc(samples.labels[THREAT][plain | (samples.labels[THREAT] == 1)],
              p[plain | (samples.labels[THREAT] == 1)]), 4)
    return {THREAT: settled}, final


def report(settings: dict[str, Any]) -> str:
    """The measured numbers as Markdown tables."""
    categories = settings["categories"]
    overview = markdown_table(
        ("category", "AUROC", "AP", "with / without", "review at", "recall", "precision",
         "block at", "recall at block"),
        [(f"`{name}`", part["measured"]["roc_auc"], part["measured"]["average_precision"],
          f"{part['measured']['n_positive']} / {part['measured']['n_negative']}", part["review"],
          part["measured"]["recall_at_review"],
          part["measured"]["precision_at_review_one_in_ten"], part["block"] or "never",
          part["measured"]["recall_at_block"]) for name, part in categories.items()],
    )
    alarms = markdown_table(
        ("category", "material that does not show or say it", "flagged"),
        [(f"`{name}`", source.replace("_", " "), share) for name, part in categories.items()
         for source, share in part["measured"]["false_alarms_at_review"].items()],
    )
    sets = markdown_table(
        ("category", "set", "AUROC", "macro-F1 at review", "best threshold", "macro-F1 there", "n"),
        [(f"`{name}`", source.replace("_", " "), found["roc_auc"], found["f1_macro"],
          found["best_threshold"][0], found["best_threshold"][1], found["n"])
         for name, part in categories.items()
         for source, found in part["measured"].get("by_set", {}).items()],
    )
    return f"{overview}\n\nFlagged wrongly, at `review`:\n\n{alarms}\n\nText, by set:\n\n{sets}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("plugins/vbkit_moderation/weights"))
    parser.add_argument("--cache", type=Path, default=Path(".cache/heads"))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--docs", type=Path, default=Path("docs/tasks/moderation.md"))
    parser.add_argument("--branches", type=Path, default=Path(".cache/branches"),
                        help="what branches.py wrote")
    parser.add_argument("--motion", type=Path, default=Path(".cache/motion"),
                        help="what recipes/motion/train.py wrote")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    encoder = Encoder(arguments.cache, arguments.model)
    rng = np.random.default_rng(arguments.seed)
    seed = arguments.seed

    seen = visual_samples(encoder, arguments.data, rng, arguments.motion)
    logits = out_of_fold(seen, lambda rows, fight: train_visual(seen, rows, seed, fight),
                         arguments.motion)
    categories = settle(seen, by_video(seen, logits), (*STILL, *MOVING), "visual", False)
    visual = train_visual(seen, np.flatnonzero(seen.fold >= 0), seed,
                          arguments.motion / "all.fight.safetensors")

    said, logits = text_samples(arguments.data, arguments.branches)
    categories |= settle(said, logits, TEXT, "text", True)
    branch = arguments.branches / "moderation-all.safetensors"
    settled, threat = threats(encoder, arguments.data, branch)
    categories |= settled
    tensors = {f"visual.{name}": value for name, value in visual.state_dict().items()}
    tensors |= branch_tensors(branch, "text.")
    size = tensors["text.output.weight"].shape[1]
    for name, row in (("weight", threat.weight[:, :size]), ("bias", threat.bias)):
        output = tensors[f"text.output.{name}"]
        tensors[f"text.output.{name}"] = torch.cat([output, row.detach().to(output)])
    tensors["text.beside.weight"] = threat.weight[:, size:].detach()

    settings = {
        "task": "moderation", "model": encoder.model_name,
        "model_fingerprint": encoder.fingerprint("moderation"), "seed": seed, "prior": PRIOR,
        "false_alarms_wanted": FALSE_ALARMS,
        "visual": {"width": visual.width, "motion_width": visual.motion.in_features,
                   "categories": [*STILL, *MOVING], "moving": list(MOVING), "look": LOOK},
        "text": {"branch": asdict(MODERATION_BRANCH), "categories": [*TEXT, THREAT],
                 "embedded": {"width": threat.in_features - size, "categories": [THREAT]}},
        "categories": categories,
    }
    save_head(arguments.out, tensors, settings, int8=["text.branch."])
    replace_block(arguments.docs, report(settings))
    print(json.dumps(settings, indent=1))


if __name__ == "__main__":
    main()
