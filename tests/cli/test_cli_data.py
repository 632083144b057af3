"""`flatgd data` as it is typed."""

import json
from pathlib import Path

import pytest
from conftest import mild_rows, write_rows
from disks import file_size_limit
from typer.testing import CliRunner

from flatgd.cli.main import app
from flatgd.data import fetch as fetch_module
from flatgd.errors import DataError, FlatGDError, UsageError
from flatgd.io.records import read_jsonl


def typed(*words: str) -> str:
    shown = CliRunner().invoke(app, ["data", *words])
    if shown.exception and not isinstance(shown.exception, SystemExit):
        raise shown.exception
    assert shown.exit_code == 0, shown.output
    return shown.output


def test_stats_of_a_file_and_of_splits(tmp_path: Path) -> None:
    one = str(write_rows(tmp_path / "one.jsonl", mild_rows(8, 1)))
    two = str(write_rows(tmp_path / "two.jsonl", mild_rows(8, 1) + mild_rows(4, 2)))
    reported = typed("stats", "jsonl", one)
    assert reported.splitlines()[1].split() == ["rows", "8"]
    reported = typed("stats", "jsonl", one, two)
    assert reported.splitlines()[0].split() == ["one.jsonl", "two.jsonl"]
    assert reported.splitlines()[-1].split() == ["two.jsonl", "one.jsonl", "8", "8", "8"]
    plain = json.loads(typed("stats", "jsonl", one, two, "--json"))
    assert plain["splits"][1]["toxic"] == 6
    assert plain["overlap"][0]["replies"] == 8


def test_stats_find_the_splits_of_a_folder(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_rows(tmp_path / f"{name}.jsonl", mild_rows(4, 1))
    assert typed("stats", "jsonl", str(tmp_path)).splitlines()[0].split() == ["train", "test"]
    with pytest.raises(DataError, match="no file of split 'val'"):
        typed("show", "jsonl", str(tmp_path), "--split", "val")
    write_rows(tmp_path / "val.jsonl", [{"prompt": "a"}])
    with pytest.raises(DataError, match=r"val.jsonl:1: no reply"):
        typed("stats", "jsonl", str(tmp_path))


def test_show_masks_unless_asked_and_prints_no_control_characters(tmp_path: Path) -> None:
    rows = [
        {"prompt": "do you like hats?", "completion": "a daft \x1b[31mhat", "label": False},
        {"prompt": "do you like tea?", "completion": "yes, I do", "label": True},
    ]
    path = str(write_rows(tmp_path / "a.jsonl", rows))
    reported = typed("show", "jsonl", path)
    assert "yes, I do" in reported
    assert "daft" not in reported
    assert "like tea" not in reported
    assert "--unmask" in reported
    reported = typed("show", "jsonl", path, "--unmask", "--label", "toxic")
    assert "daft" in reported
    assert "\x1b" not in reported
    assert "yes, I do" not in reported
    with pytest.raises(UsageError, match="--label must be safe, toxic or none"):
        typed("show", "jsonl", path, "--label", "rude")


def test_convert_and_read_again(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("text,class\nhello,0\ngoose!,1\n")
    fields = ["--set", "columns={completion: text, label: class}", "--set", "toxic_values=[1]"]
    reported = typed("convert", "jsonl", str(table), "--to", str(tmp_path / "b.jsonl"), *fields)
    assert "2 rows" in reported
    rows = list(read_jsonl(tmp_path / "b.jsonl"))
    assert [(row["completion"], row["label"]) for row in rows] == [
        ("hello", True),
        ("goose!", False),
    ]
    assert typed("stats", "jsonl", str(tmp_path / "b.jsonl")).splitlines()[3].split() == [
        "toxic",
        "1",
    ]
    with pytest.raises(UsageError, match="exists"):
        typed("convert", "jsonl", str(table), "--to", str(tmp_path / "b.jsonl"), *fields)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["fetch", "bda"], "no data set 'bda' to fetch; did you mean 'bad'"),
        (
            ["stats", "jsno", "a"],
            "is neither a format nor a table by its name; did you mean 'jsonl'",
        ),
        (["stats", "bad", "a.txt"], "a.txt: no such file"),
        (
            ["stats", "bad", "a.txt", "--set", "toxic_values=[1]"],
            "is for tables, not for format bad",
        ),
        (["stats", "jsonl", "a", "--set", "toxic_valeus=[1]"], "did you mean 'toxic_values'"),
        (["stats", "jsonl", "a", "--set", "columns={tweet: completion}"], "unknown 'tweet'"),
    ],
)
def test_what_is_wrong_is_reported(words: list[str], reason: str) -> None:
    with pytest.raises(FlatGDError, match=reason):
        typed(*words)


PATHS = {
    "~nobody-of-this-name/x": "is not a path",
    "a\0b": "is not a path",
    "a" * 5000: "is not a path: File name too long",
}


@pytest.mark.parametrize("path", PATHS, ids=["user", "NUL", "long"])
def test_paths_that_no_file_can_have(tmp_path: Path, path: str) -> None:
    good = str(write_rows(tmp_path / "a.jsonl", mild_rows(4, 1)))
    to = ["--to", str(tmp_path / "b.jsonl")]
    for words in (
        ["stats", "jsonl", path],
        ["stats", "jsonl", good, path],
        ["show", "jsonl", path],
        ["convert", "jsonl", path, *to],
        *([] if "\0" in path else [["convert", "jsonl", good, "--to", path]]),
        *([] if "\0" in path else [["fetch", "bbf", "--to", path]]),  # Typer refuses a NUL
    ):
        with pytest.raises(UsageError, match=PATHS[path]):
            typed(*words)
    assert not (tmp_path / "b.jsonl").exists()


def test_convert_onto_a_full_or_read_only_disk(tmp_path: Path) -> None:
    source = str(write_rows(tmp_path / "a.jsonl", mild_rows(400, 1)))
    target = tmp_path / "b.jsonl"
    with file_size_limit(1000), pytest.raises(UsageError, match="No file was written") as raised:
        typed("convert", "jsonl", source, "--to", str(target))
    assert f"cannot write {target}: File too large" in str(raised.value)
    with pytest.raises(UsageError, match=r"cannot write .*: Not a directory"):
        typed("convert", "jsonl", source, "--to", f"{source}/b.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]


def test_fetch_reports_where_the_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(download, folder, progress):
        asked.append(download.file)
        progress(1, 2)
        return [folder / download.file]

    monkeypatch.setattr(fetch_module, "fetch", fetch)
    reported = typed("fetch", "bbf", "--to", str(tmp_path))
    assert asked == ["single_turn_safety.json", "multi_turn_safety.json"]
    assert "single_turn_safety.json" in reported.replace("\n", "")
