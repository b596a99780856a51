"""Pretraining on transformers' `Trainer`: what a run starts from, its loop, and what it leaves.

    OUT/pretrain.json       the `PretrainConfig`
    OUT/checkpoints/        what a killed run goes on from
    OUT/log.jsonl           the losses, a line each time they are logged
    OUT/                    once it is finished, a bundle that `vbkit run --model OUT` loads

The batches of `BatchStream` are a function of their number, and dropout's random numbers are seeded
by it, so that a resumed run goes on to the losses that it would have had.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    AutoTokenizer,
    EarlyStoppingCallback,
    IntervalStrategy,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
)

from vbkit.engine.bundle import Bundle, choose_device, find_model
from vbkit.errors import CorpusError, ModelError, TrainingError, UsageError
from vbkit.evaluation.captions import Cider
from vbkit.files import renamed
from vbkit.model import VideoBertConfig, VideoBertProcessor
from vbkit.model.modeling import VideoBertForPreTraining, bert_to_videobert
from vbkit.model.motion import MOTION_FILE
from vbkit.model.processing import VIDEO_TOKEN
from vbkit.model.vocabulary import VOCABULARY_FILE, VisualVocabulary
from vbkit.store.lock import FolderLock
from vbkit.training.config import (
    CONFIG_FILE,
    DEFAULT_MIXTURE,
    KINDS,
    LOSSES,
    ExampleOptions,
    PretrainConfig,
)
from vbkit.training.corpus import Corpus, tokenizer_key
from vbkit.training.examples import NOTHING, Batch, BatchStream, SpecialTokens, make_units
from vbkit.training.rewards import drawn_and_judged, written_reward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vbkit.plugins import PluginManager

__all__ = ["Plan", "PretrainResult", "Start", "pretrain", "start_from"]

logger = logging.getLogger("vbkit")

_GIVEN = frozenset({"backbone", "clip_seconds", "text_tower", "vocab_size", "pad_token_id",
                    "cls_token_id", "sep_token_id", "mask_token_id", "video_token_id"})
_FREE = frozenset({"log_every", "eval_every", "eval_batches", "save_every", "keep_checkpoints",
                   "workers", "save_dtype"})
"""What may change when a run is resumed: the losses do not depend on it."""
VISUAL_WORDS = "videobert.visual_embeddings.words.weight"
Logged = Callable[[Mapping[str, float]], None]


@dataclass
class Start:
    """What training begins with.

    Args:
        model: in float32, on the CPU.
        processor: its tokenizer.
        files: further files of the bundle, by name.
        backbone: key of the visual backbone; "" where there is none.
        notes: what an operator should know.
        new: names of the tensors that start at random.
    """

    model: VideoBertForPreTraining
    processor: VideoBertProcessor
    files: dict[str, Path]
    backbone: str = ""
    notes: list[str] = field(default_factory=list)
    new: frozenset[str] = frozenset()


@dataclass
class Plan:
    """A run, ready to begin.

    Args:
        config: what decides it, with all that was left open filled in.
        start: model and tokenizer.
        corpus: what it is trained on.
        vocabulary: the visual words, or None.
        train, val: the batches; `val` is None where the corpus has no validation items.
        units, val_units: how many examples of each kind there are to train on, and to validate
            with; of the contrast, how many videos.
        steps: optimizer steps.
        scorer: what captions are worth, or None where none are rewarded.
    """

    config: PretrainConfig
    start: Start
    corpus: Corpus
    vocabulary: VisualVocabulary | None
    train: BatchStream
    val: BatchStream | None
    units: dict[str, int]
    val_units: dict[str, int]
    steps: int
    scorer: Cider | None = None


@dataclass(frozen=True)
class PretrainResult:
    """What a run came to.

    Args:
        out: the bundle.
        steps: optimizer steps done, those before a resumption too.
        metrics: of the last evaluation, by name.
        stopped_early: whether patience ended it.
        seconds: this call took.
    """

    out: Path
    steps: int
    metrics: dict[str, float]
    stopped_early: bool
    seconds: float


# --- what to start from -----------------------------------------------------------------------


def start_from(config: PretrainConfig, manager: PluginManager | None = None,
               precision: str = "float32") -> Start:
    """The model that training begins with.

    Args:
        config: its `model`, or `init_text` and `backbone`, and `model_config`.
        manager: the plugins; the installed ones by default.
        precision: of the backbone, when the corpus was made.

    Raises:
        ModelError: a model cannot be loaded.
        UsageError: `model_config` has unknown names or values.
    """
    from vbkit.plugins import default_manager

    manager = manager if manager is not None else default_manager()
    torch.manual_seed(config.seed)
    if config.init_text is not None:
        return _from_bert(config, manager, precision)
    path = find_model(manager, config.model)
    settings = _settings(path)
    model = VideoBertForPreTraining(_configured(settings, config.model_config))
    new = _load(model, _weights(path / "model.safetensors"))
    bundle = Bundle(manager, config.model, "cpu", precision)
    return Start(model, bundle.processor, _extra_files(path, settings),
                 bundle.visual_key if settings.get("backbone") else "",
                 _said_of(new, config.model), new)


def _from_bert(config: PretrainConfig, manager: PluginManager, precision: str) -> Start:
    from transformers import AutoConfig, BertForMaskedLM

    source = str(config.init_text)
    try:
        with _quiet_transformers():  # it would list what BERT has and VideoBERT lacks
            theirs = AutoConfig.from_pretrained(source)
            if theirs.model_type != "bert":
                raise ModelError(f"{source} is a {theirs.model_type} model, not BERT")
            bert, loading = BertForMaskedLM.from_pretrained(
                source, use_safetensors=True, output_loading_info=True)
        tokenizer, video_token = videobert_tokenizer(source)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"cannot start from the BERT checkpoint {source}: {reason}") from error
    path = find_model(manager, config.backbone)
    donor_settings = _settings(path)
    donor = VideoBertConfig.from_dict(donor_settings)
    same = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
            "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob",
            "max_position_embeddings", "initializer_range", "layer_norm_eps")
    settings = {name: getattr(theirs, name) for name in same}
    settings |= {
        "vocab_size": max(theirs.vocab_size, len(tokenizer)), "shared_size": theirs.hidden_size,
        "max_text_length": min(256, theirs.max_position_embeddings),
        "visual_feature_size": donor.visual_feature_size, "backbone": donor.backbone,
        "clip_seconds": donor.clip_seconds, "video_token_id": video_token,
        "cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id,
        "mask_token_id": tokenizer.mask_token_id, "pad_token_id": tokenizer.pad_token_id,
    }
    model = VideoBertForPreTraining(_configured(settings, config.model_config))
    state = bert.state_dict()
    own = {f"videobert.{name}": tensor for name, tensor in bert_to_videobert(state).items()}
    if not any("cls." in name for name in loading["missing_keys"]):
        head = "cls.predictions."
        own |= {
            "word_head.dense.weight": state[f"{head}transform.dense.weight"],
            "word_head.dense.bias": state[f"{head}transform.dense.bias"],
            "word_head.norm.weight": state[f"{head}transform.LayerNorm.weight"],
            "word_head.norm.bias": state[f"{head}transform.LayerNorm.bias"],
            "word_head.decoder.bias": state[f"{head}bias"],
        }
    extra = model.config.vocab_size - theirs.vocab_size
    if extra:  # a word that the checkpoint does not have begins as the mean of those it has
        for name in ("videobert.text_embeddings.words.weight", "word_head.decoder.bias"):
            if name in own:
                mean = own[name].mean(0, keepdim=True)
                own[name] = torch.cat([own[name], mean.expand(extra, *mean.shape[1:])])
    weights = _weights(path / "model.safetensors")
    if model.config.visual_feature_size == donor.visual_feature_size:
        # the same features, standardised as before: visual words stay what they are
        own |= {name: weights[name] for name in ("videobert.feature_mean", "videobert.feature_std")
                if name in weights}
    new = _load(model, own)
    bundle = Bundle(manager, config.backbone, "cpu", precision)
    return Start(model, VideoBertProcessor(tokenizer, max_text_length=model.config.max_text_length),
                 {name: file for name, file in _extra_files(path, donor_settings).items()
                  if name != VOCABULARY_FILE},
                 bundle.visual_key if donor.backbone else "", _said_of(new, source), new)


def videobert_tokenizer(source: str) -> tuple[PreTrainedTokenizerBase, int]:
    """A BERT checkpoint's tokenizer that knows `[>]`, and its id.

    `[>]` takes the place of the first `[unused…]` word, or a place of its own at the end.
    """
    tokenizer = AutoTokenizer.from_pretrained(source)
    vocabulary = tokenizer.get_vocab()
    if VIDEO_TOKEN in vocabulary:
        return tokenizer, vocabulary[VIDEO_TOKEN]
    unused = sorted((index, word) for word, index in vocabulary.items()
                    if word.startswith("[unused"))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not unused or backend is None:
        tokenizer.add_special_tokens({"additional_special_tokens": [VIDEO_TOKEN]})
        return tokenizer, tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
    index, word = unused[0]
    spec = json.loads(backend.to_str())
    words = spec["model"]["vocab"]
    words[VIDEO_TOKEN] = words.pop(word)
    spec["model"]["vocab"] = dict(sorted(words.items(), key=lambda item: item[1]))
    spec["added_tokens"] = sorted([*spec["added_tokens"], {
        "id": index, "content": VIDEO_TOKEN, "single_word": False, "lstrip": False,
        "rstrip": False, "normalized": False, "special": True}], key=lambda token: token["id"])
    spec["truncation"] = spec["padding"] = None
    kept = ("cls_token", "mask_token", "pad_token", "sep_token", "unk_token")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tokenizer.json").write_text(json.dumps(spec))
        Path(folder, "tokenizer_config.json").write_text(json.dumps({
            **{name: getattr(tokenizer, name) for name in kept},
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": min(int(tokenizer.model_max_length), 512)}))
        return AutoTokenizer.from_pretrained(folder), index


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: config.json cannot be read ({error})") from error
    if settings.get("model_type") != VideoBertConfig.model_type:
        raise ModelError(f"{path} is a {settings.get('model_type')} model, not VideoBERT")
    return settings


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({error})") from error
    # the encoder may have been saved by itself
    prefix = "" if any(name.startswith("videobert.") for name in state) else "videobert."
    return {prefix + name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in state.items()}


def _configured(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> VideoBertConfig:
    from vbkit.options import close_matches

    known = VideoBertConfig().to_dict()
    for name in changes:
        if name in _GIVEN:
            raise UsageError(f"model_config.{name} comes with the backbone and the tokenizer: it "
                             "cannot be set")
        if name not in known:
            raise UsageError(f"model_config.{name} is no value of VideoBertConfig"
                             f"{close_matches(name, known)}")
    kept = {name: value for name, value in settings.items()
            if name not in ("architectures", "dtype", "torch_dtype", "transformers_version")}
    try:
        return VideoBertConfig.from_dict({**kept, **changes})
    except (ValueError, TypeError) as error:
        raise UsageError(f"model_config: {error}") from error


def _load(model: VideoBertForPreTraining, state: Mapping[str, Tensor]) -> frozenset[str]:
    """Fill a model with the weights that fit; the names of those that start at random."""
    wanted = model.state_dict()
    fitting = {name: tensor for name, tensor in state.items()
               if name in wanted and wanted[name].shape == tensor.shape}
    model.load_state_dict(fitting, strict=False)
    tied = {"word_head.decoder.weight"} if model.config.tie_word_embeddings else set()
    return frozenset(name for name in wanted if name not in fitting and name not in tied)


def _said_of(new: frozenset[str], source: str) -> list[str]:
    parts = sorted({".".join(name.split(".")[: 2 if name.startswith("videobert.") else 1])
                    for name in new})
    return [f"{source} has no weights for {', '.join(parts)}: these start at random"] if parts \
        else []


def _extra_files(path: Path, settings: Mapping[str, Any]) -> dict[str, Path]:
    """The files of a bundle that training leaves alone."""
    names = [VOCABULARY_FILE, MOTION_FILE]
    weights = (settings.get("backbone") or {}).get("weights")
    names += [name for name in (weights, settings.get("text_tower")) if name]
    return {name: path / name for name in names if (path / name).exists()}


# --- the plan ---------------------------------------------------------------------------------


def make_plan(config: PretrainConfig, manager: PluginManager | None = None, *, rank: int = 0,
              world: int = 1) -> Plan:
    """Open all that a run needs, and check that it goes together.

    Raises:
        CorpusError: the corpus cannot be read, or was made for another model.
        ModelError: a model or vocabulary cannot be loaded.
        UsageError: the configuration asks for what cannot be.
    """
    if not config.corpus:
        raise UsageError("name a corpus")
    corpus = Corpus.open(*config.corpus)
    start = start_from(config, manager, corpus.info.precision)
    name = config.init_text or config.model
    if corpus.info.tokenizer != tokenizer_key(start.processor.tokenizer):
        raise CorpusError(f"the corpus {config.corpus[0]} was tokenized for another model than "
                          f"{name}; make one for this model")
    if corpus.info.backbone and start.backbone and corpus.info.backbone != start.backbone:
        raise CorpusError(f"the clip features of {config.corpus[0]} were made by backbone "
                          f"{corpus.info.backbone}, but {name} goes with {start.backbone}; make a "
                          "corpus for this model")
    width = start.model.config.visual_feature_size
    if 0 < corpus.info.feature_size < width:
        raise CorpusError(f"the clip features of {config.corpus[0]} are "
                          f"{corpus.info.feature_size} wide, but the model reads {width}")
    vocabulary = _vocabulary(config, start)
    if vocabulary is not None and start.model.config.visual_vocab_size != len(vocabulary):
        sized = config.replace(model_config={
            **config.model_config, "visual_vocab_size": len(vocabulary)})
        start = start_from(sized, manager, corpus.info.precision)
    start.files.pop(VOCABULARY_FILE, None)  # the chosen one is saved with the model
    if vocabulary is None:
        _standardise(start.model, corpus)
    elif VISUAL_WORDS in start.new:
        _place_visual_words(start.model, vocabulary, config.seed)
    model = start.model.config
    options = dataclasses.replace(
        config.examples,
        max_clips=min(config.examples.max_clips, model.max_visual_positions),
        max_text_tokens=min(config.examples.max_text_tokens, model.max_position_embeddings - 1),
        max_caption_tokens=min(config.examples.max_caption_tokens,
                               model.max_decoder_positions + 1))
    aligned = config.loss_weights.get("alignment", 1.0) > 0
    if not aligned and options.negative_share:
        options = dataclasses.replace(options, negative_share=0.0)
    config = config.replace(examples=options)
    caption_words = _shortlist(start.model, corpus)
    counts = _counted(corpus, "train", options, KINDS, caption_words)
    config = config.replace(mixture=_mixture(config, counts, model, vocabulary))
    visual_words = None if vocabulary is None else assign_words(
        corpus, vocabulary, start.model)
    tokens = SpecialTokens.of(start.processor.tokenizer, model.video_token_id)
    sizes = {kind: config.batch_sizes.get(kind, config.batch_size) for kind in KINDS}
    common: dict[str, Any] = {
        "corpus": corpus, "tokens": tokens, "batch_sizes": sizes, "options": options,
        "seed": config.seed, "visual_words": visual_words,
        "feed_words": model.visual_input != "features", "caption_words": caption_words,
        "rank": rank, "world": world}
    train = BatchStream(mixture=config.mixture, **common)
    held = _counted(corpus, "val", options, list(config.mixture), caption_words)
    val_mixture = {kind: weight for kind, weight in config.mixture.items()
                   if held[kind] >= (2 if kind == "contrast" else 1)}
    val = BatchStream(mixture=val_mixture, split="val", **common) if val_mixture else None
    if val is None and config.patience:
        raise UsageError("patience needs validation items, and the corpus has none")
    steps = config.steps or _epoch_steps(train, config)
    scorer = Cider([train.references(int(item)) for item in train.units("reward").item]
                   ) if "reward" in train.kinds else None
    return Plan(config, start, corpus, vocabulary, train, val, counts, held, steps, scorer)


def _counted(corpus: Corpus, split: str, options: ExampleOptions,
             kinds: Sequence[str], caption_words: np.ndarray | None) -> dict[str, int]:
    """How many examples of each kind there are; of the contrast, how many videos with text."""
    units = make_units(corpus, split, options, kinds, caption_words)
    return {kind: len(np.unique(corpus.groups[found.item])) if kind == "contrast" else len(found)
            for kind, found in units.items()}


def _vocabulary(config: PretrainConfig, start: Start) -> VisualVocabulary | None:
    source = Path(config.vocabulary) if config.vocabulary else start.files.get(VOCABULARY_FILE)
    if source is None or config.model_config.get("visual_vocab_size") == 0:
        return None
    vocabulary = VisualVocabulary.load(source, backbone=start.backbone or None)
    vocabulary.check(feature_size=start.model.config.space_size(vocabulary.space))
    if vocabulary.space == "embeddings":
        made_by = [name for name in ("videobert.clip_projection", "videobert.reduction")
                   if any(each.startswith(name) for each, _ in start.model.named_parameters())]
        moving = [name for name in made_by
                  if not any(name.startswith(prefix) for prefix in config.frozen)]
        if moving:
            raise UsageError("the visual words are made of clip embeddings, which training would "
                             f"change under them: freeze {' and '.join(moving)}, or build a "
                             "vocabulary of features (vbkit vocab --space features)")
    return vocabulary


def _standardise(model: VideoBertForPreTraining, corpus: Corpus) -> None:
    """Give a model that knows no mean and deviation of its features those of the corpus.

    Where there is a visual vocabulary they stay as they are: its words depend on them.
    """
    encoder = model.videobert
    if bool(encoder.feature_mean.any()) or bool((encoder.feature_std != 1).any()):
        return
    width = model.config.visual_feature_size
    total, squares, count = (torch.zeros(width, dtype=torch.float64) for _ in range(3))
    for shard in range(len(corpus.shards)):
        rows = torch.from_numpy(corpus.tensors(shard)["clip_features"])
        for part in rows.split(4096) if rows.shape[-1] else ():
            part = part[:, :width].double()
            total += part.sum(0)
            squares += part.square().sum(0)
            count += len(part)
    if not bool(count.any()):
        return
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    encoder.feature_mean.copy_(mean)
    encoder.feature_std.copy_(torch.where(deviation > 1e-6, deviation, 1.0))


@torch.no_grad()
def _place_visual_words(model: VideoBertForPreTraining, vocabulary: VisualVocabulary,
                        seed: int) -> None:
    """New embeddings of visual words begin at their centroids, as in Sun et al., ICCV 2019.

    In the paper both are of one width. Here a random projection makes them so, which keeps
    distances (Johnson and Lindenstrauss, 1984), and their spread becomes that of word pieces.
    """
    centroids = vocabulary.centroids.cpu()
    words = model.videobert.visual_embeddings.words.weight
    generator = torch.Generator().manual_seed(seed)
    projection = torch.randn(centroids.shape[1], words.shape[1], generator=generator)
    placed = (centroids - centroids.mean(0)) @ projection
    spread = model.videobert.text_embeddings.words.weight.std()
    words[: len(placed)] = placed * (spread / placed.std().clamp(min=1e-6))


def assign_words(corpus: Corpus, vocabulary: VisualVocabulary,
                 model: VideoBertForPreTraining) -> list[np.ndarray]:
    """For each shard, (R,) int32: the visual word of each row of its clip features."""
    out = []
    encoder = model.videobert.eval()
    with torch.inference_mode():
        for shard in range(len(corpus.shards)):
            features = torch.from_numpy(corpus.tensors(shard)["clip_features"])
            words = []
            for rows in features.split(4096):
                made = encoder.in_space(rows.float(), vocabulary.space)
                words.append(vocabulary.assign(made).to(torch.int32).numpy())
            out.append(np.concatenate([np.zeros(0, np.int32), *words]))
    return out


def _shortlist(model: VideoBertForPreTraining, corpus: Corpus) -> np.ndarray | None:
    """Which word pieces the decoder writes; set from the corpus's captions where it is still
    empty of meaning."""
    decoder = model.decoder
    if decoder is None or not len(decoder.shortlist):
        return None
    size = len(decoder.shortlist)
    if torch.equal(decoder.shortlist.cpu(), torch.arange(size)):
        counts = np.zeros(model.config.vocab_size, np.int64)
        for item in np.flatnonzero(corpus.splits == "train"):
            pieces = [corpus.text(int(item), "caption", number)
                      for number in range(corpus.row(int(item), "captions"))]
            if pieces:
                counts += np.bincount(np.concatenate(pieces), minlength=len(counts))
        counts[model.config.sep_token_id] = counts.max() + 1
        most = np.argsort(-counts, kind="stable")[:size]
        decoder.set_shortlist(torch.from_numpy(np.sort(most)))
    allowed = np.zeros(model.config.vocab_size, bool)
    allowed[decoder.shortlist.numpy()] = True
    return allowed


def _mixture(config: PretrainConfig, counts: Mapping[str, int], model: VideoBertConfig,
             vocabulary: VisualVocabulary | None) -> dict[str, float]:
    """The kinds of batches of this run.

    Raises:
        UsageError: a kind was asked for that the model or the corpus does not have.
    """
    lacking = {}
    if model.visual_input != "features" and vocabulary is None:
        raise UsageError(f"visual_input {model.visual_input!r} needs a visual vocabulary: build "
                         "one with vbkit vocab and name it")
    if vocabulary is None:
        lacking["video"] = "it needs a visual vocabulary (vbkit vocab)"
    if not model.num_decoder_layers:
        lacking["caption"] = "the model has no decoder (model_config.num_decoder_layers)"
        lacking["reward"] = lacking["caption"]
    if model.text_tower is not None:
        lacking["contrast"] = "the model leaves texts to a text tower"
    for kind in KINDS:
        if counts[kind] < (2 if kind == "contrast" else 1):
            lacking.setdefault(kind, "the training split of the corpus has nothing for it")
    wanted = {kind: weight for kind, weight in config.mixture.items() if weight}
    for kind in wanted:
        if kind in lacking:
            raise UsageError(f"the mixture names batches of kind {kind!r}, but {lacking[kind]}")
    chosen = wanted or {kind: weight for kind, weight in DEFAULT_MIXTURE.items()
                        if kind not in lacking}
    if not chosen:
        raise UsageError("there is nothing to train on: "
                         + "; ".join(f"{kind}: {why}" for kind, why in lacking.items()))
    return chosen


def _epoch_steps(stream: BatchStream, config: PretrainConfig) -> int:
    total = sum(stream.mixture.values())
    batches = max(stream.batches_per_epoch(kind) / stream.world * total / stream.mixture[kind]
                  for kind in stream.kinds)
    return max(1, math.ceil(config.epochs * batches / config.accumulation))


# --- the loop ---------------------------------------------------------------------------------


class _Batches(IterableDataset[Batch]):
    """The batches of a stream from one on; loading processes take turns."""

    def __init__(self, stream: BatchStream, first: int, last: int) -> None:
        self.stream, self.first, self.last = stream, first, last

    def __iter__(self) -> Iterator[Batch]:
        info = torch.utils.data.get_worker_info()
        turn, turns = (info.id, info.num_workers) if info is not None else (0, 1)
        for step in range(self.first + turn, self.last, turns):
            yield {**self.stream.batch(step), "step": step}


def _only(batches: list[Batch]) -> Batch:
    return batches[0]


class _Trainer(Trainer):
    """`Trainer` over ready-made batches of several kinds.

    Its own loaders, samplers and data skipping are not used: a batch is a function of its number.
    """

    optimizer: Any
    lr_scheduler: Any
    control: Any

    def __init__(self, plan: Plan, logged: Logged, first: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.plan = plan
        self.logged = logged
        self.first = first  # batch
        self.model_accepts_loss_kwargs = False  # a batch counts as one, however long
        self._sums: dict[str, list[tuple[Tensor, int]]] = defaultdict(list)
        self._tokens = 0
        self._since = time.perf_counter()

    def get_train_dataloader(self) -> DataLoader[Any]:
        last = self.plan.steps * self.args.gradient_accumulation_steps
        workers = self.args.dataloader_num_workers
        return DataLoader(
            _Batches(self.plan.train, self.first, last), batch_size=1, collate_fn=_only,
            num_workers=workers, pin_memory=self.args.device.type == "cuda",
            prefetch_factor=4 if workers else None)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(
                parameter_groups(self.model if model is None else model, self.plan.config),
                betas=self.plan.config.adam_betas, fused=self.args.device.type in ("cpu", "cuda"))
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            config = self.plan.config
            warmup = config.warmup * num_training_steps if config.warmup < 1 else config.warmup
            name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
            self.lr_scheduler = get_scheduler(
                name, optimizer or self.optimizer, num_warmup_steps=round(warmup),
                num_training_steps=num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False,
                     num_items_in_batch: Any = None) -> Any:
        kind, ids, step, counts = map(inputs.pop, ("kind", "ids", "step", "counts"))
        # dropout, too, is a function of the batch's number
        torch.manual_seed(hash((self.plan.config.seed, step, self.args.process_index)) % 2**62)
        references = inputs.pop("references", None)
        worth = None
        if references is not None:
            assert self.plan.scorer is not None
            config = self.plan.config
            inputs["caption_ids"], inputs["caption_weights"], worth = drawn_and_judged(
                self.accelerator.unwrap_model(model), inputs, references, self.plan.scorer,
                samples=config.samples, length=config.examples.max_caption_tokens - 1)
        weights = self.plan.config.loss_weights
        if worth is not None:  # to the model, drawn captions are captions
            weights = {"caption": weights.get("reward", 1.0)}
        output = model(**inputs, loss_weights=weights)
        loss = output.loss
        if not bool(torch.isfinite(loss)):
            shown = ", ".join(f"{name} {value.item():g}" for name, value in output.losses.items())
            raise TrainingError(
                f"the loss of batch {step} (kind {kind}, step "
                f"{step // self.args.gradient_accumulation_steps + 1}) is not finite: {shown}; its "
                f"items are {', '.join(ids[:8])}{' …' if len(ids) > 8 else ''}. Nothing was saved "
                "after it: lower learning_rate, or set max_grad_norm, and go on with --resume")
        if not loss.requires_grad:
            raise UsageError(f"batches of kind {kind!r} reach no parameter that is trained: take "
                             "them out of the mixture, or freeze less")
        if self.plan.config.log_every:
            seen = output.losses if worth is None else {"reward": torch.tensor(-worth)}
            for name, value in seen.items():
                self._sums[name].append((value.detach(), counts[name]))
            self._tokens += _tokens(inputs)
        return (loss, output) if return_outputs else loss

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            for name, values in self._sums.items():
                count = sum(each for _, each in values)
                if count:
                    logs[f"{name}_loss"] = float(sum(v * each for v, each in values)) / count
            logs["tokens_per_second"] = (
                self._tokens * self.args.world_size
                / max(1e-9, time.perf_counter() - self._since))
            self._sums.clear()
            self._tokens = 0
            self._since = time.perf_counter()
        super().log(logs, None)
        if self.is_world_process_zero():
            self.logged({"step": self.state.global_step, **logs})

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None,
                 metric_key_prefix: str = "eval") -> dict[str, float]:
        assert self.plan.val is not None
        began = time.perf_counter()
        metrics = {f"{metric_key_prefix}_{name}": value
                   for name, value in self._measure(self.plan.val).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control,
                                                         metrics)
        self._since += time.perf_counter() - began  # is no training
        return metrics

    @torch.no_grad()
    def _measure(self, stream: BatchStream) -> dict[str, float]:
        """Mean losses over validation batches, and how many hidden words are found."""
        model = self.model.eval()
        names = [*LOSSES, "word_accuracy", *stream.kinds]
        sums = torch.zeros(len(names), 2, dtype=torch.float64)  # totals, and of how many

        def add(name: str, total: float, count: int) -> None:
            sums[names.index(name)] += torch.tensor([total, count], dtype=torch.float64)

        for kind in stream.kinds:
            for number in range(min(self.plan.config.eval_batches, stream.batches_per_epoch(kind))):
                if number % stream.world != stream.rank:
                    continue
                batch = stream.batch_of(kind, number)
                references = batch.pop("references", None)
                batch = self._prepare_inputs(batch)
                counts = batch.pop("counts")
                del batch["kind"], batch["ids"]
                if references is not None:
                    assert self.plan.scorer is not None
                    worth = written_reward(
                        self.accelerator.unwrap_model(model), batch, references, self.plan.scorer,
                        self.plan.config.examples.max_caption_tokens - 1)
                    add(kind, -worth, 1)
                    continue
                with self.compute_loss_context_manager():
                    output = model(**batch, loss_weights=self.plan.config.loss_weights)
                add(kind, float(output.loss), 1)
                for name, value in output.losses.items():
                    add(name, float(value) * counts[name], counts[name])
                if counts.get("words"):
                    wanted = batch["labels"][batch["labels"] != NOTHING]
                    found = output.word_logits.argmax(-1) == wanted
                    add("word_accuracy", float(found.sum()), len(wanted))
        if self.args.world_size > 1:
            dtype = torch.float32 if self.args.device.type == "mps" else torch.float64
            sums = self.accelerator.reduce(sums.to(self.args.device, dtype), "sum").cpu()
        means = {name: float(total / count) for name, (total, count)
                 in zip(names, sums, strict=True) if count > 0}
        shares = {kind: stream.mixture[kind] for kind in stream.kinds if kind in means}
        loss = sum(means[kind] * share for kind, share in shares.items()) / sum(shares.values())
        return {"loss": loss} | {
            name if name == "word_accuracy" else f"{name}_loss": value
            for name, value in means.items() if name in LOSSES or name == "word_accuracy"}

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:
            self.model.save_pretrained(output_dir or self.args.output_dir)


def _tokens(inputs: Mapping[str, Any]) -> int:
    """Word pieces and clips of a batch, padding included: what the model reads."""
    return sum(inputs[name].numel() for name in ("input_ids", "visual_mask", "text_ids",
                                                 "caption_ids") if name in inputs)


def parameter_groups(model: nn.Module, config: PretrainConfig) -> list[dict[str, Any]]:
    """Parameters for an optimizer, by learning rate and by whether they decay.

    Raises:
        UsageError: a prefix is no parameter's, or all are frozen.
    """
    names = [name for name, _ in model.named_parameters()]
    for prefix in config.learning_rates:
        if not any(name.startswith(prefix) for name in names):
            raise UsageError(f"learning_rates names {prefix!r}, which no parameter begins with")
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        prefixes = [prefix for prefix in config.learning_rates if name.startswith(prefix)]
        rate = config.learning_rates[max(prefixes, key=len)] if prefixes else config.learning_rate
        groups.setdefault((rate, parameter.ndim > 1), []).append(parameter)
    if not groups:
        raise UsageError("every parameter is frozen")
    return [{"params": parameters, "lr": rate,
             "weight_decay": config.weight_decay if decays else 0.0}
            for (rate, decays), parameters in groups.items()]


def freeze(model: nn.Module, prefixes: tuple[str, ...]) -> None:
    """
    Raises:
        UsageError: a prefix is no parameter's.
    """
    for prefix in prefixes:
        found = [p for name, p in model.named_parameters() if name.startswith(prefix)]
        if not found:
            raise UsageError(f"frozen names {prefix!r}, which no parameter begins with")
        for parameter in found:
            parameter.requires_grad_(False)


def pretrain(
    config: PretrainConfig,
    out: str | Path,
    *,
    device: str = "auto",
    resume: bool = False,
    profile: bool = False,
    manager: PluginManager | None = None,
    planned: Callable[[Plan], None] | None = None,
    logged: Logged | None = None,
) -> PretrainResult:
    """Train, and leave a bundle in `out`.

    Args:
        config: what decides the run.
        out: its folder.
        device: `"auto"`, `"cpu"`, `"cuda"` or `"mps"`; with `torchrun`, each process takes a GPU.
        resume: go on from the last checkpoint in `out`.
        profile: write a profiler's trace of some steps into `out/profile`.
        manager: the plugins; the installed ones by default.
        planned: called before the first step.
        logged: called with the numbers that are logged.

    Raises:
        CorpusError, ModelError, UsageError: as `make_plan`.
        StoreLockedError: another run uses `out`.
        TrainingError: a loss is not finite, or `out` cannot be written.
    """
    began = time.perf_counter()
    folder = Path(out)
    checkpoint = _resumable(folder, config, resume)
    arguments = _arguments(config, folder, device)
    plan = make_plan(config, manager, rank=arguments.process_index, world=arguments.world_size)
    freeze(plan.start.model, config.frozen)
    arguments.max_steps = plan.steps
    if plan.val is None:
        arguments.eval_strategy = IntervalStrategy.NO
    main = arguments.process_index == 0
    first = 0
    if checkpoint is not None:
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        first = state["global_step"] * config.accumulation

    def log(numbers: Mapping[str, float]) -> None:
        with (folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(dict(numbers)) + "\n")
        if logged is not None:
            logged(numbers)

    lock = FolderLock(folder / "checkpoints").hold() if main else contextlib.nullcontext()
    with lock, _readable_errors(folder), _quiet_transformers():
        if main:
            config.save(folder / CONFIG_FILE)
            _trim(folder / "log.jsonl", first // config.accumulation)
        trainer = _Trainer(
            plan, log, first, model=plan.start.model, args=arguments, data_collator=_only,
            callbacks=_callbacks(config, folder, main, profile, first // config.accumulation),
            eval_dataset=[0] if plan.val is not None else None)
        for each in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(each)
        if planned is not None and main:
            planned(plan)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        if main:
            save_bundle(plan, trainer.model, folder)
    evaluations = [{name: value for name, value in row.items() if name.startswith("eval_")}
                   for row in trainer.state.log_history if "eval_loss" in row]
    metrics = {}
    if evaluations:
        metrics = (min(evaluations, key=lambda row: row["eval_loss"]) if config.patience
                   else evaluations[-1])
    return PretrainResult(folder, trainer.state.global_step, metrics,
                          trainer.state.global_step < plan.steps, time.perf_counter() - began)


def _trim(log: Path, step: int) -> None:
    """Take the lines after a step out of a log."""
    if log.exists():
        lines = [line for line in log.read_text().splitlines()
                 if line.endswith("}") and json.loads(line)["step"] <= step]
        log.write_text("".join(f"{line}\n" for line in lines))


@contextlib.contextmanager
def _readable_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        raise TrainingError(f"cannot write to {folder}: {str(error).splitlines()[0]}; free some "
                            "space, and go on with --resume") from error


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without its bars and remarks: what there is to say is said through `logged`."""
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()


