"""ToxicChat (Lin et al. 2023): what users wrote to a chat model, labelled toxic or not.

https://huggingface.co/datasets/lmsys/toxic-chat - CC BY-NC 4.0. CSV, subset `toxicchat0124`. The
label is that of the user's turn, so it is a row of speaker human, for judges. The model's reply is
a row of speaker bot without a label, whose history can be answered. One invented record, without
the columns that are not read:

    {"conv_id": "a1", "user_input": "how are you?", "model_output": "Fine.", "toxicity": 0}
"""

from pathlib import Path
from typing import Any

from flatgd.data.formats.prompts import NO_RESPONSE, is_missing, one_of
from flatgd.dialogue import Dialogue, as_turns
from flatgd.io.any_file import Records
from flatgd.io.records import LeftOut, parse_rows, text_field, word_field

LABELS = {"0": True, "1": False}


def read_toxic_chat(path: Path, records: Records) -> list[Dialogue]:
    """The user's turn and the model's reply of every record."""
    return parse_rows(path, records, _dialogues)


def _dialogues(row: dict[str, Any]) -> list[Dialogue | LeftOut]:
    text, name = text_field(row, "user_input"), f"toxic_chat:{word_field(row, 'conv_id')}"
    is_safe = one_of(row, "toxicity", LABELS)
    asked = Dialogue((), text, is_safe, "toxic_chat", name, "human")
    if is_missing(row.get("model_output")):
        return [asked, NO_RESPONSE]
    reply = text_field(row, "model_output")
    return [asked, Dialogue(as_turns([text]), reply, None, "toxic_chat", name)]
