"""Downloads from a server that breaks off, stalls and lies."""

import hashlib
import io
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flatgd.data import fetch as fetch_module
from flatgd.data.fetch import DATASETS, Download, RetryPolicy, fetch
from flatgd.errors import DataError, UsageError

BODY = bytes(range(256)) * 2000  # half a megabyte
QUICK = RetryPolicy(tries=3, timeout_s=0.3, pause_s=0.01)


class Server(ThreadingHTTPServer):
    """Answers with what `act` does; keeps the first byte asked for of each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[int] = []
        self.act: Callable[[Handler, int], None] = whole
        self.release = threading.Event()

    def handle_error(self, request, client_address) -> None:  # the client may hang up
        pass

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        self.server.asked.append(int(asked.group(1)) if asked else 0)
        self.server.act(self, self.server.asked[-1])

    def answer(self, status: int, start: int, promised: int, body: bytes) -> None:
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
        self.send_header("Content-Length", str(promised))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *args: object) -> None:
        pass


def whole(handler: Handler, start: int) -> None:
    body = BODY[start:]
    handler.answer(206 if start else 200, start, len(body), body)


def breaks_off(handler: Handler, start: int) -> None:
    """A third of the file at most, then the line is dead."""
    body = BODY[start : start + len(BODY) // 3]
    handler.answer(206 if start else 200, start, len(BODY) - start, body)
    handler.connection.close()


def stalls(handler: Handler, start: int) -> None:
    handler.answer(206 if start else 200, start, len(BODY) - start, BODY[start : start + 1000])
    handler.server.release.wait(5)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


def download(server: Server, body: bytes = BODY, file: str = "file.json") -> Download:
    return Download(server.url, hashlib.sha256(body).hexdigest(), file)


def test_a_whole_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        (path,) = fetch(download(server), tmp_path, QUICK, lambda *at: seen.append(at))
        assert path.read_bytes() == BODY
    assert server.asked == [0]
    assert seen[-1] == (len(BODY), len(BODY))
    assert not list(tmp_path.glob("*.partial"))


def test_a_broken_line_is_taken_up_again_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.act = breaks_off
    (path,) = fetch(download(server), tmp_path, QUICK)
    assert path.read_bytes() == BODY
    assert server.asked == sorted(set(server.asked))  # every request asked for more
    assert len(server.asked) == 4


def test_a_server_without_ranges_begins_anew(server: Server, tmp_path: Path) -> None:
    def once_broken(handler: Handler, start: int) -> None:
        if len(server.asked) == 1:
            breaks_off(handler, 0)
        else:
            handler.answer(200, 0, len(BODY), BODY)

    server.act = once_broken
    (path,) = fetch(download(server), tmp_path, QUICK)
    assert path.read_bytes() == BODY


def test_a_stalled_server_is_given_up_and_what_came_is_kept(server: Server, tmp_path: Path) -> None:
    def silent(handler: Handler, start: int) -> None:
        if start:
            handler.server.release.wait(5)
        else:
            stalls(handler, 0)

    server.act = silent
    with pytest.raises(
        DataError, match=r"no data for 0.3 s, 3 times; the part received so far is kept"
    ):
        fetch(download(server), tmp_path, QUICK)
    assert (tmp_path / "file.json.partial").stat().st_size == 1000
    server.act = whole
    (path,) = fetch(download(server), tmp_path, QUICK)
    assert path.read_bytes() == BODY
    assert server.asked[-1] == 1000


def test_another_file_than_published_is_not_kept(server: Server, tmp_path: Path) -> None:
    server.act = lambda handler, start: handler.answer(200, 0, 5, b"sorry")
    with pytest.raises(DataError, match="SHA-256 differs"):
        fetch(download(server), tmp_path, QUICK)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_beginning_is_thrown_away(server: Server, tmp_path: Path) -> None:
    for size in (1000, len(BODY), len(BODY) + 7):
        (tmp_path / "file.json.partial").write_bytes(b"x" * size)

        def act(handler: Handler, start: int) -> None:
            if start >= len(BODY):
                handler.send_error(416)
            else:
                whole(handler, start)

        server.act = act
        (path,) = fetch(download(server), tmp_path, QUICK)
        assert path.read_bytes() == BODY
        path.unlink()


def test_a_wrong_offset_is_not_appended(server: Server, tmp_path: Path) -> None:
    """The server sends another range than was asked for: what came before is thrown away."""
    (tmp_path / "file.json.partial").write_bytes(BODY[:1000])
    server.act = lambda handler, start: handler.answer(206, 0, len(BODY), BODY)
    (path,) = fetch(download(server), tmp_path, QUICK)
    assert path.read_bytes() == BODY


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (503, 3)])
def test_a_refusal_is_reported(server: Server, tmp_path: Path, status: int, tries: int) -> None:
    server.act = lambda handler, start: handler.send_error(status)
    with pytest.raises(DataError, match=f"the server says {status}"):
        fetch(download(server), tmp_path, QUICK)
    assert len(server.asked) == tries


def test_an_endless_file_is_cut_off(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="longer than 100,000 bytes"):
        fetch(download(server), tmp_path, RetryPolicy(3, 0.3, 0.01, largest=100_000))


def test_no_server(tmp_path: Path) -> None:
    gone = Download("http://127.0.0.1:9/file", "0" * 64, "file.json")
    with pytest.raises(DataError, match="no connection"):
        fetch(gone, tmp_path, QUICK)


def test_a_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(UsageError, match=r"cannot write .*run the command again to resume"):
        fetch(download(server), tmp_path / "data", QUICK)


# Archives


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for info, body in members:
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return packed.getvalue()


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


def serve(server: Server, body: bytes) -> Download:
    server.act = lambda handler, start: handler.answer(200, 0, len(body), body)
    return download(server, body, "set.tar.gz")


def test_an_archive_is_unpacked_beside_itself(server: Server, tmp_path: Path) -> None:
    body = archive((info("sub", tarfile.DIRTYPE), b""), (info("sub/train.txt"), b"hello"))
    files = fetch(serve(server, body), tmp_path, QUICK)
    assert files == [tmp_path / "set/sub/train.txt"]
    assert files[0].read_text() == "hello"
    files[0].write_text("changed by its owner")
    assert fetch(serve(server, body), tmp_path, QUICK) == files
    assert files[0].read_text() == "changed by its owner"


@pytest.mark.parametrize(
    "member",
    [
        info("../outside.txt"),
        info("/absolute/outside.txt"),
        info("a/../../outside.txt"),
        info("link", tarfile.SYMTYPE, "/etc/passwd"),
        info("hard", tarfile.LNKTYPE, "../outside.txt"),
        info("device", tarfile.CHRTYPE),
        info("pipe", tarfile.FIFOTYPE),
    ],
)
def test_an_archive_cannot_reach_out(
    server: Server, tmp_path: Path, member: tarfile.TarInfo
) -> None:
    folder = tmp_path / "in"
    with pytest.raises(DataError, match="a link or a path outside"):
        fetch(serve(server, archive((member, b""))), folder, QUICK)
    assert not (folder / "set").exists()
    assert list(tmp_path.iterdir()) == [folder]


def test_bombs_and_torn_archives(server: Server, tmp_path: Path) -> None:
    bomb = archive((info("a"), b"0" * 300_000), (info("b"), b"0" * 300_000))
    with pytest.raises(DataError, match="unpacks to more than 500,000 bytes"):
        fetch(serve(server, bomb), tmp_path, RetryPolicy(3, 0.3, 0.01, largest=500_000))
    torn = archive((info("a"), bytes(range(256)) * 4000))[:-400]
    with pytest.raises(DataError, match="cannot be unpacked"):
        fetch(serve(server, torn), tmp_path / "torn", QUICK)
    assert not (tmp_path / "torn/set").exists()


def test_what_can_be_fetched_is_named_with_its_checksum() -> None:
    for downloads in DATASETS.values():
        for one in downloads:
            assert re.fullmatch("[0-9a-f]{64}", one.sha256)
            assert one.url.startswith(("http://", "https://"))
    assert fetch_module.RetryPolicy().tries > 1
