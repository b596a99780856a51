"""Trains the head of `vbkit_qa`: a reader of transcripts, and the calibration of its scores.

    python recipes/heads/train_qa.py --data DATA --out plugins/vbkit_qa/weights

Data: TutorialVQA (Colas et al., LREC 2020), questions whose answer is a span of transcript
sentences. Readers start from an epoch on YouCook2 (Zhou et al., AAAI 2018), whose step sentences
ask for their moment. Numbers come from five-fold cross-validation over TutorialVQA's videos; the
same out-of-fold outputs fit the calibration. The scores of moments in the picture are calibrated
on Flickr8k's validation part: a caption is asked of small sets of pictures that hold its own
picture or do not.
"""

from __future__ import annotations

import argparse
import copy
import csv
import gzip
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from encode import Encoder

from vbkit.heads import save_head
from vbkit_qa.calibration import Logistic, log_odds
from vbkit_qa.reader import (
    Reader,
    ReaderConfig,
    Spans,
    choose,
    evidence_of,
    longest_answer,
    overlap,
    span_evidence,
    spans_of,
)
from vbkit_qa.text import content_words, lexical_features, segment_features, stem, words
from vbkit_qa.training import span_loss
from vbkit_qa.visual import find_moments, standardise, visual_evidence

CONFIG = ReaderConfig()
FOLDS = 5
EPOCHS = 10
PRESENT = 0.4
"""Share of questions to the picture that are taken to have their answer in it."""


@dataclass
class Reading:
    """A transcript with questions to it, encoded. `answers` (Q, 2) are inclusive; -1 for none."""

    name: str
    texts: list[str]
    segments: Tensor
    questions: list[str]
    asked: Tensor
    keywords: Tensor
    answers: Tensor
    spans: Spans
    evidence: Tensor
    lexical: Tensor
    agree: Tensor
    scored: int


def reading(encoder: Encoder, name: str, texts: list[str], questions: list[str],
            answers: list[tuple[int, int]], scored: int) -> Reading:
    """Encode one transcript; its first `scored` questions count in the evaluation."""
    def encode(strings: list[str]) -> Tensor:
        return torch.from_numpy(encoder.text_embeddings(strings))

    segments, asked = encode(texts), encode(questions)
    keywords = encode([" ".join(content_words(question)) for question in questions])
    lexical = torch.from_numpy(lexical_features(questions, texts))
    structure = torch.from_numpy(segment_features(texts))
    spans = spans_of(len(texts), longest_answer(len(texts), CONFIG.max_span))
    gold = torch.tensor(answers)
    return Reading(
        name, texts, segments, questions, asked, keywords, gold, spans,
        evidence_of(asked, keywords, segments, lexical, structure), lexical,
        overlap(spans.first, spans.last, gold[:, :1], gold[:, 1:]), scored)


def tutorials(encoder: Encoder, data: Path) -> list[Reading]:
    """TutorialVQA; the titles of its answer passages serve as questions in training only."""
    folder = data / "tutorialvqa"
    asked = [row for part in ("train", "dev")
             for row in json.loads((folder / f"{part}.json").read_text())]
    out = []
    for video in json.loads((folder / "videos.json").read_text()):
        n = len(video["transcript"])
        rows = [(row["question"], (row["answer_start"], row["answer_end"])) for row in asked
                if row["video_id"] == video["video_id"]
                and 0 <= row["answer_start"] <= row["answer_end"] < n]
        titles = [(part["title"], (part["sentence_indexes"]["start"],
                                   part["sentence_indexes"]["end"]))
                  for part in video["segments"]]
        questions, answers = map(list, zip(*rows, *titles, strict=True))
        out.append(reading(encoder, video["video_id"], video["transcript"], questions, answers,
                           len(rows)))
    return out


