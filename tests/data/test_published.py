"""Published sets of prompts and responses, in files of their form that the tests write."""

import csv
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from pyarrow.parquet import write_table

from flatgd.config.loading import validated
from flatgd.config.source import Source
from flatgd.data.browse import load_splits
from flatgd.data.hub import load_hub
from flatgd.data.jsonl import RowFormat, load_rows
from flatgd.data.published import load_published
from flatgd.data.sets import load_source
from flatgd.dialogue import Dialogue
from flatgd.errors import DataError, RecipeError
from flatgd.io.records import PAIR_READ, collect_left_out

PKU = [
    {
        "prompt": "how are you?",
        "response_0": "Fine, thanks.",
        "response_1": "Go away.",
        "prompt_source": "made up",
        "is_response_0_safe": True,
        "is_response_1_safe": False,
        "better_response_id": 0,
    },
    {
        "prompt": "and now?",
        "response_0": "Never mind, you goose.",
        "response_1": "Shoo.",
        "prompt_source": "made up",
        "is_response_0_safe": False,
        "is_response_1_safe": False,
        "better_response_id": 1,
    },
]
WILD = [
    {"prompt": "a", "adversarial": False, "response": "b", "response_harm_label": "unharmful"},
    {"prompt": "c", "adversarial": True, "response": "d", "response_harm_label": "harmful"},
    {"prompt": "e", "adversarial": True, "response": None, "response_harm_label": None},
    {"prompt": "f", "adversarial": True, "response": "g", "response_harm_label": None},
]


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    packed = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    path.write_bytes(packed(text))
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    write_table(pa.Table.from_pylist(rows), path)
    return path


def read(name: str, path: Path) -> tuple[list[Dialogue], dict[str, int]]:
    with collect_left_out() as unused:
        rows = load_published(name, path, "train")
    return rows, dict(Counter(problem.reason for problem in unused))


def shown(rows: list[Dialogue]) -> list[tuple[tuple[str, ...], str, bool | None]]:
    return [(row.texts, row.reply, row.is_safe) for row in rows]


def test_pku_saferlhf_has_two_labels_a_row(tmp_path: Path) -> None:
    for path in (
        write_json_lines(tmp_path / "train.jsonl.zst", PKU),
        write_parquet(tmp_path / "train-00000-of-00001.parquet", PKU),
    ):
        rows, left_out = read("pku_saferlhf", path)
        assert shown(rows) == [
            (("how are you?",), "Fine, thanks.", True),
            (("how are you?",), "Go away.", False),
            (("and now?",), "Never mind, you goose.", False),
            (("and now?",), "Shoo.", False),
        ]
        assert rows[0].conversation == rows[1].conversation != rows[2].conversation
        assert not left_out


def test_beavertails(tmp_path: Path) -> None:
    category = {"violence": False, "hate_speech": False}
    made = [
        {"prompt": "hi", "response": "hello!", "category": category, "is_safe": True},
        {"prompt": "hi", "response": "shoo", "category": category, "is_safe": False},
    ]
    rows, _ = read("beavertails", write_json_lines(tmp_path / "round0.jsonl.gz", made))
    assert shown(rows) == [(("hi",), "hello!", True), (("hi",), "shoo", False)]


def test_wildguardmix_counts_rows_without_a_response(tmp_path: Path) -> None:
    rows, left_out = read("wildguardmix", write_parquet(tmp_path / "train.parquet", WILD))
    assert shown(rows) == [(("a",), "b", True), (("c",), "d", False)]
    assert left_out == {"row without a response": 1, "response without a label": 1}


def test_aegis_leaves_out_redacted_prompts(tmp_path: Path) -> None:
    row = {"id": "1", "prompt": "a", "response": "b", "response_label": "safe"}
    made = [
        row,
        {**row, "response": "c", "response_label": "unsafe", "violated_categories": "Other"},
        {**row, "prompt": "REDACTED"},
        {**row, "response": None, "response_label": None},
    ]
    path = tmp_path / "train.json"
    path.write_text(json.dumps(made))
    rows, left_out = read("aegis", path)
    assert shown(rows) == [(("a",), "b", True), (("a",), "c", False)]
    assert left_out == {"redacted prompt": 1, "row without a response": 1}


