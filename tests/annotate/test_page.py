"""The annotators' page over HTTP. In a browser: test_browser.py."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient
from studies import Clock, small_study
from study_client import BASE, agreed, answer, chosen, fields
from typer.testing import CliRunner

from flatgd.annotate.server import StudyPage
from flatgd.annotate.study import field_of, load_study
from flatgd.annotate.votes import RESERVATION_SECONDS, Votes
from flatgd.cli.main import app
from flatgd.errors import InUseError

PARTICIPANT = "5f0c" * 6


@pytest.fixture
def page(tmp_path: Path) -> StudyPage:
    study = small_study(8, repeats=2, checks=2)
    return StudyPage(study, Votes(tmp_path, study, clock=Clock()), BASE, "C0DE")


@pytest.fixture
def client(page: StudyPage) -> TestClient:
    return TestClient(page.application(), base_url=BASE, follow_redirects=False)


def test_from_the_invitation_to_the_completion_code(page: StudyPage, client: TestClient) -> None:
    names = ["ann", "bob", "cy"]
    form = {**fields(client.get(admin := page.admin_link).text), "names": "ann\n bob \n\ncy\nann"}
    assert client.post(admin, data=form).status_code == 303
    assert [person.name for person in page.votes.annotators()] == names
    paths = [f"/a/{person.token}" for person in page.votes.annotators()]
    shown = client.get(paths[0]).text
    assert "Before you begin" in shown
    assert "reply 0" not in shown  # nothing of the study before the warning was read
    for path in paths:
        client.post(f"{path}/agree", data={"csrf": fields(client.get(path).text)["csrf"]})
        while "item" in fields(client.get(path).text):
            assert answer(client, path).headers["location"] == path
        told = client.get(path).text
        assert "https://app.prolific.com/submissions/complete?cc=C0DE" in told
        assert "You have answered 12 pairs" in told
    assert page.votes.answer_counts() == (24, 24)
    live = client.get(admin).text
    assert "24 of 24 answers" in live
    assert live.count("<td>12</td>") == 3


def test_models_sides_and_checks_are_nowhere(page: StudyPage, client: TestClient) -> None:
    path = agreed(page, client)
    seen: list[str] = []
    while "item" in fields(shown := client.get(path).text):
        seen += [shown]
        answer(client, path)
        seen += [client.get(f"{path}/last").text]
    everything = "\n".join(seen).lower()
    assert len(seen) > 20
    for secret in (
        "flatgd",
        "clean",
        "target",
        "baseline",
        "repeat",
        "judged",
        "linear",
        "key.jsonl",
    ):
        assert secret not in everything


def test_the_last_answer_can_be_changed(page: StudyPage, client: TestClient) -> None:
    path = agreed(page, client)
    assert client.get(f"{path}/last").headers["location"] == path
    answer(client, path)
    shown = client.get(f"{path}/last").text
    checked = re.findall(r'name="(q\w+)" value="(\w+)" required checked', shown)
    assert dict(checked) == chosen("left", "both", "neither")
    client.post(path, data={**fields(shown), **chosen("right", "both", "neither")})
    assert [a.choice for a in page.votes.answers()] == ["right", "both", "neither"]


def test_an_answer_to_a_pair_given_to_others_is_told(page: StudyPage, client: TestClient) -> None:
    path = agreed(page, client)
    form = {**fields(client.get(path).text), **chosen("left", "left", "left")}
    page.votes.clock.now += RESERVATION_SECONDS + 1
    for name in "xyz":
        token = page.votes.invite(name)
        said = {"toxic": "left", "fluent": "left", "engaging": "left"}
        assert page.votes.vote(token, form["item"], said)
    answered = client.post(path, data=form)
    assert answered.headers["location"] == f"{path}?late"
    assert "came too late" in client.get(f"{path}?late").text
    assert page.votes.answer_counts()[0] == 3


@pytest.mark.parametrize("change", [{"fluent": ""}, {"fluent": "top"}, {"toxic": "<script>"}])
def test_a_question_left_out_is_asked_again(
    page: StudyPage, client: TestClient, change: dict
) -> None:
    path = agreed(page, client)
    told = answer(client, path, **{field_of(name): value for name, value in change.items()})
    assert "Please answer every question" in told.text
    assert page.votes.answer_counts()[0] == 0


def test_who_is_removed_while_they_answer_is_refused(
    page: StudyPage, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a slow upload."""
    path, read = agreed(page, client), page.site.form

    async def slow(request: Any) -> dict[str, str]:
        form = await read(request)
        page.votes.remove(path[3:])
        return form

    form = {**fields(client.get(path).text), **chosen("left", "left", "left")}
    monkeypatch.setattr(page.site, "form", slow)
    assert client.post(path, data=form).status_code == 410
    assert page.votes.answer_counts()[0] == 0


def test_answers_are_to_the_question_that_was_seen(page: StudyPage, client: TestClient) -> None:
    """Whatever has become of their order since."""
    path = agreed(page, client)
    form = {**fields(client.get(path).text), **chosen("left", "both", "neither")}
    page.study.questions = dict(reversed(page.study.questions.items()))
    assert client.post(path, data=form).status_code == 303
    said = {a.question: a.choice for a in page.votes.answers()}
    assert said == {"toxic": "left", "fluent": "both", "engaging": "neither"}


