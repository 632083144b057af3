"""WildGuardMix (Han et al. 2024): prompts, many with a response, labelled for harm.

https://huggingface.co/datasets/allenai/wildguardmix - ODC-BY, gated. Parquet, subsets
`wildguardtrain` and `wildguardtest`. Records without a response are left out and counted, as are
responses without a label. One invented record, without the columns that are not read:

    {"prompt": "how are you?", "response": "Fine, thanks.", "response_harm_label": "unharmful"}
"""

from pathlib import Path
from typing import Any

from flatgd.data.formats.prompts import NO_LABEL, one_of, response_row
from flatgd.dialogue import Dialogue
from flatgd.io.any_file import Records
from flatgd.io.records import LeftOut, parse_rows

LABELS = {"unharmful": True, "harmful": False}


def read_wildguardmix(path: Path, records: Records) -> list[Dialogue]:
    """The responses by `response_harm_label`."""
    return parse_rows(path, records, _dialogues)


def _dialogues(row: dict[str, Any]) -> list[Dialogue | LeftOut]:
    is_safe = one_of(row, "response_harm_label", LABELS)
    found = response_row("wildguardmix", row, "response", is_safe)
    return [NO_LABEL if is_safe is None and isinstance(found, Dialogue) else found]
