"""Train the text branches that the heads ship, on a GPU where there is one.

    python recipes/heads/branches.py TASK --data DATA --model plugins/vbkit_mini/model --out OUT

TASK is moderation, sentiment, summarisation or qa. Each job trains low-rank changes of the text
encoder (`vbkit.model.branch`) together with a small model on top, and writes

    OUT/TASK-PART.safetensors   the weights
    OUT/TASK-PART.npz           logits of what the part did not learn from
    OUT/TASK-PART.json          measured numbers

PART is `all`, trained on everything but validation sets, or a number: of a fold that is left out.
The recipes `train_*.py` calibrate on the logits, measure, and write the heads.

With `--teacher`, a folder of a larger sentence encoder, small models also learn from what it says:
it is fine-tuned on one half of the training data and judges the other, and what a set's own labels
do not tell (whether a hateful tweet is offensive) is taken from it alone (Hinton et al., 2015).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import html
import json
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


# Encoders: rows of word pieces in, hidden states out.


class Teacher(nn.Module):
    """An MPNet sentence encoder, all of whose layers learn."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        config = AutoConfig.from_pretrained(folder)
        self.model = AutoModel.from_config(config, add_pooling_layer=False)
        state = {}
        for file in sorted(folder.glob("*.safetensors")):
            for name, tensor in load_file(file).items():
                state[name] = tensor
        full = {}
        for name, tensor in state.items():
            if name.endswith(".scale"):
                continue
            scale = state.get(f"{name}.scale")
            full[name] = tensor.float() * scale.float() if scale is not None else tensor.float()
        missing, unexpected = self.model.load_state_dict(full, strict=False)
        print("teacher: missing", missing, "unexpected", unexpected[:4], flush=True)
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

    def __init__(self, folder: Path, config: BranchConfig, full: bool = False) -> None:
        super().__init__()
        from transformers import AutoTokenizer

        model = VideoBertModel.from_pretrained(folder, dtype=torch.float32)
        model = model.to(DEVICE).eval().requires_grad_(False)
        processor = VideoBertProcessor(AutoTokenizer.from_pretrained(folder))
        self.branch = TextBranch(model, processor, config)
        self.full = full
        if full:  # for comparison: every weight of the layers learns
            self.layers = nn.ModuleList(self.branch._layers).requires_grad_(True)
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
    batch, length, width = hidden.shape
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
        soft: (S, K) what a teacher says (probabilities), or None.
        kind: a number that losses may depend on.
    """

    ids: list[list[int]]
    target: np.ndarray
    weight: float = 1.0
    soft: np.ndarray | None = None
    kind: int = 0


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


def stacked(targets: Sequence[tuple[Passage, int, int]], count: int, soft: bool = False) -> Tensor:
    width = targets[0][0].target.shape[1]
    out = np.full((len(targets), count, width), UNKNOWN, np.float32)
    for i, (item, first, last) in enumerate(targets):
        values = item.soft if soft else item.target
        if values is not None:
            out[i, : last - first] = values[first:last]
    return torch.from_numpy(out).to(DEVICE)


def weights_of(targets: Sequence[tuple[Passage, int, int]]) -> Tensor:
    return torch.tensor([item.weight for item, _, _ in targets], device=DEVICE)


def windows_of(ids: list[list[int]], room: int) -> list[tuple[int, int]]:
    return token_windows([len(row) + 1 for row in ids], room - 1)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def save(out: Path, name: str, judge: Judge, numbers: dict[str, Any], **arrays: Any) -> None:
    out.mkdir(parents=True, exist_ok=True)
    state = {f"output.{k}": v for k, v in judge.output.state_dict().items()}
    state |= {k: v for k, v in judge.state_dict().items()
              if not k.startswith(("encoder.", "output.", "dropout"))}
    if isinstance(judge.encoder, Student) and not judge.encoder.full:
        state |= {f"branch.{k}": v for k, v in judge.encoder.branch.state().items()}
    save_file({k: v.detach().half().contiguous().cpu() for k, v in state.items()},
              out / f"{name}.safetensors")
    np.savez_compressed(out / f"{name}.npz", **arrays)
    (out / f"{name}.json").write_text(json.dumps(numbers, indent=1))
    print(name, json.dumps(numbers), flush=True)


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


def multilabel_loss(logits: Tensor, targets: Sequence[tuple[Passage, int, int]],
                    trust: float = 0.5) -> Tensor:
    """Binary cross-entropy over what is known; mixed with, or replaced by, what a teacher says."""
    hard = stacked(targets, logits.shape[1])
    soft = stacked(targets, logits.shape[1], soft=True)
    # Labels are smoothed a little: people disagree about them.
    smooth = torch.where(hard >= 0, hard * 0.94 + 0.03, hard)
    goal = torch.where(soft >= 0, torch.where(
        hard >= 0, (1 - trust) * smooth + trust * soft, soft), smooth)
    known = (goal >= 0).float() * weights_of(targets)[:, None, None]
    known = known * torch.where((hard < 0) & (soft >= 0), 0.5, 1.0)
    each = F.binary_cross_entropy_with_logits(logits, goal.clamp(min=0), reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1e-6)


def moderation(arguments: argparse.Namespace) -> None:
    said = moderation_texts(arguments.data)
    most = 126
    student = Student(arguments.model, BranchConfig(6, arguments.rank, 0, most), arguments.full)
    for part in arguments.parts:
        held = said.fold == (int(part) if part != "all" else -2)
        learn = np.flatnonzero((said.fold >= 0) & ~held)
        test = np.flatnonzero(held | (said.fold < 0))
        soft = np.full_like(said.target, UNKNOWN)
        numbers: dict[str, Any] = {"rank": arguments.rank, "full": arguments.full,
                                   "epochs": arguments.epochs, "rate": arguments.rate,
                                   "trust": arguments.trust}

        def passages(encoder: Any, index: np.ndarray, twice: bool = False) -> list[Passage]:
            items = []
            for texts, factor in ((said.texts, 1.0), *(
                    ((  [clean(t) for t in said.texts], 0.5),) if twice else ())):
                rows = encoder.tokenize([texts[i] for i in index], most)
                for i, row in zip(index, rows, strict=True):
                    if factor < 1 and not said.source[i].startswith(("tweeteval", "davidson")):
                        continue
                    items.append(Passage(
                        [row or [encoder.sep]], said.target[i : i + 1],
                        factor * SET_WEIGHTS.get(said.source[i], 0.3),
                        soft[i : i + 1] if (soft[i] >= 0).any() else None))
            return items

        teacher_logits: dict[int, np.ndarray] = {}
        if arguments.teacher:
            halves = np.random.default_rng(7).integers(0, 2, len(said.texts))
            votes: list[np.ndarray] = []
            for half in (0, 1):
                teacher = Judge(Teacher(arguments.teacher), 2).to(DEVICE)
                own = learn[halves[learn] == half]
                train(teacher, passages(teacher.encoder, own),
                      lambda x, t: multilabel_loss(x, t), epochs=arguments.teacher_epochs,
                      rate=4e-5, name=f"moderation-{part} teacher {half}")
                other = np.r_[learn[halves[learn] != half], test]
                rows = [[row or [2]] for row in teacher.encoder.tokenize(
                    [said.texts[i] for i in other], most)]
                logits = np.concatenate(predict(teacher, rows))
                inside = len(other) - len(test)
                soft[other[:inside]] = 1 / (1 + np.exp(-logits[:inside]))
                votes.append(logits[inside:])
                del teacher
            mean = (votes[0] + votes[1]) / 2
            teacher_logits = {0: mean}
            numbers["teacher"] = measure_moderation(said, test, mean)
            print("teacher", json.dumps(numbers["teacher"]), flush=True)
        student = Student(arguments.model, BranchConfig(6, arguments.rank, 0, most),
                          arguments.full)
        judge = Judge(student, 2).to(DEVICE)
        train(judge, passages(student, learn, twice=True),
              lambda x, t: multilabel_loss(x, t, arguments.trust), epochs=arguments.epochs,
              rate=arguments.rate, name=f"moderation-{part}", seed=arguments.seed)
        rows = [[row or [student.sep]] for row in
                student.tokenize([said.texts[i] for i in test], most)]
        logits = np.concatenate(predict(judge, rows))
        numbers["student"] = measure_moderation(said, test, logits)
        save(arguments.out, f"moderation-{part}{arguments.tag}", judge, numbers, index=test, logits=logits,
             teacher=teacher_logits.get(0, np.zeros(0)))


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


def sentiment_loss(logits: Tensor, targets: Sequence[tuple[Passage, int, int]],
                   trust: float = 0.5) -> Tensor:
    """Cross-entropy over three classes; over two where only these are known (kind 1)."""
    hard = stacked(targets, logits.shape[1])
    soft = stacked(targets, logits.shape[1], soft=True)
    smooth = torch.where(hard >= 0, hard * 0.95 + 0.05 / 3, hard)
    goal = torch.where(soft >= 0, (1 - trust) * smooth + trust * soft, smooth)
    known = (hard[..., 0] >= 0).float() * weights_of(targets)[:, None]
    three = -(goal.clamp(min=0) * logits.log_softmax(-1)).sum(-1)
    two_logits, two_goal = logits[..., [0, 2]], goal[..., [0, 2]].clamp(min=0)
    two_goal = two_goal / two_goal.sum(-1, keepdim=True).clamp(min=1e-6)
    two = -(two_goal * two_logits.log_softmax(-1)).sum(-1)
    binary = torch.tensor([item.kind == 1 for item, _, _ in targets], device=DEVICE)[:, None]
    return (torch.where(binary, two, three) * known).sum() / known.sum().clamp(min=1e-6)


SENTIMENT_WEIGHTS = {"meld_train": 1.0, "mosi": 1.5, "plain": 0.3}


def sentiment(arguments: argparse.Namespace) -> None:
    sets = sentiment_passages(arguments.data)
    window, most = 256, 126

    def fold_of(name: str, count: int) -> int:
        import zlib

        return zlib.crc32(name.encode()) % count

    for part in arguments.parts:
        def is_held(kind: str, name: str, part: str = part) -> bool:
            if kind == "meld_dev":
                return True
            if kind == "mosi":
                return part != "all" and fold_of(name, FOLDS) == int(part)
            return fold_of(name, 6) == 0

        def passages(encoder: Any, keep: Callable[[str, str], bool],
                     soft: dict[str, np.ndarray]) -> tuple[list[Passage], list[tuple[str, str, int]]]:
            items, marks = [], []
            for kind, groups in sets.items():
                for name, texts, labels in groups:
                    if not keep(kind, name):
                        continue
                    ids = [row or [encoder.sep] for row in encoder.tokenize(texts, most)]
                    target = np.eye(3, dtype=np.float32)[labels]
                    for first, last in windows_of(ids, window):
                        items.append(Passage(
                            ids[first:last], target[first:last], SENTIMENT_WEIGHTS.get(kind, 1.0),
                            soft[name][first:last] if name in soft else None, int(kind == "mosi")))
                        marks.append((kind, name, first))
            return items, marks

        soft: dict[str, np.ndarray] = {}
        numbers: dict[str, Any] = {"rank": arguments.rank, "epochs": arguments.epochs,
                                   "rate": arguments.rate, "full": arguments.full,
                                   "trust": arguments.trust}
        extra: list[Passage] = []
        student = Student(arguments.model, BranchConfig(6, arguments.rank, window, most),
                          arguments.full)
        if arguments.teacher:
            teacher = Judge(Teacher(arguments.teacher), 3).to(DEVICE)
            own, _ = passages(teacher.encoder, lambda k, n: not is_held(k, n), {})
            train(teacher, own, sentiment_loss, epochs=arguments.teacher_epochs, rate=4e-5,
                  tokens=4096, alone=0.4, name=f"sentiment-{part} teacher")
            held, marks = passages(teacher.encoder, is_held, {})
            numbers["teacher"] = measure_sentiment(
                sets, gather(predict(teacher, [item.ids for item in held]), marks))
            print("teacher", json.dumps(numbers["teacher"]), flush=True)
            texts = unlabelled(arguments.data)
            judged = np.concatenate(predict(teacher, [
                [row or [teacher.encoder.sep]] for row in teacher.encoder.tokenize(texts, most)]))
            judged = np.exp(judged - judged.max(1, keepdims=True))
            judged /= judged.sum(1, keepdims=True)
            extra = [Passage([row or [student.sep]], p[None].astype(np.float32), 0.4)
                     for row, p in zip(student.tokenize(texts, most), judged, strict=True)]
            numbers["unlabelled"] = [len(texts), *judged.mean(0).round(3).tolist()]
            del teacher
        judge = Judge(student, 3).to(DEVICE)
        own, _ = passages(student, lambda k, n: not is_held(k, n), soft)
        train(judge, own + extra, sentiment_loss, epochs=arguments.epochs, rate=arguments.rate,
              tokens=8192 if extra else 4096, alone=0.4,
              seed=arguments.seed, name=f"sentiment-{part}")
        held, marks = passages(student, is_held, {})
        found = gather(predict(judge, [item.ids for item in held]), marks)
        numbers["student"] = measure_sentiment(sets, found)
        single = {name: np.concatenate(predict(judge, [[row] for row in ids]))
                  for name, ids in {
                      name: [row or [student.sep] for row in student.tokenize(texts, most)]
                      for kind in ("meld_dev", "mosi") for name, texts, _ in sets[kind]
                      if is_held(kind, name)}.items()}
        numbers["student_alone"] = measure_sentiment(sets, single)
        save(arguments.out, f"sentiment-{part}{arguments.tag}", judge, numbers,
             names=np.array(list(found)), lengths=np.array([len(x) for x in found.values()]),
             logits=np.concatenate(list(found.values())))


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


class SelectorJudge(Judge):
    """Logits from the branch's segments, together with plain features of their words."""

    def __init__(self, encoder: nn.Module, plain: int, dropout: float = 0.2) -> None:
        super().__init__(encoder, 1, dropout)
        width = 96
        self.content = nn.Linear(encoder.hidden_size, width)
        self.plain = nn.Linear(plain, width)
        self.near = nn.Conv1d(width, width, 3, padding=1, groups=4)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout, F.gelu, batch_first=True,
                                           norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, 1)
        self.direct = nn.Linear(plain, 1)
        self.given: Tensor | None = None

    def forward(self, ids: Tensor, mask: Tensor, owner: Tensor, count: int) -> Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
            hidden = self.encoder(ids, mask)
        means = segment_means(hidden.float(), owner, count)
        plain, there = self.given
        x = self.content(self.dropout(means)) + self.plain(self.dropout(plain))
        x = x * there[..., None]
        x = x + F.gelu(self.near(x.transpose(1, 2)).transpose(1, 2))
        x = self.layers(x, src_key_padding_mask=~there)
        return self.output(self.dropout(self.norm(x))) + self.direct(plain)


