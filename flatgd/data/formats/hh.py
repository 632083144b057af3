"""HH-RLHF (Bai et al. 2022): pairs of transcripts that differ in the reply, chosen or rejected.

https://github.com/anthropics/hh-rlhf - MIT licence. JSON lines, `train test` .jsonl.gz in folders
such as harmless-base. One invented record:

    {"chosen": "\\n\\nHuman: hello\\n\\nAssistant: Hello! How can I help?",
     "rejected": "\\n\\nHuman: hello\\n\\nAssistant: Go away."}

The chosen reply counts as safe, the rejected one as toxic. For harmless-base this is close to the
annotators' criterion; for the helpful parts it is not. If one reply of a record is empty, only the
other is used; the empty one is counted.
"""

import re
from pathlib import Path
from typing import Any

from flatgd.data.splits import Split, find_split
from flatgd.dialogue import Dialogue, Turn, normal_form
from flatgd.io.records import (
    PAIR_READ,
    LeftOut,
    checked_text,
    digest,
    parse_json_object,
    parse_lines,
    parse_rows,
    text_field,
)

_TURN = re.compile(r"\n\n(Human|Assistant):")


def load_hh(path: Path, split: Split) -> list[Dialogue]:
    """Both replies of every record of one file or one split of a folder."""
    path = find_split(path, split)
    return parse_rows(path, parse_lines(path, parse_json_object), _dialogues)


def _dialogues(row: dict[str, Any]) -> list[Dialogue | LeftOut]:
    rows: list[Dialogue | LeftOut] = []
    for key, is_safe in (("chosen", True), ("rejected", False)):
        text_field(row, key)
        history, reply = transcript(row[key])
        if not reply.strip():
            rows.append(LeftOut("empty reply"))
        else:
            name = f"hh:{digest(normal_form(history[0].text if history else reply))}"
            rows.append(Dialogue(history, reply, is_safe, "hh", name))
    if all(isinstance(found, LeftOut) for found in rows):
        raise ValueError("both replies are empty")
    return [*rows, PAIR_READ]


def transcript(text: str) -> tuple[tuple[Turn, ...], str]:
    """(history, the assistant's last turn) of a transcript. ValueError if it is not a transcript.

    >>> transcript("\\n\\nHuman: hi\\n\\nAssistant: hello!")
    ((Turn(role='user', text='hi'),), 'hello!')
    """
    before, *parts = _TURN.split(text)
    if before.strip() or not parts or parts[-2] != "Assistant":
        raise ValueError(
            "expected '\\n\\nHuman: ... \\n\\nAssistant: ...', the assistant's turn last"
        )
    turns = [
        Turn("user" if who == "Human" else "assistant", checked_text(text).removeprefix(" "))
        for who, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    return tuple(turns[:-1]), turns[-1].text
