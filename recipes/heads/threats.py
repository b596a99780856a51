"""Labels of threats, and what the moderation branch reads of the texts.

A threat is a declared intention, a wish or an incitement to harm a person or a group bodily. One
person read some 3,400 texts, found by words of violence and by likeness to threats, and labelled
3,000 of them (`threat_labels.csv`: set, row, digest, label; the texts themselves stay with their
sets). What could be read either way was left out: sports and lyrics, mostly. Jokes, reports,
quotations, idioms and mere insults are no threats. `threat_sentences.csv` adds sentences written
for this, in plain language, since people who threaten in the sets swear as well.

A quarter of the labelled texts, by their digest, and half of the ordinary passages train and
calibrate nothing; they only measure.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from branches import MODERATION_BRANCH, clean, load_branch, read_csv
from encode import Encoder
from safetensors.torch import load_file

__all__ = ["HELD", "Texts", "digest", "labelled", "ordinary", "states", "written"]

HERE = Path(__file__).parent
HELD = -1
"""The fold of what only measures."""
FOLDS = 5
_SENTENCES = 30
"""Of a passage, at most; the encoder would read longer for nothing."""


@dataclass(frozen=True)
class Texts:
    """Sentences with what is known of them.

    Args:
        texts: N sentences.
        threat: (N,) 1 or 0.
        fold: (N,) 0 to 4, or HELD.
        source: (N,) name of the set.
        passage: (N,) which video, dialogue or passage each is of; labelled texts are each alone.
    """

    texts: list[str]
    threat: np.ndarray
    fold: np.ndarray
    source: np.ndarray
    passage: np.ndarray

    def __add__(self, other: Texts) -> Texts:
        after = int(self.passage.max()) + 1 if len(self.passage) else 0
        return Texts(
            [*self.texts, *other.texts], np.r_[self.threat, other.threat],
            np.r_[self.fold, other.fold], np.r_[self.source, other.source],
            np.r_[self.passage, other.passage + after])

    def part(self, rows: np.ndarray) -> Texts:
        """Some of the sentences."""
        return Texts([self.texts[i] for i in rows], self.threat[rows], self.fold[rows],
                     self.source[rows], self.passage[rows])


def digest(text: str) -> str:
    """A digest of the wording of a text, whatever its case, marks, names and links."""
    words = re.sub(r"[^a-z0-9 ]", "", clean(text).lower()).split()
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]


def _number(mark: str) -> int:
    return int(mark[:8], 16)


def _tweets(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def _sets(data: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Each labelled set's texts by the row that `threat_labels.csv` names."""
    folder = data / "moderation"

    def numbered(texts: Sequence[str]) -> dict[str, str]:
        return {str(row): text for row, text in enumerate(texts)}

    yield "davidson", numbered(
        [row["tweet"] for row in read_csv(folder / "davidson_hate_offensive.csv")])
    for kind in ("offensive", "hate"):
        for part in ("train", "val"):
            yield f"tweeteval_{kind}_{part}", numbered(
                _tweets(folder / "tweeteval" / kind / f"{part}_text.txt"))
    with (folder / "multihateclip.jsonl").open(encoding="utf-8") as file:
        videos = [json.loads(line) for line in file]
    yield "multihateclip", {
        f"{video['id']}#{place}": sentence for video in videos
        for place, sentence in enumerate(re.split(r"(?<=[.!?])\s+", video["text"]))}
    sentiment = data / "sentiment"
    for part in ("train", "dev"):
        yield f"meld_{part}", numbered([
            row["Utterance"] for row in read_csv(sentiment / "meld" / f"{part}_sent_emo.csv")])
    yield "mosi", numbered([
        row["text"].lower() for row in read_csv(sentiment / "mosi" / "transcripts.csv")])


