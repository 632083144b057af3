"""The ways to fine-tune a dialogue model: one file each, its own loss inside.

To add one: a file here, a line in METHODS, a row in docs/method.md.
"""

from flatgd.methods.base import Method, Totals
from flatgd.methods.clean import Clean
from flatgd.methods.flatgd import FlatGD
from flatgd.methods.safety_loss import SafetyLoss

METHODS: dict[str, type[Method]] = {
    "clean": Clean,
    "safety_loss": SafetyLoss,
    "flatgd": FlatGD,
}

__all__ = ["METHODS", "Clean", "FlatGD", "Method", "SafetyLoss", "Totals"]
