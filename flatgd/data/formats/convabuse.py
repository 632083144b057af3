"""ConvAbuse (Cercas Curry et al. 2021): what people say to three bots, abusive or not.

https://github.com/amandacurry/convabuse - CC BY 4.0. CSV, `ConvAbuseEMNLP{train,valid,test}.csv`.
A row has four turns (bot, user, bot, user) and up to eight annotators' ratings of the last user
turn: 1 (no abuse), 0 (ambiguous), -1 to -3 (mild to strong abuse). A shortened invented record:

    example_id,conv_id,prev_agent,prev_user,agent,user,bot,Annotator1_is_abuse.1,...
    7.0,12.0,Hello.,Hi!,How are you?,Fine!,CarbonBot,1,...

All rows have speaker human. They serve as histories to answer and as data for judges, not as
replies to train on. The label is the one that more than half of the ratings give; without such a
majority the row has no label. The published files repeat a column that is not read here.
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
REQUIRED = {"conv_id", "bot", "user", *dict(TURNS)}
_RATING = re.compile(r"Annotator\d+_is_abuse\.(-?\d)")


def load_convabuse(path: Path, split: Split) -> list[Dialogue]:
    """The user turns of one file or one split of a folder."""
    path = find_split(path, split)
    return parse_rows(path, parse_table(path, is_read=_is_read), _dialogues)


def _is_read(column: str) -> bool:
    return column in REQUIRED or _RATING.fullmatch(column) is not None


def _ratings(row: dict[str, str]) -> list[int]:
    """All ratings. A cell holds 1 if its rating was given, and `1, 1` if it was given twice."""
    return [
        int(found.group(1))
        for name, cells in row.items()
        if (found := _RATING.fullmatch(name))
        for cell in cells.split(",")
        if cell.strip() == "1"
    ]


def _dialogues(row: dict[str, Any]) -> list[Dialogue]:
    if missing := REQUIRED - row.keys():
        raise ValueError(f"no column {', '.join(sorted(missing))}")
    history = tuple(
        Turn(role, checked_text(row[name])) for name, role in TURNS if row[name].strip()
    )
    ratings = _ratings(row)
    abuse, fine = sum(r < 0 for r in ratings), sum(r > 0 for r in ratings)
    label = False if 2 * abuse > len(ratings) else True if 2 * fine > len(ratings) else None
    name = f"convabuse:{word_field(row, 'bot')}:{word_field(row, 'conv_id')}"
    reply = text_field(row, "user")
    return [Dialogue(history, reply, label, "convabuse", name, "human")]
