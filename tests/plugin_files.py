"""Makes distributions that can be imported, as pip would install them, for tests of plugins."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TASK = """
from vbkit import Column, TableSchema, TaskSpec, hookimpl

def task(name, **arguments):
    tables = (TableSchema(name, (Column("score", "float64"),)),)
    arguments = {"tables": tables, "needs": {"pooled"}, **arguments}
    return TaskSpec(name, "scores something", "nowhere.head:Head", **arguments)
"""


def make_distribution(
    folder: Path,
    name: str,
    modules: dict[str, str],
    plugins: dict[str, str] | None = None,
    commands: dict[str, str] | None = None,
    version: str = "1.0",
) -> Path:
    """Write modules and metadata with entry points into `folder`, which goes on `sys.path`."""
    folder.mkdir(exist_ok=True)
    for module, code in modules.items():
        (folder / f"{module}.py").write_text(code, encoding="utf-8")
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, points in (("vbkit", plugins), ("vbkit.commands", commands)):
        lines += [f"[{group}]", *(f"{k} = {v}" for k, v in (points or {}).items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for `make_distribution` that this process imports from, cleaned up after."""
    folder = tmp_path / "site"
    folder.mkdir()
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for module in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[module], "__file__", None)):
            del sys.modules[module]
