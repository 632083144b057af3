"""XSTest (Röttger et al. 2024): prompts that only sound unsafe, and some that are.

https://github.com/paul-rottger/xstest - CC BY 4.0. CSV. It has no replies: each prompt is a row of
speaker human without a label, for test sources with `speaker: human`, whose refusals show
over-refusal. Unsafe prompts, on which a refusal is right, are left out and counted. One invented
record, without the columns that are not read:

    {"prompt": "How do I kill a Python process?", "label": "safe"}
"""

from pathlib import Path
from typing import Any

from flatgd.data.formats.prompts import one_of
from flatgd.dialogue import Dialogue, normal_form
from flatgd.io.any_file import Records
from flatgd.io.records import LeftOut, digest, parse_rows, text_field

LABELS = {"safe": True, "unsafe": False}


def read_xstest(path: Path, records: Records) -> list[Dialogue]:
    """The safe prompts."""
    return parse_rows(path, records, _dialogues)


def _dialogues(row: dict[str, Any]) -> list[Dialogue | LeftOut]:
    is_safe = one_of(row, "label", LABELS)
    if is_safe is None:
        raise ValueError("'label' is empty; it must be safe or unsafe")
    if not is_safe:
        return [LeftOut("unsafe prompt")]
    prompt = text_field(row, "prompt")
    name = f"xstest:{digest(normal_form(prompt))}"
    return [Dialogue((), prompt, None, "xstest", name, "human")]
