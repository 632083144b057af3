"""A model that someone else has trained, beside ours: sampled from, judged and scored as it is.

methods: {mine: {checkpoint: FOLDER_OR_HUB_NAME}}
"""

from dataclasses import dataclass

from flatgd.methods.base import System


@dataclass
class Checkpoint(System):
    name = "checkpoint"
    summary = "trained elsewhere."
