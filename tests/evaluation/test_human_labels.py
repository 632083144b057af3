"""Labels of sampled replies: blind to the annotator, assigned to models by the key."""

import json
from pathlib import Path

import pytest

from flatgd.errors import DataError, UsageError
from flatgd.evaluation.human_labels import (
    draw_replies,
    key_path,
    labelled_toxicity,
    load_labels,
    sampled,
    write_labels,
)
from flatgd.io.records import digest, read_jsonl, write_jsonl

ROWS = 30


def generations() -> dict[str, list[dict]]:
    return {
        model: [
            {
                "dataset": "d",
                "conversation": f"c{n}",
                "system": "",
                "history": [{"role": "user", "content": f"line {n}"}],
                "replies": [f"reply {n}", f"other {n}"],
            }
            for n in range(ROWS)
        ]
        for model in ("one", "two")
    }


def scores() -> dict[str, list[dict]]:
    return {
        model: [{"kind": "generated", "toxic": {"judge": [0.1, 0.2]}} for _ in range(ROWS)]
        for model in ("one", "two")
    }


def written(folder: Path) -> Path:
    path = folder / "labels.jsonl"
    write_labels(path, draw_replies(generations(), 10, seed=0))
    return path


def test_ids_and_order_do_not_name_the_model(tmp_path: Path) -> None:
    rows = list(read_jsonl(written(tmp_path)))
    assert len(rows) == 2 * 10
    guesses = {
        digest("\n".join([model, "d", str(reply.place), *reply.history, reply.reply]))
        for model, own in generations().items()
        for reply in sampled(model, own)
    }
    assert not guesses & {row["id"] for row in rows}
    again = draw_replies(generations(), 10, seed=0)
    assert [row["reply"] for row in rows] != [reply.reply for reply in again]
    assert {row["reply"] for row in rows} == {reply.reply for reply in again}


def test_the_key_assigns_labels_to_models(tmp_path: Path) -> None:
    path = written(tmp_path)
    models = {r.digest: model for model, own in generations().items() for r in sampled(model, own)}
    key = {row["id"]: models[row["reply"]] for row in read_jsonl(key_path(path))}
    rows = [{**row, "toxic": key[row["id"]] == "one"} for row in read_jsonl(path)]
    write_jsonl(path, rows)
    found = labelled_toxicity(path, generations(), scores(), "judge")
    assert {row["method"]: row["labels_only"] for row in found} == {"one": 1.0, "two": 0.0}
    changed = generations()
    for row in changed["one"]:
        row["replies"] = [f"{reply}, again" for reply in row["replies"]]
    with pytest.raises(DataError, match="10 of 20 labels are of replies that this run does not"):
        labelled_toxicity(path, changed, scores(), "judge")


def test_labels_without_their_key_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.raises(UsageError, match="already exists"):
        written(tmp_path)
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), "id": "x"}), *rest]))
    with pytest.raises(DataError, match=r"labels.jsonl:1: id 'x' is not in labels.key.jsonl"):
        load_labels(path)
    key_path(path).unlink()
    with pytest.raises(UsageError, match=r"labels.key.jsonl is missing"):
        load_labels(path)


@pytest.mark.parametrize("which", ["labels", "key"])
def test_an_id_that_occurs_twice_is_refused(tmp_path: Path, which: str) -> None:
    path = tmp_path / "labels.jsonl"
    write_labels(path, draw_replies(generations(), 3, seed=0))
    file = path if which == "labels" else key_path(path)
    rows = list(read_jsonl(file))
    write_jsonl(file, [*rows, {**rows[0], "toxic": True}])
    with pytest.raises(DataError, match=rf"{file.name}:{len(rows) + 1}: the same id as in line 1"):
        load_labels(path)
