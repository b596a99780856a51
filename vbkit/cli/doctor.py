"""`vbkit doctor`: does this installation work, and if not, what to do.

What may crash (torch, the decoders) is tried in processes of its own.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any, Literal

import click

import vbkit
from vbkit.cli.printing import print_json
from vbkit.errors import VbkitError
from vbkit.plugins import DISABLE_VARIABLE, PluginManager, default_manager, normalise

__all__ = ["Check", "doctor", "examine"]

Status = Literal["ok", "warn", "fail"]

_PACKAGES = ("torch", "torchvision", "transformers", "timm", "decord2", "av", "pandas", "pyarrow",
             "duckdb")
_TIMEOUT_S = 180.0

_TORCH = """
import json, sys
out = {}
try:
    import torch
    out["torch"] = torch.__version__
    out["cuda"] = torch.cuda.is_available()
    if out["cuda"]:
        out["name"] = torch.cuda.get_device_name(0)
        out["memory"] = torch.cuda.get_device_properties(0).total_memory
        out["bf16"] = torch.cuda.is_bf16_supported(including_emulation=False)
    out["mps"] = torch.backends.mps.is_available()
except Exception as error:
    out["torch_error"] = f"{type(error).__name__}: {error}"
else:
    try:
        import torchvision
        out["torchvision"] = torchvision.__version__
        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except Exception as error:
        out["torchvision_error"] = f"{type(error).__name__}: {error}"
print(json.dumps(out))
"""

_DECODER = """
import json, {module}
print(json.dumps({{"version": getattr({module}, "__version__", "")}}))
"""


@dataclass(frozen=True)
class Check:
    """One line of the doctor's: what was looked at, how it is, and what to do about it."""

    name: str
    status: Status
    detail: str
    todo: str = ""


def examine(folder: Path | None = None, manager: PluginManager | None = None,
            cache: Path | None = None) -> list[Check]:
    """All checks.

    Args:
        folder: where free space is looked at; None for the current folder.
        manager: the plugins; the installed ones by default.
        cache: the feature cache to measure; None where none is named.
    """
    with ThreadPoolExecutor(3) as pool:
        torch = pool.submit(_in_process, _TORCH)
        decord = pool.submit(_in_process, _DECODER.format(module="decord"))
        pyav = pool.submit(_in_process, _DECODER.format(module="av"))
        manager = manager or default_manager()
        return [
            *_versions(),
            *_torch(torch),
            _cpu(),
            *_decoders(decord, pyav),
            *_plugins(manager),
            _mini(manager),
            *_models(manager),
            *_speech(manager),
            _feature_cache(cache),
            _disk(folder or Path.cwd()),
            *_extras(),
        ]


@click.command()
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path),
              help="A results folder, whose cache and disk to look at.")
@click.option("--cache", metavar="DIR", type=click.Path(path_type=Path), envvar="VBKIT_CACHE",
              help="The feature cache to measure; by default that of --out.")
@click.option("--json", "as_json", is_flag=True,
              help="Print a JSON list of name, status (ok, warn, fail), detail and todo.")
def doctor(out: Path | None, cache: Path | None, as_json: bool) -> int:
    """Check this installation, and say what to do.

    Looks at versions, torch and its device, the decoders, plugins, models on disk, the feature
    cache, free space and optional extras, one line each. The exit status is 1 when something
    fails, which means that runs will; with warnings alone, or extras that are not installed, it
    is 0.
    """
    folder = None if out is None else next(
        each for each in (out.absolute(), *out.absolute().parents) if each.is_dir())
    if cache is None:
        cache = next((each / "cache" for each in (out, Path("results"))
                      if each is not None and (each / "cache").is_dir()), None)
    checks = examine(folder, cache=cache)
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        width = max(len(check.name) for check in checks)
        colours = {"ok": "green", "warn": "yellow", "fail": "red"}
        for check in checks:
            mark = click.style(f"{check.status:4}", fg=colours[check.status])
            todo = f" -> {check.todo}" if check.todo else ""
            click.echo(f"{mark}  {check.name:{width}}  {check.detail}{todo}")
    return 1 if any(check.status == "fail" for check in checks) else 0


