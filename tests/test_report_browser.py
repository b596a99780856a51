"""The page of `vbkit report` in a real browser: Chromium, without a window and without a network.

Skipped where there is no Chromium; VBKIT_CHROMIUM may name one.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from report_files import write_results

from vbkit.report import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = os.environ.get("VBKIT_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to try the page in")

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")
HOSTILE = ("</script><script>pwned=1</script><img src=x onerror=\"pwned=1\">"
           "<a href='javascript:pwned=1'>a</a>\u2028 <!-- ${pwned=1}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:  # which makes a new profile for each launch
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    videos: dict[str, dict[str, Any]] = {
        f"talks/{i}.mp4": {"seed": i, "clips": 12 + i} for i in range(8)}
    videos["talks/2.mp4"]["said"] = "a zebra crosses the Müller street"
    videos["words.txt"] = {"seed": 10, "clips": 12, "untimed": True}
    videos["broken.mp4"] = {"seed": 9, "clips": 12, "status": "partial"}
    videos[HOSTILE] = {"seed": 11, "clips": 60, "said": HOSTILE}
    return write_report(write_results(tmp_path_factory.mktemp("page") / "talks", videos)).path


Open = Callable[..., "Page"]


@pytest.fixture
def open_page(browser: Browser, report: Path) -> Iterator[Open]:
    """Opens the page; at the end, nothing may have been said, asked for or shown besides it."""
    opened: list[Page] = []
    said: list[str] = []

    def open_it(fragment: str = "", path: Path = report, width: int = 1200, height: int = 900,
                **options: Any) -> Page:
        tab = browser.new_page(viewport={"width": width, "height": height}, **options)
        tab.set_default_timeout(15_000)
        tab.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: said.append(f"error: {error}"))
        tab.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"),
                                         dialog.dismiss()))
        tab.on("request", lambda request: None if request.url.startswith(("data:", path.as_uri()))
               else said.append(f"request: {request.url}"))
        tab.goto(path.as_uri() + fragment)
        opened.append(tab)
        return tab

    yield open_it
    for tab in opened:
        tab.close()
    assert said == []


def rows(tab: Page) -> list[str]:
    """The videos that the list shows, in order."""
    return tab.locator("#videos tbody tr:visible th > a").all_inner_texts()


def shown(tab: Page, count: str) -> None:
    from playwright.sync_api import expect

    expect(tab.locator("#count")).to_have_text(count, timeout=15_000)


def test_opens(open_page: Open):
    tab = open_page()
    shown(tab, "11 videos")
    assert tab.title() == "talks"
    assert len(rows(tab)) == 11
    for caption in ("What took the time in the last run", "Flagged stretches by category",
                    "Sentiment of the videos", "Likeliest labels"):
        chart = tab.locator("figure", has_text=caption).locator("svg")
        chart.wait_for()
        assert chart.locator("path[aria-label], g[aria-label]").count()
    assert "visual backbone: 41 s" in tab.locator("#charts [aria-label]").evaluate_all(
        "all => all.map(each => each.getAttribute('aria-label')).join('\\n')")
    width, height = tab.locator("#videos img").first.evaluate(
        "image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])")
    assert (width, height) == (144, 81)


def test_search_finds_words_and_their_moment(open_page: Open):
    tab = open_page()
    tab.get_by_role("searchbox", name="Search").fill("zebra MÜLLER")
    shown(tab, "1 of 11 videos")
    assert rows(tab) == ["talks/2.mp4"]
    assert tab.locator(".hits mark").all_inner_texts() == ["zebra", "Müller"]
    tab.locator(".hits a").first.click()
    tab.locator("#video-title", has_text="talks/2.mp4").wait_for()
    assert "a zebra crosses" in tab.locator("#now").inner_text()
    assert tab.locator(".spoken [aria-current]", has_text="zebra").count() == 1
    tab.go_back()
    shown(tab, "1 of 11 videos")
    tab.get_by_role("searchbox").fill("zebra and no giraffe")
    shown(tab, "0 of 11 videos")
    assert tab.get_by_text("No video is like that.").is_visible()
    tab.get_by_role("button", name="Clear").click()
    shown(tab, "11 videos")


def test_filters_and_address(open_page: Open):
    tab = open_page()
    tab.locator("#filter-decision").select_option("block")
    shown(tab, "1 of 11 videos")
    assert rows(tab) == ["talks/3.mp4"]
    tab.locator("#filter-decision").select_option("review")
    tab.locator("#filter-status").select_option("ok")
    shown(tab, "3 of 11 videos")
    assert set(rows(tab)) == {"talks/1.mp4", "talks/6.mp4", HOSTILE}
    tab.get_by_role("button", name="Length").click()
    tab.get_by_role("button", name="Length").click()
    assert rows(tab) == [HOSTILE, "talks/6.mp4", "talks/1.mp4"]
    tab.reload()  # the address keeps what was chosen
    shown(tab, "3 of 11 videos")
    assert rows(tab) == [HOSTILE, "talks/6.mp4", "talks/1.mp4"]
    tab.locator("#filter-status").select_option("")
    tab.locator("#filter-decision").select_option("")
    tab.locator("#filter-tables").select_option("errors")
    shown(tab, "1 of 11 videos")
    assert rows(tab) == ["broken.mp4"]
    assert open_page("#status=%3Cb%3E&sort=99&q=").locator("#videos tr:visible").count() == 12


def test_sorting(open_page: Open):
    tab = open_page()
    head = tab.get_by_role("columnheader", name="Sentiment")
    assert head.get_attribute("aria-sort") is None
    for direction in ("ascending", "descending"):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == direction
        scores = [float(value) for value in tab.locator("#videos tbody tr").evaluate_all(
            "rows => rows.map(row => row.cells[5].dataset.v)")]
        assert scores == sorted(scores, reverse=direction == "descending")
    tab.get_by_role("columnheader", name="Moderation").get_by_role("button").click()
    assert rows(tab)[0] == "talks/3.mp4"  # the gravest first
    assert tab.locator("[aria-sort]").count() == 1


def test_keyboard_alone(open_page: Open):
    tab = open_page()
    focused = "document.activeElement.textContent || document.activeElement.id"
    tab.keyboard.press("Tab")
    assert tab.evaluate(focused) == "Skip to the content"
    tab.keyboard.press("/")
    tab.locator("#search:focus").wait_for()
    tab.keyboard.type("talks")
    shown(tab, "8 of 11 videos")
    tab.keyboard.press("Escape")
    shown(tab, "11 videos")
    tab.locator("#videos a", has_text="talks/1.mp4").focus()
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Enter")
    tab.locator("#video-title:focus", has_text="talks/2.mp4").wait_for()
    tab.locator("#slide").focus()
    before = tab.locator("#now").inner_text()
    for _ in range(6):
        tab.keyboard.press("ArrowRight")
    assert tab.locator("#now").inner_text() != before
    assert re.fullmatch("0:0[1-9] of 0:21", str(tab.locator("#slide").get_attribute(
        "aria-valuetext")))
    tab.keyboard.press("]")
    tab.locator("#video-title", has_text="talks/3.mp4").wait_for()
    tab.keyboard.press("[")
    tab.locator("#video-title", has_text="talks/2.mp4").wait_for()
    tab.keyboard.press("Escape")
    tab.locator("#overview:visible").wait_for()
    assert tab.evaluate(focused) == "talks/2.mp4"


def test_a_video(open_page: Open):
    tab = open_page("#video=talks%2F3.mp4&t=4")
    tab.locator("#line svg").nth(1).wait_for()
    for name in ("Summary", "Moderation", "Answers", "Explanations", "Chapters", "Transcript",
                 "Captions", "Labels", "Sentiment", "File", "Other tables"):
        assert tab.get_by_role("heading", name=name, exact=True).is_visible()
    lanes = tab.locator("#line .chart").first.locator("svg").text_content()
    for lane in ("Chapters", "Moderation", "Summary", "Answers", "people"):
        assert lane in str(lanes)
    assert "0:04 of 0:22" in tab.locator("#now").inner_text()
    assert "block gun 0.91" in tab.locator("#now").inner_text()
    assert "clips 2 to 4" in tab.locator(".flags").inner_text()
    assert "Probably nothing in this video answers that." in tab.locator(".answer").nth(
        1).inner_text()
    assert tab.locator(".why .number").all_inner_texts() == ["+0.50", "+0.25", "−0.04"]
    tab.get_by_role("button", name="Go to 0:07").first.click()
    tab.locator("#now", has_text="0:07 of 0:22").wait_for()
    table = tab.locator("details", has_text="people").locator("table")
    table.get_by_role("button", name="score").click()
    scores = [float(text) for text in table.locator("tbody tr td:nth-child(3)").all_inner_texts()]
    assert scores == sorted(scores)
    assert len(scores) == 4
    tab.locator("#line .chart").first.scroll_into_view_if_needed()
    box = tab.locator("#line .chart").first.bounding_box()
    assert box is not None
    tab.mouse.click(box["x"] + box["width"] - 13, box["y"] + 10)  # the end of the time line
    tab.locator("#now", has_text="0:22 of 0:22").wait_for()
    trouble = open_page("#video=broken.mp4").locator(".trouble")
    assert "3 frames cannot be decoded" in trouble.inner_text()


def test_words_without_times_and_pictures(open_page: Open):
    tab = open_page("#video=words.txt")
    tab.locator("#video-title", has_text="words.txt").wait_for()
    assert tab.locator("#line").count() == 0
    assert tab.locator("#video .spoken li").count() == 9
    assert tab.locator("#video .time").count() == 0
    assert tab.get_by_role("heading", name="Answers").is_visible()


def test_a_hostile_transcript_does_nothing(open_page: Open):
    tab = open_page()
    tab.get_by_role("searchbox").fill("javascript:pwned")
    shown(tab, "1 of 11 videos")
    tab.locator("#videos a", has_text="pwned").first.click()
    tab.locator("#line svg").first.wait_for()
    assert tab.locator("#video-title").text_content() == HOSTILE
    assert tab.locator("#video .spoken li").filter(has_text="onerror=").count() == 1
    tab.locator("#line svg path[aria-label]").first.hover()
    assert tab.evaluate("typeof pwned") == "undefined"
    assert tab.evaluate("[...document.images].every(i => i.src.startsWith('data:image/jpeg'))")
    assert tab.evaluate("[...document.links].every(a => a.getAttribute('href').startsWith('#'))")
    assert tab.evaluate("document.querySelectorAll('script:not([type])').length") == 2


def test_the_policy_stops_what_escaping_would_miss(browser: Browser, report: Path):
    tab = browser.new_page()
    tab.goto(report.as_uri())
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        broken = tab.evaluate("""async (port) => {
            const broken = [];
            document.addEventListener("securitypolicyviolation",
                (event) => broken.push(event.effectiveDirective));
            const script = document.createElement("script");
            script.textContent = "window.pwned = 1";
            const div = document.createElement("div");
            div.innerHTML = `<img src="http://127.0.0.1:${port}/x">`
                + '<img src="data:," onerror="pwned = 1">';
            document.body.append(script, div);
            await fetch(`http://127.0.0.1:${port}/y`).catch(() => 0);
            await new Promise((resolve) => setTimeout(resolve, 100));
            return broken;
        }""", server.getsockname()[1])
        with pytest.raises(TimeoutError):  # nobody called
            server.accept()
    assert set(broken) == {"script-src-elem", "script-src-attr", "img-src", "connect-src"}
    assert tab.evaluate("typeof pwned") == "undefined"
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible(open_page: Open, scheme: str):
    """By the rules of axe-core, which include the contrast of WCAG 2.1 AA."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for fragment in ("", "#video=talks%2F3.mp4"):
        tab = open_page(fragment, color_scheme=scheme)
        tab.locator("svg").first.wait_for()
        found = axe.run(tab).response["violations"]
        assert [(rule["id"], [node["html"][:200] for node in rule["nodes"][:3]])
                for rule in found] == []


