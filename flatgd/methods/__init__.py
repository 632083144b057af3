"""Every system of a comparison. Each has one file with its formula, source and defaults.

To add one, write a file here, a line in METHODS, and a row in docs/method.md.
"""

from flatgd.methods.base import Merge, Method, System, Totals
from flatgd.methods.checkpoint import Checkpoint
from flatgd.methods.clean import Clean
from flatgd.methods.click import Click
from flatgd.methods.cringe import Cringe
from flatgd.methods.dexperts import DExperts
from flatgd.methods.director import Director
from flatgd.methods.experts_guide import ExpertGuide
from flatgd.methods.flatgd import FlatGD
from flatgd.methods.gedi import GeDi
from flatgd.methods.gnp import GNP
from flatgd.methods.npo import NPO
from flatgd.methods.safety_loss import SafetyLoss
from flatgd.methods.sam import SAM
from flatgd.methods.task_arithmetic import TaskArithmetic
from flatgd.methods.unlikelihood import Unlikelihood

TRAINED: tuple[type[Method], ...] = (
    *(Clean, Unlikelihood, Cringe, Director, Click, NPO),
    *(SafetyLoss, FlatGD, GNP, SAM),
)
UNTRAINED: tuple[type[System], ...] = (DExperts, GeDi, TaskArithmetic, Checkpoint)
METHODS: dict[str, type[System]] = {kind.name: kind for kind in (*TRAINED, *UNTRAINED)}

__all__ = [
    "GNP",
    "METHODS",
    "NPO",
    "SAM",
    "Checkpoint",
    "Clean",
    "Click",
    "Cringe",
    "DExperts",
    "Director",
    "ExpertGuide",
    "FlatGD",
    "GeDi",
    "Merge",
    "Method",
    "SafetyLoss",
    "System",
    "TaskArithmetic",
    "Totals",
    "Unlikelihood",
]
