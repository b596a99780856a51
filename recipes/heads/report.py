"""Measured numbers into the documentation, so that nobody types them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["figure", "markdown_table", "replace_block"]

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def figure(value: object, digits: int = 3) -> str:
    """A number, or `[number, low, high]` as `number (low–high)`; a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, list):
        number, low, high = (f"{x:.{digits}f}" for x in value)
        return f"{number} ({low}–{high})"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(figure(cell) for cell in line) + " |" for line in lines)


def replace_block(page: Path, text: str) -> None:
    """Put `text` between the markers of `page`; a page without them stays as it is."""
    if not page.exists():
        return
    old = page.read_text(encoding="utf-8")
    if BEGIN not in old or END not in old:
        return
    before, after = old.split(BEGIN)[0], old.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