def summarisation(arguments: argparse.Namespace) -> None:
    import zlib

    from vbkit_summarisation.text import TEXT_FEATURES, rarities, text_features

    parts: dict[str, list[dict[str, Any]]] = {}
    for part in ("train", "dev"):
        with gzip.open(arguments.data / "vtssum" / f"{part}.jsonl.gz", "rt",
                       encoding="utf-8") as file:
            parts[part] = [row for row in map(json.loads, file)
                           if len(row["text"]) <= 120 and row["selected"]]
    rarity = rarities([row["text"] for row in parts["train"]])
    limit = arguments.limit or 10**9
    rng = np.random.default_rng(0)
    parts["train"] = [parts["train"][i] for i in rng.permutation(len(parts["train"]))[:limit]]
    parts["dev"] = [parts["dev"][i] for i in rng.permutation(len(parts["dev"]))[:1500]]
    most, window = 62, 512
    student = Student(arguments.model, BranchConfig(6, arguments.rank, window, most),
                      arguments.full)

    def passages(rows: list[dict[str, Any]]) -> list[list[Passage]]:
        flat = student.tokenize([t for row in rows for t in row["text"]], most)
        out, at = [], 0
        for row in rows:
            ids = [x or [student.sep] for x in flat[at : at + len(row["text"])]]
            at += len(ids)
            target = np.zeros((len(ids), 1), np.float32)
            target[row["selected"]] = 1
            plain = text_features(row["text"], rarity)
            out.append([Passage(ids[a:b], target[a:b], 1.0, plain[a:b])
                        for a, b in windows_of(ids, window)])
        return out

    began = time.perf_counter()
    train_items = [p for group in passages(parts["train"]) for p in group]
    dev_items = passages(parts["dev"])
    print(f"summarisation: {len(train_items)} windows, {time.perf_counter() - began:.0f} s",
          flush=True)
    judge = SelectorJudge(student, TEXT_FEATURES).to(DEVICE)

    def given(targets: Sequence[tuple[Passage, int, int]]) -> int:
        count = max(last - first for _, first, last in targets)
        plain = np.zeros((len(targets), count, TEXT_FEATURES), np.float32)
        there = np.zeros((len(targets), count), bool)
        for i, (item, first, last) in enumerate(targets):
            plain[i, : last - first] = item.soft[first:last]
            there[i, : last - first] = True
        judge.given = (torch.from_numpy(plain).to(DEVICE), torch.from_numpy(there).to(DEVICE))
        return count

    def loss(logits: Tensor, targets: Sequence[tuple[Passage, int, int]]) -> Tensor:
        target = stacked(targets, logits.shape[1])[..., 0]
        there = target >= 0
        target = target.clamp(min=0)
        each = F.binary_cross_entropy_with_logits(logits[..., 0], target, reduction="none")
        listwise = -(target * logits[..., 0].masked_fill(~there, -1e4).log_softmax(1)).sum(1)
        chosen = target.sum(1)
        listwise = (listwise / chosen.clamp(min=1))[chosen > 0]
        return (each * there).sum() / there.sum() + 0.3 * (
            listwise.mean() if len(listwise) else logits.sum() * 0)

    # What the selector reads beside the words has to be laid out with each batch.
    global batch_of
    plain_batch = batch_of
    queue: list[Sequence[tuple[Passage, int, int]]] = []

    lookup = {id(p.ids): p for p in train_items} | {
        id(p.ids): p for group in dev_items for p in group}
    sources: list[Passage] = []

    def train_epochs() -> None:
        torch.manual_seed(arguments.seed)
        rng = np.random.default_rng(arguments.seed)
        body = [p for p in student.parameters() if p.requires_grad]
        rest = [p for n, p in judge.named_parameters() if not n.startswith("encoder.")]
        optimiser = torch.optim.AdamW([{"params": body, "lr": arguments.rate},
                                       {"params": rest, "lr": 1e-3}], weight_decay=0.01)
        lengths = [size_of(item.ids) for item in train_items]
        plan: list[list[int]] = []
        for _ in range(int(arguments.epochs)):
            plan += batches(lengths, 16384, rng)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, [arguments.rate, 1e-3], total_steps=len(plan) + 1, pct_start=0.1)
        learnt = body + rest
        mean: list[Tensor] | None = None
        began = time.perf_counter()
        judge.train()
        for step, chosen in enumerate(plan):
            if time.perf_counter() - began > arguments.seconds:
                print("out of time", flush=True)
                break
            targets = [(train_items[i], 0, len(train_items[i].ids)) for i in chosen]
            rows = [[dropped(row, 0.05, rng) for row in item.ids] for item, _, _ in targets]
            given(targets)
            value = loss(judge(*plain_batch(student, rows)), targets)
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(learnt, 1.0)
            optimiser.step()
            schedule.step()
            if step >= 0.6 * len(plan) and step % 4 == 0:
                if mean is None:
                    mean = [p.detach().clone() for p in learnt]
                for average_, p in zip(mean, learnt, strict=True):
                    average_.lerp_(p.detach(), 0.05)
            if step % 200 == 0:
                print(f"summarisation {step}/{len(plan)} loss {float(value):.4f} "
                      f"{time.perf_counter() - began:.0f} s", flush=True)
        if mean is not None:
            with torch.no_grad():
                for average_, p in zip(mean, learnt, strict=True):
                    p.copy_(average_)
        judge.eval()

    train_epochs()

    @torch.no_grad()
    def logits_of(groups: list[list[Passage]]) -> list[np.ndarray]:
        flat = [(p, (k, a)) for k, group in enumerate(groups)
                for p, a in zip(group, np.cumsum([0] * len(group)), strict=True)]
        out = []
        marks = []
        for k, group in enumerate(groups):
            total = windows_of_group[k]
            for p, (a, _) in zip(group, total, strict=True):
                marks.append(("", str(k), a))
                out.append(p)
        found: list[np.ndarray] = [np.zeros(0)] * len(out)
        for chosen in batches([size_of(p.ids) for p in out], 32768, None):
            targets = [(out[i], 0, len(out[i].ids)) for i in chosen]
            given(targets)
            rows = judge(*plain_batch(student, [p.ids for p, _, _ in targets])).float().cpu()
            for row, i in zip(rows.numpy(), chosen, strict=True):
                found[i] = row[: len(out[i].ids)]
        together = gather(found, marks)
        return [together[str(k)][:, 0] for k in range(len(groups))]

    windows_of_group = []
    for row in parts["dev"]:
        ids = [x or [student.sep] for x in student.tokenize(row["text"], most)]
        windows_of_group.append(windows_of(ids, window))
    scores = logits_of(dev_items)
    half = np.array([zlib.crc32(row["id"].split("/clip_")[0].encode()) % 2 == 0
                     for row in parts["dev"]])

    def top(k: int, mask: np.ndarray) -> dict[str, float]:
        precision, recall = [], []
        for score, row, inside in zip(scores, parts["dev"], mask, strict=True):
            if not inside:
                continue
            best = set(np.argsort(-score, kind="stable")[:k].tolist())
            hits = len(best & set(row["selected"]))
            precision.append(hits / k)
            recall.append(hits / len(set(row["selected"])))
        p, r = 100 * np.mean(precision), 100 * np.mean(recall)
        return {"precision": round(p, 2), "recall": round(r, 2), "f1": round(2 * p * r / (p + r), 2)}

    numbers = {"top3_tune": top(3, half), "top3_test": top(3, ~half), "top5_test": top(5, ~half),
               "rank": arguments.rank, "epochs": arguments.epochs, "rate": arguments.rate,
               "windows": len(train_items), "full": arguments.full}
    save(arguments.out, f"summarisation-all{arguments.tag}", judge, numbers,
         ids=np.array([row["id"] for row in parts["dev"]]),
         lengths=np.array([len(s) for s in scores]), logits=np.concatenate(scores))


