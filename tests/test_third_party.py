"""Other people's plugins: those under `tests/third_party` are distributions that pip can install.

What they do is tested by their own tests, which run with these.
"""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest
from test_new_plugin import make_venv, run

from vbkit.plugins import default_manager

THIRD_PARTY = Path(__file__).parent / "third_party"


@pytest.mark.slow
def test_vbkit_nsfw_installs_and_is_listed(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    python = make_venv(tmp_path / "venv")
    done = run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps",
               "--no-build-isolation", "--disable-pip-version-check",
               THIRD_PARTY / "vbkit-nsfw", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    listed = run(python, "-m", "vbkit", "tasks", "nsfw", "--json", cwd=tmp_path)
    task = json.loads(listed.stdout)
    assert (task["distribution"], task["needs"]) == ("vbkit-nsfw", ["clip_times", "frames"])
    assert [table["name"] for table in task["tables"]] == ["nsfw", "nsfw_videos"]


def test_they_use_categories_of_moderation_and_public_names_only() -> None:
    from vbkit_moderation.taxonomy import CATEGORIES

    source = "".join(path.read_text() for path in THIRD_PARTY.glob("vbkit-nsfw/src/**/*.py"))
    assert ("nudity", "sexual") in {(c.name, c.parent) for c in CATEGORIES}
    assert '"category": "nudity", "parent_category": "sexual"' in source
    for private in ("vbkit.engine", "vbkit.store", "vbkit.cli", "vbkit_moderation", "._outputs"):
        assert private not in source
    project = tomllib.loads((THIRD_PARTY / "vbkit-nsfw" / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["vbkit"] == {"nsfw": "vbkit_nsfw"}
    assert "nsfw" not in {task.name for task in default_manager().tasks()}
