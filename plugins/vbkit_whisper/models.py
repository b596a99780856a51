"""Whisper's models: their names, where they are, and whether they are on disk."""

from __future__ import annotations

import difflib
import hashlib
import re
from pathlib import Path

from vbkit.errors import ModelError, OptionError

__all__ = ["LANGUAGES", "MODELS", "check_model", "digest", "find_on_disk", "locate"]

MODELS: dict[str, str] = {
    # name -> repository on the hub, in CTranslate2's format; the names are faster-whisper's
    **{name: f"Systran/faster-whisper-{name}" for name in (
        "tiny", "tiny.en", "base", "base.en", "small", "small.en", "medium", "medium.en",
        "large-v1", "large-v2", "large-v3")},
    **{f"distil-{name}": f"Systran/faster-distil-whisper-{name}" for name in (
        "small.en", "medium.en", "large-v2", "large-v3")},
    "distil-large-v3.5": "distil-whisper/distil-large-v3.5-ct2",
    "large-v3-turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
    "large": "Systran/faster-whisper-large-v3",
    "turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
}

# What `auto` prefers of what is on disk: several languages before English only, and the best that
# keeps up with the machine.
_ON_CPU = ("small", "base", "tiny", "small.en", "base.en", "tiny.en", "distil-small.en")
_ON_GPU = ("large-v3-turbo", "large-v3", "large-v2", "large-v1", "medium", *_ON_CPU[:3],
           "distil-large-v3.5", "distil-large-v3", "distil-large-v2", "medium.en",
           "distil-medium.en", *_ON_CPU[3:])

LANGUAGES = frozenset({
    *("af", "am", "ar", "as", "az", "ba", "be", "bg", "bn", "bo", "br", "bs", "ca", "cs", "cy"),
    *("da", "de", "el", "en", "es", "et", "eu", "fa", "fi", "fo", "fr", "gl", "gu", "ha", "haw"),
    *("he", "hi", "hr", "ht", "hu", "hy", "id", "is", "it", "ja", "jw", "ka", "kk", "km", "kn"),
    *("ko", "la", "lb", "ln", "lo", "lt", "lv", "mg", "mi", "mk", "ml", "mn", "mr", "ms", "mt"),
    *("my", "ne", "nl", "nn", "no", "oc", "pa", "pl", "ps", "pt", "ro", "ru", "sa", "sd", "si"),
    *("sk", "sl", "sn", "so", "sq", "sr", "su", "sv", "sw", "ta", "te", "tg", "th", "tk", "tl"),
    *("tr", "tt", "uk", "ur", "uz", "vi", "yi", "yo", "yue", "zh"),
})

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z")
_FILES = ["config.json", "preprocessor_config.json", "model.bin", "tokenizer.json", "vocabulary.*"]
_ENDS = 1 << 20


def _folder(model: str) -> Path | None:
    """The folder that `model` names, whether or not it is there; None where it names none."""
    path = Path(model).expanduser()
    if path.is_dir() or path.is_absolute() or model.startswith((".", "~")):
        return path
    if model.count("/") > 1 or "\\" in model or model.endswith("/"):
        return path
    return None


def check_model(model: str) -> None:
    """Check that `model` is `auto`, a known name, a folder with a model, or could be a hub id.

    Raises:
        OptionError: it is none of these.
    """
    if model == "auto":
        return
    folder = _folder(model) if model.strip() else None
    if folder is not None:
        if not folder.is_dir():
            raise OptionError(f"model {model}: there is no such folder")
        missing = [name for name in ("model.bin", "config.json")
                   if not (folder / name).is_file()]
        if missing:
            raise OptionError(
                f"model {model}: there is no {missing[0]} in it; it must hold a Whisper model in "
                "CTranslate2's format (ct2-transformers-converter makes one)")
        return
    if model in MODELS or _HUB_ID.match(model):
        return
    close = difflib.get_close_matches(model, MODELS, n=2, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}? Known are" if close else "known are"
    raise OptionError(f"model {model!r} is neither a folder nor a size; {hint} "
                      f"{', '.join(MODELS)}")


def find_on_disk(gpu: bool) -> str | None:
    """The name of the best model that was downloaded before, or None. Asks no network."""
    order = dict.fromkeys((*(_ON_GPU if gpu else _ON_CPU), *MODELS))
    return next((name for name in order if _downloaded(MODELS[name]) is not None), None)


def _downloaded(repository: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(repository, name) for name in ("model.bin", "config.json")]
    if not all(isinstance(path, str) and Path(path).is_file() for path in found):
        return None
    return Path(str(found[0])).parent


def locate(model: str) -> Path:
    """The folder of a model, which is downloaded where it is not on disk.

    Raises:
        ModelError: it cannot be downloaded.
    """
    folder = _folder(model)
    if folder is not None:
        return folder
    repository = MODELS.get(model, model)
    downloaded = _downloaded(repository)
    if downloaded is not None:
        return downloaded
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=_FILES))
    except Exception as error:  # the hub's errors have no common base
        why = " ".join(str(error).split())[:200]
        raise ModelError(
            f"Whisper model {model} is not on disk and cannot be downloaded from {repository} "
            f"({type(error).__name__}: {why}); check the name and the network, or name a folder: "
            "-o whisper.model=PATH") from error


def digest(folder: Path) -> str:
    """A hash that tells models apart: of sizes, and of the ends of the weights."""
    found = hashlib.blake2b(digest_size=16)
    for name in ("config.json", "model.bin"):
        with (folder / name).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            found.update(f"{name} {size}".encode() + file.read(_ENDS))
            file.seek(max(0, size - _ENDS))
            found.update(file.read(_ENDS))
    return found.hexdigest()
