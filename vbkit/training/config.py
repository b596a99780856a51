"""`PretrainConfig`: everything that decides a pretraining run. No torch here."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vbkit.errors import UsageError
from vbkit.options import close_matches

__all__ = ["CONFIG_FILE", "DEFAULT_MIXTURE", "KINDS", "LOSSES", "ExampleOptions", "PretrainConfig"]

CONFIG_FILE = "pretrain.json"
KINDS = ("joint", "text", "video", "contrast", "caption", "reward")
LOSSES = ("words", "visual_words", "alignment", "contrast", "caption", "reward")
DEFAULT_MIXTURE: Mapping[str, float] = {"joint": 2, "text": 1, "video": 1, "contrast": 2,
                                        "caption": 2}


@dataclass(frozen=True)
class ExampleOptions:
    """How examples are made of a corpus.

    Args:
        max_text_tokens: word pieces of a sequence's text, special tokens included; longer texts
            are cut, at a place drawn at random.
        max_caption_tokens: the same for a caption to be written; longer ones are left out.
        max_clips: clips of a sequence.
        max_step: clips are subsampled by a step of 1 to this.
        join: share of sentences that neighbours are joined to, up to a length drawn at random.
        negative_share: share of text-video pairs whose text is another's.
        near_share: share of these whose text is from elsewhere in the same video, where it is long
            enough.
        near_seconds: how far from the clips such a text must be, s.
        mask_rate: share of word pieces that are hidden: drawn uniformly from this range for each
            sequence. One number stands for a range of itself.
        mask_token_share, mask_random_share: of these, how many become `[MASK]`, and how many
            another word; the rest stay as they are.
        visual_mask_rate: share of clips that are hidden, drawn likewise.

    Raises:
        UsageError: a value is out of its range.
    """

    max_text_tokens: int = 128
    max_caption_tokens: int = 64
    max_clips: int = 64
    max_step: int = 5
    join: float = 0.5
    negative_share: float = 0.5
    near_share: float = 0.2
    near_seconds: float = 30.0
    mask_rate: tuple[float, float] = (0.15, 0.15)
    mask_token_share: float = 0.8
    mask_random_share: float = 0.1
    visual_mask_rate: tuple[float, float] = (0.15, 0.15)

    def __post_init__(self) -> None:
        for name in ("mask_rate", "visual_mask_rate"):
            given = getattr(self, name)
            rates = (given, given) if isinstance(given, int | float) else given
            if (not isinstance(rates, list | tuple) or len(rates) != 2
                    or not all(isinstance(rate, int | float) for rate in rates)
                    or not 0 <= rates[0] <= rates[1] <= 1):
                raise UsageError(f"{name} is {given!r}, but must be a number from 0 to 1, or two "
                                 "that rise")
            object.__setattr__(self, name, (float(rates[0]), float(rates[1])))
        _check_types(self)
        for name in ("max_text_tokens", "max_caption_tokens"):
            if getattr(self, name) < 3:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be at least 3: a word "
                                 "between two special tokens")
        for name in ("max_clips", "max_step"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be at least 1")
        for name in ("join", "negative_share", "near_share", "mask_token_share",
                     "mask_random_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be from 0 to 1")
        if self.mask_token_share + self.mask_random_share > 1:
            raise UsageError("mask_token_share and mask_random_share exceed 1 together")


@dataclass(frozen=True)
class PretrainConfig:
    """What decides a pretraining run. It is saved beside the weights as `pretrain.json`.

    Args:
        corpus: corpus folders, which are trained on as one.
        model: the model to start from: a name, a folder, or a hub id.
        init_text: a BERT checkpoint (folder or hub id) to start from instead; everything that it
            does not have starts at random.
        backbone: with `init_text`, the model whose visual backbone made the corpus's features.
        model_config: values of `VideoBertConfig` that differ from the start's.
        vocabulary: folder of a visual vocabulary; None takes the model's own, if it has one.
        mixture: how often each kind of batch is, relative to the others; empty for the default,
            2 joint, 1 text, 1 video, 2 contrast, 2 caption, of those that corpus and model allow.
            "reward" is for a decoder that can write already.
        batch_size: examples of a batch.
        batch_sizes: of single kinds, where they differ.
        examples: how examples are made.
        loss_weights: of "words", "visual_words", "alignment", "contrast", "caption" and "reward";
            1 where it says nothing.
        samples: captions that are drawn for each video of a reward batch, at least 2.
        steps: optimizer steps.
        epochs: used where `steps` is None: an epoch ends when every kind of batch has gone through
            all it has.
        learning_rate: the highest, reached after the warmup.
        learning_rates: by prefix of parameter names, the longest that fits counts, e.g.
            `{"videobert.layers": 3e-5}`.
        frozen: prefixes of the names of parameters that stay as they are.
        schedule: "linear", "cosine" or "constant", after the warmup.
        warmup: optimizer steps; below 1, a share of all.
        weight_decay: of matrices and embeddings.
        adam_betas: AdamW's.
        max_grad_norm: gradients are scaled down to this norm; 0 for never.
        accumulation: batches of an optimizer step.
        precision: "float32" or "bfloat16" (mixed).
        seed: everything drawn at random follows from it.
        log_every, eval_every, save_every: optimizer steps; 0 for never (a checkpoint is always
            written at the end).
        eval_batches: validation batches of each kind.
        patience: training stops after so many evaluations without a lower loss, and the best
            checkpoint is kept; 0 for never.
        keep_checkpoints: how many.
        workers: processes that make batches.
        save_dtype: of the finished model: "float32" or "float16".

    Raises:
        UsageError: a value is unknown or out of its range.
    """

    corpus: tuple[str, ...] = ()
    model: str = "mini"
    init_text: str | None = None
    backbone: str = "mini"
    model_config: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: str | None = None
    mixture: Mapping[str, float] = field(default_factory=dict)
    batch_size: int = 32
    batch_sizes: Mapping[str, int] = field(default_factory=dict)
    examples: ExampleOptions = field(default_factory=ExampleOptions)
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    samples: int = 5
    steps: int | None = None
    epochs: float = 1.0
    learning_rate: float = 1e-4
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    schedule: str = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.01
    adam_betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0
    accumulation: int = 1
    precision: str = "float32"
    seed: int = 0
    log_every: int = 50
    eval_every: int = 500
    save_every: int = 500
    eval_batches: int = 20
    patience: int = 0
    keep_checkpoints: int = 2
    workers: int = 0
    save_dtype: str = "float32"

    def __post_init__(self) -> None:
        if isinstance(self.corpus, str):
            object.__setattr__(self, "corpus", (self.corpus,))
        for name in ("corpus", "frozen", "adam_betas"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("mixture", "loss_weights", "learning_rates"):
            if isinstance(getattr(self, name), Mapping):
                object.__setattr__(self, name, {
                    key: _as_number(value) for key, value in getattr(self, name).items()})
        if isinstance(self.examples, Mapping):
            object.__setattr__(self, "examples", _made(ExampleOptions, self.examples, "examples."))
        _check_types(self)
        for name in ("batch_size", "accumulation", "keep_checkpoints", "eval_batches"):
            self._at_least(name, 1)
        for name in ("log_every", "eval_every", "save_every", "patience", "workers", "seed",
                     "weight_decay", "warmup", "max_grad_norm", "learning_rate"):
            self._at_least(name, 0)
        self._at_least("samples", 2)
        if self.steps is not None:
            self._at_least("steps", 1)
        if not self.epochs > 0:
            raise UsageError(f"epochs is {self.epochs}, but must be above 0")
        choices: tuple[tuple[str, tuple[str, ...]], ...] = (
            ("schedule", ("linear", "cosine", "constant")),
            ("precision", ("float32", "bfloat16")), ("save_dtype", ("float32", "float16")))
        for name, known in choices:
            if getattr(self, name) not in known:
                raise UsageError(f"{name} is {getattr(self, name)!r}, but must be one of "
                                 f"{', '.join(known)}")
        for name, known in (("mixture", KINDS), ("batch_sizes", KINDS), ("loss_weights", LOSSES)):
            for key, value in getattr(self, name).items():
                if key not in known:
                    raise UsageError(f"{name} names {key!r}{close_matches(str(key), known)} "
                                     f"(there are {', '.join(known)})")
                if not _number(value) or value < (1 if name == "batch_sizes" else 0):
                    raise UsageError(f"{name}.{key} is {value!r}, but must be a number of at least "
                                     f"{1 if name == 'batch_sizes' else 0}")
        for key, value in self.learning_rates.items():
            if not _number(value) or value < 0:
                raise UsageError(f"learning_rates.{key} is {value!r}, but must be a number of at "
                                 "least 0")
        if self.mixture and not any(self.mixture.values()):
            raise UsageError("mixture gives every kind of batch 0")
        if self.patience and not self.eval_every:
            raise UsageError("patience needs evaluations: set eval_every")

    def _at_least(self, name: str, least: float) -> None:
        value = getattr(self, name)
        if not value >= least or math.isinf(value):
            raise UsageError(f"{name} is {value}, but must be at least {least}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PretrainConfig:
        """
        Raises:
            UsageError: a name is unknown, or a value is out of its range.
        """
        return _made(cls, values)

    @classmethod
    def from_file(cls, path: str | Path) -> PretrainConfig:
        """Read a JSON or YAML file.

        Raises:
            UsageError: it cannot be read, or holds what is no configuration.
        """
        return cls.from_dict(read_settings(path))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def replace(self, **changes: Any) -> PretrainConfig:
        return dataclasses.replace(self, **changes)

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n")


def read_settings(path: str | Path) -> dict[str, Any]:
    """The mapping in a JSON or YAML file.

    Raises:
        UsageError: it cannot be read, or is no mapping.
    """
    import yaml

    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: neither JSON nor YAML ({error})") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: must hold names and values, not {type(values).__name__}")
    return values


def merged(values: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """`values` with `key`, which may be dotted, set."""
    head, dot, rest = key.partition(".")
    if not dot:
        return {**values, head: value}
    inner = values.get(head) or {}
    if not isinstance(inner, Mapping):
        raise UsageError(f"{head} has no parts, so {key} cannot be set")
    # names of parameters have dots of their own
    part = {**inner, rest: value} if head == "learning_rates" else merged(inner, rest, value)
    return {**values, head: part}


def _made(cls: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    known = [each.name for each in fields(cls)]
    for name in values:
        if name not in known:
            raise UsageError(f"{prefix}{name} is no setting{close_matches(str(name), known)}")
    return cls(**values)


def _as_number(value: Any) -> Any:
    if isinstance(value, str):  # YAML reads 1e-4 as text
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_types(settings: Any) -> None:
    """That each value is of its field's kind; a whole float becomes an int and the reverse."""
    for each in fields(settings):
        value, kind = getattr(settings, each.name), str(each.type)
        fits = True
        if value is None:
            fits = "None" in kind
        elif kind.startswith("tuple[float"):
            fits = isinstance(value, tuple) and len(value) == 2 and all(map(_number, value))
        elif kind.startswith("tuple[str"):
            fits = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
        elif kind.startswith("Mapping"):
            fits = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
        elif kind.startswith("int"):
            fits = _number(value) and value == int(value)
            if fits:
                object.__setattr__(settings, each.name, int(value))
        elif kind.startswith("float"):
            value = _as_number(value)
            fits = _number(value)
            if fits:
                object.__setattr__(settings, each.name, float(value))
        elif kind.startswith("str"):
            fits = isinstance(value, str)
        if not fits:
            raise UsageError(f"{each.name} is {value!r}, but must be {_said(kind)}")


def _said(kind: str) -> str:
    optional = ", or null" if "None" in kind else ""
    for start, words in (("tuple[float", "two numbers"), ("tuple", "a list of strings"),
                         ("Mapping", "names and values"), ("int", "a whole number"),
                         ("float", "a number"), ("str", "a string")):
        if kind.startswith(start):
            return words + optional
    return kind
