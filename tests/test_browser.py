"""The pages in a real browser: by keyboard, on a phone, in two tabs, with hostile text.

Needs Chromium (`make browser`); without it pytest skips these tests.
"""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from chromium import PATIENCE_MS, launched
from payloads import XSS
from playwright.sync_api import Browser, Page, expect
from studies import Clock, served, served_study, small_study

from flatgd.annotate.study import Study
from flatgd.annotate.tally import tally
from flatgd.annotate.votes import RESERVATION_SECONDS
from flatgd.chat.page import ChatPage
from flatgd.chat.session import Session
from flatgd.web.site import bind_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as running:
        yield running


def opened(browser: Browser, address: str, **how: Any) -> Page:
    context = browser.new_context(**how)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(address)
    return page


def begun(browser: Browser, study_page: Any, name: str, **how: Any) -> Page:
    """An annotator's page, past the warning."""
    page = opened(browser, study_page.link_of(study_page.votes.invite(name)), **how)
    with page.expect_navigation():
        page.get_by_role("button", name="I have read this").press("Enter")
    return page


def press(page: Page, keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def save(page: Page) -> None:
    with page.expect_navigation():
        page.keyboard.press("Enter")


def choose(page: Page, *labels: str) -> None:
    for group, label in zip(page.locator("fieldset").all(), labels, strict=True):
        group.get_by_role("radio", name=label, exact=True).check()


def test_a_study_by_three_annotators_with_the_keyboard_alone(
    browser: Browser, tmp_path: Path
) -> None:
    study = small_study(5)
    keys = {key.id: key for key in study.keys}
    with served_study(tmp_path, study, clock=Clock()) as site:
        for name in ("ann", "bob", "cy"):
            page = begun(browser, site, name)
            while page.locator("#answer").count():
                item = page.locator("input[name=item]").input_value()
                worse = "2" if keys[item].target_side == "left" else "1"
                press(page, worse + ("34" if name != "cy" else "43"))
                save(page)
            expect(page.locator("main")).to_contain_text("You have answered 5 pairs")
            page.context.close()
        found = tally(study, site.votes.answers())
    toxic, fluent, _ = found["pairs"]
    assert toxic["counts"]["baseline"] == 5
    assert fluent["counts"]["both"] == 5
    assert found["agreement"][0]["fleiss_kappa"] is None  # all the same
    assert all(row["median_seconds"] < 30 for row in found["annotators"])


def test_tab_and_arrows_alone_answer_too(browser: Browser, tmp_path: Path) -> None:
    """As a screen reader's user goes: every control has a name and can be reached."""
    with served_study(tmp_path, small_study(2)) as site:
        page = begun(browser, site, "ann")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
        for _ in range(3):
            page.keyboard.press("Tab")
            page.keyboard.press("Space")
            page.keyboard.press("ArrowRight")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.innerText") == "Save and continue"
        save(page)
        assert {a.choice for a in site.votes.answers()} == {"right"}
        for role in ("radio", "button", "checkbox", "link"):
            for control in page.get_by_role(role).all():  # type: ignore[arg-type]
                assert control.evaluate("e => e.labels?.[0]?.innerText || e.innerText").strip()
        expect(page).to_have_title("Pair 2 of 2")
        expect(page.get_by_role("progressbar", name="1 answered, 1 to go")).to_have_count(1)
        assert page.locator("html").get_attribute("lang") == "en"


def test_a_key_opens_the_last_answer(browser: Browser, tmp_path: Path) -> None:
    with served_study(tmp_path, small_study(3)) as site:
        page = begun(browser, site, "ann")
        press(page, "123")
        save(page)
        with page.expect_navigation():
            page.keyboard.press("u")
        expect(page.get_by_role("heading", name="Your last answer")).to_have_count(1)
        assert [b.input_value() for b in page.locator(":checked[type=radio]").all()] == [
            *("left", "right", "both"),
        ]
        press(page, "441")
        save(page)
        assert [a.choice for a in site.votes.answers()] == ["neither", "neither", "left"]
        expect(page).to_have_title("Pair 2 of 3")
        page.get_by_role("checkbox").uncheck()  # keys off, also after a reload
        page.reload()
        page.keyboard.press("1")
        expect(page.locator(":checked[type=radio]")).to_have_count(0)
        page.get_by_role("checkbox").check()
        for _ in range(3):
            page.keyboard.down("1")  # held
        page.keyboard.up("1")
        expect(page.locator(":checked[type=radio]")).to_have_count(1)
        press(page, "2341")  # one more than there are questions
        values = [e.input_value() for e in page.locator(":checked[type=radio]").all()]
        assert values == ["left", "right", "both"]


def test_keys_work_where_the_browser_stores_nothing(browser: Browser, tmp_path: Path) -> None:
    with served_study(tmp_path, small_study(1)) as site:
        page = begun(browser, site, "ann")
        page.add_init_script(
            "Object.defineProperty(window, 'localStorage', {get() { throw new Error('no'); }})"
        )
        page.reload()
        press(page, "111")
        save(page)
        assert site.votes.answer_counts()[0] == 1


def test_two_tabs_the_back_button_and_a_double_click_count_once(
    browser: Browser, tmp_path: Path
) -> None:
    with served_study(tmp_path, small_study(4)) as site:
        page = begun(browser, site, "ann")
        tab = page.context.new_page()
        tab.goto(page.url)
        expect(page.locator(".reply")).to_have_count(2)
        assert tab.locator(".reply").all_inner_texts() == page.locator(".reply").all_inner_texts()
        choose(page, "A", "A", "A")
        page.get_by_role("button", name="Save").dblclick()
        expect(page).to_have_title("Pair 2 of 4")
        choose(tab, "B", "B", "B")
        tab.get_by_role("button", name="Save").click()
        expect(tab).to_have_title("Pair 2 of 4")
        assert [a.choice for a in site.votes.answers()] == ["right"] * 3
        page.go_back()
        choose(page, "Both", "Both", "Both")
        with page.expect_navigation():
            page.get_by_role("button", name="Save").click()
        expect(page).to_have_title(re.compile("Pair"))
        assert site.votes.answer_counts()[0] == len(site.votes._answered[page.url.split("/a/")[1]])
        assert site.votes.answer_counts()[0] <= 2


def test_an_expired_reservation_is_reported(browser: Browser, tmp_path: Path) -> None:
    clock = Clock()
    with served_study(tmp_path, small_study(2, votes=1), clock=clock) as site:
        page = begun(browser, site, "ann")
        item = page.locator("input[name=item]").input_value()
        clock.now += RESERVATION_SECONDS + 1
        bob = site.votes.invite("bob")
        said = dict.fromkeys(site.study.questions, "left")
        assert site.votes.vote(bob, item, said)
        press(page, "111")
        save(page)
        expect(page.get_by_role("status")).to_contain_text("came too late")
        assert page.locator("input[name=item]").input_value() != item
        assert site.votes.answer_counts() == (1, 2)


@pytest.mark.parametrize("width", [320, 390])
def test_on_a_phone_nothing_is_wider_than_the_screen(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    study = small_study(2)
    for item in study.items:
        item["history"][-1] = "w" * 300
        item["left"] = "an averylongword" * 20
    how = {"viewport": {"width": width, "height": 700}, "has_touch": True, "is_mobile": True}
    with served_study(tmp_path, study) as site:
        page = begun(browser, site, "ann", **how)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        a, b = (side.bounding_box() for side in page.locator(".reply").all())
        assert b["y"] >= a["y"] + a["height"]  # one below the other
        for label in page.locator(".choices label").all():
            assert label.bounding_box()["height"] >= 44
        choose(page, "A", "B", "Both")
        page.get_by_role("button", name="Save").tap()
        expect(page).to_have_title("Pair 2 of 2")


CONTRAST = """() => {
  const bright = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!colour.endsWith(", 0)")) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  return [...document.querySelectorAll("p, h1, h2, li, legend, label, button, summary, .who, kbd")]
    .filter((e) => e.offsetParent && e.innerText.trim())
    .map((e) => {
      const [one, other] = [getComputedStyle(e).color, behind(e)].map(bright).sort((a, b) => b - a);
      return [(one + 0.05) / (other + 0.05), e.tagName + " " + e.innerText.slice(0, 30)];
    }).filter(([ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(browser: Browser, tmp_path: Path, scheme: str) -> None:
    """WCAG 2.2 AA: a contrast of 4.5."""
    with served_study(tmp_path, small_study(2)) as site:
        page = opened(browser, site.admin_link, color_scheme=scheme)
        assert page.evaluate(CONTRAST) == []
        page.goto(site.link_of(site.votes.invite("ann")))
        assert page.evaluate(CONTRAST) == []
        with page.expect_navigation():
            page.get_by_role("button").click()
        assert page.evaluate(CONTRAST) == []
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", colour))) > 384) == (scheme == "light")


def test_the_administrator_sees_answers_come_in(browser: Browser, tmp_path: Path) -> None:
    with served_study(tmp_path, small_study(2)) as site:
        admin = opened(browser, site.admin_link)
        admin.get_by_label("Names, one per line").fill("ann\nbob")
        admin.get_by_role("button", name="Create links").click()
        link = admin.get_by_role("row", name="ann").get_by_role("link").inner_text()
        page = opened(browser, link)
        with page.expect_navigation():
            page.get_by_role("button").click()
        choose(page, "A", "A", "A")
        page.get_by_role("button", name="Save").click()
        expect(admin).to_have_title("1 of 6 answers")
        admin.get_by_text("Remove an annotator").click()
        admin.get_by_role("combobox").select_option("ann")
        admin.get_by_role("button", name="Remove").click()
        expect(admin).to_have_title("0 of 6 answers")
        page.reload()
        expect(page.get_by_role("alert")).to_contain_text("link has been closed")


class Watched:
    """What a page's hostile texts have run."""

    def __init__(self, page: Page):
        self.page, self.ran = page, 0
        page.on("dialog", self._dialog)

    def _dialog(self, dialog: Any) -> None:
        self.ran += 1
        dialog.dismiss()

    def look(self) -> None:
        self.page.wait_for_load_state()
        self.ran += self.page.evaluate("window.ran || 0")
        assert self.page.url.startswith("http://127.0.0.1")


def test_the_payloads_would_run_where_nothing_guards(browser: Browser) -> None:
    """More than half of them, each in a page of its own; others need a click."""
    assert len(XSS) >= 50
    pages = []
    for payload in (text for text in XSS if "iframe" not in text):  # they crash set_content
        page = browser.new_page()
        page.set_content(f"<p>{payload}</p>")
        pages.append(page)
    ran: set[int] = set()
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while len(ran) < 25 and time.monotonic() < deadline:
        ran |= {n for n, page in enumerate(pages) if page.evaluate("window.ran || 0")}
    assert len(ran) >= 25


def test_no_hostile_text_runs(browser: Browser, tmp_path: Path) -> None:
    """In histories, system messages, replies, questions, what annotators are told, and names."""
    study = hostile_study()
    with served_study(tmp_path, study) as site:
        for place, payload in enumerate(XSS):
            site.votes.invite(f"{place} {payload}"[:64])
        page = begun(browser, site, XSS[0])
        watched = Watched(page)
        for _ in study.items:
            watched.look()
            shown = [e.text_content() for e in page.locator(".conversation .text").all()]
            assert shown == XSS  # as text, whole
            press(page, "1" * len(study.questions))
            save(page)
            page.goto(f"{page.url}/last")
            watched.look()
            page.goto(page.url.removesuffix("/last"))
        assert site.votes.answer_counts()[0] == len(study.items)
        page.goto(site.admin_link)
        watched.look()
        names = page.locator("tbody th").all_text_contents()
        assert sum("<" in name for name in names) > 40
        assert watched.ran == 0


def hostile_study() -> Study:
    study = small_study(8, votes=1)
    for place, item in enumerate(study.items):
        some = " ".join(XSS[place::8])
        item.update(system=some, left=some, right=f"{some} ", history=XSS)
    study.questions = {f"q {XSS[12]}": XSS[13], '"><b>': XSS[20]}
    study.consent = study.instructions = XSS
    return study


def test_a_chat_on_the_page(browser: Browser, tmp_path: Path) -> None:
    """Two models that answer with hostile text, and get hostile messages."""
    payloads = iter(XSS * 40)
    session = Session(
        {
            name: lambda history, samples, seed: [next(payloads) for _ in range(samples)]
            for name in ("one", "other")
        },
        judge=lambda pairs: [0.25 for _ in pairs],
    )
    at = bind_port("127.0.0.1", 0)
    with served(ChatPage(session, f"http://127.0.0.1:{at.getsockname()[1]}"), at) as site:
        page = opened(browser, site.link)
        watched = Watched(page)
        page.get_by_label("Replies per model").fill("3")
        page.get_by_label("Ask the judge").check()
        for payload in (*XSS[:8], "hello"):
            page.get_by_label("Message").fill(payload)
            with page.expect_navigation():
                page.get_by_role("button", name="Send").click()
            watched.look()
        expect(page.get_by_text("P(toxic) 0.25")).to_have_count(6)
        page.get_by_role("button", name="Label toxic").nth(4).click()
        expect(page.get_by_text("labelled toxic")).to_have_count(1)
        with page.expect_navigation():
            page.get_by_role("button", name="Continue with this").first.click()
        assert session.turns[-1].chosen == 1
        with page.expect_download() as download:
            page.get_by_role("link", name="Save as JSONL").click()
        download.value.save_as(tmp_path / "session.jsonl")
        assert len((tmp_path / "session.jsonl").read_text().splitlines()) == 9 * 6
        page.get_by_role("button", name="New conversation").click()
        expect(page.locator(".conversation")).to_have_count(0)
        assert watched.ran == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_core_finds_nothing(browser: Browser, tmp_path: Path, scheme: Any) -> None:
    """The warning, a pair, the administrator's page and a chat. Axe runs past the pages' own guard,
    which stops every script that is not theirs."""
    how: dict[str, Any] = {"color_scheme": scheme, "bypass_csp": True}
    session = Session({name: lambda history, samples, seed: ["hello!"] for name in ("one", "two")})
    at = bind_port("127.0.0.1", 0)
    with served_study(tmp_path, small_study(2)) as site:
        invited = site.link_of(site.votes.invite("ann"))
        pages = [opened(browser, invited, **how), begun(browser, site, "bob", **how)]
        pages.append(opened(browser, site.admin_link, **how))
        for page in pages:
            found = Axe().run(page)
            assert found.violations_count == 0, found.generate_report()
    with served(ChatPage(session, f"http://127.0.0.1:{at.getsockname()[1]}"), at) as chat:
        page = opened(browser, chat.link, **how)
        page.get_by_label("Message").fill("hi")
        with page.expect_navigation():
            page.get_by_role("button", name="Send").click()
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