def test_dark_and_light(open_page: Open):
    def brightness(tab: Page, style: str = "backgroundColor", of: str = "html") -> float:
        colour = tab.locator(of).first.evaluate(f"e => getComputedStyle(e).{style}")
        return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3

    tab = open_page(color_scheme="dark")
    tab.locator("#charts svg").first.wait_for()
    assert brightness(tab) < 40
    assert brightness(tab, "fill", "#charts svg text") > 200  # the charts follow
    tab.get_by_role("button", name="Theme").click()
    assert tab.get_by_role("button", name="Theme: light").is_visible()
    assert brightness(tab) > 220
    assert brightness(tab, "fill", "#charts svg text") < 60
    assert brightness(open_page(color_scheme="light")) > 220


def test_on_a_phone(open_page: Open):
    for fragment in ("", "#video=talks%2F3.mp4"):
        tab = open_page(fragment, width=360, height=740)
        tab.locator("svg").first.wait_for()
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360


def test_on_paper(open_page: Open):
    tab = open_page("#video=talks%2F3.mp4", color_scheme="dark")
    tab.locator("#line svg").first.wait_for()
    tab.emulate_media(media="print")
    assert not tab.locator("#slide").is_visible()
    assert not tab.locator(".steps").is_visible()
    assert tab.locator("html").evaluate("e => getComputedStyle(e).colorScheme") == "light"
    assert tab.pdf(format="A4").startswith(b"%PDF")
    hidden = tab.locator(".tall").evaluate_all("all => all.map(e => e.scrollHeight - "
                                               "e.clientHeight)")
    assert all(rest <= 0 for rest in hidden)


def test_a_thousand_videos_open_at_once(open_page: Open, tmp_path: Path):
    videos: dict[str, dict[str, Any]] = {f"{i:04d}.mp4": {"seed": i, "clips": 8}
                                         for i in range(1000)}
    videos["0007.mp4"]["said"] = "a zebra"
    path = write_report(write_results(tmp_path / "many", videos), pictures_mb=6).path
    took = []
    for _ in range(2):  # the machine may have been busy once
        began = time.perf_counter()
        tab = open_page(path=path)
        shown(tab, "1,000 videos")
        took.append(time.perf_counter() - began)
    assert min(took) < 3
    tab.get_by_role("searchbox").fill("zebra")
    shown(tab, "1 of 1,000 videos")
    assert rows(tab) == ["0007.mp4"]
