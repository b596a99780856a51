"""Train the text branches that the heads ship, on a GPU where there is one.

    python recipes/heads/branches.py TASK --data DATA --out .cache/branches

TASK is moderation, sentiment or summarisation. Each trains low-rank changes of the text encoder
(`vbkit.model.branch`) together with a small model on top, and writes

    OUT/moderation-all, OUT/sentiment, OUT/summarisation-all   .safetensors: what is shipped
    OUT/moderation-0, OUT/sentiment, OUT/summarisation-all     .npz: logits of what was not learnt

from which the recipes `train_*.py` calibrate, measure and write the heads.

A larger sentence encoder helps sentiment (`--teacher`, the folder of all-mpnet-base-v2): it is
fine-tuned on the same labels and judges tweets, lectures and sentences that people rated
(`--ratings`), from which a second branch learns, too (Hinton et al., 2015). The mean of the two
branches' changes is shipped, the second counted twice (Wortsman et al., ICML 2022). Neither helped
moderation.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import html
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vbkit.model import VideoBertModel, VideoBertProcessor
from vbkit.model.branch import BranchConfig, TextBranch, token_windows

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FOLDS = 5
UNKNOWN = -1.0
MODERATION_BRANCH = BranchConfig(layers=6, rank=8, window=0, segment_length=126)
SENTIMENT_BRANCH = BranchConfig(layers=6, rank=16, window=256, segment_length=126)
SUMMARISATION_BRANCH = BranchConfig(layers=6, rank=8, window=512, segment_length=62)
SUMMARISATION_RANK = 16
"""At which it is learnt; the changes are then cut to the branch's rank, which loses nothing."""


# Encoders: rows of word pieces in, hidden states out.


class Teacher(nn.Module):
    """An MPNet sentence encoder, all of whose layers learn."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        config = AutoConfig.from_pretrained(folder)
        self.model = AutoModel.from_config(config, add_pooling_layer=False)
        state = load_file(folder / "model.safetensors")
        self.model.load_state_dict(
            {name: state[name].float() for name in self.model.state_dict()})
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.cls, self.sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        self.pad_id = self.tokenizer.pad_token_id
        self.hidden_size = config.hidden_size

    def tokenize(self, texts: Sequence[str], most: int) -> list[list[int]]:
        rows = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [row[:most] for row in rows]

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state


class Student(nn.Module):
    """A branch of VideoBERT's text encoder."""

    def __init__(self, folder: Path, config: BranchConfig) -> None:
        super().__init__()
        from transformers import AutoTokenizer

        model = VideoBertModel.from_pretrained(folder, dtype=torch.float32)
        model = model.to(DEVICE).eval().requires_grad_(False)
        processor = VideoBertProcessor(AutoTokenizer.from_pretrained(folder))
        self.branch = TextBranch(model, processor, config)
        self.cls, self.sep = model.config.cls_token_id, model.config.sep_token_id
        self.pad_id = 0
        self.hidden_size = self.branch.hidden_size

    def tokenize(self, texts: Sequence[str], most: int) -> list[list[int]]:
        return [row[:most] for row in self.branch.processor.tokenize(texts)]

    def train(self, mode: bool = True) -> Student:
        super().train(mode)
        self.branch.train(mode)
        return self

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.branch(ids, mask)