# Questions


@dataclass
class Transcript:
    """A transcript with questions to it; answers are inclusive runs of segments."""

    name: str
    texts: list[str]
    questions: list[str]
    answers: list[tuple[int, int]]
    scored: int


def tutorials(data: Path) -> list[Transcript]:
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
        out.append(Transcript(video["video_id"], video["transcript"], questions, answers,
                              len(rows)))
    return out


def recipes(data: Path) -> list[Transcript]:
    """YouCook2: steps with times against timed sentences."""
    folder = data / "youcook2"
    with gzip.open(folder / "annotations_trainval.json.gz") as file:
        database = json.load(file)["database"]
    lines: dict[str, list[tuple[float, str]]] = {}
    for row in read_csv(folder / "asr_sentences.csv"):
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
            out.append(Transcript(name, [row[1] for row in rows], questions, answers,
                                  len(questions)))
    return out


class ReaderJudge(nn.Module):
    """The reader of `vbkit_qa`, with the branch's view of each segment beside the question."""

    def __init__(self, encoder: Student) -> None:
        super().__init__()
        from vbkit_qa.reader import EVIDENCE, Reader, ReaderConfig

        self.encoder = encoder
        self.reader = Reader(ReaderConfig())
        self.read = nn.Linear(encoder.hidden_size, 32)
        self.mix = nn.Linear(32, self.reader.config.hidden)
        self.drop = nn.Dropout(0.2)
        nn.init.zeros_(self.mix.bias)
        assert EVIDENCE

    def scores(self, hidden: Tensor, item: dict[str, Tensor], rows: Tensor) -> Tensor:
        """(Q, S, H) the branch's segments -> (Q, S, 3)."""
        r = self.reader
        segments, asked = item["segments"], item["asked"][rows]
        parts = [item["evidence"][rows].float(),
                 r.content(segments).expand(len(rows), -1, -1),
                 r.match(asked)[:, None] * r.match(segments) * 8]
        x = r.enter(r.drop(torch.cat(parts, -1))) + self.mix(F.gelu(self.read(self.drop(hidden))))
        for block in r.blocks:
            x = block(x)
        return r.leave(r.norm(x))