def _callbacks(config: PretrainConfig, folder: Path, main: bool, profile: bool,
               first: int) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = []
    if config.patience:
        callbacks.append(EarlyStoppingCallback(config.patience))
    if profile and main:
        callbacks.append(_Profile(folder / "profile"))
    if main and find_spec("tensorboard") is not None:
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback

        callbacks.append(TensorBoardCallback(
            SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1 if first else None)))
    return callbacks


def _resumable(folder: Path, config: PretrainConfig, resume: bool) -> Path | None:
    """The checkpoint to go on from, or None."""
    path = folder / CONFIG_FILE
    if not resume:
        if any((folder / "checkpoints").glob("checkpoint-*")) or (
                folder / "model.safetensors").exists():
            raise UsageError(f"{folder} holds a model or an unfinished training already: go on "
                             "with it (--resume), or name another folder")
        return None
    if not path.exists():
        return None  # it was cut short before it began
    before, now = PretrainConfig.from_file(path).to_dict(), config.to_dict()
    changed = [name for name in now if now[name] != before[name] and name not in _FREE]
    if changed:
        raise UsageError(f"the training in {folder} began with another {', '.join(changed)}: it "
                         "can only go on as it began")
    checkpoints = sorted((folder / "checkpoints").glob("checkpoint-*"),
                         key=lambda each: int(each.name.rpartition("-")[2]), reverse=True)
    for each in checkpoints:
        try:
            json.loads((each / "trainer_state.json").read_text())  # written last
            return each
        except (OSError, ValueError):
            logger.warning("%s is not whole, so an earlier one is gone on from", each)
    return None


