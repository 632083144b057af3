"""What counts as the same text, conversation or exchange, in any Unicode form."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows
from published import (
    A,
)

from flatgd.config.source import Data, Source
from flatgd.data.browse import TextMask
from flatgd.data.formats.bbf import load_bbf
from flatgd.data.formats.diasafety import load_diasafety
from flatgd.data.formats.hh import load_hh
from flatgd.data.jsonl import RowFormat, dialogues_from_row
from flatgd.data.sets import draw_histories, load_sets
from flatgd.data.stats import count, overlaps
from flatgd.dialogue import Dialogue, Turn, normal_form


def read(row: dict[str, Any], **layout: Any) -> Dialogue:
    (dialogue,) = dialogues_from_row({"label": True, **row}, RowFormat(**layout))
    return dialogue


FORMS = {
    "decomposed": "a cafe\u0301?",
    "zero-width": "a ca\u200bf\u00e9?",
    "soft hyphen": "a ca\u00adf\u00e9?",
    "direction mark": "\u200ea caf\u00e9?",
    "full width": "\uff41 caf\u00e9\uff1f",
    "case": "A CAF\u00c9?",
    "white space": " a\u00a0\n caf\u00e9? ",
}


@pytest.mark.parametrize("name", FORMS)
def test_two_sets_share_no_exchange_in_any_form(tmp_path: Path, name: str) -> None:
    def source(part: str, *rows: tuple[str, str, bool]) -> Source:
        made = [
            {"prompt": [f"{part}{n}", asked], "completion": reply, "label": label}
            for n, (asked, reply, label) in enumerate(rows)
        ]
        path = write_rows(tmp_path / f"{part}.jsonl", made)
        return Source(name=part, format="jsonl", path=str(path))

    fill = [("p", "q", True), ("r", "s", False)]
    for asked, reply in ((FORMS[name], "gladly"), ("well?", FORMS[name])):
        other = ("a caf\u00e9?", "gladly") if reply == "gladly" else ("well?", "a caf\u00e9?")
        sets = load_sets(
            Data(
                policy=[source("policy", *fill, (asked, reply, True))],
                judge=[source("judge", ("x", "y", True), ("z", "w", False))],
                test=[source("test", (*other, True), ("u", "v", False))],
            )
        )
        assert sets.dropped["policy: also in test"] == 1
    assert normal_form(FORMS[name]) == normal_form("a caf\u00e9?")


@pytest.mark.parametrize("name", FORMS)
def test_one_opening_in_two_forms_is_one_conversation(tmp_path: Path, name: str) -> None:
    openings = ("a caf\u00e9?", FORMS[name])
    assert len({read({"prompt": text, "completion": "b"}).conversation for text in openings}) == 1
    for number, text in enumerate(openings):
        folder = tmp_path / str(number)
        folder.mkdir()
        said = f"\n\nHuman: {text}\n\nAssistant: b"
        write_rows(folder / "hh.jsonl", [{"chosen": said, "rejected": said}])
        record = {"text": f"{text.replace(chr(10), ' ')}\nreply", "labels": ["__ok__"]}
        (folder / "bbf.json").write_text(json.dumps({"train": [record], "valid": [], "test": []}))
        dia = [{"context": text, "response": "b", "label": "Safe"}]
        (folder / "dia.json").write_text(json.dumps(dia))
    found = [
        [
            load_hh(tmp_path / n / "hh.jsonl", "train")[0].conversation,
            load_bbf(tmp_path / n / "bbf.json", "train")[0].conversation,
            load_diasafety(tmp_path / n / "dia.json", "train")[0].conversation,
        ]
        for n in ("0", "1")
    ]
    assert found[0] == found[1]


def test_counts_compare_in_normal_form() -> None:
    one = Dialogue(("a caf\u00e9?",), "Gladly.", True, "a", "1")
    other = Dialogue(("A cafe\u0301?",), "gladly. ", False, "a", "2")
    counts = count("x", [one, other])
    assert (counts.duplicates, counts.contradictions) == (1, 1)
    (shared,) = overlaps({"train": [one], "test": [other]})
    assert (shared.histories, shared.replies) == (1, 1)
    assert len(draw_histories([one, other], None, 0)) == 1
    assert TextMask([one, other]).apply(one)[1] == "[masked: 1 words]"
    assert TextMask([one]).apply(one)[1] == "Gladly."
    swapped = Dialogue((Turn(A, "a caf\u00e9?"),), "Gladly.", False, "a", "3")
    assert count("x", [one, swapped]).duplicates == 0  # another role says it
