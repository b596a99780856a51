"""A model bundle: a folder with VideoBERT's weights, tokenizer, and its visual backbone's weights.

    config.json            `VideoBertConfig`, which names the backbone and a text tower, if any
    model.safetensors      VideoBERT
    tokenizer.json, …      `VideoBertProcessor`
    backbone.safetensors   where the backbone's weights are not a hub's
    vocabulary.safetensors `VisualVocabulary`, where it has visual words
    motion.safetensors     `MotionNetwork`, where it has one
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vbkit.errors import ModelError

if TYPE_CHECKING:
    from vbkit.model.backbones import Backbone, Precision
    from vbkit.model.branch import BranchConfig, TextBranch
    from vbkit.model.generation import VideoBertForConditionalGeneration
    from vbkit.model.modeling import VideoBertForPreTraining, VideoBertModel
    from vbkit.model.motion import MotionNetwork
    from vbkit.model.processing import VideoBertProcessor
    from vbkit.model.vocabulary import VisualVocabulary
    from vbkit.plugins import PluginManager

__all__ = ["Bundle", "choose_device", "choose_precision"]

FEATURES_VERSION = 1
"""To be raised when the same file would give other clip features, or they are stored otherwise."""


MOTION_VERSION = 1
"""To be raised when the same file would give another `motion`, or it is stored otherwise."""


class Bundle:
    """A loaded model. The backbone and a text tower are loaded when first used.

    Args:
        manager: where named models and backbones are declared.
        model: a declared name, a folder, or a hub id (`owner/name`), which is downloaded.
        device: `"auto"` or a torch device.
        precision: of the backbone, `"auto"`, `"float32"` or `"bfloat16"`. The encoder always runs
            in float32, so that results do not depend on what shares a batch.

    Raises:
        ModelError: there is no such model, or its files do not fit together.
    """

    def __init__(self, manager: PluginManager, model: str = "mini", device: str = "auto",
                 precision: str = "auto") -> None:
        self.manager = manager
        self.name = model
        self.path = find_model(manager, model)
        self.device = choose_device(device)
        self.precision: Precision = choose_precision(precision, self.device)
        self.model = load_model(self.path, self.device)
        self.config = self.model.config
        self.fingerprint = _fingerprint(self.path)
        self._digests: dict[str, bytes] = {}

    @cached_property
    def processor(self) -> VideoBertProcessor:
        from transformers import AutoTokenizer

        from vbkit.model import VideoBertProcessor

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True)
            return VideoBertProcessor(tokenizer, max_text_length=self.config.max_text_length)
        except (OSError, ValueError) as error:
            raise ModelError(f"{self.path}: no usable tokenizer: {error}") from error

    @cached_property
    def pretraining(self) -> VideoBertForPreTraining:
        """The encoder with its pretraining heads; those that the file lacks are at random.

        It shares the encoder with `model`.
        """
        from vbkit.model.modeling import VideoBertForPreTraining

        whole = VideoBertForPreTraining(self.config)
        self._fill(whole)
        return whole.to(self.device).eval().requires_grad_(False)

    @cached_property
    def generator(self) -> VideoBertForConditionalGeneration | None:
        """The encoder with its decoder, or None where the model has none; it shares `model`."""
        if not self.config.num_decoder_layers or not self.has("decoder"):
            return None
        from vbkit.model import VideoBertConfig, VideoBertForConditionalGeneration

        # A configuration of its own, since generation marks it as an encoder-decoder's.
        whole = VideoBertForConditionalGeneration(VideoBertConfig.from_dict(self.config.to_dict()))
        self._fill(whole)
        return whole.to(self.device).eval().requires_grad_(False)

    @cached_property
    def vocabulary(self) -> VisualVocabulary | None:
        """The visual words, or None where the model has none.

        Raises:
            ModelError: the file is damaged, or does not fit the model.
        """
        from vbkit.model.vocabulary import VOCABULARY_FILE, VisualVocabulary

        if not (self.path / VOCABULARY_FILE).exists():
            return None
        vocabulary = VisualVocabulary.load(self.path)
        vocabulary.check(feature_size=self.config.space_size(vocabulary.space))
        if self.config.visual_vocab_size not in (0, len(vocabulary)):
            raise ModelError(f"{self.path}: the vocabulary has {len(vocabulary)} words, but "
                             f"config.json says {self.config.visual_vocab_size}")
        return vocabulary.to(self.device)

    def fingerprint_of(self, needs: Iterable[str]) -> str:
        """Names what decides the outputs that are named, and changes with that alone.

        A head depends on no more of a model than the outputs that it reads: a decoder that was
        trained further leaves heads on `segment_embeddings` as they are.

        Args:
            needs: names of `vbkit.specs.FEATURE_OUTPUTS`.
        """
        parts = {part for name in needs for part in _PARTS_OF.get(name, ("whole",))}
        if "whole" in parts:
            parts &= {"whole", *_BESIDE}
        if parts == {"whole"}:
            return self.fingerprint
        digest = hashlib.blake2b(digest_size=8)
        for part in sorted(parts):
            if part not in self._digests:
                self._digests[part] = self._part_digest(part)
            digest.update(self._digests[part])
        return digest.hexdigest()

    def _part_digest(self, part: str) -> bytes:
        config = self.config
        digest = hashlib.blake2b(part.encode(), digest_size=8)
        if part == "whole":
            digest.update(self.fingerprint.encode())
            return digest.digest()
        if part == "motion":
            digest.update(self._motion_digest([]).encode())
            return digest.digest()
        if part == "visual":
            digest.update(self._visual_digest([FEATURES_VERSION, self.config.backbone,
                                               self.config.clip_seconds]).encode())
            return digest.digest()
        if part == "text":
            settings = [config.text_tower, config.text_pooling, config.max_text_length,
                        config.num_attention_heads, config.hidden_act, config.layer_norm_eps,
                        config.position_encoding]
            digest.update(json.dumps(settings).encode())
            digest.update((self.path / "tokenizer.json").read_bytes())
        for name, tensor in sorted(self.model.state_dict().items()):
            if _part_of(name) == part:
                digest.update(name.encode())
                digest.update(tensor.cpu().contiguous().numpy())
        return digest.digest()

    def has(self, part: str) -> bool:
        """Whether the weights have a part, such as `"decoder"` or `"word_head"`."""
        from safetensors import safe_open

        with safe_open(self.path / "model.safetensors", framework="pt") as file:
            return any(name.startswith(f"{part}.") for name in file.keys())  # noqa: SIM118

    def _fill(self, whole: VideoBertForPreTraining | VideoBertForConditionalGeneration) -> None:
        """Give a model that was just made this encoder and the rest of the file's weights."""
        from safetensors.torch import load_file

        whole.videobert = self.model
        own = whole.state_dict()
        state = load_file(self.path / "model.safetensors")
        rest = {name: tensor.to(own[name].dtype) for name, tensor in state.items()
                if name in own and not name.startswith("videobert.")}
        for name, tensor in rest.items():
            if tensor.shape != own[name].shape:
                raise ModelError(f"{self.path}: {name} has shape {tuple(tensor.shape)}, but "
                                 f"config.json says {tuple(own[name].shape)}")
        whole.load_state_dict(rest, strict=False)
        if self.config.tie_word_embeddings and hasattr(whole, "word_head"):
            whole.word_head.decoder.weight = self.model.text_embeddings.words.weight

    @cached_property
    def backbone(self) -> Backbone:
        """The visual backbone, on the device, in the bundle's precision.

        Raises:
            ModelError: the bundle names none, or its features are narrower than VideoBERT reads.
        """
        from vbkit.model.backbones import load_backbone

        settings = dict(self.config.backbone or {})
        name = settings.pop("name", None)
        if name is None:
            raise ModelError(f"{self.path}: config.json names no visual backbone, so this model "
                             "reads text and precomputed features only")
        weights = settings.pop("weights", None)
        if weights is not None and (self.path / weights).exists():
            weights = str(self.path / weights)
        backbone = load_backbone(self.manager, name, weights, **settings)
        if backbone.dim < self.config.visual_feature_size:
            raise ModelError(f"{self.path}: backbone {name} gives {backbone.dim} features, but "
                             f"VideoBERT reads {self.config.visual_feature_size}")
        backbone.prepare(self.device, self.precision)
        return backbone

    def text_branch(self, config: BranchConfig) -> TextBranch:
        """A head's own branch of the text encoder, which begins as the encoder itself.

        Raises:
            ModelError: the model is too small for it.
        """
        from vbkit.model.branch import TextBranch

        return TextBranch(self.model, self.processor, config)

    @cached_property
    def text_tower(self) -> Any:
        """The sentence-transformers model that the bundle names, or None."""
        if self.config.text_tower is None:
            return None
        from sentence_transformers import SentenceTransformer

        local = self.path / self.config.text_tower
        source = str(local) if local.exists() else self.config.text_tower
        try:
            tower = SentenceTransformer(source, device=str(self.device))
        except Exception as error:  # its loaders raise whatever they meet
            raise ModelError(f"{self.path}: cannot load text tower {source}: {error}") from error
        width = tower.encode(["width"], show_progress_bar=False).shape[-1]
        if width != self.config.shared_size:
            raise ModelError(f"{self.path}: text tower {source} gives {width} dimensions, but the "
                             f"shared space has {self.config.shared_size}")
        return tower

    @cached_property
    def visual_key(self) -> str:
        """Names what decides a clip's features: backbone, its weights, precision, the clip grid."""
        return self._visual_digest([FEATURES_VERSION, self.config.backbone,
                                    self.config.clip_seconds, self.precision])

    def _visual_digest(self, settings: list[Any]) -> str:
        text = json.dumps(settings, sort_keys=True) + self._backbone_weights
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def motion(self) -> MotionNetwork | None:
        """The motion network, on the device, in the bundle's precision; None where there is none.

        Raises:
            ModelError: the file is damaged, or does not fit its configuration.
        """
        from vbkit.model.motion import MOTION_FILE, MotionNetwork

        if not (self.path / MOTION_FILE).exists():
            return None
        return MotionNetwork.load(self.path).prepare(self.device, self.precision)

    @cached_property
    def motion_key(self) -> str:
        """Names what decides a clip's motion: the network, precision, the frames, the clip grid."""
        return self._motion_digest([self.precision])

    def _motion_digest(self, settings: list[Any]) -> str:
        # The network sees frames of the size that the backbone asks for. The file holds its
        # configuration, too.
        own = [MOTION_VERSION, self.config.clip_seconds, self.config.backbone, *settings]
        text = json.dumps(own, sort_keys=True) + self._motion_weights
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def _motion_weights(self) -> str:
        from vbkit.model.motion import MOTION_FILE

        path = self.path / MOTION_FILE
        return _digest([path]) if path.exists() else ""

    @cached_property
    def _backbone_weights(self) -> str:
        weights = (self.config.backbone or {}).get("weights")
        path = self.path / weights if weights else None
        if path is None or not path.exists():
            return ""
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        return _digest(inside)