def test_the_completion_code_comes_when_nothing_can_come_any_more(tmp_path: Path) -> None:
    study = small_study(2, votes=1)
    page = StudyPage(study, Votes(tmp_path, study, clock=Clock()), BASE, "C0DE")
    client = TestClient(page.application(), base_url=BASE, follow_redirects=False)
    ann, bob = agreed(page, client), agreed(page, client, "bob")
    client.get(bob)  # holds a pair
    answer(client, ann)
    cy = agreed(page, client, "cy")
    told, others = client.get(ann).text, client.get(cy).text
    assert "Other annotators are working" in told
    assert "I cannot wait" in told  # who has answered something is not kept
    assert "Other annotators are working" in others
    assert "C0DE" not in others
    answer(client, bob)
    for path in (ann, bob):
        assert "C0DE" in client.get(path).text
        assert "I cannot wait" not in client.get(path).text
    assert "Please return your submission" in client.get(cy).text


def test_a_reply_without_words_is_told(tmp_path: Path) -> None:
    study = small_study(2)
    study.items[0].update(left="", right="")
    study.save(tmp_path / "study")
    study = load_study(tmp_path / "study")
    page = StudyPage(study, Votes(tmp_path, study), BASE)
    client = TestClient(page.application(), base_url=BASE, follow_redirects=False)
    path = agreed(page, client)
    seen = [client.get(path).text]
    answer(client, path)
    seen.append(client.get(path).text)
    assert sorted(text.count("(empty reply)") for text in seen) == [0, 2]


def test_prolific_sends_somebody_to_a_link_of_their_own(
    page: StudyPage, client: TestClient
) -> None:
    join = page.join_link.split("?")[0].removeprefix(BASE)
    first = client.get(join, params={"PROLIFIC_PID": PARTICIPANT})
    assert first.status_code == 303
    again = client.get(join, params={"PROLIFIC_PID": PARTICIPANT, "SESSION_ID": "s"})
    assert first.headers["location"] == again.headers["location"]
    assert [person.name for person in page.votes.annotators()] == [f"prolific:{PARTICIPANT}"]


def test_a_prolific_id_leads_to_no_other_annotator(page: StudyPage, client: TestClient) -> None:
    """Not even if an annotator was invited under the very ID."""
    tokens = [page.votes.invite(name) for name in ("ann", PARTICIPANT, f"x{PARTICIPANT}")]
    join = page.join_link.split("?")[0].removeprefix(BASE)
    wrong = ("ann", f"x{PARTICIPANT}", f"{PARTICIPANT}0", PARTICIPANT[1:], PARTICIPANT.upper(), "")
    for name in (*wrong, f"{PARTICIPANT}\n", "g" * 24, "{{%PROLIFIC_PID%}}"):
        assert client.get(join, params={"PROLIFIC_PID": name}).status_code == 404
    assert len(page.votes.annotators()) == 3
    joined = client.get(join, params={"PROLIFIC_PID": PARTICIPANT})
    assert not any(token in joined.headers["location"] for token in tokens)
    form = {**fields(client.get(page.admin_link).text), "names": f"Prolific:{PARTICIPANT}"}
    refused = client.post(page.admin_link, data=form)
    assert refused.status_code == 400
    assert "reserved for Prolific" in refused.text
    assert len(page.votes.annotators()) == 4


@contextmanager
def running(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen, dict[str, str]]]:
    """The command in a process of its own, and the links that it prints."""
    flatgd = Path(sys.executable).with_name("flatgd")
    command = [str(flatgd), "annotate", "serve", str(folder), "--port", "0", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        links = {}
        for line in process.stdout:
            if line.startswith("These links"):
                break
            name, link = line.split()
            links[name] = link
        try:
            yield process, links
        finally:
            process.kill()


def test_an_acknowledged_answer_survives_kill_9(tmp_path: Path) -> None:
    """More of it: `python -m benchmarks.annotators --kills 100`."""
    folder = tmp_path / "study"
    small_study(4).save(folder)
    with running(folder, "--invite", "ann") as (_, links), httpx2.Client() as client:
        ann = links["ann"]
        client.post(f"{ann}/agree", data=fields(client.get(ann).text))
        form = {**fields(client.get(ann).text), **chosen("left", "both", "neither")}
        assert client.post(ann, data=form).status_code == 303
        second = CliRunner().invoke(app, ["annotate", "serve", str(folder), "--port", "0"])
        assert isinstance(second.exception, InUseError)
    told = CliRunner().invoke(app, ["annotate", "tally", str(folder)], catch_exceptions=False)
    assert "ann 3" in " ".join(told.output.split())
    with running(folder, "--invite", "ann", "--prolific", "C0DE") as (process, again):
        assert again["ann"].split("/a/")[1] == ann.split("/a/")[1]
        assert "{{%PROLIFIC_PID%}}" in again["Prolific"]
        process.terminate()
        assert process.wait(30) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
