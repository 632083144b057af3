"""ConvAbuse (Cercas Curry et al. 2021): what people said to three bots, abuse or not.

https://github.com/amandacurry/convabuse - CC BY 4.0. CSV, `ConvAbuseEMNLP{train,valid,test}.csv`:
conversation, four turns (bot, user, bot, user) and the marks of up to eight annotators on the last
user turn, 1 (no abuse), 0 (ambiguous), -1 to -3 (mild to strong abuse). An invented record, cut:

    example_id,conv_id,prev_agent,prev_user,agent,user,bot,Annotator1_is_abuse.1,...
    7.0,12.0,Hello.,Hi!,How are you?,Fine!,CarbonBot,1,...

All rows are of speaker human: histories to answer, and data for judges; no replies to train on. A
label needs more than half of the marks: abuse, or none; else the row has no label. One column of
the published files, which is not read, stands twice.
"""

import re
from pathlib import Path
from typing import Any

from flatgd.data.splits import Split, find_split
from flatgd.dialogue import Dialogue, Role, Turn
from flatgd.io.records import checked_text, parse_rows, text_field, word_field
from flatgd.io.tables import parse_table

TURNS: tuple[tuple[str, Role], ...] = (
    ("prev_agent", "assistant"),
    ("prev_user", "user"),
    ("agent", "assistant"),
)
_MARK = re.compile(r"Annotator\d+_is_abuse\.(-?\d)")


def load_convabuse(path: Path, split: Split) -> list[Dialogue]:
    """The user turns of one file or one split of a folder."""
    path = find_split(path, split)
    return parse_rows(path, parse_table(path, twins=True), _dialogues)


def _marks(row: dict[str, str]) -> list[int]:
    """Every mark given. A cell holds a 1 where its mark was given, `1, 1` where given twice."""
    return [
        int(found.group(1))
        for name, cells in row.items()
        if (found := _MARK.fullmatch(name))
        for cell in cells.split(",")
        if cell.strip() == "1"
    ]


def _dialogues(row: dict[str, Any]) -> list[Dialogue]:
    if missing := {"conv_id", "bot", "user", *dict(TURNS)} - row.keys():
        raise ValueError(f"no column {', '.join(sorted(missing))}")
    history = tuple(
        Turn(role, checked_text(row[name])) for name, role in TURNS if row[name].strip()
    )
    marks = _marks(row)
    abuse, fine = sum(m < 0 for m in marks), sum(m > 0 for m in marks)
    label = False if 2 * abuse > len(marks) else True if 2 * fine > len(marks) else None
    name = f"convabuse:{word_field(row, 'bot')}:{word_field(row, 'conv_id')}"
    reply = text_field(row, "user")
    return [Dialogue(history, reply, label, "convabuse", name, "human")]
