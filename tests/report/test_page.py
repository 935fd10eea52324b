"""The page in a real browser: what it shows, that it works, and that everybody can read it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from verifier.report.render import main as render

playwright = pytest.importorskip("playwright.sync_api")
BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="needs Debian's chromium"),
    pytest.mark.xdist_group("browser"),
]
LIMIT_BYTES = 5_000_000
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1100, "height": 800}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield running
        running.close()


class Visit:
    """A page in a context of its own, with all that it complained of and asked for."""

    def __init__(self, browser: Any, path: Path, *, dark: bool = False, size: dict[str, int] = DESKTOP) -> None:
        self.context = browser.new_context(viewport=size, color_scheme="dark" if dark else "light", offline=True)
        self.page, self.said, self.asked = self.context.new_page(), [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url.split(":", 1)[0]))
        self.page.goto(path.as_uri())

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def shown(self, table: str) -> list[str]:
        """First cells of the rows that are shown."""
        words: list[str] = self.page.eval_on_selector_all(
            f"#{table} tbody tr:not([hidden])", "rows => rows.map(row => row.cells[0].textContent)"
        )
        return words


@pytest.fixture(scope="module")
def pages(report_folder: Path, flipped_report: Path) -> dict[str, Path]:
    """A page that passes, and one that fails."""
    return {"pass": report_folder / "report.html", "fail": flipped_report / "report.html"}


@pytest.fixture(scope="module")
def shorter(report_folder: Path, pages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same two, the one that passes with three results of each check: axe-core looks at every element, and 500 rows are alike."""
    folder = tmp_path_factory.mktemp("shorter")
    report = json.loads((report_folder / "report.json").read_text())
    kept: dict[str, list[object]] = {}
    for check in report["checks"]:
        kept.setdefault(check["id"], []).append(check)
    report["checks"] = [check for checks in kept.values() for check in checks[:3]]
    (folder / "report.json").write_text(json.dumps(report))
    assert render([str(folder / "report.json"), "--html", str(folder / "report.html"), "--quiet"]) == 0
    return pages | {"pass": folder / "report.html"}


@pytest.mark.parametrize("verdict", ["pass", "fail"])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_page_stands_alone(
    browser: Any, pages: dict[str, Path], verdict: str, dark: bool, size: dict[str, int]
) -> None:
    """No complaint, nothing asked of a network, nothing wider than the screen, small."""
    assert pages[verdict].stat().st_size < LIMIT_BYTES
    with Visit(browser, pages[verdict], dark=dark, size=size) as visit:
        assert visit.said == []
        assert set(visit.asked) <= {"file", "data"}
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= size["width"]


def test_first_screen_of_a_failure_says_what_broke_where_and_what_next(browser: Any, pages: dict[str, Path]) -> None:
    """Verdict, place, step, finding and command, without scrolling; the broken step is marked on the ladder."""
    with Visit(browser, pages["fail"]) as visit:
        blame = visit.page.locator("#blame")
        assert blame.bounding_box()["y"] + blame.bounding_box()["height"] < DESKTOP["height"]
        said = blame.inner_text()
        for words in (
            "text_decoder.layers.2.feed_forward.w1 [7, 209]",
            "lowering",
            "1 of 196,608 elements differ",
            "python -m verifier.test_pte",
        ):
            assert words in said
        assert visit.page.locator("h1").inner_text().startswith("FAILED: flipped.pte")
        assert visit.page.locator(".step.blamed").inner_text().startswith("lowering")
        assert visit.page.locator(".step.blamed .broken").inner_text() == "breaks here"
        # the tensor is the first of its table
        assert visit.shown("weights-t")[0] == "text_decoder.layers.2.feed_forward.w1.weight"


