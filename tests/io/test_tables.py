"""CSV, TSV and JSON files as people have them: no row is lost without a word."""

import bz2
import csv
import gzip
import json
import lzma
import random
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows
from published import faults

from flatgd.data.formats.prosocial import load_prosocial
from flatgd.data.jsonl import RowFormat, load_jsonl
from flatgd.data.splits import find_split
from flatgd.errors import DataError
from flatgd.io.records import collect_bad_rows
from flatgd.io.tables import parse_table
from flatgd.io.text import read_text

ROW = {"prompt": "hi", "completion": "hello", "label": True}
LINE = json.dumps(ROW) + "\n"


def cells(path: Path, text: str, separator: str = ",") -> list[tuple[int, Any]]:
    """(line, cells) of a table, or (line, reason)."""
    path.write_bytes(text.encode())
    return [
        (line, str(row) if isinstance(row, ValueError) else list(row.values()))
        for line, row in parse_table(path, separator)
    ]


# Legal tables


@pytest.mark.parametrize("separator", [",", "\t"])
@pytest.mark.parametrize(
    ("end", "quoting"),
    [("\n", csv.QUOTE_MINIMAL), ("\r\n", csv.QUOTE_MINIMAL), ("\n", 1), ("\r\n", 1), ("\r", 1)],
)
def test_what_a_writer_of_tables_writes_is_read_as_written(
    tmp_path: Path, separator: str, end: str, quoting: Any
) -> None:
    rng = random.Random(f"{separator}{end}{quoting}")
    pieces = [
        "a",
        "word ",
        '"',
        "\n",
        "\r\n",
        ",",
        "\t",
        "",
        " ",
        "é",
        "''",
        '""',
        "\u2028",
        "\x0b",
    ]
    rows = [["one", "two", "three"]]
    for number in range(300):
        made = ["".join(rng.choices(pieces, k=rng.randint(0, 6))) for _ in range(2)]
        made = [text and f"{text}{number}" for text in made]
        rows.append([f"row {number} and more", *made])
    file = StringIO(newline="")
    csv.writer(file, delimiter=separator, lineterminator=end, quoting=quoting).writerows(rows)
    found = cells(tmp_path / "x.csv", file.getvalue(), separator)
    assert [row for _, row in found] == rows[1:]
    lines = file.getvalue().replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert all(f"row {n} and more" in lines[line - 1] for n, (line, _) in enumerate(found))


def test_quotes_inside_other_cells_are_characters(tmp_path: Path) -> None:
    text = 'a,b\n5" pipe,say "hi"\nit\'s,x"\n"say ""hi""",""\n\n'
    assert [row for _, row in cells(tmp_path / "x.csv", text)] == [
        ['5" pipe', 'say "hi"'],
        ["it's", 'x"'],
        ['say "hi"', ""],
    ]


@pytest.mark.parametrize(
    "text",
    [
        'label,completion\ntrue,"Roses, red\nviolets, blue\nand true"\nfalse,no\n',
        'completion,label\n"one\ntwo\nthree",true\nno,false\n',
        'label,completion\n0,"as a table:\na,b\n1,2"\n1,no\n',
        'label,completion\ntrue,"Well\nYes, of course\n"\nfalse,no\n',
        'label,completion\ntrue,"Well\nYes, sure\nNo, no"\nfalse,no\n',
    ],
)
def test_cells_of_several_lines_stay_one_cell(tmp_path: Path, text: str) -> None:
    found = [row for _, row in cells(tmp_path / "x.csv", text)]
    assert found == [list(row) for row in csv.reader(StringIO(text, newline=""))][1:]
    assert len(found) == 2


def test_code_with_tabs_stays_one_cell(tmp_path: Path) -> None:
    text = 'label\tcompletion\ntrue\t"def f():\n\treturn 1\n\t"\nfalse\tno\n'
    assert len(cells(tmp_path / "x.tsv", text, "\t")) == 2


