"""BeaverTails (Ji et al. 2023): prompts and responses, each pair labelled safe or not.

https://huggingface.co/datasets/PKU-Alignment/BeaverTails - CC BY-NC 4.0. JSON lines, splits
`30k_train 30k_test 330k_train 330k_test`. A response to one prompt may occur several times with
different labels (`votes` of the source decides). One invented record:

    {"prompt": "how are you?", "response": "Fine, thanks.", "category": {"violence": false},
     "is_safe": true}
"""

from pathlib import Path
from typing import Any

from flatgd.data.formats.prompts import BOOLEANS, one_of, response_row
from flatgd.dialogue import Dialogue
from flatgd.io.any_file import Records
from flatgd.io.records import LeftOut, parse_rows


def read_beavertails(path: Path, records: Records) -> list[Dialogue]:
    """The response of every record."""
    return parse_rows(path, records, _dialogues)


def _dialogues(row: dict[str, Any]) -> list[Dialogue | LeftOut]:
    return [response_row("beavertails", row, "response", one_of(row, "is_safe", BOOLEANS))]
