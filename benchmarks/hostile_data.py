"""Data files and paths that attackers and accidents produce. Each is refused in a clear message."""

import gzip
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from flatgd.config.source import Source
from flatgd.data.formats.convabuse import REQUIRED
from flatgd.data.sets import read_source
from flatgd.errors import FlatGDError, ModelError
from flatgd.io.records import collect_left_out
from flatgd.io.text import LIMIT_VARIABLE
from flatgd.judges.calibration import toxic_labels

ROW = {"prompt": "hi", "completion": "hello", "label": True}
LINE = json.dumps(ROW) + "\n"
HH = "\n\nHuman: hi\n\nAssistant:"


def refused(folder: Path, name: str, raw: str | bytes, expected: str, kind: str = "jsonl") -> str:
    """What broke when a file is read that must be refused with `expected`; "" if nothing did."""
    path = folder / name
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogatepass"))
    try:
        rows = read_source(Source(name="x", format=kind, path=str(path)))
    except FlatGDError as error:
        message = str(error)
        message.encode()
        if len(message) > 1000:
            return f"the message has {len(message):,} characters"
        return "" if expected in message else f"expected {expected!r}, got {message!r}"
    return f"read as {len(rows)} rows"


def typed(
    words: Sequence[str], limit: int | None, environment: Mapping[str, str]
) -> tuple[int, str]:
    """Exit status and output of `flatgd data`. `limit`: bytes that a file may have, as on a full
    disk."""

    def full_disk() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-m", "flatgd", "data", *words],
        capture_output=True,
        text=True,
        preexec_fn=full_disk,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def command(
    expected: str, *words: str, limit: int | None = None, environment: Mapping[str, str] = {}
) -> str | None:
    """What broke when a command must fail with `expected` and without a traceback."""
    code, shown = typed(words, limit, environment)
    if "Traceback" in shown:
        return f"{' '.join(words):.60}: a traceback, {shown.splitlines()[-1]:.100}"
    if code == 0 or expected not in " ".join(shown.split()):
        return f"{' '.join(words):.60}: exit {code}, {shown.strip():.200}"
    return None


def key_twice(folder: Path) -> str | None:
    row = '{"prompt": "hi", "completion": "hello", "label": false, "label": true}'
    nested = '{"messages": [{"role": "user", "content": "a", "content": "b"}], "label": true}'
    diasafety = '{"context": "a", "response": "b", "label": "Unsafe", "label": "Safe"}'
    bbf = '{"train": [{"text": "a", "labels": ["__notok__"], "labels": ["__ok__"]}]}'
    return (
        refused(folder, "a.jsonl", LINE + row, ":2: the key 'label' occurs 2 times")
        or refused(folder, "a.json", f"[{LINE},\n{row}]", "the key 'label' occurs 2 times")
        or refused(folder, "b.jsonl", nested, ":1: the key 'content' occurs 2 times")
        or refused(folder, "c.json", f"[{diasafety}]", ":1: the key 'label'", "diasafety")
        or refused(folder, "d.json", bbf, "the key 'labels' occurs 2 times", "bbf")
        or None
    )


def column_twice(folder: Path) -> str | None:
    columns = [*sorted(REQUIRED), "user"]
    table = f"{','.join(columns)}\n{','.join('x' for _ in columns)}\n"
    return (
        refused(folder, "a.csv", "completion,label,label\na,true,false\n", ":1: two columns")
        or refused(folder, "b.csv", "completion,label, label \na,true,false\n", ":1: two columns")
        or refused(folder, "c.tsv", "label\tcompletion\tlabel\ntrue\ta\tfalse\n", ":1: two columns")
        or refused(folder, "d.csv", table, "two columns are called 'user'", "convabuse")
        or None
    )


def unlabelled_judge_rows(folder: Path) -> str | None:
    path = folder / "a.jsonl"
    path.write_text(LINE + json.dumps({**ROW, "label": None}) + "\n")
    rows = read_source(Source(name="x", format="jsonl", path=str(path)))
    try:
        labels = toxic_labels(rows)
    except ModelError as error:
        return None if "1 of 2 rows have no label" in str(error) else str(error)
    return f"taken as {labels.tolist()}"


