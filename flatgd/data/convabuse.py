"""ConvAbuse (Cercas Curry et al. 2021): what people said to three bots, abuse or not.

https://github.com/amandacurry/convabuse - CC BY 4.0. CSV, `ConvAbuseEMNLP{train,valid,test}.csv`:
conversation, four turns (bot, user, bot, user) and the marks of up to eight annotators on the last
user turn, 1 (no abuse), 0 (ambiguous), -1 to -3 (mild to strong abuse). An invented record, cut:

    example_id,conv_id,prev_agent,prev_user,agent,user,bot,Annotator1_is_abuse.1,...
    7.0,12.0,Hello.,Hi!,How are you?,Fine!,CarbonBot,1,...

All rows are of speaker human: histories to answer, and data for judges; no replies to train on. A
label needs more than half of the marks: abuse, or none; else the row has no label.
"""

import csv
import re
from io import StringIO
from pathlib import Path
from typing import Any

from flatgd.data.splits import Split, find_split
from flatgd.errors import DataError, Problem
from flatgd.records import Dialogue, clean_text, parse_rows, read_text, text_field

TURNS = ("prev_agent", "prev_user", "agent", "user")
_MARK = re.compile(r"Annotator\d+_is_abuse\.(-?\d)")


def load_convabuse(path: Path, split: Split) -> list[Dialogue]:
    """The user turns of one file or one split of a folder."""
    path = find_split(path, split)
    reader = csv.DictReader(StringIO(read_text(path), newline=""))
    missing = {"conv_id", *TURNS} - set(reader.fieldnames or ())
    marks = [name for name in reader.fieldnames or () if _MARK.fullmatch(name)]
    if missing or not marks:
        wanted = ", ".join(sorted(missing)) or "Annotator1_is_abuse.1"
        raise DataError([Problem(str(path), 1, f"no column {wanted}")])
    rows = ((reader.line_num, {**row, "marks": _marks(row, marks)}) for row in reader)
    return parse_rows(path, rows, _dialogues)


def _marks(row: dict[str, Any], columns: list[str]) -> list[int]:
    """Every mark given. A cell holds a 1 where its mark was given, `1, 1` where given twice."""
    return [
        int(found.group(1))
        for name in columns
        if (found := _MARK.fullmatch(name))
        for cell in (row[name] or "").split(",")
        if cell.strip() == "1"
    ]


def _dialogues(row: dict[str, Any]) -> list[Dialogue]:
    if None in row.values():
        raise ValueError("fewer cells than the header has columns")
    history = tuple(line for name in TURNS[:-1] if (line := clean_text(row[name])))
    marks = row["marks"]
    abuse, fine = sum(m < 0 for m in marks), sum(m > 0 for m in marks)
    label = False if 2 * abuse > len(marks) else True if 2 * fine > len(marks) else None
    name = f"convabuse:{text_field(row, 'bot')}:{text_field(row, 'conv_id')}"
    reply = text_field(row, "user")
    return [Dialogue(history, reply, label, "convabuse", name, "human")]