def pad(rows: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    length = -(-max(map(len, rows)) // 8) * 8
    ids = np.full((len(rows), length), value, np.int64)
    mask = np.zeros((len(rows), length), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return torch.from_numpy(ids).to(DEVICE), torch.from_numpy(mask).to(DEVICE)


def segment_means(hidden: Tensor, owner: Tensor, count: int) -> Tensor:
    """(B, L, H) hidden states and (B, L) segment numbers (-1: none) -> (B, count, H) means."""
    one = F.one_hot(owner + 1, count + 1)[..., 1:].to(hidden.dtype)  # (B, L, count)
    total = one.transpose(1, 2) @ hidden
    return total / one.sum(1)[..., None].clamp(min=1)


def dropped(row: Sequence[int], share: float, rng: np.random.Generator) -> list[int]:
    """Word dropout: word pieces left out at random, at least one kept."""
    if share <= 0 or len(row) < 3:
        return list(row)
    keep = rng.random(len(row)) >= share
    if not keep.any():
        keep[rng.integers(len(row))] = True
    return [piece for piece, kept in zip(row, keep, strict=True) if kept]


@dataclass
class Passage:
    """Segments that are read together, with targets.

    Args:
        ids: word pieces of S segments.
        target: (S, K); UNKNOWN where it says nothing.
        weight: of the passage.
        kind: a number that losses may depend on.
        plain: (S, P) features beside the words, or None.
    """

    ids: list[list[int]]
    target: np.ndarray
    weight: float = 1.0
    kind: int = 0
    plain: np.ndarray | None = None


class Judge(nn.Module):
    """An encoder and a small model on the mean hidden states of segments."""

    def __init__(self, encoder: nn.Module, outputs: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(encoder.hidden_size, outputs)
        nn.init.normal_(self.output.weight, std=0.02)
        nn.init.zeros_(self.output.bias)

    def forward(self, ids: Tensor, mask: Tensor, owner: Tensor, count: int) -> Tensor:
        """Logits (B, count, K)."""
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
            hidden = self.encoder(ids, mask)
        means = segment_means(hidden.float(), owner, count)
        return self.output(self.dropout(means))


def batch_of(encoder: nn.Module, rows: Sequence[Sequence[Sequence[int]]],
             ) -> tuple[Tensor, Tensor, Tensor, int]:
    """Passages laid out as `[CLS] s1 [SEP] s2 [SEP] …`."""
    flat, owners = [], []
    for segments in rows:
        row, owner = [encoder.cls], [-1]
        for k, segment in enumerate(segments):
            row += [*segment, encoder.sep]
            owner += [k] * len(segment) + [-1]
        flat.append(row)
        owners.append(owner)
    ids, mask = pad(flat, encoder.pad_id)
    where = np.full(ids.shape, -1, np.int64)
    for i, owner in enumerate(owners):
        where[i, : len(owner)] = owner
    return ids, mask, torch.from_numpy(where).to(DEVICE), max(map(len, rows))


def batches(lengths: Sequence[int], tokens: int, rng: np.random.Generator | None,
            most: int = 256) -> list[list[int]]:
    """Indices in batches of about `tokens` word pieces, alike in length; shuffled with `rng`."""
    order = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    chunk = len(order) if rng is None else 4096
    out: list[list[int]] = []
    for start in range(0, len(order), chunk):
        part = sorted(order[start : start + chunk], key=lambda i: lengths[i])
        batch: list[int] = []
        for i in part:
            if batch and ((len(batch) + 1) * lengths[i] > tokens or len(batch) == most):
                out.append(batch)
                batch = []
            batch.append(int(i))
        out.append(batch)
    if rng is not None:
        rng.shuffle(out)
    return out


def size_of(ids: Sequence[Sequence[int]]) -> int:
    return 1 + sum(len(row) + 1 for row in ids)


def train(judge: Judge, items: list[Passage], loss: Callable[..., Tensor], *, epochs: float,
          rate: float, head_rate: float = 1e-3, tokens: int = 8192, word_dropout: float = 0.05,
          alone: float = 0.0, seed: int = 0, decay: float = 0.01, average: float = 0.5,
          name: str = "") -> Judge:
    """AdamW with a one-cycle schedule; the weights are a mean over the last steps.

    `alone`: how often one run of segments of a passage is cut out, down to a single one.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    body = [p for p in judge.encoder.parameters() if p.requires_grad]
    groups = [{"params": body, "lr": rate, "weight_decay": decay},
              {"params": judge.output.parameters(), "lr": head_rate, "weight_decay": decay}]
    groups += [{"params": [p for n, p in judge.named_parameters()
                           if not n.startswith(("encoder.", "output."))], "lr": head_rate,
                "weight_decay": decay}]
    groups = [group | {"params": list(group["params"])} for group in groups]
    groups = [group for group in groups if group["params"]]
    optimiser = torch.optim.AdamW(groups)
    lengths = [size_of(item.ids) for item in items]
    plan: list[list[int]] = []
    for _ in range(int(np.ceil(epochs))):
        plan += batches(lengths, tokens, rng)
    plan = plan[: int(len(plan) * epochs / np.ceil(epochs))]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [group["lr"] for group in groups], total_steps=len(plan) + 1, pct_start=0.1)
    learnt = [p for group in groups for p in group["params"]]
    mean: list[Tensor] | None = None
    began = time.perf_counter()
    judge.train()
    shown = 0.0
    for step, chosen in enumerate(plan):
        rows, targets = [], []
        for i in chosen:
            item = items[i]
            first, last = 0, len(item.ids)
            if alone and last > 1 and rng.random() < alone:
                first = int(rng.integers(last))
                last = min(last, first + int(rng.choice([1, 1, 2, 4])))
            rows.append([dropped(row, word_dropout, rng) for row in item.ids[first:last]])
            targets.append((item, first, last))
        ids, mask, owner, count = batch_of(judge.encoder, rows)
        logits = judge(ids, mask, owner, count)
        value = loss(logits, targets)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(learnt, 1.0)
        optimiser.step()
        schedule.step()
        shown = 0.98 * shown + 0.02 * float(value.detach()) if step % 10 == 0 else shown
        if step >= (1 - average) * len(plan) and step % 4 == 0:
            if mean is None:
                mean = [p.detach().clone() for p in learnt]
            for average_, p in zip(mean, learnt, strict=True):
                average_.lerp_(p.detach(), 0.05)
        if step % 200 == 0:
            print(f"{name} {step}/{len(plan)} loss {float(value):.4f} "
                  f"{time.perf_counter() - began:.0f} s", flush=True)
    if mean is not None:
        with torch.no_grad():
            for average_, p in zip(mean, learnt, strict=True):
                p.copy_(average_)
    return judge.eval()


@torch.no_grad()
def predict(judge: Judge, rows: Sequence[list[list[int]]], tokens: int = 32768) -> list[np.ndarray]:
    """Logits (S, K) of passages."""
    judge.eval()
    out: list[np.ndarray] = [np.zeros(0)] * len(rows)
    for chosen in batches([size_of(row) for row in rows], tokens, None):
        ids, mask, owner, count = batch_of(judge.encoder, [rows[i] for i in chosen])
        logits = judge(ids, mask, owner, count).float().cpu().numpy()
        for k, i in enumerate(chosen):
            out[i] = logits[k, : len(rows[i])]
    return out


def stacked(targets: Sequence[tuple[Passage, int, int]], count: int) -> Tensor:
    width = targets[0][0].target.shape[1]
    out = np.full((len(targets), count, width), UNKNOWN, np.float32)
    for i, (item, first, last) in enumerate(targets):
        out[i, : last - first] = item.target[first:last]
    return torch.from_numpy(out).to(DEVICE)


def weights_of(targets: Sequence[tuple[Passage, int, int]]) -> Tensor:
    return torch.tensor([item.weight for item, _, _ in targets], device=DEVICE)


def windows_of(ids: list[list[int]], room: int) -> list[tuple[int, int]]:
    return token_windows([len(row) + 1 for row in ids], room - 1)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def state_of(judge: Judge) -> dict[str, Tensor]:
    """A judge's weights, without the encoder's."""
    state = {f"output.{k}": v for k, v in judge.output.state_dict().items()}
    state |= {k: v for k, v in judge.state_dict().items()
              if not k.startswith(("encoder.", "output.", "dropout"))}
    state |= {f"branch.{k}": v for k, v in judge.encoder.branch.state().items()}
    return {k: v.detach().cpu() for k, v in state.items()}


def save(out: Path, name: str, state: dict[str, Tensor] | None, numbers: dict[str, Any],
         **arrays: Any) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if state is not None:
        save_file({k: v.half().contiguous() for k, v in state.items()},
                  out / f"{name}.safetensors")
    np.savez_compressed(out / f"{name}.npz", **arrays)
    (out / f"{name}.json").write_text(json.dumps(numbers, indent=1))
    print(name, json.dumps(numbers), flush=True)


def branch_tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """What this script wrote, under the names that a head stores."""
    return {f"{prefix}{name}": tensor for name, tensor in load_file(path).items()}


def soup(states: Sequence[dict[str, Tensor]], rank: int) -> dict[str, Tensor]:
    """The mean of several branches' changes, at a rank, and of what is on top of them."""
    out = {name: torch.stack([state[name].float() for state in states]).mean(0)
           for name in states[0] if not name.startswith("branch.")}
    for name in states[0]:
        if name.startswith("branch.") and name.endswith(".down"):
            up = f"{name.removesuffix('.down')}.up"
            mean = torch.stack([state[up].float() @ state[name].float() for state in states]
                               ).mean(0)
            u, values, v = torch.linalg.svd(mean, full_matrices=False)
            root = values[:rank].sqrt()
            out[up], out[name] = u[:, :rank] * root, root[:, None] * v[:rank]
    return out


def f1_macro(y: np.ndarray, guess: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(y, guess, average="macro"))


# Moderation


def clean(tweet: str) -> str:
    """A tweet as it might be said: without marks, names and links."""
    text = html.unescape(html.unescape(tweet))
    text = re.sub(r"https?://\S+|\bRT\b|@\w+:?", " ", text)
    text = re.sub(r"#(\w+)", r"\1", text)
    return " ".join(re.sub(r"[!.]{2,}|[\"“”]", " ", text).split())


@dataclass
class Said:
    """Sentences with what is known of them: hate, offensive (1, 0 or UNKNOWN)."""

    texts: list[str]
    source: np.ndarray
    target: np.ndarray
    fold: np.ndarray


def moderation_texts(data: Path) -> Said:
    """All sentences. Fold -1 trains nothing."""
    rng = np.random.default_rng(0)
    texts: list[str] = []
    source: list[str] = []
    target: list[np.ndarray] = []
    fold: list[np.ndarray] = []
    folder = data / "moderation"

    def add(name: str, lines: Sequence[str], hate: Any, offensive: Any, held: Any) -> None:
        texts.extend(lines)
        source.extend([name] * len(lines))
        target.append(np.stack([np.broadcast_to(hate, len(lines)),
                                np.broadcast_to(offensive, len(lines))], 1).astype(np.float32))
        fold.append(np.broadcast_to(held, len(lines)))

    for kind in ("offensive", "hate"):
        for part in ("train", "val"):
            lines, labels = ((folder / "tweeteval" / kind / f"{part}_{what}.txt")
                             .read_text(encoding="utf-8").split("\n")[:-1]
                             for what in ("text", "labels"))
            y = np.array(labels, dtype=int)
            held = np.full(len(y), -1) if part == "val" else rng.integers(0, FOLDS, len(y))
            if kind == "offensive":
                add(f"tweeteval_offensive_{part}", lines, UNKNOWN, y, held)
            else:
                add(f"tweeteval_hate_{part}", lines, y, np.where(y == 1, 1, UNKNOWN), held)
    tweets = read_csv(folder / "davidson_hate_offensive.csv")
    kinds = np.array([int(row["class"]) for row in tweets])
    take = np.sort(np.concatenate([rng.permutation(np.flatnonzero(kinds == k))[:4200]
                                   for k in range(3)]))
    add("davidson", [tweets[i]["tweet"] for i in take], kinds[take] == 0, kinds[take] != 2,
        rng.integers(0, FOLDS, len(take)))
    with (folder / "multihateclip.jsonl").open(encoding="utf-8") as file:
        videos = [json.loads(line) for line in file]
    label = np.array([video["label"] for video in videos])
    add("multihateclip", [f"{video['title']}. {video['text']}" for video in videos],
        label == "Hateful", label != "Normal",
        np.where([video["split"] == "valid" for video in videos], -1,
                 rng.integers(0, FOLDS, len(videos))))
    plain: dict[str, list[str]] = {"lectures": [], "cooking": []}
    with gzip.open(data / "vtssum" / "train.jsonl.gz", "rt", encoding="utf-8") as lines_:
        for index, line in enumerate(lines_):
            if index % 200 == 0:
                plain["lectures"] += json.loads(line)["text"][:6]
    seen: dict[str, int] = {}
    for row in read_csv(data / "youcook2" / "asr_sentences.csv"):
        seen[row["video_id"]] = seen.get(row["video_id"], 0) + 1
        if seen[row["video_id"]] <= 8:
            plain["cooking"].append(row["Sentence"])
    plain["captions"] = [row["caption"] for i, row in enumerate(
        read_csv(data / "flickr8k" / "captions.csv")) if i % 20 == 0]
    plain["conversations"] = [
        row["Utterance"] for row in read_csv(data / "sentiment" / "meld" / "train_sent_emo.csv")
    ][:4000] + [row["text"].lower()
                for row in read_csv(data / "sentiment" / "mosi" / "transcripts.csv")]
    for name, lines in plain.items():
        add(name, lines, 0, 0, rng.permutation(len(lines) // 50 + 1)[np.arange(len(lines)) // 50]
            % FOLDS)
    return Said(texts, np.array(source), np.concatenate(target), np.concatenate(fold))


SET_WEIGHTS = {"tweeteval_offensive_train": 1.0, "tweeteval_hate_train": 1.0, "davidson": 0.5,
               "multihateclip": 4.0}
"""Weight of a sentence by its set; 0.3 of those that only show how people talk."""


def multilabel_loss(logits: Tensor, targets: Sequence[tuple[Passage, int, int]]) -> Tensor:
    """Binary cross-entropy over what is known, smoothed a little: people disagree about it."""
    hard = stacked(targets, logits.shape[1])
    known = (hard >= 0).float() * weights_of(targets)[:, None, None]
    each = F.binary_cross_entropy_with_logits(
        logits, hard.clamp(min=0) * 0.94 + 0.03, reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1e-6)


def moderation(arguments: argparse.Namespace) -> None:
    said = moderation_texts(arguments.data)
    most = MODERATION_BRANCH.segment_length
    for part in arguments.parts or ["0", "all"]:
        held = said.fold == (int(part) if part != "all" else -2)
        learn = np.flatnonzero((said.fold >= 0) & ~held)
        test = np.flatnonzero(held | (said.fold < 0))
        student = Student(arguments.model, MODERATION_BRANCH)
        items = []
        for texts, weight in ((said.texts, 1.0), ([clean(text) for text in said.texts], 0.5)):
            rows = student.tokenize([texts[i] for i in learn], most)
            for i, row in zip(learn, rows, strict=True):
                tweet = said.source[i].startswith(("tweeteval", "davidson"))
                if weight == 1 or tweet:  # tweets are learnt as written, and as they might be said
                    items.append(Passage([row or [student.sep]], said.target[i : i + 1],
                                         weight * SET_WEIGHTS.get(said.source[i], 0.3)))
        judge = Judge(student, 2).to(DEVICE)
        train(judge, items, multilabel_loss, epochs=4, rate=7e-4, name=f"moderation-{part}",
              seed=arguments.seed)
        rows = [[row or [student.sep]] for row in
                student.tokenize([said.texts[i] for i in test], most)]
        logits = np.concatenate(predict(judge, rows))
        save(arguments.out, f"moderation-{part}", state_of(judge),
             measure_moderation(said, test, logits), index=test, logits=logits)


def measure_moderation(said: Said, test: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
    """Best macro-F1 over thresholds, and AUROC, by set."""
    from sklearn.metrics import roc_auc_score

    found: dict[str, Any] = {}
    for column, name in enumerate(("hate", "offensive")):
        for source in np.unique(said.source[test]):
            rows = (said.source[test] == source) & (said.target[test, column] >= 0)
            y = said.target[test, column][rows]
            if not 0 < y.sum() < len(y):
                continue
            s = logits[rows, column]
            grid = np.quantile(s, np.linspace(0.05, 0.95, 61))
            best = max((f1_macro(y, s >= t), float(t)) for t in grid)
            found[f"{name}/{source}"] = [round(float(roc_auc_score(y, s)), 4), round(best[0], 4),
                                         round(best[1], 2), len(y)]
    return found


# Sentiment: negative, neutral, positive


def sentiment_passages(data: Path) -> dict[str, list[tuple[str, list[str], list[int]]]]:
    """(group, texts, labels) of dialogues and videos, by set."""
    out: dict[str, list[tuple[str, list[str], list[int]]]] = {}
    names = ("negative", "neutral", "positive")
    for part in ("train", "dev"):
        rows = sorted(read_csv(data / "sentiment" / "meld" / f"{part}_sent_emo.csv"),
                      key=lambda r: (int(r["Dialogue_ID"]), int(r["Utterance_ID"])))
        groups: dict[str, list[dict[str, str]]] = {}
        for row in rows:
            groups.setdefault(row["Dialogue_ID"], []).append(row)
        out[f"meld_{part}"] = [
            (f"meld {part} {name}", [r["Utterance"] for r in found],
             [names.index(r["Sentiment"]) for r in found]) for name, found in groups.items()]
    rows = sorted(read_csv(data / "sentiment" / "mosi" / "transcripts.csv"),
                  key=lambda r: (r["video"], int(r["id"].rsplit("_", 1)[1])))
    groups = {}
    for row in rows:
        groups.setdefault(row["video"], []).append(row)
    out["mosi"] = [(f"mosi {name}", [r["text"].lower() for r in found],
                    [names.index(r["label"]) for r in found]) for name, found in groups.items()]
    plain = []
    with gzip.open(data / "vtssum" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        for index, line in enumerate(file):
            if index % 200 == 0:
                texts = json.loads(line)["text"][:6]
                plain.append((f"lecture {index}", texts, [1] * len(texts)))
    cooking: dict[str, list[str]] = {}
    for row in read_csv(data / "youcook2" / "asr_sentences.csv"):
        sentences = cooking.setdefault(row["video_id"], [])
        if len(sentences) < 8:
            sentences.append(row["Sentence"])
    plain += [(f"cooking {name}", texts, [1] * len(texts)) for name, texts in cooking.items()]
    out["plain"] = plain
    return out


def rated(folder: Path) -> list[tuple[str, np.ndarray]]:
    """Sentences with how positive people found them (Hutto and Gilbert, ICWSM 2014), MIT.

    Of film and product reviews, tweets and some editorials; the mean of 20 ratings from -4 to 4
    becomes probabilities of negative, neutral and positive. Speech has no punctuation: most lose
    theirs.
    """
    rng = np.random.default_rng(0)
    out = []
    for kind, step in (("movieReviewSnippets", 1), ("amazonReviewSnippets", 1), ("tweets", 1),
                       ("nytEditorialSnippets", 4)):
        path = folder / f"{kind}_GroundTruth.txt"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in lines[::step]:
            _, rating, text = line.split("\t", 2)
            neutral = float(np.exp(-((float(rating) / 0.6) ** 2)))
            positive = 1 / (1 + np.exp(-4 * float(rating)))
            target = np.array([(1 - neutral) * (1 - positive), neutral, (1 - neutral) * positive],
                              np.float32)
            bare = " ".join(re.sub(r"[^\w\s']", " ", text.lower()).split())
            out.append((bare if rng.random() < 0.6 else clean(text), target))
    return out


def unlabelled(data: Path) -> list[str]:
    """What people say, with no sentiment label: tweets, and sentences of lectures."""
    said = moderation_texts(data)
    tweets = [clean(text) for text, source, fold in zip(said.texts, said.source, said.fold,
                                                        strict=True)
              if source.startswith(("tweeteval", "davidson")) and fold >= 0]
    lectures = []
    with gzip.open(data / "vtssum" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        for index, line in enumerate(file):
            if index % 25 == 7:
                lectures += json.loads(line)["text"][:2]
    return tweets + lectures


def sentiment_loss(logits: Tensor, targets: Sequence[tuple[Passage, int, int]]) -> Tensor:
    """Cross-entropy over three classes; over two where only these are known (kind 1)."""
    hard = stacked(targets, logits.shape[1])
    known = (hard[..., 0] >= 0).float() * weights_of(targets)[:, None]
    goal = hard.clamp(min=0) * 0.95 + 0.05 / 3
    three = -(goal * logits.log_softmax(-1)).sum(-1)
    two_goal = goal[..., [0, 2]] / goal[..., [0, 2]].sum(-1, keepdim=True)
    two = -(two_goal * logits[..., [0, 2]].log_softmax(-1)).sum(-1)
    binary = torch.tensor([item.kind == 1 for item, _, _ in targets], device=DEVICE)[:, None]
    return (torch.where(binary, two, three) * known).sum() / known.sum().clamp(min=1e-6)


SENTIMENT_WEIGHTS = {"meld_train": 1.0, "mosi": 1.5, "plain": 0.3}


def sentiment(arguments: argparse.Namespace) -> None:
    sets = sentiment_passages(arguments.data)
    ratings = rated(arguments.ratings) if arguments.ratings else []
    window, most = SENTIMENT_BRANCH.window, SENTIMENT_BRANCH.segment_length
    kept: dict[str, np.ndarray] = {}
    state = None
    for part in arguments.parts or ["all", *map(str, range(FOLDS))]:
        def is_held(kind: str, name: str, part: str = part) -> bool:
            if kind == "mosi":
                return part != "all" and crc32(name.encode()) % FOLDS == int(part)
            return kind == "meld_dev" or crc32(name.encode()) % 6 == 0

        def passages(encoder: Any, keep: Callable[[str, str], bool],
                     ) -> tuple[list[Passage], list[tuple[str, str, int]]]:
            items, marks = [], []
            for kind, groups in sets.items():
                for name, texts, labels in groups:
                    if not keep(kind, name):
                        continue
                    ids = [row or [encoder.sep] for row in encoder.tokenize(texts, most)]
                    target = np.eye(3, dtype=np.float32)[labels]
                    for first, last in windows_of(ids, window):
                        items.append(Passage(ids[first:last], target[first:last],
                                             SENTIMENT_WEIGHTS.get(kind, 1.0),
                                             int(kind == "mosi")))
                        marks.append((kind, name, first))
            return items, marks

        student = Student(arguments.model, SENTIMENT_BRANCH)
        own, _ = passages(student, lambda k, n: not is_held(k, n))
        extra: list[Passage] = []
        if arguments.teacher:
            teacher = Judge(Teacher(arguments.teacher), 3).to(DEVICE)
            theirs, _ = passages(teacher.encoder, lambda k, n: not is_held(k, n))
            train(teacher, theirs, sentiment_loss, epochs=4, rate=4e-5, tokens=4096, alone=0.4,
                  name=f"sentiment-{part} teacher")
            said: list[tuple[str, np.ndarray | None]] = [
                *((text, None) for text in unlabelled(arguments.data)), *ratings]
            texts = [text for text, _ in said]
            judged = np.concatenate(predict(teacher, [
                [row or [teacher.encoder.sep]] for row in teacher.encoder.tokenize(texts, most)]))
            judged = np.exp(judged - judged.max(1, keepdims=True))
            judged /= judged.sum(1, keepdims=True)
            extra = [Passage([row or [student.sep]],
                             (p if people is None else (p + people) / 2)[None].astype(np.float32),
                             0.4)
                     for row, p, (_, people) in zip(student.tokenize(texts, most), judged, said,
                                                    strict=True)]
            del teacher
        states = []
        for more, epochs in (([], 6), *(((extra, 5),) if extra else ())):
            judge = Judge(Student(arguments.model, SENTIMENT_BRANCH), 3).to(DEVICE)
            train(judge, own + more, sentiment_loss, epochs=epochs, rate=7e-4,
                  tokens=8192 if more else 4096, alone=0.4, seed=arguments.seed,
                  name=f"sentiment-{part}")
            states.append(state_of(judge))
        mean = soup([states[0], *states[1:] * 2], SENTIMENT_BRANCH.rank)
        state = mean if part == "all" else state
        judge = Judge(student, 3).to(DEVICE)
        fill(judge, mean)
        # A fold measures MOSI; what is trained on all of it, the rest.
        held, marks = passages(student, lambda k, n, part=part: is_held(k, n) and (
            (k == "mosi") == (part != "all")))
        found = gather(predict(judge, [item.ids for item in held]), marks)
        alone = {name: np.concatenate(predict(judge, [
            [row or [student.sep]] for row in student.tokenize(texts, most)]))
            for groups in sets.values() for name, texts, _ in groups if name in found}
        print(part, measure_sentiment(sets, found), measure_sentiment(sets, alone), flush=True)
        kept |= {f"with/{name}": x for name, x in found.items()}
        kept |= {f"alone/{name}": x for name, x in alone.items()}
    save(arguments.out, "sentiment", state, {}, **kept)


def load_branch(branch: TextBranch, state: dict[str, Tensor]) -> None:
    """Give a branch the weights that `state_of` gave."""
    branch.load({name.removeprefix("branch."): tensor.float()
                 for name, tensor in state.items() if name.startswith("branch.")})


def fill(judge: Judge, state: dict[str, Tensor]) -> None:
    """Give a student and what is on top of it the weights that `state_of` gave."""
    load_branch(judge.encoder.branch, state)
    judge.output.load_state_dict({name.removeprefix("output."): tensor
                                  for name, tensor in state.items() if name.startswith("output.")})


def gather(logits: Sequence[np.ndarray], marks: Sequence[tuple[str, str, int]],
           ) -> dict[str, np.ndarray]:
    """Logits of whole groups out of windows: each segment from where it is most central."""
    out: dict[str, dict[int, tuple[int, np.ndarray]]] = {}
    for rows, (_, name, first) in zip(logits, marks, strict=True):
        group = out.setdefault(name, {})
        for k, row in enumerate(rows):
            inner = min(k, len(rows) - 1 - k)
            if first + k not in group or inner > group[first + k][0]:
                group[first + k] = (inner, row)
    return {name: np.stack([group[k][1] for k in sorted(group)]) for name, group in out.items()}


def measure_sentiment(sets: Any, found: dict[str, np.ndarray]) -> dict[str, Any]:
    from sklearn.metrics import f1_score

    numbers: dict[str, Any] = {}
    for kind, groups in sets.items():
        known = [(found[name], labels) for name, _, labels in groups if name in found]
        if not known:
            continue
        x = np.concatenate([a for a, _ in known])
        y = np.concatenate([b for _, b in known])
        if kind.startswith("meld"):
            numbers[f"{kind}_f1_weighted"] = round(
                float(f1_score(y, x.argmax(1), average="weighted")), 4)
        elif kind == "mosi":
            numbers["mosi_accuracy"] = round(float(((x[:, 2] > x[:, 0]) == (y == 2)).mean()), 4)
            numbers["mosi_n"] = len(y)
        else:
            numbers["plain_neutral"] = round(float((x.argmax(1) == 1).mean()), 4)
    return numbers


# Summarisation


def vtssum(data: Path, part: str) -> list[dict[str, Any]]:
    """Passages of a part of VT-SSum of which something is selected."""
    with gzip.open(data / "vtssum" / f"{part}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [row for row in map(json.loads, file)
                if len(row["text"]) <= 120 and row["selected"]]


def summarisation(arguments: argparse.Namespace) -> None:
    from vbkit_summarisation.selector import Selector
    from vbkit_summarisation.text import rarities, text_features

    train_rows, dev = vtssum(arguments.data, "train"), vtssum(arguments.data, "dev")
    rarity = rarities([row["text"] for row in train_rows])
    dev = [dev[i] for i in np.random.default_rng(0).permutation(len(dev))[:1500]]
    window, most = SUMMARISATION_BRANCH.window, SUMMARISATION_BRANCH.segment_length
    student = Student(arguments.model,
                      replace(SUMMARISATION_BRANCH, rank=SUMMARISATION_RANK)).to(DEVICE)
    selector = Selector().to(DEVICE)

    def windows(rows: list[dict[str, Any]]) -> list[tuple[int, int, Passage]]:
        flat = student.tokenize([t for row in rows for t in row["text"]], most)
        out, at = [], 0
        for number, row in enumerate(rows):
            ids = [x or [student.sep] for x in flat[at : at + len(row["text"])]]
            at += len(ids)
            target = np.zeros((len(ids), 1), np.float32)
            target[row["selected"]] = 1
            out += [(number, a, Passage(ids[a:b], target[a:b],
                                        plain=text_features(row["text"][a:b], rarity)))
                    for a, b in windows_of(ids, window)]
        return out

    def judge(items: Sequence[Passage], rows: Sequence[list[list[int]]]) -> list[Tensor]:
        ids, mask, owner, count = batch_of(student, rows)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
            hidden = student(ids, mask)
        means = segment_means(hidden.float(), owner, count)
        return selector.judge([m[: len(row)] for m, row in zip(means, rows, strict=True)],
                              [torch.from_numpy(item.plain) for item in items])

    items = [item for _, _, item in windows(train_rows)]
    rng = np.random.default_rng(arguments.seed)
    torch.manual_seed(arguments.seed)
    body = [p for p in student.parameters() if p.requires_grad]
    learnt = body + list(selector.parameters())
    optimiser = torch.optim.AdamW([{"params": body, "lr": 1e-3},
                                   {"params": selector.parameters(), "lr": 1e-3}],
                                  weight_decay=0.01)
    plan = [batch for _ in range(4)
            for batch in batches([size_of(item.ids) for item in items], 16384, rng)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=len(plan) + 1,
                                                   pct_start=0.1)
    mean: list[Tensor] | None = None
    student.train()
    selector.train()
    for step, chosen in enumerate(plan):
        rows = [[dropped(row, 0.05, rng) for row in items[i].ids] for i in chosen]
        losses = []
        logits = judge([items[i] for i in chosen], rows)
        for row, i in zip(logits, chosen, strict=True):
            target = torch.from_numpy(items[i].target[:, 0]).to(row)
            listwise = -(target * row.log_softmax(0)).sum() / target.sum().clamp(min=1)
            losses.append(F.binary_cross_entropy_with_logits(row, target) + 0.3 * listwise)
        optimiser.zero_grad(set_to_none=True)
        torch.stack(losses).mean().backward()
        nn.utils.clip_grad_norm_(learnt, 1.0)
        optimiser.step()
        schedule.step()
        if step >= 0.6 * len(plan) and step % 4 == 0:
            mean = [p.detach().clone() for p in learnt] if mean is None else mean
            for average, p in zip(mean, learnt, strict=True):
                average.lerp_(p.detach(), 0.05)
    with torch.no_grad():
        for average, p in zip(mean or learnt, learnt, strict=True):
            p.copy_(average)
    cut = soup([{f"branch.{k}": v for k, v in student.branch.state().items()}],
               SUMMARISATION_BRANCH.rank)
    student = Student(arguments.model, SUMMARISATION_BRANCH).to(DEVICE).eval()
    load_branch(student.branch, cut)
    selector.eval()
    held = windows(dev)
    found: list[np.ndarray] = [np.zeros(0)] * len(held)
    with torch.no_grad():
        for chosen in batches([size_of(item.ids) for _, _, item in held], 32768, None):
            part = [held[i][2] for i in chosen]
            for i, row in zip(chosen, judge(part, [item.ids for item in part]), strict=True):
                found[i] = row.cpu().numpy()[:, None]
    together = gather(found, [("", str(number), first) for number, first, _ in held])
    scores = [together[str(number)][:, 0] for number in range(len(dev))]
    state = {k: v.detach().cpu() for k, v in selector.state_dict().items()}
    state |= {f"branch.{k}": v.cpu() for k, v in student.branch.state().items()}
    save(arguments.out, "summarisation-all", state, {},
         ids=np.array([row["id"] for row in dev]),
         lengths=np.array([len(s) for s in scores]), logits=np.concatenate(scores))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("task", choices=["moderation", "sentiment", "summarisation"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("plugins/vbkit_mini/model"))
    parser.add_argument("--out", type=Path, default=Path(".cache/branches"))
    parser.add_argument("--teacher", type=Path, help="folder of all-mpnet-base-v2 (sentiment)")
    parser.add_argument("--ratings", type=Path,
                        help="folder hutto_ICWSM_2014 of vaderSentiment 3.3.2 (sentiment)")
    parser.add_argument("--parts", nargs="+", help="of `all` and the numbers of folds")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    torch.set_num_threads(2)
    {"moderation": moderation, "sentiment": sentiment,
     "summarisation": summarisation}[arguments.task](arguments)


if __name__ == "__main__":
    main()