def _arguments(config: PretrainConfig, folder: Path, device: str) -> TrainingArguments:
    if device not in ("auto", "cpu", "cuda", "mps"):
        raise UsageError(f"device {device!r} is none of auto, cpu, cuda, mps; choose among several "
                         "GPUs with CUDA_VISIBLE_DEVICES")
    choose_device(device)
    evaluating = "steps" if config.eval_every else "no"
    save_every = config.eval_every if config.patience else config.save_every
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=config.accumulation,
        max_steps=config.steps or 1,
        max_grad_norm=config.max_grad_norm,
        learning_rate=config.learning_rate,
        bf16=config.precision == "bfloat16",
        seed=config.seed,
        logging_strategy="steps" if config.log_every else "no",
        logging_steps=config.log_every or 1,
        logging_first_step=bool(config.log_every),
        logging_nan_inf_filter=False,
        eval_strategy=evaluating,
        eval_steps=config.eval_every or None,
        save_strategy="steps",
        save_steps=save_every or 2**31,
        save_total_limit=config.keep_checkpoints,
        load_best_model_at_end=config.patience > 0,
        metric_for_best_model="eval_loss" if config.patience else None,
        greater_is_better=False if config.patience else None,
        ignore_data_skip=True,
        remove_unused_columns=False,
        dataloader_num_workers=config.workers,
        ddp_find_unused_parameters=True,
        disable_tqdm=True,
        report_to=[],
        use_cpu=device == "cpu",
    )
    if arguments.device.type == "cuda":
        arguments._n_gpu = 1  # a process has one GPU; for several there is torchrun
    return arguments


