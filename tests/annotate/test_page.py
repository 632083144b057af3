"""The annotators' page over HTTP: what it shows, what it refuses. In a browser: test_browser.py."""

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
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from studies import Clock, small_study
from typer.testing import CliRunner

from flatgd.annotate.server import StudyPage
from flatgd.annotate.study import QUESTIONS, field_of, load_study
from flatgd.annotate.votes import HOLD, Votes
from flatgd.cli.main import app
from flatgd.errors import InUseError, RecipeError
from flatgd.web.site import BURST, LONGEST, VAIN, Guard, address, port_at

BASE = "http://127.0.0.1:8765"
TRAVERSALS = [
    *("../study.json", "..%2fkey.jsonl", "%2e%2e/key.jsonl", "....//key.jsonl", "..\\key.jsonl"),
    *("..%5ckey.jsonl", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/etc/passwd", "//etc/passwd"),
    *("..;/key.jsonl", "style.css/../../site.py", "style.css%00.html", "%c0%ae%c0%ae/key.jsonl"),
    *(
        "%252e%252e%252fkey.jsonl",
        "~root/.ssh/id_rsa",
        "C:\\windows\\win.ini",
        "file:///etc/passwd",
    ),
    *("base.html", "pair.html", "../pages/admin.html", ".", "..", "", "style.css/", "*", "%2a"),
    *(
        "votes.db",
        "../votes.db",
        "../../../../../../../../etc/passwd",
        "%2e%2e%2f" * 8,
        "STYLE.CSS",
    ),
]


@pytest.fixture
def page(tmp_path: Path) -> StudyPage:
    study = small_study(8, repeats=2, checks=2)
    return StudyPage(study, Votes(tmp_path, study, clock=Clock()), BASE, "C0DE")


@pytest.fixture
def client(page: StudyPage) -> TestClient:
    return TestClient(page.application(), base_url=BASE, follow_redirects=False)


def fields(text: str) -> dict[str, str]:
    return dict(re.findall(r'name="(mark|item)" value="(\w+)"', text))


def chosen(*choices: str) -> dict[str, str]:
    """The fields of an answer to the three questions."""
    return dict(zip(map(field_of, QUESTIONS), choices, strict=True))


def agreed(page: StudyPage, client: TestClient, name: str = "ann") -> str:
    """The path of a person who has agreed."""
    path = f"/a/{page.votes.invite(name)}"
    client.post(f"{path}/agree", data={"mark": fields(client.get(path).text)["mark"]})
    return path


def answer(client: TestClient, path: str, **change: str):
    """Choose A, Both, Neither for the pair that is shown."""
    form = {**fields(client.get(path).text), **chosen("left", "both", "neither")}
    return client.post(path, data={**form, **change})


def test_from_the_invitation_to_the_completion_code(page: StudyPage, client: TestClient) -> None:
    names = ["ann", "bob", "cy"]
    form = {**fields(client.get(admin := page.admin_link).text), "names": "ann\n bob \n\ncy\nann"}
    assert client.post(admin, data=form).status_code == 303
    assert [person.name for person in page.votes.people()] == names
    paths = [f"/a/{person.token}" for person in page.votes.people()]
    shown = client.get(paths[0]).text
    assert "Before you begin" in shown
    assert "reply 0" not in shown  # nothing of the study before the warning was read
    for path in paths:
        client.post(f"{path}/agree", data={"mark": fields(client.get(path).text)["mark"]})
        while "item" in fields(client.get(path).text):
            assert answer(client, path).headers["location"] == path
        told = client.get(path).text
        assert "https://app.prolific.com/submissions/complete?cc=C0DE" in told
        assert "You have answered 12 pairs" in told
    assert page.votes.counted() == (24, 24)
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
    page.votes.clock.now += HOLD + 1
    for name in "xyz":
        token = page.votes.invite(name)
        said = {"toxic": "left", "fluent": "left", "engaging": "left"}
        assert page.votes.vote(token, form["item"], said)
    answered = client.post(path, data=form)
    assert answered.headers["location"] == f"{path}?lost"
    assert "had been given to somebody else" in client.get(f"{path}?lost").text
    assert page.votes.counted()[0] == 3


@pytest.mark.parametrize("change", [{"fluent": ""}, {"fluent": "top"}, {"toxic": "<script>"}])
def test_a_question_left_out_is_asked_again(
    page: StudyPage, client: TestClient, change: dict
) -> None:
    path = agreed(page, client)
    told = answer(client, path, **{field_of(name): value for name, value in change.items()})
    assert "Please answer every question" in told.text
    assert page.votes.counted()[0] == 0


def test_nothing_is_kept_of_a_form_that_is_not_ours(page: StudyPage, client: TestClient) -> None:
    path, admin = agreed(page, client), page.admin_link
    mark = fields(client.get(path).text)["mark"]
    other = fields(client.get(f"/a/{page.votes.invite('bob')}").text)["mark"]
    form = {**fields(client.get(path).text), **chosen("left", "left", "left")}
    forged = [
        ({**form, "mark": ""}, {}),
        ({**form, "mark": other}, {}),
        ({**form, "mark": mark[:-1] + "é"}, {}),
        ({k: v for k, v in form.items() if k != "mark"}, {}),
        (form, {"Origin": "https://evil.example"}),
        (form, {"Origin": "null"}),
        (form, {"Origin": "http://["}),
        (form, {"Origin": "http://127.0.0.1:8766"}),
        (form, {"Sec-Fetch-Site": "cross-site"}),
        (form, {"Sec-Fetch-Site": "same-site"}),
    ]
    before = page.votes.people()
    for data, headers in forged:
        assert client.post(path, data=data, headers=headers).status_code == 403
        assert client.post(f"{path}/agree", data=data, headers=headers).status_code == 403
        names = {**data, "names": "eve", "remove": path[3:]}
        assert client.post(admin, data=names, headers=headers).status_code == 403
    assert page.votes.counted()[0] == 0
    assert page.votes.people() == before
    assert client.post(path, data=form, headers={"Origin": BASE}).status_code == 303


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
    assert page.votes.counted()[0] == 0


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
    assert "Others are looking" in told
    assert "I cannot wait" in told  # who has answered something is not kept
    assert "Others are looking" in others
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
    assert sorted(text.count("(nothing was said)") for text in seen) == [0, 2]


@pytest.mark.parametrize("base", ["http://[::1]:8765", "https://study.example.org"])
def test_links_begin_with_hosts_that_are_answered(page: StudyPage, base: str) -> None:
    page.base = base
    host = base.split("//")[1]
    client = TestClient(page.application(), base_url=BASE)
    assert client.get("/a/x", headers={"Host": host}).status_code == 404
    assert client.get("/a/x", headers={"Host": "[::1"}).status_code == 400


def test_links_that_are_none(page: StudyPage, client: TestClient) -> None:
    token = page.votes.invite("ann")
    for path in (
        *("/", "/a", "/a/", "/a/x", f"/a/{token}x", f"/a/{token[:-1]}", f"/a/{token}/x", "/admin"),
        *("/admin/x", f"/admin/{token}", "/join/x?PROLIFIC_PID=eve", "/docs", "/openapi.json"),
        f"{page.join_link.split('?')[0].removeprefix(BASE)}?PROLIFIC_PID=%20",
    ):
        answered = client.get(path)
        assert answered.status_code == 404, path
        assert token not in answered.text.replace(path, "")
    assert client.put(f"/a/{token}").status_code == 405
    page.votes.remove(token)
    assert client.get(f"/a/{token}").status_code == 410


def test_a_fault_of_ours_tells_nothing(
    page: StudyPage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = TestClient(
        page.application(), base_url=BASE, follow_redirects=False, raise_server_exceptions=False
    )
    path = agreed(page, client)
    form = {**fields(client.get(path).text), **chosen("left", "left", "left")}
    page.votes._db.execute("pragma query_only = on")  # as a full disk does
    broken = client.post(path, data=form)
    assert broken.status_code == 500
    assert "What was saved before is kept" in broken.text
    assert "sqlite" not in broken.text
    assert "default-src 'none'" in broken.headers["content-security-policy"]
    assert broken.headers["cache-control"] == "no-store"
    page.votes._db.execute("pragma query_only = off")
    assert client.post(path, data=form).status_code == 303
    assert page.votes.counted()[0] == 1
    assert (tmp_path / "votes.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_path_leads_out(client: TestClient, path: str) -> None:
    assert client.get(f"/static/{path}").status_code == 404


def test_prolific_sends_somebody_to_a_link_of_their_own(
    page: StudyPage, client: TestClient
) -> None:
    join = page.join_link.split("?")[0].removeprefix(BASE)
    first = client.get(join, params={"PROLIFIC_PID": "5f0c"})
    assert first.status_code == 303
    again = client.get(join, params={"PROLIFIC_PID": "5f0c", "SESSION_ID": "s"})
    assert first.headers["location"] == again.headers["location"]
    assert [person.name for person in page.votes.people()] == ["5f0c"]


def test_every_answer_has_its_guards(page: StudyPage, client: TestClient) -> None:
    path = agreed(page, client)
    for answered in (client.get(path), client.get("/nothing"), client.get("/static/page.js")):
        policy = answered.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answered.headers["x-content-type-options"] == "nosniff"
        assert answered.headers["referrer-policy"] == "same-origin"
        assert "server" not in answered.headers
    assert client.get(path).headers["cache-control"] == "no-store"
    shown = client.get(path).text
    assert not re.search(r"<script(?! src=\"/static/page.js\" defer)|style=|\son\w+=", shown)
    assert not re.search(r"(src|href|action)=\"https?:", shown)


def test_other_hosts_and_long_forms_are_refused(page: StudyPage, client: TestClient) -> None:
    path = agreed(page, client)
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil"):
        assert client.get(path, headers={"Host": host}).status_code == 400
    long = b"mark=" + b"x" * LONGEST
    assert client.post(path, content=long).status_code == 413
    assert client.post(path, content=iter([long])).status_code == 413
    assert client.post(path, content=b"", headers={"Content-Length": "-1"}).status_code == 413
    assert client.post(path, content=b"\xff\xfe=%ff&" * 200).status_code in (400, 403)


def test_guesses_and_floods_are_slowed_down() -> None:
    async def pages(scope: dict, receive: Any, send: Any) -> None:
        await PlainTextResponse("", 200 if scope["path"] == "/a/ann" else 404)(scope, receive, send)

    clock, path = Clock(), "/a/ann"
    client = TestClient(Guard(pages, clock=clock), base_url=BASE)
    assert [client.get(f"/a/{n}").status_code for n in range(VAIN)] == [404] * VAIN
    assert client.get(path).status_code == 200  # whoever has a link is not kept out
    refused = client.get("/a/one-more")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
    clock.now += 61
    assert client.get("/a/guess").status_code == 404
    clock.pace = 0
    statuses = [client.get(path).status_code for _ in range(BURST + 20)]
    assert statuses[:BURST] == [200] * BURST
    assert 429 in statuses[BURST:]
    clock.now += 1
    assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    ("host", "url", "told"),
    [
        ("0.0.0.0", None, "lets others in, so give --url"),
        ("127.0.0.1", "study.example.org", "the beginning of a link"),
        ("127.0.0.1", "https://study.example.org/path", "the beginning of a link"),
        ("127.0.0.1", "https://[::1", "the beginning of a link"),
    ],
)
def test_only_this_machine_unless_asked(host: str, url: str | None, told: str) -> None:
    at = port_at(host, 0)
    with at, pytest.raises(RecipeError, match=told):
        address(at, url)


def test_a_port_that_is_taken() -> None:
    with port_at("127.0.0.1", 0) as at:
        port = at.getsockname()[1]
        assert address(at, None) == f"http://127.0.0.1:{port}"
        assert address(at, "https://study.example.org/") == "https://study.example.org"
        with pytest.raises(RecipeError, match=rf"127.0.0.1:{port} cannot be served on"):
            port_at("127.0.0.1", port)


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