def test_page_of_a_pass_shows_every_picture(browser: Any, pages: dict[str, Path]) -> None:
    """Depth for both sides, tokens against layers, the cache, maps over the images, both answers."""
    with Visit(browser, pages["pass"]) as visit:
        page = visit.page
        assert page.locator("#blame").count() == 0
        assert page.locator("#depth svg").count() == 2
        assert page.locator("#streams svg").count() == page.locator("#cache svg").count() == 1
        assert page.locator(".image .map").count() == page.locator(".image").count() == 30
        loaded = "images => images.every(image => image.complete && image.naturalWidth > 0)"
        assert page.eval_on_selector_all(".image img", loaded)
        assert "A large red circle next to a small blue square" in page.locator("#images").text_content()
        assert page.locator("#cost .stages tr").count() > 5


def test_filters_and_sorting_work(browser: Any, pages: dict[str, Path]) -> None:
    """By verdict, family, step and text, together; a column up and down."""
    with Visit(browser, pages["pass"]) as visit:
        page = visit.page
        every = len(visit.shown("checks-t"))
        page.select_option("#f-family", "kvcache")
        assert set(visit.shown("checks-t")) == {
            f"kvcache.{n}" for n in ("mask", "rows", "memory", "chunks", "capacity", "history", "poison")
        }
        page.select_option("#f-step", "lowering")
        assert set(visit.shown("checks-t")) == {"kvcache.mask", "kvcache.memory"}
        assert page.locator("#f-count").inner_text() == f"3 of {every}"
        page.select_option("#f-verdict", "fail")
        assert visit.shown("checks-t") == []
        for name in ("family", "step", "verdict"):
            page.select_option(f"#f-{name}", "")
        page.fill("#f-text", "ODD_333X335")
        assert 3 < len(visit.shown("checks-t")) < 20
        page.fill("#f-text", "")
        assert len(visit.shown("checks-t")) == every
        page.click("#weights-t th:nth-child(3) button")
        down = page.eval_on_selector_all(
            "#weights-t tbody tr", "rows => rows.map(row => Number(row.cells[2].textContent))"
        )
        known = [value for value in down if value]
        assert known == sorted(known, reverse=True)
        page.click("#weights-t th:nth-child(3) button")
        up = page.eval_on_selector_all(
            "#weights-t tbody tr", "rows => rows.map(row => Number(row.cells[2].textContent))"
        )
        assert [value for value in up if value] == sorted(known)
        assert page.locator("#weights-t th:nth-child(3)").get_attribute("aria-sort") == "ascending"
        assert visit.said == []


def test_page_works_by_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    """The first stop skips to the checks; headings of tables are pressed like buttons."""
    with Visit(browser, pages["fail"]) as visit:
        page = visit.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert page.url.endswith("#checks")
        page.locator("#checks-t th:nth-child(6) button").focus()
        page.keyboard.press("Enter")
        assert page.locator("#checks-t th:nth-child(6)").get_attribute("aria-sort") == "descending"


@pytest.mark.parametrize(("verdict", "dark"), [("pass", True), ("fail", False)])
def test_nobody_is_shut_out(browser: Any, shorter: dict[str, Path], verdict: str, dark: bool) -> None:
    """axe-core finds no violation of WCAG 2.2 A and AA: names, roles, contrast, order."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with Visit(browser, shorter[verdict], dark=dark) as visit:
        found = axe.run(visit.page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]})
        wrong = [(v["id"], [node["html"][:200] for node in v["nodes"][:3]]) for v in found.response["violations"]]
        assert wrong == []


def test_text_of_a_hostile_report_does_not_run(browser: Any, report_folder: Path, tmp_path: Path) -> None:
    """Markup in messages, names and answers is shown as it is."""
    text = (report_folder / "report.json").read_text()
    evil = text.replace("llava_tiny.pte", "<img src=x onerror=document.title='run'>.pte").replace(
        "Describe the image.", "<script>document.title='run'</script>"
    )
    (tmp_path / "report.json").write_text(evil)
    assert render([str(tmp_path / "report.json"), "--html", str(tmp_path / "page.html"), "--quiet"]) == 0
    with Visit(browser, tmp_path / "page.html") as visit:
        assert visit.page.title() != "run"
        assert visit.said == []
        assert "<script>document.title" in visit.page.locator("#images").text_content()