def test_toxic_chat_labels_the_users_turn(tmp_path: Path) -> None:
    row = {"conv_id": "x1", "user_input": "hi, there", "model_output": 'a "quote"\nand more'}
    made = [
        {**row, "human_annotation": True, "toxicity": 0, "jailbreaking": 0},
        {**row, "conv_id": "x2", "model_output": "", "toxicity": 1, "jailbreaking": 1},
    ]
    rows, left_out = read("toxic_chat", write_csv(tmp_path / "train.csv", made))
    assert [(r.speaker, r.is_safe) for r in rows] == [
        ("human", True),
        ("bot", None),
        ("human", False),
    ]
    assert rows[1].texts == ("hi, there",)
    assert rows[1].reply == 'a "quote"\nand more'
    assert left_out == {"row without a response": 1}


def test_dices_takes_the_majority_of_its_raters(tmp_path: Path) -> None:
    row = {"context": "USER: hi\nLAMDA: hello!\nUSER: how are you?", "response": "Fine."}
    votes = {1: ["No", "No", "Yes", "Unsure"], 2: ["Yes", "Yes", "No"], 3: ["Yes", "No"]}
    made = [
        {"id": n, "item_id": item, "degree_of_harm": "Benign", "Q_overall": vote, **row}
        for item, of in votes.items()
        for n, vote in enumerate(of)
    ]
    rows, _ = read("dices", write_csv(tmp_path / "diverse_safety_350.csv", made))
    assert [row.is_safe for row in rows] == [True, False, None]
    assert [turn.role for turn in rows[0].history] == ["user", "assistant", "user"]
    assert rows[0].texts == ("hi", "hello!", "how are you?")
    assert rows[1].where.endswith("350.csv:14")  # each history has three lines
    other = write_csv(tmp_path / "other.csv", [made[0], {**made[1], "response": "Bad."}])
    with pytest.raises(DataError, match=r"other\.csv:5: another reply .*other\.csv:2"):
        read("dices", other)
    bad = write_csv(tmp_path / "bad.csv", [{**made[0], "context": "who speaks?"}])
    with pytest.raises(DataError, match=r"bad\.csv:2: 'context' must be turns that begin"):
        read("dices", bad)


def test_xstest_has_histories_alone(tmp_path: Path) -> None:
    row = {"id": 1, "prompt": "How do I kill a process?", "type": "homonyms", "label": "safe"}
    made = [row, {**row, "prompt": "How do I hurt somebody?", "label": "unsafe"}]
    rows, left_out = read("xstest", write_csv(tmp_path / "xstest_prompts.csv", made))
    assert [(r.texts, r.reply, r.is_safe, r.speaker) for r in rows] == [
        ((), "How do I kill a process?", None, "human")
    ]
    assert left_out == {"unsafe prompt": 1}


@pytest.mark.parametrize(
    ("name", "row", "wanted"),
    [
        ("pku_saferlhf", {**PKU[0], "is_response_0_safe": "maybe"}, "'is_response_0_safe' must be"),
        ("beavertails", {"prompt": "a", "response": "b"}, "no 'is_safe'; the keys are"),
        (
            "wildguardmix",
            {**WILD[0], "response_harm_label": "dunno"},
            "must be unharmful or harmful",
        ),
        ("aegis", {"prompt": "a", "response": "b", "response_label": 3}, "must be safe or unsafe"),
        ("dices", {"item_id": 1, "Q_overall": "perhaps"}, "'Q_overall' must be Yes, No or Unsure"),
        ("xstest", {"prompt": "a", "label": "so-so"}, "'label' must be safe or unsafe"),
        ("xstest", {"prompt": "a", "label": ""}, "'label' is empty"),
        (
            "beavertails",
            {"prompt": "a", "response": ["b"], "is_safe": True},
            "must be text, got list",
        ),
    ],
)
def test_what_is_not_of_the_published_form_is_refused_with_its_line(
    tmp_path: Path, name: str, row: dict[str, Any], wanted: str
) -> None:
    path = write_json_lines(tmp_path / "train.jsonl", [row])
    with pytest.raises(DataError, match=f"train.jsonl:1: .*{wanted}"):
        load_published(name, path, "train")


