"""DICES-350 and DICES-990 (Aroyo et al. 2023): a model's replies, rated by many people each.

https://github.com/google-research-datasets/dices-dataset - CC BY 4.0. CSV, one row for each rater
and conversation. `Q_overall` is Yes where the rater finds the reply unsafe. A reply is toxic if
more raters say Yes than No, and safe if more say No; Unsure counts for neither. A tie has no label.
The history is one text whose turns begin with USER: or LAMDA:. One invented record, without the
columns that are not read:

    {"item_id": 7, "context": "USER: hi\\nLAMDA: hello!\\nUSER: how are you?",
     "response": "Fine, thanks.", "Q_overall": "No"}
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flatgd.config.labels import plain_value
from flatgd.dialogue import Dialogue, Role, Turn
from flatgd.errors import DataError, Problem
from flatgd.io.any_file import Records
from flatgd.io.records import parse_rows, text_field

_TURN = re.compile(r"^(USER|LAMDA):[ \t]*", re.MULTILINE)
VOTES = {"yes": False, "no": True, "unsure": None}  # whether the rater finds it safe
VALUE = {True: 1, False: -1, None: 0}


def read_dices(path: Path, records: Records) -> list[Dialogue]:
    """One reply for each conversation, labelled by its raters' majority."""
    rated: dict[str, list[Dialogue]] = defaultdict(list)
    for row in parse_rows(path, records, lambda row: [_rated(row)]):
        rated[row.conversation].append(row)
    return [_majority(rows) for rows in rated.values()]


def _majority(rows: Sequence[Dialogue]) -> Dialogue:
    first = rows[0]
    for row in rows:
        if (row.history, row.reply) != (first.history, first.reply):
            reason = f"another reply than that of its item_id in {first.where}"
            raise DataError([Problem(row.where, 0, reason)])
    votes = sum(VALUE[row.is_safe] for row in rows)
    return replace(first, is_safe=None if votes == 0 else votes > 0)


def _rated(row: dict[str, Any]) -> Dialogue:
    """The reply with one rater's vote as its label."""
    item = plain_value(row.get("item_id"))
    if item is None:
        raise ValueError(f"no 'item_id'; the keys are {', '.join(map(repr, row))}")
    vote = plain_value(row.get("Q_overall"))
    if vote not in VOTES:
        raise ValueError(f"'Q_overall' must be Yes, No or Unsure, got {row.get('Q_overall')!r:.40}")
    history, reply = _turns(text_field(row, "context")), text_field(row, "response")
    return Dialogue(history, reply, VOTES[vote], "dices", f"dices:{item}")


def _turns(context: str) -> tuple[Turn, ...]:
    """
    >>> _turns("USER: hi\\nLAMDA: hello!")
    (Turn(role='user', text='hi'), Turn(role='assistant', text='hello!'))
    """
    before, *parts = _TURN.split(context)
    if before.strip() or not parts:
        raise ValueError("'context' must be turns that begin with USER: or LAMDA:")
    roles: list[Role] = ["user" if who == "USER" else "assistant" for who in parts[::2]]
    return tuple(Turn(role, text.strip()) for role, text in zip(roles, parts[1::2], strict=True))