def qa(arguments: argparse.Namespace) -> None:
    from vbkit_qa.reader import evidence_of, longest_answer, overlap, spans_of
    from vbkit_qa.text import content_words, lexical_features, segment_features

    videos, cooking = tutorials(arguments.data), recipes(arguments.data)
    window, most = 384, 62
    plain = Student(arguments.model, BranchConfig(6, 1, 0, 254))

    @torch.no_grad()
    def embed(texts: list[str]) -> Tensor:
        rows = [row or [0] for row in plain.tokenize(texts, 254)]
        out = torch.zeros(len(rows), plain.hidden_size, device=DEVICE)
        for chosen in batches([len(r) + 2 for r in rows], 32768, None):
            ids, mask = pad([[plain.cls, *rows[i], plain.sep] for i in chosen], 0)
            hidden = plain.eval()(ids, mask).float()
            m = mask[..., None].float()
            out[chosen] = F.normalize((hidden * m).sum(1) / m.sum(1), dim=-1)
        return out

    def prepared(item: Transcript, student: Student) -> dict[str, Any]:
        segments, asked = embed(item.texts), embed(item.questions)
        keywords = embed([" ".join(content_words(q)) for q in item.questions])
        lexical = torch.from_numpy(lexical_features(item.questions, item.texts)).to(DEVICE)
        structure = torch.from_numpy(segment_features(item.texts)).to(DEVICE)
        spans = spans_of(len(item.texts), longest_answer(len(item.texts), 24))
        gold = torch.tensor(item.answers)
        ids = [row or [student.sep] for row in student.tokenize(item.texts, most)]
        questions = student.tokenize(item.questions, 40)
        agree = overlap(spans.first, spans.last, gold[:, :1], gold[:, 1:]).to(DEVICE)
        return {"segments": segments, "asked": asked, "spans": type(spans)(
            spans.first.to(DEVICE), spans.last.to(DEVICE)), "agree": agree,
            "evidence": evidence_of(asked, keywords, segments, lexical, structure).half(),
            "ids": ids, "questions": questions, "item": item,
            "windows": windows_of(ids, window - 42)}

    def read(student: Student, prep: dict[str, Any], rows: list[int],
             rng: np.random.Generator | None) -> Tensor:
        """(Q, S, H): each segment as it is read beside each question."""
        flat, owners, marks = [], [], []
        for q, row in enumerate(rows):
            question = dropped(prep["questions"][row], 0.05, rng) if rng is not None else (
                prep["questions"][row])
            for first, last in prep["windows"]:
                tokens, owner = [student.cls, *question, student.sep], [-1] * (len(question) + 2)
                for k in range(first, last):
                    tokens += [*prep["ids"][k], student.sep]
                    owner += [k - first] * len(prep["ids"][k]) + [-1]
                flat.append(tokens)
                owners.append(owner)
                marks.append((q, first, last))
        count = max(last - first for _, first, last in marks)
        n = len(prep["ids"])
        total = torch.zeros(len(rows), n, student.hidden_size, device=DEVICE)
        weight = torch.zeros(len(rows), n, 1, device=DEVICE)
        for start in range(0, len(flat), 64):
            ids, mask = pad(flat[start : start + 64], 0)
            where = np.full(ids.shape, -1, np.int64)
            for i, owner in enumerate(owners[start : start + 64]):
                where[i, : len(owner)] = owner
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
                hidden = student(ids, mask)
            means = segment_means(hidden.float(), torch.from_numpy(where).to(DEVICE), count)
            for i, (q, first, last) in enumerate(marks[start : start + 64]):
                pad_to = torch.zeros_like(total[0])
                pad_to[first:last] = means[i, : last - first]
                total = total + F.one_hot(torch.tensor(q, device=DEVICE),
                                          len(rows))[:, None, None] * pad_to
                weight[q, first:last] += 1
        return total / weight.clamp(min=1)

    def value_of(judge: ReaderJudge, prep: dict[str, Any], rows: list[int],
                 rng: np.random.Generator) -> Tensor:
        index = torch.tensor(rows, device=DEVICE)
        scores = judge.reader.score_spans(
            judge.scores(read(judge.encoder, prep, rows, rng), prep, index), prep["spans"])
        log_p, agree = scores.log_softmax(1), prep["agree"][index]
        target = torch.where(agree >= 0.5, agree**2, 0.0)
        known = target.sum(1) > 0
        target = target / target.sum(1, keepdim=True).clamp(min=1e-6)
        likeliest = -(target * log_p).sum(1)
        agreeing = -torch.logsumexp(log_p.masked_fill(agree < 0.5, -1e4), 1)
        return (0.3 * likeliest + 0.7 * agreeing)[known].sum() / max(1, int(known.sum()))

    def fit(judge: ReaderJudge, preps: list[dict[str, Any]], epochs: int, rate: float,
            head_rate: float, seed: int, name: str) -> None:
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        body = [p for p in judge.encoder.parameters() if p.requires_grad]
        rest = [p for n, p in judge.named_parameters() if not n.startswith("encoder.")]
        optimiser = torch.optim.AdamW([{"params": body, "lr": rate},
                                       {"params": rest, "lr": head_rate}], weight_decay=0.05)
        order = [preps[i] for _ in range(epochs) for i in rng.permutation(len(preps))]
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, [rate, head_rate], total_steps=len(order) + 1, pct_start=0.15)
        mean: list[Tensor] | None = None
        judge.train()
        began = time.perf_counter()
        for step, prep in enumerate(order):
            n = len(prep["questions"])
            rows = rng.choice(n, min(n, 12), replace=False).tolist()
            value = value_of(judge, prep, rows, rng)
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(body + rest, 1.0)
            optimiser.step()
            schedule.step()
            if step > 0.7 * len(order):
                if mean is None:
                    mean = [p.detach().clone() for p in body + rest]
                for average_, p in zip(mean, body + rest, strict=True):
                    average_.lerp_(p.detach(), 0.02)
            if step % 100 == 0:
                print(f"{name} {step}/{len(order)} loss {float(value):.3f} "
                      f"{time.perf_counter() - began:.0f} s", flush=True)
        if mean is not None:
            with torch.no_grad():
                for average_, p in zip(mean, body + rest, strict=True):
                    p.copy_(average_)
        judge.eval()

    order = np.random.default_rng(123).permutation(len(videos))
    for part in arguments.parts:
        held = set(order[int(part)::FOLDS].tolist()) if part != "all" else set()
        student = Student(arguments.model, BranchConfig(6, arguments.rank, window, most),
                          arguments.full)
        judge = ReaderJudge(student).to(DEVICE)
        cooks = [prepared(item, student) for item in cooking]
        preps = [prepared(videos[i], student) for i in range(len(videos)) if i not in held]
        fit(judge, cooks, 1 if arguments.cooking else 0, arguments.rate, 2e-3, arguments.seed,
            f"qa-{part} cooking") if arguments.cooking else None
        fit(judge, preps, int(arguments.epochs), arguments.rate, 2e-3, arguments.seed,
            f"qa-{part}")
        results, arrays = [], {}
        with torch.no_grad():
            for i in sorted(held):
                prep = prepared(videos[i], student)
                n = prep["item"].scored
                logits = torch.cat([judge.scores(
                    read(student, prep, list(range(a, min(a + 16, n))), None), prep,
                    torch.arange(a, min(a + 16, n), device=DEVICE)) for a in range(0, n, 16)])
                scores = judge.reader.score_spans(logits, prep["spans"])
                p = scores.softmax(1)
                first, last = prep["spans"].first, prep["spans"].last
                inside = torch.zeros(n, len(prep["ids"]) + 1, device=DEVICE)
                inside.index_add_(1, first, p)
                inside.index_add_(1, last + 1, -p)
                best = inside.cumsum(1)[:, :-1].argmax(1).cpu()
                mass_best = []
                for k in range(n):
                    keep = p[k].topk(min(300, p.shape[1])).indices
                    agree = overlap(first[keep][:, None], last[keep][:, None], first[keep],
                                    last[keep])
                    mass = (agree >= 0.5).float() @ p[k][keep] + 0.02 * (agree @ p[k][keep])
                    mass_best.append(int(keep[int(mass.argmax())]))
                for k in range(n):
                    gold = prep["item"].answers[k]
                    iou = float(prep["agree"][k][mass_best[k]])
                    # Within the answer that was chosen, as the head does.
                    a, b = int(first[mass_best[k]]), int(last[mass_best[k]])
                    inner = a + int(inside[k].cumsum(0)[a : b + 1].argmax())
                    results.append((videos[i].name, iou, gold[0] <= inner <= gold[1],
                                    gold[0] <= int(best[k]) <= gold[1]))
                arrays[f"v{i}"] = logits.half().cpu().numpy()
        numbers: dict[str, Any] = {"rank": arguments.rank, "epochs": arguments.epochs,
                                   "rate": arguments.rate, "full": arguments.full}
        if results:
            numbers |= {"n": len(results),
                        "r1_iou50": round(100 * float(np.mean([r[1] >= 0.5 for r in results])), 2),
                        "mean_iou": round(100 * float(np.mean([r[1] for r in results])), 2),
                        "inside": round(100 * float(np.mean([r[2] for r in results])), 2),
                        "inside_any": round(100 * float(np.mean([r[3] for r in results])), 2)}
        arguments.out.mkdir(parents=True, exist_ok=True)
        state = {k: v for k, v in judge.state_dict().items() if not k.startswith("encoder.")}
        state |= {f"branch.{k}": v for k, v in student.branch.state().items()}
        name = f"qa-{part}{arguments.tag}"
        save_file({k: v.detach().half().contiguous().cpu() for k, v in state.items()},
                  arguments.out / f"{name}.safetensors")
        np.savez_compressed(arguments.out / f"{name}.npz", **arrays)
        (arguments.out / f"{name}.json").write_text(json.dumps(numbers, indent=1))
        print(name, json.dumps(numbers), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("task", choices=["moderation", "sentiment", "summarisation", "qa"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("plugins/vbkit_mini/model"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--teacher-epochs", type=float, default=3)
    parser.add_argument("--trust", type=float, default=0.5, help="of the teacher")
    parser.add_argument("--parts", nargs="+", default=["0", "all"])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="of training passages (summarisation)")
    parser.add_argument("--seconds", type=float, default=1e9, help="of training (summarisation)")
    parser.add_argument("--full", action="store_true", help="train whole layers, to compare")
    parser.add_argument("--no-cooking", dest="cooking", action="store_false")
    parser.add_argument("--tag", default="", help="added to file names")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    torch.set_float32_matmul_precision("high")
    torch.set_num_threads(2)
    {"moderation": moderation, "sentiment": sentiment, "summarisation": summarisation,
     "qa": qa}[arguments.task](arguments)


if __name__ == "__main__":
    main()
