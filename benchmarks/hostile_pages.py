"""Attacks on studies, labels and pages: stolen links, broken blinding, half-open connections.

Each case gets an empty folder, tries the attack, and returns None if it was held, else a line that
says what broke. `python -m benchmarks.faults --what hostile` runs them.
"""

import contextlib
import http.client
import json
import random
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

from flatgd.annotate.pairs import create
from flatgd.annotate.server import StudyPage
from flatgd.annotate.study import Study, load_study
from flatgd.annotate.votes import Votes
from flatgd.artifacts.rows import JudgedRow
from flatgd.chat.session import Session, SessionFile
from flatgd.evaluation.human_labels import draw_replies, key_path, sampled, write_labels
from flatgd.io.records import digest, read_jsonl
from flatgd.web.site import base_url, bind_port, make_server

HALF_OPEN = 520
HALVES = [
    b"",
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    b"POST /a/x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\nitem=",
]


def generations(rows: int = 40) -> dict[str, list[JudgedRow]]:
    """Replies of two models to the same histories."""
    return {
        model: [
            {
                "dataset": "invented",
                "conversation": f"c{n}",
                "system": "",
                "history": [{"role": "user", "content": f"line {n}"}],
                "replies": [f"{model} replies to {n}"],
            }
            for n in range(rows)
        ]
        for model in ("flatgd", "clean")
    }


def make_study(folder: Path) -> Study:
    study = create(generations(), "flatgd", ["clean"], count=30, repeats=5, checks=5)
    study.save(folder / "study")
    return load_study(folder / "study")


@contextlib.contextmanager
def served(folder: Path) -> Iterator[StudyPage]:
    """A study's page, served by a thread."""
    study = make_study(folder)
    votes = Votes(folder / "study", study)
    listener = bind_port("127.0.0.1", 0)
    page = StudyPage(study, votes, base_url(listener, None), "C0DE")
    server = make_server(page.application())
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield page
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
        votes.close()


def get(link: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """(status, location) of a page, redirects not followed."""
    host, _, path = link.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=20)
    try:
        connection.request("GET", f"/{path}", headers=headers or {})
        response = connection.getresponse()
        response.read()
        return response.status, response.headers.get("location", "")
    finally:
        connection.close()


def stolen_links(folder: Path) -> str | None:
    """Ask Prolific's entry for other annotators' links, and with invented ids."""
    with served(folder) as page:
        victim = "5f0c" * 6
        tokens = [page.votes.invite(name) for name in ("ann", "bob", victim)]
        entry = page.join_link.partition("?")[0]
        invented = ["ann", "bob", *(f"w{n}" for n in range(14)), victim.upper(), f"{victim} "]
        for name in invented:
            status, _ = get(f"{entry}?{urlencode({'PROLIFIC_PID': name})}")
            if status != 404:
                return f"PROLIFIC_PID={name!r} was accepted with {status}"
        _, location = get(f"{entry}?{urlencode({'PROLIFIC_PID': victim})}")
        if any(token in location for token in tokens):
            return "a Prolific ID returned the link of an invited annotator"
        if len(page.votes.annotators()) != len(tokens) + 1:
            return "invented ids were registered"
    return None


def guessed_ids(folder: Path) -> str | None:
    """Compute ids from model names, places and texts, as they could be computed once."""
    study = make_study(folder)
    rows = generations()
    guesses = set()
    for key in study.keys:
        at = int(key.conversation[1:])
        replies = [rows[name][at]["replies"][0] for name in ("flatgd", "clean")]
        for order in (replies, replies[::-1]):
            text = json.dumps(["flatgd", "clean", at, rows["flatgd"][at]["history"], *order])
            first = digest(text)
            guesses |= {first, digest(f"{first} again")}
            guesses |= {digest(f"{first} check {n}") for n in range(5)}
    if named := guesses & {item["id"] for item in study.items}:
        return f"{len(named)} of {len(study.items)} items were named by their ids"
    again = create(rows, "flatgd", ["clean"], count=30, repeats=5, checks=5)
    sides = [{k.conversation: k.target_side for k in s.keys} for s in (study, again)]
    if sides[0] == sides[1]:
        return "the default seed gives away on which side each model stands"
    return None


def guessed_labels(folder: Path) -> str | None:
    """Name the models of `flatgd label` by the ids of the rows, and by their order."""
    rows, path = generations(), folder / "labels.jsonl"
    write_labels(path, draw_replies(rows, 36, seed=0))
    labels = list(read_jsonl(path))
    guesses = {reply.digest for model, own in rows.items() for reply in sampled(model, own)}
    if named := guesses & {row["id"] for row in labels}:
        return f"the models of {len(named)} of {len(labels)} rows were named by their ids"
    rng = random.Random(0)
    order = [r for model, own in rows.items() for r in rng.sample(sampled(model, own), 36)]
    rng.shuffle(order)
    if [reply.reply for reply in order] == [row["reply"] for row in labels]:
        return "the seed gives away the order of the rows"
    return None


def readable_secrets(folder: Path) -> str | None:
    """Read keys, votes and chats as another user of the machine."""
    study = make_study(folder)
    Votes(folder / "study", study).close()
    write_labels(folder / "labels.jsonl", draw_replies(generations(), 5, seed=0))
    session = Session({"model": lambda history, samples, seed: ["hello"]})
    session.send("hi")
    SessionFile(folder / "session.jsonl").write(session)
    private = [
        *(folder / "study", folder / "study/key.jsonl", folder / "study/votes.db"),
        *(key_path(folder / "labels.jsonl"), folder / "session.jsonl"),
    ]
    for path in private:
        if mode := stat.S_IMODE(path.stat().st_mode) & 0o077:
            return f"{path.name} is open to others (mode ...{mode:02o})"
    return None


def half_open_connections(folder: Path) -> str | None:
    """Hold many unfinished requests and load a page as an annotator meanwhile."""
    with served(folder) as page:
        link = page.link_of(page.votes.invite("ann"))
        for sent in HALVES:
            with contextlib.ExitStack() as stack:
                for _ in range(HALF_OPEN):
                    at = ("127.0.0.1", int(page.base.rpartition(":")[2]))
                    half = stack.enter_context(socket.create_connection(at, 20))
                    with contextlib.suppress(OSError):  # it may have been closed already
                        half.sendall(sent)
                try:
                    status, _ = get(link)
                except OSError as error:
                    return f"{HALF_OPEN} half-open connections: {error} for an annotator"
                if status != 200:
                    return f"{HALF_OPEN} half-open connections: {status} for an annotator"
    return None


def forged_addresses(folder: Path) -> str | None:
    """Guess links under a new X-Forwarded-For each time, to escape the limit on refusals."""
    with served(folder) as page:
        statuses = [
            get(f"{page.base}/a/guess-{n}", {"X-Forwarded-For": f"10.0.{n // 250}.{n % 250}"})[0]
            for n in range(80)
        ]
    return None if statuses[-1] == 429 else "X-Forwarded-For escapes the limit on refused requests"


CASES: list[tuple[str, Callable[[Path], str | None]]] = [
    ("Prolific ids that lead to other annotators' links", stolen_links),
    ("ids of a study that name models, checks and repeats", guessed_ids),
    ("ids of `flatgd label` that name models", guessed_labels),
    ("keys, votes and chats that others can read", readable_secrets),
    (f"{HALF_OPEN} half-open connections", half_open_connections),
    ("forged X-Forwarded-For", forged_addresses),
]
