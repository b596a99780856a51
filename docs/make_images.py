"""Make the README's pictures out of a real run on the sample clip.

    python docs/make_images.py

`docs/images/demo.svg` is what a terminal shows when the commands below run,
`docs/images/sample.jpg` a row of the pictures that the run saved, and `docs/images/report.webp` the
page of `vbkit report` in Chromium. Nothing in them is typed by hand. Linux and macOS only.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
COLUMNS = 120
PICTURES = 5

COMMANDS = (
    'vbkit run tests/data/sample.mp4 --out demo --task summarisation --task qa --task sentiment '
    '--task moderation --question "Who passes the waiting cars?"',
    "vbkit show demo summarisation_segments --columns start_s,end_s,rank,score,selected,text",
    "vbkit show demo qa --columns question,rank,answer,score,no_answer,start_s,end_s",
    "vbkit show demo sentiment --columns start_s,end_s,label,score,text",
    "vbkit show demo moderation_videos",
)
PAGE = (
    'vbkit run tests/data/sample.mp4 --out demo --task summarisation --task qa --task sentiment '
    '--task moderation --task classification -o classification.labels="animals, traffic, sport" '
    '-o classification.clips=true --captions --question "Who passes the waiting cars?"',
    "vbkit report demo",
)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "demo"
        console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: SIM115
        for command in COMMANDS:
            console.print(Text(f"$ {command}", style="bold"))
            arguments = [str(out) if word == "demo" else word for word in shlex.split(command)[1:]]
            shown = in_terminal([sys.executable, "-m", "vbkit", *arguments])
            console.print(Text.from_ansi(shown.replace(str(out), "demo")))
        svg = console.export_svg(title="vbkit")
        # No fonts from elsewhere: where Fira Code is missing, another monospaced font does.
        svg = re.sub(r"@font-face\s*\{[^}]*\}\s*", "", svg)
        (IMAGES / "demo.svg").write_text(svg, encoding="utf-8")
        film_strip(out).save(IMAGES / "sample.jpg", quality=85)
        for command in PAGE:
            arguments = [str(out) if word == "demo" else word for word in shlex.split(command)[1:]]
            subprocess.run([sys.executable, "-m", "vbkit", *arguments], cwd=ROOT, check=True)
        photograph(out / "report.html", IMAGES / "report.webp")


def in_terminal(command: list[str]) -> str:
    """What a program writes to a terminal on stdout, escape sequences included.

    Raises:
        SystemExit: it fails.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=theirs,
                          stderr=subprocess.PIPE, env=environment) as process:
        os.close(theirs)
        chunks = []
        while True:
            try:
                chunk = os.read(ours, 1 << 16)
            except OSError:  # Linux says so when the other side is closed
                break
            if not chunk:
                break
            chunks.append(chunk)
        assert process.stderr is not None
        errors = process.stderr.read().decode()
    os.close(ours)
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)} failed with {process.returncode}:\n{errors}")
    return b"".join(chunks).decode().replace("\r\n", "\n").rstrip("\n") + "\n"


def film_strip(out: Path) -> Image.Image:
    """Some of the saved pictures, side by side."""
    from vbkit import load_table

    names = load_table(out, "clips", columns=["keyframe"])["keyframe"].dropna().tolist()
    chosen = [names[round((i + 0.5) * len(names) / PICTURES - 0.5)] for i in range(PICTURES)]
    pictures = [Image.open(out / name) for name in chosen]
    width = sum(picture.width for picture in pictures) + 4 * (len(pictures) - 1)
    strip = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        strip.paste(picture, (left, 0))
        left += picture.width + 4
    return strip


def photograph(page: Path, target: Path) -> None:
    """A page in Chromium, at the moment when the cyclist passes."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1160, "height": 950})
        tab.goto(page.as_uri() + "#video=sample.mp4&t=9.5")
        tab.locator("#line svg").nth(1).wait_for()
        with Image.open(io.BytesIO(tab.screenshot())) as picture:
            picture.convert("RGB").save(target, quality=88, method=6)
        browser.close()


if __name__ == "__main__":
    main()