def left_out_rows(folder: Path) -> str | None:
    reply = {"role": "assistant", "content": "a", "weight": 0}
    files = {
        ("a.jsonl", "jsonl"): json.dumps({"messages": [reply], "label": True}) + "\n" + LINE,
        ("b.jsonl", "hh"): json.dumps({"chosen": f"{HH} a", "rejected": HH}) + "\n",
        ("c.json", "diasafety"): '[{"context": "a", "response": "", "label": "Safe"}]',
    }
    for (name, kind), text in files.items():
        (folder / name).write_text(text)
        source = Source(name="x", format=kind, path=str(folder / name))
        with collect_left_out() as found:
            read_source(source)
        if len(found) != 1:
            return f"{kind}: {len(found)} of 1 counted"
    return None


def bombs(folder: Path) -> str | None:
    for suffix in ("gz", "xz", "bz2"):
        path = folder / f"a.jsonl.{suffix}"
        zeros = subprocess.Popen(["head", "-c", "120M", "/dev/zero"], stdout=subprocess.PIPE)
        packer = {"gz": "gzip", "xz": "xz", "bz2": "bzip2"}[suffix]
        with path.open("wb") as file:
            subprocess.run([packer, "-1"], stdin=zeros.stdout, stdout=file, check=True)
        zeros.wait()
        expected = "decompresses to more than 0.1 GiB; split the file, or raise the limit"
        if broke := command(
            expected, "stats", "jsonl", str(path), environment={LIMIT_VARIABLE: "0.1"}
        ):
            return broke
    torn = gzip.compress(LINE.encode() * 100)[:-9]
    endless = command(
        "/dev/zero: is larger than 0.1 GiB",
        "stats",
        "jsonl",
        "/dev/zero",
        environment={LIMIT_VARIABLE: "0.1"},
    )
    return endless or refused(folder, "b.jsonl.gz", torn, "cannot be read") or None


def strange_text(folder: Path) -> str | None:
    long = "word " * 2_000_000
    for number, text in enumerate(("\ud800", "\0", long)):
        row = json.dumps({"messages": [{"role": text, "content": "a"}], "label": True})
        broke = refused(folder, f"a{number}.jsonl", LINE + row, ":2: ")
        row = json.dumps({**ROW, text: 1})
        if broke := broke or refused(folder, f"b{number}.jsonl", LINE + row, ":2: unknown key"):
            return broke
    row = json.dumps({**ROW, "completion": "\ud800"})
    return (
        refused(folder, "c.jsonl", LINE + row, ":2: a lone surrogate")
        or refused(folder, "d.jsonl", f'{LINE}{{"a": {"9" * 100_000}}}', ":2: ")
        or refused(folder, "e.jsonl", LINE + "[" * 100_000, ":2: ")
        or refused(folder, "f.jsonl", LINE.encode() + b"\xff\xfe\n", ":2: not UTF-8")
        or refused(folder, "g.csv", f"{long},label\na,true\n", ":2: no reply")
        or None
    )


def strange_paths(folder: Path) -> str | None:
    (folder / "a.jsonl").write_text(LINE)
    good = str(folder / "a.jsonl")
    for path in ("~nobody-of-this-name/x", "x" * 5000):
        for words in (
            ["stats", "jsonl", path],
            ["show", "jsonl", path],
            ["convert", "jsonl", path, "--to", str(folder / "b.jsonl")],
            ["convert", "jsonl", good, "--to", path],
        ):
            if broke := command("is not a path", *words):
                return broke
    return None


def full_disk(folder: Path) -> str | None:
    (folder / "a.jsonl").write_text(LINE * 2000)
    target = folder / "b.jsonl"
    words = ("convert", "jsonl", str(folder / "a.jsonl"), "--to")
    if broke := command("No file was written", *words, str(target), limit=5000):
        return broke
    if left := [path.name for path in folder.iterdir() if path.name != "a.jsonl"]:
        return f"left behind: {left}"
    return command("cannot write", *words, str(folder / "a.jsonl" / "b.jsonl"))


CASES: list[tuple[str, Callable[[Path], str | None]]] = [
    ("a key twice in a JSON row", key_twice),
    ("a column twice in a table", column_twice),
    ("rows without a label given to a judge", unlabelled_judge_rows),
    ("rows that loaders leave out", left_out_rows),
    ("compressed files that fill the memory", bombs),
    ("surrogates, NUL, and lines of megabytes in data", strange_text),
    ("paths that no file can have", strange_paths),
    ("a full or read-only disk under convert", full_disk),
]
