"""The flatness penalty ||grad E||^2 and its gradient. Imports only torch."""

from flatgd.flatness.ahead import Mean, Measured, lookahead, measured_lookahead
from flatgd.flatness.objective import (
    FlatGradient,
    Objective,
    PenaltySettings,
    Split,
    Terms,
    TermWeights,
)
from flatgd.flatness.penalty import (
    exact,
    fast_difference,
    finite_difference,
    is_finite,
    plain_gradient,
    reused_penalty,
)
from flatgd.flatness.step_length import NOISE, StepError, best, step_errors

__all__ = [
    "NOISE",
    "FlatGradient",
    "Mean",
    "Measured",
    "Objective",
    "PenaltySettings",
    "Split",
    "StepError",
    "TermWeights",
    "Terms",
    "best",
    "exact",
    "fast_difference",
    "finite_difference",
    "is_finite",
    "lookahead",
    "measured_lookahead",
    "plain_gradient",
    "reused_penalty",
    "step_errors",
]
