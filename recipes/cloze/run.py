"""The cloze of VideoBERT (Sun et al., ICCV 2019, section 4.3, table 2), on captioned pictures.

    python recipes/cloze/run.py --start DIR --bert DIR --data DIR --work DIR

Ten models are trained alike by `vbkit pretrain`'s own code, from the same BERT checkpoint: the
language prior on captions alone, and the joint model on a quarter, half and all of the training
pairs, reading visual words, clip features, or both. Each then fills the gaps of a sentence for
pictures and clips that neither it nor the vocabulary saw. The table goes to WORK/table.md and
WORK/table.json; models that are in WORK already are not trained again.

`--start` is the bundle whose backbone saw the pictures (`recipes/mini` leaves one in WORK/start),
and `--features` what it saw (WORK/features.safetensors there).
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import vbkit
from vbkit.evaluation.clips import ClipSequence
from vbkit.evaluation.cloze import load_cloze, zero_shot_cloze
from vbkit.model.vocabulary import VOCABULARY_FILE, VisualVocabulary, build_vocabulary
from vbkit.training.config import ExampleOptions, PretrainConfig
from vbkit.training.corpus import CorpusInfo, CorpusItem, write_corpus
from vbkit.training.pretraining import pretrain

HERE = Path(__file__).parent
SHARES = {"quarter": 0.25, "half": 0.5, "all": 1.0}
INPUTS = ("words", "features", "both")
HELD_OUT_CLIPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", type=Path, required=True, help="bundle with the backbone")
    parser.add_argument("--features", type=Path, required=True, help="features.safetensors")
    parser.add_argument("--bert", type=Path, required=True, help="BERT checkpoint to start from")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--reverse", action="store_true",
                        help="from the last model to the first, as a second process beside another")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    pictures = Pictures(args)
    pictures.write_corpora()
    pictures.write_vocabulary()
    rows = []
    models = [("all", None), *((s, v) for v in INPUTS for s in SHARES)]
    for share, visual_input in reversed(models) if args.reverse else models:
        rows.append(train_and_measure(args, pictures, share, visual_input))
        print(json.dumps(rows[-1]), flush=True)
    (args.work / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
    (args.work / "table.md").write_text(as_table(rows))


class Pictures:
    """Features and captions of Flickr8k and of the captioned clips, in training and held out."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.work = args.work
        self.engine = vbkit.Engine(model=str(args.start), precision="float32",
                                   cache=args.work / "cache")
        stored = load_file(args.features)
        # The whole picture comes first: it is what held-out pictures are seen in.
        seen = ["flickr_squash", *sorted(name for name in stored if name.startswith("flickr_")
                                         and name not in ("flickr_text", "flickr_squash"))]
        views = torch.stack([stored[name] for name in seen], 1)[:, :, None]
        # A still picture does not change over time: its deviations are 0.
        width = self.engine.bundle.backbone.dim
        views = F.pad(views, (0, width - views.shape[-1]))
        names: dict[str, int] = {}
        self.train: list[CorpusItem] = []
        self.held_out: list[ClipSequence] = []
        captions: dict[str, list[str]] = {}
        split: dict[str, str] = {}
        with (args.data / "flickr8k" / "captions.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                names.setdefault(row["image"], len(names))
                captions.setdefault(row["image"], []).append(row["caption"].strip())
                split[row["image"]] = row["split"]
        for name, place in names.items():
            if split[name] == "train":
                self.train.append(CorpusItem(name, views[place].numpy(), captions=captions[name]))
            else:
                self.held_out.append(ClipSequence(name, tuple(captions[name]),
                                                  views[place, 0].float()))
        with (args.data / "captioned_clips" / "captions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        files = [args.data / "captioned_clips" / row["video"] for row in rows]
        for place, (row, found) in enumerate(zip(rows, self.engine.encode(
                files, needs={"clip_features"}, transcript="none"), strict=True)):
            if found.error is not None:
                continue
            if place < HELD_OUT_CLIPS:
                self.held_out.append(ClipSequence(row["video"], (row["caption"],),
                                                  found.clip_features))
            else:
                self.train.append(CorpusItem(row["video"], found.clip_features.numpy(),
                                             captions=[row["caption"]]))
        order = np.random.default_rng(0).permutation(len(self.train))
        self.train = [self.train[place] for place in order]

    def write_corpora(self) -> None:
        """One for each share; a smaller one is part of the larger."""
        for share, part in SHARES.items():
            folder = self.work / "corpora" / share
            if (folder / "corpus.json").exists() and CorpusInfo.read(folder).complete:
                continue
            items = (CorpusItem(item.id, item.clip_features, captions=item.captions, split="train")
                     for item in self.train[: round(part * len(self.train))])
            write_corpus(items, folder, tokenizer=self.engine.bundle.processor.tokenizer,
                         backbone=self.engine.bundle.visual_key)

    def write_vocabulary(self) -> None:
        """Visual words of the backbone's own features, which no caption has had a part in."""
        if (self.work / "vocabulary" / VOCABULARY_FILE).exists():
            return
        rows = torch.cat([torch.from_numpy(np.asarray(item.clip_features)).flatten(0, -2)
                          for item in self.train]).float()
        rows = self.engine.bundle.model.standardise(rows)
        vocabulary = build_vocabulary(lambda: rows.split(4096), depth=2, branching=16, seed=0,
                                      space="features", backbone=self.engine.bundle.visual_key)
        vocabulary.save(self.work / "vocabulary")

    @property
    def n_words(self) -> int:
        return len(VisualVocabulary.load(self.work / "vocabulary"))


def train_and_measure(args: argparse.Namespace, pictures: Pictures, share: str,
                      visual_input: str | None) -> dict[str, object]:
    out = args.work / "models" / (f"{visual_input}-{share}" if visual_input else "prior")
    config = PretrainConfig(
        corpus=str(args.work / "corpora" / share), init_text=str(args.bert),
        backbone=str(args.start),
        vocabulary=str(args.work / "vocabulary") if visual_input else None,
        model_config={"num_hidden_layers": args.layers, "visual_input": visual_input or "features",
                      "visual_vocab_size": pictures.n_words if visual_input else 0,
                      "visual_reduction_size": 0, "projection_hidden_size": 0,
                      "visual_dropout_prob": 0.2,
                      "adapter_size": 128, "adapter_context_size": 128 if visual_input else 0},
        mixture={"joint": 1} if visual_input else {"text": 1}, batch_size=32,
        precision="bfloat16",
        examples=ExampleOptions(max_text_tokens=20, mask_rate=(0.2, 0.8), negative_share=0.1,
                                join=0.0, max_clips=16, visual_mask_rate=(0.0, 0.3)),
        loss_weights={"visual_words": 0.2, "alignment": 0.2},
        steps=args.steps, learning_rate=3e-4,
        learning_rates={"videobert.visual_embeddings": 1e-3, "word_head": 1e-3,
                        **({"videobert.context": 1e-3} if visual_input else {}),
                        **{f"videobert.layers.{n}.{part}_adapter": 1e-3
                           for n in range(args.layers) for part in ("attention", "mlp")}},
        frozen=("videobert.text_embeddings.words", "videobert.clip_projection", "logit_scale"),
        log_every=50, eval_every=0, save_every=0)
    began = time.perf_counter()
    if not (out / "model.safetensors").exists():
        pretrain(config, out, device="cpu", resume=out.exists())
    seconds = time.perf_counter() - began
    engine = vbkit.Engine(model=str(out), precision="float32")
    cloze = load_cloze(engine.bundle, HERE / "cloze.json")
    scores = zero_shot_cloze(engine.encoder, pictures.held_out, cloze).metrics
    if visual_input is None:  # it was never shown a picture
        scores = {name.removeprefix("text_only_"): value for name, value in scores.items()
                  if name.startswith("text_only_")}
    return {"input": visual_input, "share": share, "seconds": round(seconds), **scores}


def as_table(rows: list[dict[str, object]]) -> str:
    """Markdown, in per cent."""
    lines = ["| model | training pairs | noun@1 | noun@5 | verb@1 | verb@5 |",
             "|---|---|---|---|---|---|"]
    for row in rows:
        values = [f"{100 * float(row[name]):.1f}" for name in
                  ("noun_at_1", "noun_at_5", "verb_at_1", "verb_at_5")]
        name = f"joint, visual {row['input']}" if row["input"] else "language prior"
        if row["input"] == "both":
            name = "joint, visual words and features"
        elif row["input"] == "features":
            name = "joint, clip features"
        lines.append(f"| {name} | {row['share']} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
