"""Connections that send nothing, or half a request, do not keep others out."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from studies import served_study, small_study

from flatgd.web import connection

HALVES = [
    b"",
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    b"POST /a/x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\nitem=",
]


def port_of(site: Any) -> int:
    return int(site.base.rpartition(":")[2])


@contextmanager
def half_open(port: int, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        sockets = []
        for _ in range(count):
            sockets.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)))
            sockets[-1].sendall(sent)
        yield sockets


@pytest.mark.parametrize("sent", HALVES)
def test_half_open_connections_shut_nobody_out(
    tmp_path: Path,
    sent: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Three times as many as the limit. The limit is lowered so that few open files suffice."""
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 50)
    with served_study(tmp_path, small_study(2)) as site:
        link = site.link_of(site.votes.invite("ann"))
        with half_open(port_of(site), 150, sent), httpx2.Client(timeout=20) as client:
            for _ in range(3):
                assert client.get(link).status_code == 200
    assert capfd.readouterr().err == ""  # nor do they fill the terminal


@pytest.mark.parametrize("sent", HALVES)
def test_a_request_must_arrive_in_time(
    tmp_path: Path, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the client keeps sending single bytes."""
    monkeypatch.setattr(connection, "REQUEST_SECONDS", 1.0)
    with (
        served_study(tmp_path, small_study(2)) as site,
        half_open(port_of(site), 1, sent) as (line,),
    ):
        begun = time.monotonic()
        line.settimeout(0.1)
        while time.monotonic() - begun < 30:
            try:
                if sent:
                    line.sendall(b"x")
                if not line.recv(100):
                    break
            except TimeoutError:
                continue
            except OSError:  # reset
                break
        assert 0.5 < time.monotonic() - begun < 30


def test_the_time_begins_again_with_each_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "REQUEST_SECONDS", 2.0)
    with served_study(tmp_path, small_study(2)) as site, httpx2.Client(timeout=20) as client:
        link = site.link_of(site.votes.invite("ann"))
        for _ in range(6):
            assert client.get(link).status_code == 200
            time.sleep(0.5)


def test_no_client_chooses_its_own_address(tmp_path: Path) -> None:
    """Refused requests are counted for the real address, whatever X-Forwarded-For says."""
    with served_study(tmp_path, small_study(2)) as site, httpx2.Client(timeout=20) as client:
        statuses = [
            client.get(
                f"{site.base}/a/guess-{n}", headers={"X-Forwarded-For": f"10.0.0.{n}"}
            ).status_code
            for n in range(70)
        ]
    assert statuses[0] == 404
    assert statuses[-1] == 429