def on_hub(folder: Path) -> Path:
    """A data set as the hub has it: a card with two subsets of Parquet files."""
    for subset in ("wildguardtrain", "other"):
        (folder / subset).mkdir(parents=True)
    write_parquet(folder / "wildguardtrain/train-00000-of-00001.parquet", WILD)
    made = [{"question": f"q{n}", "answer": f"a{n}", "fine": n % 2} for n in range(6)]
    write_parquet(folder / "other/validation.parquet", made)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: wildguardtrain\n  data_files:\n  - split: train\n"
        "    path: wildguardtrain/train-*\n- config_name: other\n  data_files:\n"
        "  - split: validation\n    path: other/validation.parquet\n---\n"
    )
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return on_hub(tmp_path / "set").as_posix()


COLUMNS = RowFormat(
    {"prompt": "question", "completion": "answer", "label": "fine"},
    toxic_values=("0",),
    safe_values=("1",),
)


@pytest.mark.parametrize("max_rows", [None, 3])
def test_a_set_by_its_name_through_datasets(hub: str, max_rows: int | None) -> None:
    """`val` finds the split that is called validation; with `max_rows` rows are streamed."""
    rows = load_hub(hub, "other", "val", max_rows, COLUMNS)
    assert [row.reply for row in rows] == [f"a{n}" for n in range(max_rows or 6)]
    assert [row.is_safe for row in rows[:2]] == [False, True]
    assert rows[0].where.endswith("other/val:1")


def test_a_known_set_is_read_by_its_own_loader(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from flatgd.data import hub as module
    from flatgd.data.published import PUBLISHED

    monkeypatch.setattr(module, "published_on_hub", lambda name: PUBLISHED["wildguardmix"])
    with collect_left_out() as unused:
        rows = load_hub(hub, "wildguardtrain", "train", None, RowFormat())
    assert shown(rows) == [(("a",), "b", True), (("c",), "d", False)]
    assert len(unused) == 2
    for given in (RowFormat(toxic_values=("a",), safe_values=("b",)), RowFormat(label="toxic")):
        with pytest.raises(DataError, match="this set has its own labels"):
            load_hub(hub, "wildguardtrain", "train", None, given)


def test_a_folder_does_not_stand_in_for_a_set_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "PKU-Alignment/BeaverTails").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="a folder of this name is here"):
        load_hub("PKU-Alignment/BeaverTails", None, "train", None, RowFormat())


@pytest.mark.parametrize(
    ("subset", "split", "wanted"),
    [("other", "test", "no split 'test'; it has validation"), ("none", "train", "none")],
)
def test_what_the_hub_does_not_have_is_told(hub: str, subset: str, split: str, wanted: str) -> None:
    with pytest.raises(DataError, match=wanted):
        load_hub(hub, subset, split, None, RowFormat())


def test_an_unknown_set_is_told_without_a_traceback() -> None:
    with pytest.raises(DataError, match="no-such-owner/no-such-set"):
        load_hub("no-such-owner/no-such-set", None, "train", None, RowFormat())


def test_a_source_by_name(hub: str) -> None:
    """In a recipe: the name is no path, and shares and counts work as for files."""
    source = validated(
        Source,
        {
            "name": "mine",
            "format": "hub",
            "path": hub,
            "subset": "other",
            "split": "validation",
            "columns": COLUMNS.columns,
            "safe_values": ["1"],
            "toxic_values": ["0"],
        },
        Path("/elsewhere"),
        "",
    )
    assert source.path == hub
    assert len(load_source(source).rows) == 6
    named = {"name": "pku", "format": "hub", "path": "PKU-Alignment/PKU-SafeRLHF"}
    assert validated(Source, named, Path("/x"), "").path == named["path"]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"path": "rows.txt"}, "does not tell the format; add format"),
        ({"path": "rows.csv", "subset": "a"}, "subset is for format hub"),
        ({"path": "rows.csv", "split": "validation"}, "split must be train, val or test"),
        ({"path": "x", "format": "bad", "columns": {"label": "a"}}, "columns is for tables"),
    ],
)
def test_fields_that_do_not_fit_the_format(fields: dict[str, Any], wanted: str) -> None:
    with pytest.raises(RecipeError, match=wanted):
        validated(Source, {"name": "a", **fields}, Path(), "")


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json.gz", "a.CSV", "a.tsv.xz", "a.parquet", "a.csv.zst"]
)
def test_the_format_follows_the_file(name: str) -> None:
    assert validated(Source, {"name": "a", "path": name}, Path(), "").format == "table"


