"""`new_plugin`: writes the distribution of a new task, ready to install and to test."""

from __future__ import annotations

import datetime as dt
import json
import keyword
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from string import Template

import vbkit
from vbkit.errors import UsageError, VbkitError
from vbkit.options import close_matches
from vbkit.plugins import PluginManager, default_manager, normalise
from vbkit.tables import CORE_TABLES

__all__ = ["LICENCES", "NewPlugin", "ScaffoldError", "find_clashes", "new_plugin", "plan_plugin"]

_TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
_DISTRIBUTION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\Z")  # as packaging has it

LICENCES: dict[str, str] = {
    # SPDX expression -> its text, among the templates
    "Apache-2.0": "Apache-2.0.txt",
    "BSD-3-Clause": "BSD-3-Clause.txt",
    "MIT": "MIT.txt",
    "LicenseRef-Proprietary": "proprietary.txt",
}
_ALIASES = {"apache": "Apache-2.0", "bsd": "BSD-3-Clause", "none": "LicenseRef-Proprietary",
            "proprietary": "LicenseRef-Proprietary"}

_FILES = {
    # file of the distribution -> template
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    ".gitignore": "gitignore",
    ".github/workflows/test.yml": "workflow.yml",
    "src/{package}/__init__.py": "declaration.py",
    "src/{package}/head.py": "head.py",
    "tests/test_{name}.py": "tests.py",
}

SUMMARY = "which of a few labels each clip looks most like"


class ScaffoldError(VbkitError):
    """A new plugin cannot be written."""


@dataclass(frozen=True)
class NewPlugin:
    """A plugin that is to be written.

    Args:
        name: of the task, its table and its entry point: `[a-z][a-z0-9_]*`.
        distribution: what pip calls it.
        licence: one of `LICENCES`.
        author: who holds the copyright.
        summary: one line, without a full stop.

    Raises:
        UsageError: a value cannot be used.
    """

    name: str
    distribution: str
    licence: str
    author: str
    summary: str = SUMMARY

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            near = re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_0123456789")
            hint = f", such as {near!r}" if _NAME.match(near) else ""
            raise UsageError(f"{self.name!r} cannot name a task: it needs lower-case letters, "
                             f"digits and _ only, a letter first{hint}")
        if self.name in CORE_TABLES:
            raise UsageError(f"{self.name!r} cannot name a task: a task's table has its name, and "
                             f"the table {self.name} is vbkit's own; choose another name")
        if not _DISTRIBUTION.match(self.distribution):
            raise UsageError(f"{self.distribution!r} cannot name a distribution: use letters, "
                             "digits, - and _, such as 'acme-people'")
        if not self.package.isidentifier() or keyword.iskeyword(self.package):
            raise UsageError(f"the distribution {self.distribution!r} would have the package "
                             f"{self.package!r}, which Python cannot import; choose another name")
        if self.licence not in LICENCES:
            raise UsageError(f"unknown licence {self.licence!r}; known are {', '.join(LICENCES)}")
        for what, text in (("summary", self.summary), ("author", self.author)):
            if not text.strip() or not text.isprintable():
                raise UsageError(f"the {what} must be one line of text, got {text!r}")

    @property
    def package(self) -> str:
        """Name of the package that is imported."""
        return re.sub(r"[-.]+", "_", self.distribution.lower())

    @property
    def class_name(self) -> str:
        """What its classes' names begin with."""
        return "".join(part.capitalize() for part in self.name.split("_"))

    def files(self) -> dict[str, str]:
        """Contents of its files, by path relative to its folder, with `/` between folders."""
        own = self.licence == "LicenseRef-Proprietary"
        values = {
            "name": self.name, "distribution": self.distribution, "package": self.package,
            "class_name": self.class_name, "licence": self.licence,
            "author": self.author, "author_quoted": _quoted(self.author),
            "summary": self.summary, "summary_quoted": _quoted(self.summary),
            "classifiers": '"Private :: Do Not Upload"' if own else "",
            "licence_line": f"{'All rights reserved' if own else self.licence}, see "
                            "[LICENSE](LICENSE).",
            "vbkit_version": ".".join(vbkit.__version__.split(".")[:2]),
            "year": str(dt.date.today().year),
        }
        out = {target.format(package=self.package, name=self.name):
               _filled(f"project/{template}.tmpl", values) for target, template in _FILES.items()}
        out["LICENSE"] = _filled(f"licences/{LICENCES[self.licence]}", values)
        return out