_PARTS_OF: dict[str, tuple[str, ...]] = {
    "clip_times": (), "segments": (), "segment_times": (), "frames": (),
    "clip_features": ("visual",),
    "motion": ("motion",),
    "clip_embeddings": ("visual", "projection"),
    "segment_embeddings": ("text",),
    "encode_text": ("text",),
    "text_branch": ("text",),
}
"""What an output depends on; whatever is not here depends on the whole model."""


_BESIDE = frozenset({"motion"})
"""Parts that the whole model's own fingerprint leaves out: nothing else depends on them."""


def _part_of(name: str) -> str:
    """Which part of the model a weight of `VideoBertModel` belongs to."""
    if name.startswith(("clip_projection.", "reduction.", "feature_")):
        return "projection"
    if name.startswith(("text_embeddings.", "layers.", "relative_bias.")) and (
            "_adapter." not in name):
        return "text"
    return "joint"


def find_model(manager: PluginManager, model: str) -> Path:
    """The folder of a model that is named, on disk, or on a hub."""
    named = {declared.spec.name for declared in manager.models()}
    known = named | {declared.qualified_name for declared in manager.models()}
    location = manager.get_model(model).spec.location if model in known else model
    path = Path(location).expanduser()
    if (path / "config.json").is_file():
        return path
    if model in known and (path.is_absolute() or location.count("/") != 1):
        raise ModelError(f"model {model}: there is no config.json in {path}; reinstall the package "
                         "that declares it")
    if path.exists():
        raise ModelError(f"{path} is no model: it has no config.json")
    if location.count("/") == 1 and not location.startswith((".", "/", "~")):
        return _download(location)
    close = difflib.get_close_matches(model, named, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ModelError(f"no model {model!r}: give one of {', '.join(sorted(named)) or 'none'}, "
                     f"a folder, or a hub id such as owner/name{hint}")


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(
            hub_id, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.md", "*.model"]))
    except Exception as error:  # network, authentication, unknown id: each its own class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"cannot download model {hub_id}: {reason}") from error


def load_model(path: Path, device: torch.device) -> VideoBertModel:
    """VideoBERT from `path`, in float32, ready for inference; safetensors only.

    Raises:
        ModelError: the configuration is no VideoBERT's, or weights are missing or misshapen.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from vbkit.model import VideoBertConfig
    from vbkit.model.modeling import VideoBertModel

    try:
        settings = json.loads((path / "config.json").read_text())
        if settings.get("model_type") != VideoBertConfig.model_type:
            raise ModelError(f"{path} is a {settings.get('model_type')} model, not VideoBERT")
        config = VideoBertConfig.from_dict(settings)
        state: dict[str, Tensor] = load_file(path / "model.safetensors")
    except FileNotFoundError as error:
        raise ModelError(f"{path}: {Path(error.filename or '').name} is missing") from error
    except (ValueError, TypeError, SafetensorError) as error:
        raise ModelError(f"{path}: {error}") from error
    with torch.device("meta"):
        model = VideoBertModel(config)
    wanted = model.state_dict()
    own = {name.removeprefix("videobert."): tensor for name, tensor in state.items()}
    for name, tensor in wanted.items():
        if name not in own:
            raise ModelError(f"{path}: model.safetensors lacks {name}; it is another version's")
        if own[name].shape != tensor.shape:
            raise ModelError(f"{path}: {name} has shape {tuple(own[name].shape)}, but config.json "
                             f"says {tuple(tensor.shape)}")
    model.load_state_dict({name: own[name].float() for name in wanted}, assign=True)
    return model.to(device).eval().requires_grad_(False)


def choose_device(device: str = "auto") -> torch.device:
    """`"auto"` is a CUDA GPU, else Apple's, else the CPU.

    Raises:
        ModelError: the device that was asked for is not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device {device!r} cannot be used: {reason}") from error
    return chosen


def choose_precision(precision: str, device: torch.device) -> Precision:
    """bfloat16 where the hardware multiplies it natively, else float32."""
    if precision in ("float32", "bfloat16"):
        return precision  # type: ignore[return-value]
    if precision != "auto":
        raise ModelError(f"precision {precision!r} is none of auto, float32, bfloat16")
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu" and _cpu_has_bfloat16():
        return "bfloat16"
    return "float32"


def _cpu_has_bfloat16() -> bool:
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        known = capabilities()
        return bool(known.get("avx512_bf16") or known.get("amx_bf16") or known.get("bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _fingerprint(path: Path) -> str:
    from vbkit.model.motion import MOTION_FILE

    files = sorted(file for file in path.iterdir() if file.name != MOTION_FILE and (
        file.suffix == ".safetensors" or file.name in ("config.json", "tokenizer.json")))
    return _digest(files)


def _digest(files: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
