"""The flatness penalty ||grad E||^2 and its gradient. Imports only torch."""

from flatgd.flatness.penalty import (
    FlatGradient,
    Objective,
    PenaltySettings,
    Split,
    Terms,
    TermWeights,
    exact,
    fast_difference,
    finite_difference,
    is_finite,
    plain_gradient,
)
from flatgd.flatness.step_length import NOISE, StepError, best, step_errors

__all__ = [
    "NOISE",
    "FlatGradient",
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
    "plain_gradient",
    "step_errors",
]
