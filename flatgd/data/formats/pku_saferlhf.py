"""PKU-SafeRLHF (Ji et al. 2024): two responses to each prompt, each labelled safe or not.

https://huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF - CC BY-NC 4.0. JSON lines or Parquet.
Both responses may be safe, and both unsafe. One invented record, without the columns that are not
read:

    {"prompt": "how are you?", "response_0": "Fine, thanks.", "response_1": "Go away.",
     "is_response_0_safe": true, "is_response_1_safe": false}
"""

from pathlib import Path
from typing import Any

from flatgd.data.formats.prompts import BOOLEANS, NO_LABEL, one_of, response_row
from flatgd.dialogue import Dialogue
from flatgd.io.any_file import Records
from flatgd.io.records import LeftOut, parse_rows


def read_pku_saferlhf(path: Path, records: Records) -> list[Dialogue]:
    """Both responses of every record."""
    return parse_rows(path, records, _dialogues)


def _dialogues(row: dict[str, Any]) -> list[Dialogue | LeftOut]:
    found: list[Dialogue | LeftOut] = []
    for n in (0, 1):
        is_safe = one_of(row, f"is_response_{n}_safe", BOOLEANS)
        response = response_row("pku_saferlhf", row, f"response_{n}", is_safe)
        found.append(NO_LABEL if is_safe is None and isinstance(response, Dialogue) else response)
    return found