def _in_process(code: str) -> dict[str, Any]:
    """What `code` prints as JSON, run by this Python in a process of its own."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                              timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer in {_TIMEOUT_S:.0f} s"}
    except OSError as error:
        return {"error": str(error)}
    if done.returncode < 0:
        try:
            name = signal.Signals(-done.returncode).name
        except ValueError:
            name = f"signal {-done.returncode}"
        return {"error": f"crashed ({name})"}
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"ended with status {done.returncode}"}
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return {"error": "gave no answer"}


def _versions() -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    yield Check("vbkit", "ok", vbkit.__version__)
    wanted = _requirements()
    for name in dict.fromkeys((*_PACKAGES, *wanted)):
        requirement = wanted.get(normalise(name))
        try:
            found = version(name)
        except PackageNotFoundError:
            if requirement is not None:
                status: Status = "warn" if name == "decord2" else "fail"
                yield Check(name, status, "not installed", f'pip install "{requirement}"')
            continue
        if requirement is not None and not requirement.specifier.contains(found, prereleases=True):
            yield Check(name, "warn", f"{found}, but vbkit wants {requirement.specifier}",
                        f'pip install "{requirement}"')
        elif name in _PACKAGES:
            yield Check(name, "ok", found)


def _requirements() -> dict[str, Any]:
    """What vbkit requires on this platform, extras aside."""
    try:
        from packaging.requirements import Requirement

        lines = distribution("vbkit").requires or []
    except (ImportError, PackageNotFoundError):
        return {}
    found = {}
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            requirement.marker = None
            found[normalise(requirement.name)] = requirement
    return found


def _torch(answer: Future[dict[str, Any]]) -> Iterator[Check]:
    found = answer.result()
    reinstall = "pip install --force-reinstall torch torchvision"
    error = found.get("error") or found.get("torch_error")
    if error:
        yield Check("torch works", "fail", error, f"reinstall it: {reinstall}")
        return
    error = found.get("torchvision_error")
    if error:
        todo = f"install torchvision and torch together: {reinstall}"
        if "torchvision::nms" in error:
            todo = (
                "torch and torchvision are of different builds (such as one for CPU and one for "
                f"CUDA): install both from the same index: {reinstall}"
            )
        yield Check("torch + torchvision", "fail", error, todo)
    else:
        yield Check("torch + torchvision", "ok", f"{found['torch']} and {found['torchvision']} fit")
    if found["cuda"]:
        bf16 = "with" if found["bf16"] else "without"
        yield Check("device", "ok",
                    f"cuda: {found['name']}, {found['memory'] / 2**30:.0f} GiB, {bf16} bfloat16")
    elif found["mps"]:
        yield Check("device", "ok", "mps (Apple GPU)")
    elif shutil.which("nvidia-smi"):
        yield Check("device", "warn", "cpu, though nvidia-smi is there",
                    "install a build of torch with CUDA, or update the driver")
    else:
        yield Check("device", "ok", "cpu")


def _cpu() -> Check:
    flags = cpu_flags()
    fast = [label for flag, label in (("avx512_bf16", "AVX512-BF16"), ("amx_bf16", "AMX"),
                                      ("bf16", "ARM BF16")) if flag in flags]
    if fast:
        return Check("cpu", "ok", f"bfloat16 is fast ({', '.join(fast)})")
    return Check("cpu", "ok", "no bfloat16 instructions: float32 is used")


def cpu_flags() -> frozenset[str]:
    """The processor's features as Linux names them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return frozenset(found.group(1).split()) if found else frozenset()


def _decoders(decord: Future[dict[str, Any]], pyav: Future[dict[str, Any]]) -> Iterator[Check]:
    found = decord.result()
    if "error" in found:
        yield Check("decord", "warn", found["error"],
                    "PyAV decodes instead, more slowly; pip install --force-reinstall decord2")
    else:
        yield Check("decord", "ok", f"{found['version']} imports")
    found = pyav.result()
    if "error" in found:
        yield Check("PyAV", "fail", found["error"], "pip install --force-reinstall av")
    else:
        yield Check("PyAV", "ok", f"{found['version']} imports")


def _plugins(manager: PluginManager) -> Iterator[Check]:
    try:
        records = manager.plugins()
    except VbkitError as error:  # VBKIT_STRICT
        yield Check("plugins", "fail", str(error))
        return
    bad = False
    for record in records:
        if record.status == "failed":
            bad = True
            yield Check(f"plugin {record.name}", "fail", record.error or "failed",
                        f"upgrade or uninstall {record.distribution}")
        elif record.status == "disabled":
            yield Check(f"plugin {record.name}", "warn", f"disabled by {DISABLE_VARIABLE}")
    if not bad:
        working = [record.name for record in records if record.status == "ok"]
        yield Check("plugins", "ok" if working else "fail", ", ".join(working) or "none found",
                    "" if working else "reinstall vbkit")


def _mini(manager: PluginManager) -> Check:
    try:
        location = Path(manager.get_model("mini").spec.location)
    except VbkitError as error:
        return Check("model mini", "fail", str(error), "reinstall vbkit")
    weights = list(location.glob("*.safetensors")) if location.is_dir() else []
    if not weights:
        return Check("model mini", "fail", f"no weights in {location}", "reinstall vbkit")
    size = sum(path.stat().st_size for path in weights)
    return Check("model mini", "ok", f"{size / 1e6:.0f} MB in {location}")


