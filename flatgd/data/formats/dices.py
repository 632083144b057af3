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
from pathlib import Path
from typing import Any, NamedTuple

from flatgd.config.labels import plain_value
from flatgd.dialogue import Dialogue, Role, Turn
from flatgd.io.any_file import Records
from flatgd.io.records import parse_rows, text_field

_TURN = re.compile(r"^(USER|LAMDA):[ \t]*", re.MULTILINE)
VOTES = {"yes": -1, "no": 1, "unsure": 0}


class _Rating(NamedTuple):
    """One rater's vote: 1 safe, -1 unsafe, 0 unsure."""

    item: str
    history: tuple[Turn, ...]
    reply: str
    vote: int


def read_dices(path: Path, records: Records) -> list[Dialogue]:
    """One reply for each conversation, labelled by its raters' majority."""
    by_item: dict[str, list[_Rating]] = defaultdict(list)
    for rating in parse_rows(path, records, lambda row: [_rating(row)]):
        by_item[rating.item].append(rating)
    found = []
    for item, ratings in by_item.items():
        votes = sum(rating.vote for rating in ratings)
        is_safe = None if votes == 0 else votes > 0
        first = ratings[0]
        found.append(Dialogue(first.history, first.reply, is_safe, "dices", f"dices:{item}"))
    return found


def _rating(row: dict[str, Any]) -> _Rating:
    item = plain_value(row.get("item_id"))
    if item is None:
        raise ValueError(f"no 'item_id'; the keys are {', '.join(map(repr, row))}")
    vote = plain_value(row.get("Q_overall"))
    if vote not in VOTES:
        raise ValueError(f"'Q_overall' must be Yes, No or Unsure, got {row.get('Q_overall')!r:.40}")
    history = _turns(text_field(row, "context"))
    return _Rating(item, history, text_field(row, "response"), VOTES[vote])


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