def recipes(encoder: Encoder, data: Path) -> list[Reading]:
    """YouCook2: steps with times against timed sentences."""
    folder = data / "youcook2"
    with gzip.open(folder / "annotations_trainval.json.gz") as file:
        database = json.load(file)["database"]
    lines: dict[str, list[tuple[float, str]]] = {}
    with (folder / "asr_sentences.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            seconds = 0.0
            for part in row["TimeStamp"].split(":"):
                seconds = 60 * seconds + float(part)
            text = row["Sentence"].replace(" '", "'").replace(" n't", "n't").replace(" ,", ",")
            lines.setdefault(row["video_id"], []).append((seconds, text))
    out = []
    for name, rows in sorted(lines.items()):
        if name not in database or len(rows) < 12:
            continue
        start = np.array([row[0] for row in rows])
        end = np.minimum(np.append(start[1:], start[-1] + 5), start + 12)
        questions, answers = [], []
        for step in database[name]["annotations"]:
            low, high = step["segment"]
            shared = np.minimum(end, high) - np.maximum(start, low)
            inside = np.flatnonzero(shared > 0.5 * np.minimum(end - start, high - low))
            if len(inside):
                questions.append(step["sentence"])
                answers.append((int(inside[0]), int(inside[-1])))
        if questions:
            out.append(reading(encoder, name, [row[1] for row in rows], questions, answers,
                               len(questions)))
    return out


def train(items: list[Reading], seed: int, epochs: int, start: Reader | None = None,
          rate: float = 2e-3, decay: float = 0.05) -> Reader:
    """A reader, from scratch or from `start`; its weights are a mean over the last steps."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    reader = Reader(CONFIG) if start is None else copy.deepcopy(start)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=rate, weight_decay=decay)
    order = [items[i] for _ in range(epochs) for i in random.permutation(len(items))]
    steps = len(order) // 2
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1,
                                                   pct_start=0.15)
    mean: dict[str, Tensor] | None = None
    reader.train()
    for step in range(steps):
        total = torch.zeros(())
        for item in order[2 * step: 2 * step + 2]:
            n = len(item.questions)
            chosen = torch.from_numpy(random.choice(n, min(n, 16), replace=False))
            total = total + span_loss(reader, item, item.agree, chosen) / 2
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step > 0.7 * steps:
            state = reader.state_dict()
            if mean is None:
                mean = copy.deepcopy(state)
            for name, value in mean.items():
                value += (state[name] - value) * 0.02
    if mean is not None:
        reader.load_state_dict(mean)
    return reader.eval()


@torch.no_grad()
def answer(readers: list[Reader], item: Reading, rows: Tensor) -> list[dict[str, Any]]:
    """The best answer to some questions of one transcript, with what calibration sees."""
    scores = torch.stack([
        reader.score_spans(reader(item.asked[rows], item.segments, item.evidence[rows]),
                           item.spans).log_softmax(1) for reader in readers]).mean(0)
    out = []
    for k, row in enumerate(rows.tolist()):
        first, last, mass = choose(scores[k], item.spans, 1)[0]
        seen = span_evidence(first, last, mass, scores[k], item.spans, item.asked[row],
                             item.segments, item.lexical[row])
        gold = item.answers[row]
        iou = float(overlap(torch.tensor(first), torch.tensor(last), gold[0], gold[1]))
        answerable = int(gold[0]) >= 0
        out.append({"video": item.name, "iou": iou if answerable else 0.0, "span": seen.span,
                    "subject": seen.subject, "answerable": answerable,
                    "inside": bool(gold[0] <= seen.best <= gold[1])})
    return out


def cropped(encoder: Encoder, item: Reading, random: np.random.Generator) -> Reading:
    """A stretch of a transcript, for calibration: some of its questions lose their answer.

    Half of the stretches are laid around an answer, so that short ones hold it as often as not.
    """
    n = len(item.texts)
    size = int(np.clip(np.round(np.exp(random.uniform(0, np.log(n)))), 1, n))
    start = int(random.integers(0, n - size + 1))
    if random.random() < 0.5:
        first, last = item.answers[int(random.integers(item.scored))].tolist()
        size = min(n, max(size, 3 * (last - first) + 1))
        start = int(random.integers(max(0, last - size + 1), min(first, n - size) + 1))
    rows = random.permutation(item.scored)
    whole, apart = [], []
    for row in rows:
        first, last = item.answers[row].tolist()
        if (first >= start and last < start + size
                and last - first < longest_answer(size, CONFIG.max_span)):
            whole.append((item.questions[row], (first - start, last - start)))
        elif last < start or first >= start + size:
            apart.append((item.questions[row], (-1, -1)))
    kept = whole[:6] + apart[:6]
    if not kept:
        return cropped(encoder, item, random)
    questions, gold = map(list, zip(*kept, strict=True))
    return reading(encoder, item.name, item.texts[start: start + size], questions, gold,
                   len(questions))


def mismatched(encoder: Encoder, item: Reading, others: list[Reading],
               random: np.random.Generator) -> Reading:
    """Questions to other videos, put to a stretch of this one."""
    n = len(item.texts)
    size = n if random.random() < 0.3 else int(np.ceil(np.exp(random.uniform(0, np.log(n)))))
    start = int(random.integers(0, n - size + 1))
    asked = [others[i].questions[random.integers(others[i].scored)]
             for i in random.choice(len(others), min(8, len(others)), replace=False)]
    return reading(encoder, item.name, item.texts[start: start + size], asked,
                   [(-1, -1)] * len(asked), len(asked))


def fit(rows: np.ndarray, right: np.ndarray, weight: np.ndarray | None = None,
        decay: float = 1e-3) -> Logistic:
    """Weighted logistic regression on standardised values, returned for plain ones."""
    x = torch.from_numpy(rows).double()
    y = torch.from_numpy(right).double()
    w = torch.ones_like(y) if weight is None else torch.from_numpy(weight).double()
    mean, spread = x.mean(0), x.std(0) + 1e-6
    x = (x - mean) / spread
    parameters = torch.zeros(x.shape[1] + 1, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = x @ parameters[:-1] + parameters[-1]
        value = (torch.nn.functional.binary_cross_entropy_with_logits(logits, y, w)
                 + decay * (parameters[:-1] ** 2).sum())
        value.backward()
        return value

    optimizer.step(closure)
    slope = parameters.detach()[:-1] / spread
    bias = float(parameters.detach()[-1] - (slope * mean).sum())
    return Logistic(tuple(round(float(v), 5) for v in slope), round(bias, 5))


def calibration_error(probability: np.ndarray, right: np.ndarray,
                      weight: np.ndarray | None = None, bins: int = 10) -> float:
    """Expected calibration error over equally filled bins."""
    w = np.ones(len(right)) if weight is None else weight
    parts = np.array_split(np.argsort(probability, kind="stable"), bins)
    return float(sum(abs((w[p] * (probability[p] - right[p])).sum()) for p in parts) / w.sum())


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve; ties count half."""
    from scipy.stats import rankdata

    rank = rankdata(score)
    n = int(positive.sum())
    return float((rank[positive].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))


def report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The numbers, with 95 % intervals from 1,000 bootstrap samples of videos."""
    iou = np.array([row["iou"] for row in rows])
    inside = np.array([row["inside"] for row in rows], float)
    names = np.array([row["video"] for row in rows])
    groups = [np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())]
    values = {"r1_iou30": iou >= 0.3, "r1_iou50": iou >= 0.5, "r1_iou70": iou >= 0.7,
              "mean_iou": iou, "best_segment_inside": inside}
    random = np.random.default_rng(0)
    samples = [np.concatenate([groups[i] for i in random.integers(0, len(groups), len(groups))])
               for _ in range(1000)]
    out: dict[str, Any] = {"questions": len(rows), "videos": len(groups)}
    for name, value in values.items():
        low, high = np.percentile([np.mean(value[s]) for s in samples], [2.5, 97.5])
        out[name] = [round(float(v) * 100, 1) for v in (np.mean(value), low, high)]
    return out


def visual(encoder: Encoder, data: Path, seed: int) -> tuple[Logistic, Tensor, dict[str, Any]]:
    """Calibration of moments in the picture, and embeddings of ordinary pictures to compare with.

    Half of the questions are put to a set of pictures with the caption's own one in it. A moment
    is right where it is that picture, or another whose captions say all that is asked. Half of the
    captions are cut short, as people ask shortly.
    """
    random = np.random.default_rng(seed)
    folder = data / "flickr8k"
    with (folder / "captions.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    pictures = sorted({row["image"] for row in table if row["split"] == "val"})
    train_pictures = sorted({row["image"] for row in table if row["split"] == "train"})
    (images,) = [path for path in folder.iterdir() if path.is_dir()]
    embedded = torch.from_numpy(
        encoder.clip_embeddings([images / name for name in pictures])[0])
    plain = [images / train_pictures[i] for i in random.choice(len(train_pictures), 160, False)]
    classes = sorted((data / "imagenet_sample").rglob("*.jpg"))
    plain += [classes[i] for i in random.choice(len(classes), 96, replace=False)]
    background = torch.from_numpy(encoder.clip_embeddings(plain)[0])
    place = {name: i for i, name in enumerate(pictures)}
    said: list[set[str]] = [set() for _ in pictures]
    for row in table:
        if row["split"] == "val":
            said[place[row["image"]]].update(map(stem, words(row["caption"])))
    captions = [(place[row["image"]], row["caption"].strip(" .").lower()) for row in table
                if row["split"] == "val"]
    asked = [captions[i] for i in random.choice(len(captions), min(2500, len(captions)), False)]
    phrases = []
    for _, text in asked:
        tokens = text.split()
        phrases.append(" ".join(tokens[: int(random.integers(2, 8))])
                       if random.random() < 0.5 else text)
    vectors = torch.from_numpy(encoder.text_embeddings(phrases))
    seen, right, fold, length = [], [], [], []
    for k, (own, _) in enumerate(asked):
        size = int(random.choice([1, 1, 2, 5, 10, 30, 80]))
        others = random.choice(len(pictures), size, replace=False)
        others = others[others != own][:size]
        present = bool(random.random() < 0.5)
        shown = np.append(others[: size - 1], own) if present else others
        if not len(shown):
            continue
        similarity = embedded[shown] @ vectors[k]
        z = standardise(similarity, background @ vectors[k])
        moment = find_moments(similarity, z, 1, 1)[0]
        seen.append(visual_evidence(moment, len(shown)))
        length.append(min(len(phrases[k].split()), 8))
        asked_for = set(map(stem, content_words(phrases[k])))
        right.append(shown[moment.best] == own or asked_for <= said[shown[moment.best]])
        fold.append(own % FOLDS)
    x, y, folds = np.array(seen), np.array(right, float), np.array(fold)
    # Short phrases ("a man") fit many of these pictures by chance, as they would not elsewhere.
    weight = np.ones(len(y))
    for value in set(length):
        of = np.array(length) == value
        share = y[of].mean()
        weight[of] = np.where(y[of] > 0, PRESENT / share, (1 - PRESENT) / (1 - share))
    probability = np.zeros(len(y))
    for k in range(FOLDS):
        model = fit(x[folds != k], y[folds != k], weight[folds != k])
        probability[folds == k] = [model(row) for row in x[folds == k]]
    numbers = {"pairs": len(y), "right": round(float(y.mean()), 3),
               "auroc": round(auroc(probability, y > 0), 3),
               "ece": round(calibration_error(probability, y, weight), 3)}
    return fit(x, y, weight), background, numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path(".cache/heads"))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--members", type=int, default=2, help="readers whose scores are averaged")
    parser.add_argument("--cooking", type=int, default=1, help="epochs on YouCook2 beforehand")
    parser.add_argument("--curve", action="store_true", help="also a learning curve in videos")
    arguments = parser.parse_args()
    run(Encoder(arguments.cache, arguments.model), arguments)


def run(encoder: Encoder, arguments: argparse.Namespace) -> None:
    """Train, evaluate, calibrate and write the head; prints the numbers as JSON."""
    videos, cooking = tutorials(encoder, arguments.data), recipes(encoder, arguments.data)
    seed = arguments.seed
    order = np.random.default_rng(123).permutation(len(videos))
    random = np.random.default_rng(seed)
    plain, doubtful = [], []
    curve: dict[int, list[dict[str, Any]]] = {}
    cooks = [train(cooking, seed + member, arguments.cooking) if arguments.cooking else None
             for member in range(arguments.members)]

    def readers_of(items: list[Reading], epochs: int = EPOCHS) -> list[Reader]:
        return [train(items, seed + member, epochs, start) for member, start in enumerate(cooks)]

    for fold in range(FOLDS):
        test = [videos[i] for i in order[fold::FOLDS]]
        rest = [videos[i] for i in order if i not in set(order[fold::FOLDS])]
        readers = readers_of(rest)
        for item in test:
            plain += answer(readers, item, torch.arange(item.scored))
            elsewhere = [other for other in test if other is not item] + cooking[fold::FOLDS]
            for _ in range(6):
                for part in (cropped(encoder, item, random),
                             mismatched(encoder, item, elsewhere, random)):
                    doubtful += answer(readers, part, torch.arange(part.scored))
        for size in (5, 10, 20, 30) if arguments.curve else ():
            few = readers_of(rest[:size], EPOCHS * (len(rest) + size) // (2 * size))
            for item in test:
                curve.setdefault(size, [])
                curve[size] += answer(few, item, torch.arange(item.scored))
        print(f"fold {fold}: {report(plain)}", file=sys.stderr, flush=True)
    everything = plain + doubtful
    span = np.array([row["span"] for row in everything])
    subject = np.array([row["subject"] for row in everything])
    right = np.array([row["iou"] >= 0.5 for row in everything], float)
    able = np.array([row["answerable"] for row in everything])
    # Questions to whole videos, which most are, weigh more than those to stretches and wrong ones.
    weight = np.concatenate([np.full(len(plain), 0.7 / len(plain)),
                             np.full(len(doubtful), 0.3 / len(doubtful))]) * len(everything)
    balance = np.where(able, 0.5 / able.sum(), 0.5 / (~able).sum()) * len(everything)
    fold_of = {videos[i].name: k % FOLDS for k, i in enumerate(order)}
    folds = np.array([fold_of[row["video"]] for row in everything])

    def calibrate(train_on: np.ndarray, use_on: np.ndarray,
                  ) -> tuple[Logistic, Logistic, np.ndarray, np.ndarray]:
        """Fits P(right span | answerable) and P(answerable), and applies them."""
        is_right = fit(span[train_on & able], right[train_on & able])
        is_found = fit(subject[train_on], able[train_on].astype(float), balance[train_on])
        found = np.array([is_found(row) for row in subject[use_on]])
        both = found * [is_right(row) for row in span[use_on]]
        return is_right, is_found, found, np.array([[log_odds(p)] for p in both])

    odds, p_able, p_right = np.zeros((len(right), 1)), np.zeros(len(right)), np.zeros(len(right))
    for fold in range(FOLDS):
        _, _, p_able[folds == fold], odds[folds == fold] = calibrate(folds != fold, folds == fold)
    for fold in range(FOLDS):
        of_score = fit(odds[folds != fold], right[folds != fold], weight[folds != fold])
        p_right[folds == fold] = [of_score(row) for row in odds[folds == fold]]
    is_right, is_found, _, _ = calibrate(folds >= 0, folds >= 0)
    shown, background, picture = visual(encoder, arguments.data, seed)
    n = len(plain)
    numbers = {
        "tutorialvqa": report(plain), "ece": round(calibration_error(p_right[:n], right[:n]), 3),
        "ece_with_wrong_videos": round(calibration_error(p_right, right, weight), 3),
        "auroc_right": round(auroc(p_right[:n], right[:n] > 0), 3),
        "auroc_answerable": round(auroc(p_able, able), 3),
        "answerable_said_no": round(float((p_able[:n] < 0.5).mean()), 3),
        "unanswerable_said_yes": round(float((p_able[~able] >= 0.5).mean()), 3),
        "picture": picture,
        "learning_curve": {size: report(rows) for size, rows in curve.items()},
    }
    tensors = {"visual.background": background}
    for member, reader in enumerate(readers_of(videos)):
        tensors |= {f"reader.{member}.{name}": value
                    for name, value in reader.state_dict().items()}
    save_head(arguments.out, tensors, {
        "model": encoder.model_name, "model_fingerprint": encoder.fingerprint("qa"),
        "language": "en",
        "reader": asdict(CONFIG), "members": arguments.members,
        "right": is_right.to_settings(), "found": is_found.to_settings(),
        "score": fit(odds, right, weight).to_settings(), "shown": shown.to_settings(),
        "validation": numbers, "seed": seed,
        "data": "TutorialVQA (CC BY-NC 4.0), YouCook2 annotations (Apache-2.0), Flickr8k "
                "(research use)",
    })
    print(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