def labelled(data: Path) -> Texts:
    """The texts of `threat_labels.csv`.

    Raises:
        ValueError: a row of a set is another text than the one that was labelled.
    """
    sets = dict(_sets(data))
    texts, threat, fold, source = [], [], [], []
    for row in read_csv(HERE / "threat_labels.csv"):
        text = sets[row["set"]].get(row["row"], "")
        if digest(text) != row["digest"]:
            raise ValueError(f"row {row['row']} of {row['set']} is not the text that was labelled")
        number = _number(row["digest"])
        texts.append(text)
        threat.append(int(row["threat"]))
        fold.append(HELD if number % 4 == 0 else number // 4 % FOLDS)
        source.append(re.sub(r"_(train|val|dev)$", "", row["set"]))
    return Texts(texts, np.array(threat), np.array(fold), np.array(source),
                 np.arange(len(texts)))


def written() -> Texts:
    """The sentences of `threat_sentences.csv`, which measure nothing."""
    rows = read_csv(HERE / "threat_sentences.csv")
    fold = np.array([_number(digest(row["sentence"])) % FOLDS for row in rows])
    return Texts([row["sentence"] for row in rows], np.array([int(row["threat"]) for row in rows]),
                 fold, np.full(len(rows), "written"), np.arange(len(rows)))


def ordinary(data: Path, but: Texts) -> Texts:
    """Passages of ordinary speech: half of each set, by name, is HELD, and all tutorials.

    Args:
        data: the data folder.
        but: labelled texts, which are left out of them where they are threats.
    """
    threats = {digest(text) for text, yes in zip(but.texts, but.threat, strict=True) if yes}
    groups: list[tuple[str, str, list[str]]] = []
    for part, step in (("train", 400), ("dev", 28)):
        path = data / "vtssum" / f"{part}.jsonl.gz"
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            groups += [("lectures", f"{part}{number}", json.loads(line)["text"])
                       for number, line in enumerate(lines) if number % step == 0]
    together: dict[tuple[str, str], list[str]] = {}
    for row in read_csv(data / "youcook2" / "asr_sentences.csv"):
        together.setdefault(("cooking", row["video_id"]), []).append(row["Sentence"])
    for row in read_csv(data / "sentiment" / "mosi" / "transcripts.csv"):
        together.setdefault(("reviews", row["video"]), []).append(row["text"].lower())
    for part in ("train", "dev"):
        for row in read_csv(data / "sentiment" / "meld" / f"{part}_sent_emo.csv"):
            together.setdefault(("dialogues", f"{part}{row['Dialogue_ID']}"), []).append(
                row["Utterance"])
    groups += [(source, name, texts) for (source, name), texts in together.items()]
    tutorials = json.loads((data / "tutorialvqa" / "videos.json").read_text(encoding="utf-8"))
    groups += [("tutorials", str(video["video_id"]), video["transcript"]) for video in tutorials]
    texts, fold, source, passage = [], [], [], []
    for number, (kind, name, said) in enumerate(groups):
        mark = _number(hashlib.sha256(f"{kind} {name}".encode()).hexdigest())
        if kind in ("dialogues", "cooking") and mark // 2 % 2:
            continue  # half of them are enough
        kept = [text for text in said[:_SENTENCES] if digest(text) not in threats]
        held = kind == "tutorials" or mark % 2 == 0
        texts += kept
        fold += [HELD if held else mark // 4 % FOLDS] * len(kept)
        source += [kind] * len(kept)
        passage += [number] * len(kept)
    return Texts(texts, np.zeros(len(texts), int), np.array(fold), np.array(source),
                 np.array(passage))


@torch.no_grad()
def states(encoder: Encoder, branch: Path, texts: Sequence[str]) -> np.ndarray:
    """(N, H) float32 of texts as the branch of the file `branch` reads them.

    They are kept in the encoder's cache, under the branch's digest.
    """
    mark = hashlib.sha256(branch.read_bytes()).hexdigest()[:12]
    path = encoder.cache / f"branch-{mark}.npz"
    known: dict[str, np.ndarray] = {}
    if path.exists():
        with np.load(path) as stored:
            known = dict(zip(stored["keys"].tolist(), stored["rows"], strict=True))
    keys = [hashlib.sha256(text.encode()).hexdigest()[:24] for text in texts]
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
    if missing:
        reader = encoder.engine.bundle.text_branch(MODERATION_BRANCH)
        load_branch(reader, load_file(branch))
        reader.merge()
        rows = reader.read(reader.tokenize(list(missing.values()))).half().cpu().numpy()
        known |= dict(zip(missing, rows, strict=True))
        encoder.cache.mkdir(parents=True, exist_ok=True)
        np.savez(path, keys=np.array(list(known)), rows=np.stack(list(known.values())))
    return np.stack([known[key] for key in keys]).astype(np.float32)
