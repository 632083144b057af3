"""What the loaders of prompts and labelled responses share."""

from collections.abc import Mapping
from typing import Any

from flatgd.config.labels import plain_value
from flatgd.dialogue import Dialogue, as_turns, normal_form
from flatgd.io.records import LeftOut, digest, text_field

NO_RESPONSE, NO_LABEL = LeftOut("row without a response"), LeftOut("response without a label")


def response_row(
    source: str, row: Mapping[str, Any], response: str, is_safe: bool | None
) -> Dialogue | LeftOut:
    """A prompt and the response in column `response`. Rows of one prompt are one conversation."""
    prompt = text_field(row, "prompt")
    if response in row and is_missing(row[response]):
        return NO_RESPONSE
    name = f"{source}:{digest(normal_form(prompt))}"
    return Dialogue(as_turns([prompt]), text_field(row, response), is_safe, source, name)


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: null, NaN or blank."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def one_of(row: Mapping[str, Any], key: str, labels: Mapping[str, bool]) -> bool | None:
    """The label in column `key`; None where it is empty. ValueError for any other value."""
    if key not in row:
        raise ValueError(f"no {key!r}; the keys are {', '.join(map(repr, row)) or 'none'}")
    value = plain_value(row[key])
    if value is None:
        return None
    if value not in labels:
        raise ValueError(f"{key!r} must be {' or '.join(labels)}, got {row[key]!r:.40}")
    return labels[value]


BOOLEANS = {"true": True, "false": False}
