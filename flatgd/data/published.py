"""Published sets of prompts and labelled responses, from files or by their name on the hub."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from flatgd.data.formats.aegis import read_aegis
from flatgd.data.formats.beavertails import read_beavertails
from flatgd.data.formats.dices import read_dices
from flatgd.data.formats.pku_saferlhf import read_pku_saferlhf
from flatgd.data.formats.toxic_chat import read_toxic_chat
from flatgd.data.formats.wildguardmix import read_wildguardmix
from flatgd.data.formats.xstest import read_xstest
from flatgd.data.splits import find_split
from flatgd.dialogue import Dialogue
from flatgd.io.any_file import Records, parse_any


class Published(NamedTuple):
    """A set: its names on the hub, and what turns its records into dialogues."""

    hub: tuple[str, ...]
    read: Callable[[Path, Records], list[Dialogue]]


PUBLISHED = {
    "aegis": Published(("nvidia/Aegis-AI-Content-Safety-Dataset-2.0",), read_aegis),
    "beavertails": Published(("PKU-Alignment/BeaverTails",), read_beavertails),
    "dices": Published((), read_dices),
    "pku_saferlhf": Published(
        ("PKU-Alignment/PKU-SafeRLHF", "PKU-Alignment/PKU-SafeRLHF-30K"), read_pku_saferlhf
    ),
    "toxic_chat": Published(("lmsys/toxic-chat",), read_toxic_chat),
    "wildguardmix": Published(("allenai/wildguardmix",), read_wildguardmix),
    "xstest": Published((), read_xstest),
}


def load_published(name: str, path: Path, split: str) -> list[Dialogue]:
    """The rows of one file, or of one split of a folder."""
    path = find_split(path, split)
    return PUBLISHED[name].read(path, parse_any(path))


def published_on_hub(name: str) -> Published | None:
    """The set that is published under a name on the hub."""
    names = {hub.lower(): one for one in PUBLISHED.values() for hub in one.hub}
    return names.get(name.lower())
