"""Files that are too large, or that no encoding can write, end in one line with their name."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from published import PLAIN, A, U, faults, message

from flatgd.data.jsonl import RowFormat, load_jsonl
from flatgd.data.stats import count
from flatgd.errors import DataError
from flatgd.io.text import LIMIT_VARIABLE, read_text

PACK = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


@pytest.mark.parametrize("suffix", PACK)
def test_a_compressed_file_that_grows_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(PACK[suffix](b" " * (1 << 22) + json.dumps(PLAIN).encode()))
    assert len(load_jsonl(path)) == 1
    monkeypatch.setenv(LIMIT_VARIABLE, "0.001")
    reason = "0: decompresses to more than 0.001 GiB; split the file, or raise the limit with "
    assert faults(load_jsonl, path) == [f"{reason}FLATGD_MAX_FILE_GIB=0.002"]


def test_a_file_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "0.001")
    with pytest.raises(DataError, match=r"/dev/zero: is larger than 0.001 GiB; split the file"):
        read_text(Path("/dev/zero"))


@pytest.mark.parametrize("value", ["", "much", "0", "-1", "nan", "inf"])
def test_a_limit_that_is_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, value)
    with pytest.raises(DataError, match="FLATGD_MAX_FILE_GIB: expected a number of GiB above 0"):
        read_text(tmp_path / "x")


HALF = "\ud800"
LONG = "word " * 2_000_000
STRANGE: dict[str, Callable[[str], dict[str, Any]]] = {
    "reply": lambda text: {**PLAIN, "completion": text},
    "prompt": lambda text: {**PLAIN, "prompt": text},
    "a key": lambda text: {**PLAIN, text: 1},
    "the only key": lambda text: {text: 1},
    "label": lambda text: {**PLAIN, "label": text},
    "conversation": lambda text: {**PLAIN, "conversation": text},
    "speaker": lambda text: {**PLAIN, "speaker": text},
    "source": lambda text: {**PLAIN, "source": text},
    "role": lambda text: {"messages": [message(text, "a"), message(A, "b")], "label": True},
    "type": lambda text: {"messages": [message(U, [{"type": text, "text": "a"}])], "label": True},
    "tools": lambda text: {**PLAIN, "tools": text},
    "system": lambda text: {**PLAIN, "system": text},
}


def refusal(path: Path) -> str | None:
    try:
        count("x", load_jsonl(path))
    except DataError as error:
        return str(error)
    return None


@pytest.mark.parametrize("text", [HALF, "\0", LONG], ids=["surrogate", "NUL", "long"])
@pytest.mark.parametrize("name", STRANGE)
def test_strange_text_anywhere_is_read_or_refused_with_its_line(
    tmp_path: Path, name: str, text: str
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(PLAIN) + "\n" + json.dumps(STRANGE[name](text)) + "\n")
    refused = refusal(path)
    assert refused is None or f"{path}:2: " in refused
    assert len((refused or "").encode()) < 1000  # it can be printed


def test_long_numbers_and_deep_nesting(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"a": {"9" * 100_000}}}\n{"[" * 100_000}\n')
    assert [reason[:2] for reason in faults(load_jsonl, path)] == ["1:", "2:"]
    path.write_text(f'[{{"a": {"9" * 100_000}}}]')
    assert "unreadable JSON" in faults(load_jsonl, path)[0]


def test_strange_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    names = ",".join(f"column{n}" for n in range(5000))
    path.write_text(f"{names},{LONG}\n" + "a," * 5000 + "b\n")
    with pytest.raises(DataError) as raised:
        load_jsonl(path)
    assert len(str(raised.value)) < 1000
    with pytest.raises(DataError) as raised:
        load_jsonl(path, RowFormat(columns={"completion": "text"}))
    assert len(str(raised.value)) < 1000
