"""What a judge is: a scorer with a calibration.

A judge is a scorer (linear, hf or trained: anything that scores how toxic a reply is) with a
calibration, fitted on labelled rows that the scorer was not trained on. The calibration turns
scores into probabilities and sets the threshold above which a reply counts as toxic.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from flatgd.dialogue import Dialogue
from flatgd.judges.calibration import Calibration, Scores
from flatgd.judges.reading import Cuts, Pair

Progress = Callable[[int], None]  # called with the number of pairs just scored


class Scorer(Protocol):
    """Anything that scores how toxic a reply is, given its history."""

    def score(self, pairs: Sequence[Pair], advance: Progress = ...) -> Scores:
        """Score of each (history, reply), 0..1, higher is more toxic."""

    def save(self, folder: Path) -> None:
        """Save into `folder`, which exists."""


class Judge(NamedTuple):
    """A scorer with its calibration. A reply counts as toxic above `calibration.threshold`."""

    scorer: Scorer
    calibration: Calibration

    def score(self, pairs: Sequence[Pair], advance: Progress = lambda count: None) -> Scores:
        """P(toxic) of each (history, reply), 0..1."""
        return self.calibration.apply(self.scorer.score(pairs, advance))

    @property
    def cuts(self) -> Cuts:
        """How many of the inputs were truncated; all zero for a scorer that truncates nothing."""
        found: Cuts = getattr(self.scorer, "cuts", Cuts())
        return found


def pairs_of(rows: Sequence[Dialogue]) -> list[Pair]:
    return [(row.texts, row.reply) for row in rows]