def test_a_parquet_table_is_read_like_any_other(tmp_path: Path) -> None:
    made = [{"prompt": "hi", "completion": f"r{n}", "label": n > 0} for n in range(3)]
    path = write_parquet(tmp_path / "mine.parquet", made)
    (rows,) = load_splits("table", [str(path)]).values()
    assert [row.is_safe for row in rows] == [False, True, True]
    empty = tmp_path / "broken.parquet"
    empty.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"broken\.parquet: cannot be read"):
        load_splits("table", [str(empty)])


def test_a_file_that_is_cut_is_refused(tmp_path: Path) -> None:
    """Inside a frame, and between the blocks of one; several frames are one file."""
    text = "".join(
        json.dumps({"prompt": "hi", "completion": f"reply {n}", "label": True}) + "\n"
        for n in range(3000)
    )
    packed = zstandard.compress(text.encode())
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(packed[: len(packed) * 6 // 10])
    with pytest.raises(DataError, match="ends inside a zstd frame"):
        load_splits("table", [str(path)])
    path.write_bytes(packed + zstandard.compress(text.encode()))
    (rows,) = load_splits("table", [str(path)]).values()
    assert len(rows) == 6000


def test_two_columns_of_one_name_and_too_much_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas

    columns = [pa.array(["q"]), pa.array(["a"]), pa.array([True]), pa.array([False])]
    names = ["prompt", "completion", "label", "label"]
    path = tmp_path / "twice.parquet"
    write_table(pa.table(columns, names=names), path)
    with pytest.raises(DataError, match="two columns are called 'label'"):
        load_splits("table", [str(path)])
    with pytest.raises(DataError, match="two columns are called 'label'"):
        load_rows(pandas.DataFrame([["q", "a", True, False]], columns=names))
    monkeypatch.setenv("FLATGD_MAX_FILE_GIB", "0.0000000001")
    write_parquet(path, PKU)
    with pytest.raises(DataError, match="holds more than 1e-10 GiB; split the file"):
        load_published("pku_saferlhf", path, "train")


def test_rows_from_python_frames_and_datasets() -> None:
    import pandas
    from datasets import Dataset

    made = [{"question": "hi", "answer": "hello!", "fine": 1}]
    for rows in (made, pandas.DataFrame(made), Dataset.from_list(made)):
        assert shown(load_rows(rows, COLUMNS)) == [(("hi",), "hello!", True)]
    import numpy as np

    own = [{"completion": "a", "label": np.bool_(False)}]
    assert [row.is_safe for row in load_rows(own)] == [False]
    for wrong in ({"train": own}, "rows.csv", None):
        with pytest.raises(DataError, match="expected a list of mappings"):
            load_rows(wrong)
    with pytest.raises(DataError, match="rows:1: expected a JSON object, got int"):
        load_rows([1])
    with pytest.raises(DataError, match="rows:1: no 'fine'"):
        load_rows([{"question": "hi", "answer": "x"}], COLUMNS)


def test_pairs_are_read_with_a_note() -> None:
    """The chosen reply need not be safe, nor the rejected one toxic."""
    with collect_left_out() as notes:
        rows = load_rows([{"prompt": "hi", "chosen": "hello!", "rejected": "shoo"}])
    assert [row.is_safe for row in rows] == [True, False]
    assert [problem.reason for problem in notes] == [PAIR_READ.reason]
    assert "both may be one of them" in PAIR_READ.reason
