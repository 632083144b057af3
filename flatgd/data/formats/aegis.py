"""Aegis 2.0 (Ghosh et al. 2025): prompts, many with a response, labelled safe or unsafe.

https://huggingface.co/datasets/nvidia/Aegis-AI-Content-Safety-Dataset-2.0 - CC BY 4.0. JSON arrays,
`train validation test` .json. Records without a response or a label of it, and prompts that the
publishers replaced by REDACTED, are left out and counted. One invented record, without the columns
that are not read:

    {"prompt": "how are you?", "response": "Fine, thanks.", "response_label": "safe"}
"""

from pathlib import Path
from typing import Any

from flatgd.data.formats.prompts import NO_LABEL, one_of, response_row
from flatgd.dialogue import Dialogue
from flatgd.io.any_file import Records
from flatgd.io.records import LeftOut, parse_rows

LABELS = {"safe": True, "unsafe": False}
REDACTED = "REDACTED"


def read_aegis(path: Path, records: Records) -> list[Dialogue]:
    """The responses by `response_label`."""
    return parse_rows(path, records, _dialogues)


def _dialogues(row: dict[str, Any]) -> list[Dialogue | LeftOut]:
    if row.get("prompt") == REDACTED:
        return [LeftOut("redacted prompt")]
    is_safe = one_of(row, "response_label", LABELS)
    found = response_row("aegis", row, "response", is_safe)
    return [NO_LABEL if is_safe is None and isinstance(found, Dialogue) else found]