class _Profile(TrainerCallback):
    """A PyTorch profiler's trace of a few steps."""

    def __init__(self, folder: Path) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self.profiler = torch.profiler.profile(
            activities=activities, record_shapes=True,
            schedule=torch.profiler.schedule(wait=1, warmup=1, active=3, repeat=1),
            on_trace_ready=torch.profiler.tensorboard_trace_handler(str(folder)))

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.profiler.start()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.profiler.step()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.profiler.stop()


def save_bundle(plan: Plan, model: VideoBertForPreTraining, out: Path) -> None:
    """Write model, configuration, tokenizer, backbone and vocabulary into `out`.

    The weights come last, by a rename: a folder without them is no bundle.
    """
    dtype = getattr(torch, plan.config.save_dtype)
    state = {name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).cpu().contiguous()
             for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("word_head.decoder.weight", None)
    settings = model.config.to_dict() | {"architectures": ["VideoBertForPreTraining"],
                                         "dtype": plan.config.save_dtype}
    try:
        for name, source in plan.start.files.items():
            target = out / name
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        if plan.vocabulary is not None:
            plan.vocabulary.save(out)
        plan.start.processor.save_pretrained(out)
        (out / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
        with renamed(out / "model.safetensors") as temporary:
            save_file(state, temporary, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"cannot write the model to {out}: {error}; the last checkpoint is in "
                            f"{out / 'checkpoints'}: free some space, and go on with --resume"
                            ) from error
