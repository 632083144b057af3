"""A key or a column that occurs twice is refused with its line; neither value wins silently."""

import json
from pathlib import Path

import pytest
from published import PLAIN, convabuse, faults, thread, utterance

from flatgd.data.formats.bbf import load_bbf
from flatgd.data.formats.convabuse import load_convabuse
from flatgd.data.formats.diasafety import load_diasafety
from flatgd.data.formats.prosocial import load_prosocial
from flatgd.data.formats.toxichat import load_toxichat
from flatgd.data.jsonl import load_jsonl
from flatgd.errors import DataError
from flatgd.io.records import collect_bad_rows

TWICE = '{"prompt": "hi", "completion": "hello", "label": false, "label": true}'
NESTED = '{"messages": [{"role": "user", "content": "a", "content": "b"}], "label": true}'
REASON = "the key 'label' occurs 2 times in one JSON object; keep one"


def test_a_key_twice_in_a_row(tmp_path: Path) -> None:
    plain = json.dumps(PLAIN)
    lines = tmp_path / "x.jsonl"
    lines.write_text(f"{plain}\n{TWICE}\n{NESTED}\n{plain}\n")
    array = tmp_path / "x.json"
    array.write_text(f"[{plain},\n{TWICE},\n{NESTED},\n{plain}]")
    for path in (lines, array):
        reasons = faults(load_jsonl, path)
        assert reasons[0] == f"2: {REASON}"
        assert reasons[1].startswith("3: the key 'content' occurs 2 times")
        with collect_bad_rows() as left_out:
            assert len(load_jsonl(path)) == 2
        assert [problem.line for problem in left_out] == [2, 3]


def test_a_key_twice_in_published_sets(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text('[\n{"context": "a", "response": "b", "label": "Safe", "label": "Unsafe"}]')
    assert faults(load_diasafety, path, "train") == [f"2: {REASON}"]
    path.write_text('[\n[{"text": "a", "labels": ["b"], "text": "c"}]]')
    assert faults(load_prosocial, path, "train")[0].startswith("2: the key 'text' occurs 2 times")
    record = json.dumps(utterance("hi"))
    path.write_text(f'{{"train": [], "test": [], "train": [{record}], "valid": []}}')
    assert "the key 'train' occurs 2 times" in faults(load_bbf, path, "train")[0]
    column = '{"text": "a", "offense_label": "Safe", "offense_label": "Offensive"}'
    path.write_text(json.dumps(thread(final_dgpt_response=column)) + "\n")
    assert "the key 'offense_label' occurs" in faults(load_toxichat, path, "train")[0]


@pytest.mark.parametrize("header", ["completion,label,label", "completion,label, label "])
def test_a_column_twice(tmp_path: Path, header: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"{header}\na,true,false\n")
    assert faults(load_jsonl, path) == ["1: two columns are called 'label'; rename or remove one"]


def test_convabuse_may_repeat_only_columns_that_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    head, *rows = convabuse({}).splitlines()

    def write(column: str) -> None:
        path.write_text(f"{head},{column}\n" + "".join(f'{row},"x"\n' for row in rows))

    write("example_id")
    assert len(load_convabuse(path, "train")) == 1
    for column in ("user", "Annotator1_is_abuse.1"):
        write(column)
        with pytest.raises(DataError, match=f"two columns are called '{column}'"):
            load_convabuse(path, "train")