def _models(manager: PluginManager) -> Iterator[Check]:
    """The other declared models: which are here, and which a run would download when named."""
    from vbkit.cli.plugins import hub_cache, on_disk

    try:
        others = [model for model in manager.models() if model.spec.name != "mini"]
    except VbkitError as error:  # VBKIT_STRICT
        yield Check("models", "fail", str(error))
        return
    here = sorted(model.spec.name for model in others if on_disk(model.spec.location))
    away = sorted(model.spec.name for model in others if not on_disk(model.spec.location))
    hub = hub_cache()
    parts = [f"besides mini, on disk: {', '.join(here) or 'none'}"]
    if away:
        parts.append(f"downloaded when named: {', '.join(away)}")
    if hub.is_dir():
        repos = sum(path.name.startswith("models--") for path in hub.iterdir())
        parts.append(f"hub cache: {_size(_bytes(hub)[0])} of {repos} models in {hub}")
    yield Check("models", "ok", "; ".join(parts))


def _speech(manager: PluginManager) -> Iterator[Check]:
    """What turns speech into text: none has to work, so that lacking something is no fault."""
    from vbkit.cli.plugins import FAILS, lacking

    try:
        transcribers = sorted(manager.transcribers(), key=lambda declared: declared.name)
    except VbkitError as error:  # VBKIT_STRICT
        yield Check("speech to text", "fail", str(error))
        return
    for declared in transcribers:
        lacks = lacking(declared)
        if lacks is None:
            yield Check("speech to text", "ok", f"{declared.name} lacks nothing")
        else:
            yield Check("speech to text", "warn" if lacks.startswith(FAILS) else "ok",
                        f"not by {declared.name}: {lacks}")


def _feature_cache(folder: Path | None) -> Check:
    if folder is None:
        return Check("feature cache", "ok", "none named: a run keeps it in OUT/cache; "
                     "--out or --cache measures one")
    if not folder.exists():
        return Check("feature cache", "ok", f"{folder} is not there yet; a run makes it")
    if not folder.is_dir():
        return Check("feature cache", "fail", f"{folder} is no folder", "name another --cache")
    size, files = _bytes(folder)
    contents = sum(len(list(part.iterdir())) for part in folder.iterdir()
                   if part.is_dir() and len(part.name) == 2)
    detail = f"{_size(size)} of {contents:,} contents, {files:,} files in {folder}"
    if not os.access(folder, os.W_OK):
        return Check("feature cache", "warn", f"{detail}, which may not be written",
                     "runs will encode again what is not in it; name another --cache")
    return Check("feature cache", "ok", detail)


def _bytes(folder: Path) -> tuple[int, int]:
    """Bytes of all files in a folder and below, links not followed, and how many they are."""
    size = files = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                found = os.lstat(os.path.join(parent, name))
                if not stat.S_ISLNK(found.st_mode):
                    size, files = size + found.st_size, files + 1
    return size, files


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


_FOR = {
    "asr": "speech to text", "excel": "vbkit export --to xlsx", "report": "vbkit report",
    "tensorboard": "curves of vbkit pretrain", "meteor": "the METEOR of captions",
}
_OF_DEVELOPERS = {"dev", "docs"}


def _extras() -> Iterator[Check]:
    """Optional extras, as this distribution declares them: installed, or how to."""
    try:
        from packaging.requirements import Requirement

        own = distribution("vbkit")
    except (ImportError, PackageNotFoundError):
        return
    for extra in sorted(set(own.metadata.get_all("Provides-Extra") or ()) - _OF_DEVELOPERS):
        wanted = [requirement for line in own.requires or []
                  if (requirement := Requirement(line)).marker is not None
                  and requirement.marker.evaluate({"extra": extra})
                  and not requirement.marker.evaluate({"extra": ""})]
        lacking = []
        for requirement in wanted:
            try:
                found = version(requirement.name)
            except PackageNotFoundError:
                lacking.append(requirement.name)
            else:
                if not requirement.specifier.contains(found, prereleases=True):
                    lacking.append(f"{requirement.name}{requirement.specifier} (here is {found})")
        purpose = f", for {_FOR[extra]}" if extra in _FOR else ""
        if lacking:
            yield Check(f"extra {extra}", "ok", f"not installed{purpose}: {', '.join(lacking)}",
                        f"if wanted: pip install 'vbkit[{extra}]'")
        else:
            names = ", ".join(requirement.name for requirement in wanted)
            yield Check(f"extra {extra}", "ok", f"installed{purpose}: {names}")


def _disk(folder: Path) -> Check:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Check("disk", "warn", f"{folder}: {error}")
    detail = f"{free / 1e9:.1f} GB free in {folder}"
    if free < 2e8:
        return Check("disk", "fail", detail, "free some space, or work in another folder")
    if free < 2e9:
        return Check("disk", "warn", detail, "results and cached features may not fit")
    return Check("disk", "ok", detail)
