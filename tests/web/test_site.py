"""What all pages refuse, over HTTP: forged forms, other hosts, floods, paths that lead outside."""

import re
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from studies import Clock, small_study
from study_client import BASE, agreed, chosen, fields

from flatgd.annotate.server import StudyPage
from flatgd.annotate.votes import Votes
from flatgd.errors import UsageError
from flatgd.web.site import BURST, MAX_FORM_BYTES, MAX_REFUSED, Guard, base_url, bind_port

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


def test_nothing_is_kept_of_a_form_that_is_not_ours(page: StudyPage, client: TestClient) -> None:
    path, admin = agreed(page, client), page.admin_link
    csrf = fields(client.get(path).text)["csrf"]
    other = fields(client.get(f"/a/{page.votes.invite('bob')}").text)["csrf"]
    form = {**fields(client.get(path).text), **chosen("left", "left", "left")}
    forged = [
        ({**form, "csrf": ""}, {}),
        ({**form, "csrf": other}, {}),
        ({**form, "csrf": csrf[:-1] + "é"}, {}),
        ({k: v for k, v in form.items() if k != "csrf"}, {}),
        (form, {"Origin": "https://evil.example"}),
        (form, {"Origin": "null"}),
        (form, {"Origin": "http://["}),
        (form, {"Origin": "http://127.0.0.1:8766"}),
        (form, {"Sec-Fetch-Site": "cross-site"}),
        (form, {"Sec-Fetch-Site": "same-site"}),
    ]
    before = page.votes.annotators()
    for data, headers in forged:
        assert client.post(path, data=data, headers=headers).status_code == 403
        assert client.post(f"{path}/agree", data=data, headers=headers).status_code == 403
        names = {**data, "names": "eve", "remove": path[3:]}
        assert client.post(admin, data=names, headers=headers).status_code == 403
    assert page.votes.answer_counts()[0] == 0
    assert page.votes.annotators() == before
    assert client.post(path, data=form, headers={"Origin": BASE}).status_code == 303


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
    assert "Everything that you saved is kept" in broken.text
    assert "sqlite" not in broken.text
    assert "default-src 'none'" in broken.headers["content-security-policy"]
    assert broken.headers["cache-control"] == "no-store"
    page.votes._db.execute("pragma query_only = off")
    assert client.post(path, data=form).status_code == 303
    assert page.votes.answer_counts()[0] == 1
    assert (tmp_path / "votes.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_path_leads_out(client: TestClient, path: str) -> None:
    assert client.get(f"/static/{path}").status_code == 404


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
    long = b"csrf=" + b"x" * MAX_FORM_BYTES
    assert client.post(path, content=long).status_code == 413
    assert client.post(path, content=iter([long])).status_code == 413
    assert client.post(path, content=b"", headers={"Content-Length": "-1"}).status_code == 413
    assert client.post(path, content=b"\xff\xfe=%ff&" * 200).status_code in (400, 403)


def test_guesses_and_floods_are_slowed_down() -> None:
    async def pages(scope: dict, receive: Any, send: Any) -> None:
        await PlainTextResponse("", 200 if scope["path"] == "/a/ann" else 404)(scope, receive, send)

    clock, path = Clock(), "/a/ann"
    client = TestClient(Guard(pages, clock=clock), base_url=BASE)
    assert [client.get(f"/a/{n}").status_code for n in range(MAX_REFUSED)] == [404] * MAX_REFUSED
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
        ("0.0.0.0", None, "Put a proxy with TLS in front"),
        ("127.0.0.1", "study.example.org", "must be the beginning of a link"),
        ("127.0.0.1", "https://study.example.org/path", "must be the beginning of a link"),
        ("127.0.0.1", "https://[::1", "must be the beginning of a link"),
    ],
)
def test_only_this_machine_unless_asked(host: str, url: str | None, told: str) -> None:
    at = bind_port(host, 0)
    with at, pytest.raises(UsageError, match=told):
        base_url(at, url)


def test_a_port_that_is_taken() -> None:
    with bind_port("127.0.0.1", 0) as at:
        port = at.getsockname()[1]
        assert base_url(at, None) == f"http://127.0.0.1:{port}"
        assert base_url(at, "https://study.example.org/") == "https://study.example.org"
        with pytest.raises(UsageError, match=rf"Cannot listen on 127.0.0.1:{port}"):
            bind_port("127.0.0.1", port)