def plan_plugin(
    name: str,
    *,
    distribution: str | None = None,
    licence: str = "Apache-2.0",
    author: str | None = None,
    summary: str | None = None,
) -> NewPlugin:
    """A plugin to be written, with what is not given filled in.

    Args:
        name: of the task; a leading `vbkit-` or `vbkit_` is left out, and `-` is `_`.
        distribution: `vbkit-NAME` by default.
        licence: one of `LICENCES`, in any case, or `apache`, `bsd`, `none`.
        author: by default the name that git knows, else "The DISTRIBUTION developers".
        summary: one line about the task.

    Raises:
        UsageError: a value cannot be used.
    """
    task = re.sub(r"\Avbkit[-_]", "", name).replace("-", "_")
    chosen = distribution or f"vbkit-{task.replace('_', '-')}"
    spdx = {**{key.lower(): key for key in LICENCES}, **_ALIASES}
    if licence.lower() not in spdx:
        raise UsageError(
            f"unknown licence {licence!r}{close_matches(licence, [*LICENCES, *_ALIASES])}; known "
            f"are {', '.join(LICENCES)}; with `none`, put a licence of your own into LICENSE and "
            "pyproject.toml afterwards")
    return NewPlugin(task, chosen, spdx[licence.lower()],
                     author or _git_user() or f"The {chosen} developers",
                     (summary or SUMMARY).strip().rstrip("."))


def find_clashes(plugin: NewPlugin, manager: PluginManager | None = None) -> list[str]:
    """What is installed under a name that the plugin would have: a line for each.

    Args:
        plugin: the plugin.
        manager: the plugins that there are; None for the installed ones.
    """
    found = []
    for declared in (manager or default_manager()).tasks():
        origin = f"{declared.distribution} {declared.version}".strip()
        if declared.name == plugin.name:
            found.append(f"the task {plugin.name} is declared by {origin}")
        else:
            found += [f"the table {schema.name} is written by the task {declared.name} of {origin}"
                      for schema in declared.spec.tables if schema.name == plugin.name]
    try:
        installed = version(plugin.distribution)
        found.append(f"the distribution {normalise(plugin.distribution)} {installed} is installed")
    except PackageNotFoundError:
        pass
    spec = find_spec(plugin.package)
    if spec is not None:
        found.append(f"the package {plugin.package} is importable, from "
                     f"{spec.origin or 'a folder without __init__.py'}")
    return found


def new_plugin(plugin: NewPlugin, folder: Path | str) -> list[str]:
    """Write a plugin's distribution. It is there as a whole or not at all.

    Args:
        plugin: what to write.
        folder: where; it must not exist, or be empty.

    Returns:
        Its files, relative to `folder`.

    Raises:
        UsageError: there is something at `folder` already.
        ScaffoldError: it cannot be written.
    """
    folder = Path(folder)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder} is there already, and is no folder; name another with --out")
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"{folder} is there already, and not empty; name another with --out, "
                             "or delete it")
        files = plugin.files()
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for name, text in files.items():
                path = partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8", newline="\n")
            partial.chmod(0o777 & ~_umask())
            os.replace(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise ScaffoldError(f"cannot write {folder}: {error.strerror or error}") from error
    return sorted(files)


def _filled(template: str, values: dict[str, str]) -> str:
    return Template((_TEMPLATES / template).read_text(encoding="utf-8")).substitute(values)


def _quoted(text: str) -> str:
    """As a string literal of Python and of TOML alike."""
    return json.dumps(text, ensure_ascii=False)


def _git_user() -> str:
    try:
        done = subprocess.run(["git", "config", "user.name"], capture_output=True, text=True,
                              timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