def test_cells_have_any_length(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    path = tmp_path / "x.csv"
    long = "word " * 60_000
    path.write_text(f'prompt,completion,label\n"{long}",{long},true\n')
    (row,) = load_jsonl(path)
    assert row.texts == (long,)
    assert row.reply == long
    assert csv.field_size_limit() == limit


# Stray quotes


@pytest.mark.parametrize(
    ("name", "text", "line", "reported"),
    [
        ("x.csv", 'label,completion\ntrue,a\ntrue,"b\nfalse,c\ntrue,d\n', 3, "never closed"),
        ("x.tsv", 'label\tcompletion\ntrue\t"a\nfalse\tb\ntrue\tc\n', 2, "never closed"),
        ("x.csv", 'label,completion\ntrue,"a" b\nfalse,c\ntrue,d\n', 2, "text follows the quote"),
        ("x.csv", 'label,completion\ntrue,"a\nfalse,c "d\ntrue,e\n', 2, "text follows the quote"),
        ("x.tsv", 'label\tcompletion\ntrue\t"a\nfalse\tb"\ntrue\tc\n', 2, "lines that are rows"),
        ("x.csv", 'label,completion\ntrue,"a\nfalse,b"\ntrue,c\n', 2, "lines that are rows"),
        (
            "x.csv",
            'prompt,completion,label\nhi,"a,true\nhi,b,false\nhi,c",true\nhi,d,false\n',
            2,
            "lines that are rows",
        ),
        (
            "x.csv",
            'label,completion\nok,a\nhate speech,b\nok,"c\nhate speech,d\nok,e"\n',
            4,
            "lines that are rows",
        ),
    ],
)
def test_a_stray_quote_is_an_error_with_its_line(
    tmp_path: Path, name: str, text: str, line: int, reported: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    layout = RowFormat(toxic_values=("false", "hate speech"), safe_values=("true", "ok"))
    (reason,) = faults(load_jsonl, path, layout)
    assert reason.startswith(f"{line}: ")
    assert reported in reason
    assert "write quotes inside a quoted cell twice" in reason
    with collect_bad_rows() as left:
        rows = load_jsonl(path, layout)
    assert len(left) == 1
    assert len(rows) == text.count("\n") - 2  # all lines but the header and the one with the quote


def test_all_faults_of_a_table_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('prompt,completion,label\na,b\na,"b" c,true\na,,true\na,b,c,d\na,b,maybe\n')
    reported = faults(load_jsonl, path)
    assert [reason.split(":")[0] for reason in reported] == ["2", "3", "4", "5", "6"]
    assert "expected 3 cells as in the header, got 4" in reported[3]
    path.write_text(path.read_text() + "fine,hello,true\n")
    with collect_bad_rows() as left:
        assert [row.reply for row in load_jsonl(path)] == ["hello"]
    assert [problem.line for problem in left] == [2, 3, 4, 5, 6]


def test_headers_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("completion,label,label\na,true,false\n")
    assert faults(load_jsonl, path) == ["1: two columns are called 'label'; rename or remove one"]
    path.write_text('completion,"label\na,true\n')
    assert faults(load_jsonl, path)[0].startswith("1: the quoted cell that opens here")


# JSON


@pytest.mark.parametrize("rest", ["[]", "x", LINE, '\n\n[{"prompt": 1}]', "]", ","])
def test_what_follows_an_array_is_refused(tmp_path: Path, rest: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(f"[\n{LINE}]\n{rest}\n")
    line = 4 + (len(rest) - len(rest.lstrip("\n")))
    assert faults(load_jsonl, path)[0].startswith(f"{line}: more text after the end")
    path.write_text(f"\n [\n{LINE}]\n \n")
    assert len(load_jsonl(path)) == 1


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.ndjson", "x.txt"])
def test_arrays_and_lines_are_reported_apart_by_how_they_begin(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(LINE * 3)
    assert [row.where for row in load_jsonl(path)] == [f"{path}:{n}" for n in (1, 2, 3)]
    path.write_text(f"[{LINE},{LINE}]")
    assert len(load_jsonl(path)) == 2
    path.write_text(LINE + "{\n")
    assert faults(load_jsonl, path)[0].startswith("2: not valid JSON")
    path.write_text(json.dumps({"data": [ROW]}, indent=1))
    assert "one JSON object over several lines; expected" in faults(load_jsonl, path)[0]


# Packed files, and files of other kinds

PACKED = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


@pytest.mark.parametrize("suffix", PACKED)
def test_packed_files(tmp_path: Path, suffix: str) -> None:
    for name, text in (
        ("train.jsonl", LINE),
        ("val.csv", "completion,label\nhello,true\n"),
        ("test.json", f"[{LINE}]"),
    ):
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(PACKED[suffix](text.encode()))
        assert len(load_jsonl(path)) == 1
    assert find_split(tmp_path, "val").name == f"val.csv{suffix}"
    bare = tmp_path / "rows.jsonl"
    bare.write_bytes(PACKED[suffix](LINE.encode()))  # packed, though its name does not say so
    assert len(load_jsonl(bare)) == 1
    path.write_bytes(PACKED[suffix](LINE.encode() * 50)[:-6])
    assert "cannot be read" in faults(load_jsonl, path)[0]
    path.write_bytes(b"no archive")
    assert "cannot be read" in faults(load_jsonl, path)[0]


@pytest.mark.parametrize(
    ("name", "raw", "reported"),
    [
        ("rows.jsonl.zst", b"\x28\xb5\x2f\xfd\xff" + bytes(20), "cannot be read"),
        ("rows.json", b"PAR1\x15\x04\xf0\xff", "Parquet.*ends in .parquet"),
        ("rows.arrow", b"ARROW1\x00\x00", "Arrow.*to_json"),
        ("rows.xlsx", b"PK\x03\x04" + bytes(9), "Excel.*save it as CSV"),
        ("rows.csv", b"PAR1\x15\x04\xf0\xff", "Parquet"),
        ("rows.csv", "a,b\n".encode("utf-16"), "not UTF-8; convert"),
    ],
)
def test_files_of_other_kinds_get_a_reason_that_leads_on(
    tmp_path: Path, name: str, raw: bytes, reported: str
) -> None:
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(DataError, match=reported):
        load_jsonl(path)
    with pytest.raises(DataError, match=reported):
        load_prosocial(path, "train")
    with pytest.raises(DataError, match=reported):
        read_text(path)


def test_null_parts_are_not_the_word_none(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "hi"}, {"type": "text", "text": None}]
    rows = [
        {"messages": [{"role": "assistant", "content": parts}], "label": True},
        {"messages": [{"role": "assistant", "content": None}], "label": True},
        {"prompt": [None], "completion": "a", "label": True},
        {"conversations": [{"from": "gpt", "value": None}], "label": True},
    ]
    reported = faults(load_jsonl, write_rows(tmp_path / "x.jsonl", rows))
    assert [reason.split(":")[0] for reason in reported] == ["1", "2", "3", "4"]
    spare = {"role": "assistant", "content": None, "from": None, "value": "hi", "tool_calls": None}
    path = write_rows(tmp_path / "x.jsonl", [{"messages": [spare], "label": True}])
    assert load_jsonl(path)[0].reply == "hi"  # columns of a table that other rows fill
