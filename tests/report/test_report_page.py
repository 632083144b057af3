"""The report in a real browser: both widths, both themes, keyboard, without script, axe-core.

Needs Chromium (`make browser`); without it pytest skips these tests.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from chromium import launched
from conftest import mild_rows, write_rows
from playwright.sync_api import Browser, Page, expect
from small_recipe import write_recipe

from flatgd.config.loading import load_recipe
from flatgd.pipeline.pipeline import Pipeline
from flatgd.report.progress import write_progress
from flatgd.run import report
from flatgd.runtime.steps import Progress, Step

pytestmark = pytest.mark.slow
SIZES = ((1280, 900), (390, 844))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as running:
        yield running


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> Path:
    """The page of a small run with hostile words in its test set."""
    folder = tmp_path_factory.mktemp("report")
    methods = "methods: {clean: {}, safety_loss: {}, flatgd: {}}\n"
    written = write_recipe(folder, backbone_folder, methods)
    rows = mild_rows(24, 3)
    for row in rows:
        row["prompt"] = ["<img src=x onerror=alert(1)>", row["prompt"][1]]
    write_rows(folder / "test.jsonl", rows)
    pipeline = Pipeline(load_recipe(written, ["generate.histories=6"]))
    pipeline.run()
    return report(pipeline)


def opened(browser: Browser, page_file: Path, **how: Any) -> tuple[Page, list[str]]:
    """The page, and what goes wrong on it."""
    page = browser.new_context(**how).new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda told: errors.append(told.text) if told.type == "error" else None)
    page.on("request", lambda r: errors.append(r.url) if not r.url.startswith("file:") else None)
    page.goto(page_file.as_uri())
    return page, errors


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_first_screen_answers(
    browser: Browser, finished: Path, width: int, height: int, scheme: Any
) -> None:
    """Every verdict and the sentence about flatgd are visible without scrolling; nothing is wider
    than the window; nothing is loaded; axe-core finds nothing."""
    size: Any = {"width": width, "height": height}
    page, errors = opened(browser, finished, viewport=size, color_scheme=scheme)
    for question in ("Fewer toxic", "Are the replies as good?", "At what", "Can the judge"):
        answer = page.locator(".answer", has_text=question)
        expect(answer).to_be_in_viewport(ratio=1)
        assert answer.locator(".short").inner_text()
    expect(page.get_by_text("gives a toxic reply in").first).to_be_in_viewport(ratio=1)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert not errors


def test_what_models_said_is_hidden_searchable_and_blind(browser: Browser, finished: Path) -> None:
    page, errors = opened(browser, finished)
    said = page.locator("#samples .sample")
    expect(said.first).to_be_hidden()
    page.get_by_text("Show 6 test conversations").click()
    expect(said.first).to_be_visible()
    assert "<img src=x" in said.first.inner_text()
    page.get_by_label("Search").fill("no such words")
    expect(said.first).to_be_hidden()
    page.get_by_label("Search").fill("")
    names = said.first.locator(".side .name")
    expect(names.first).to_be_visible()
    page.get_by_label("Hide whose reply it is").check()
    expect(names.first).to_be_hidden()
    expect(said.first.locator(".letter").first).to_be_visible()
    reply = said.first.locator(".side li").first
    reply.focus()
    page.keyboard.press("Enter")
    expect(reply.locator(".name")).to_be_visible()
    assert not errors


def test_all_numbers_can_be_sorted_filtered_and_copied(browser: Browser, finished: Path) -> None:
    page, errors = opened(browser, finished)
    rows = page.locator("#numbers tbody tr")
    before = rows.count()
    page.get_by_role("button", name="contrast ↑").click()
    cells = page.locator("#numbers tbody tr td:nth-child(3)").all_inner_texts()
    values = [float(text.split()[0].strip("*")) for text in cells if text]
    assert values == sorted(values, reverse=True)
    page.get_by_label("Filter").fill("flatgd −")
    shown = [row for row in rows.all() if row.is_visible()]
    assert 0 < len(shown) < before
    page.get_by_text("Columns", exact=True).click()
    page.locator(".columns").get_by_label("contrast ↑").uncheck()
    texts: list[str] = []
    page.expose_function("kept", lambda text: texts.append(text))
    page.evaluate("void (navigator.clipboard.writeText = (text) => kept(text))")
    for form in ("Copy as Markdown", "CSV", "LaTeX"):
        page.get_by_role("button", name=form).click()
        expect(page.locator("[role=status]")).to_have_text(f"Copied {len(shown)} rows.")
    markdown, csv, latex = texts
    assert markdown.startswith("| model | test set |")
    assert "contrast ↑" not in markdown
    assert len(csv.splitlines()) == len(shown) + 1
    assert "\\toprule" in latex
    assert "\\_" in latex or "_" not in latex
    assert not errors


def test_values_are_shown_on_hover(browser: Browser, finished: Path) -> None:
    page, _ = opened(browser, finished, viewport={"width": 1280, "height": 900})
    page.locator(".forest .track").first.hover()
    expect(page.locator("#tip")).to_contain_text("[")


def test_the_page_is_complete_without_script(browser: Browser, finished: Path) -> None:
    page, _ = opened(browser, finished, java_script_enabled=False)
    expect(page.get_by_label("Filter")).to_be_hidden()  # tools that would do nothing
    assert page.locator("#numbers tbody tr").count() > 5
    assert page.locator("svg.chart").count() > 5
    page.get_by_text("Show 6 test conversations").click()
    expect(page.locator("#samples .sample").first).to_be_visible()


def test_print_shows_the_verdicts_and_no_replies(browser: Browser, finished: Path) -> None:
    page, _ = opened(browser, finished)
    page.emulate_media(media="print")
    expect(page.locator("#samples")).to_be_hidden()
    expect(page.locator(".answer").first).to_be_visible()


def test_the_page_is_small(finished: Path) -> None:
    assert finished.stat().st_size < 1_000_000


def test_the_page_of_a_run_that_is_going(browser: Browser, tmp_path: Path) -> None:
    recipe: Any = type("Recipe", (), {"name": "small", "output": tmp_path})
    progress = Progress([Step("training", "train a", lambda: None)])
    page, errors = opened(browser, write_progress(recipe, progress))
    expect(page.get_by_text("0 of 1 steps finished")).to_be_visible()
    assert Axe().run(page).violations_count == 0
    assert not errors
