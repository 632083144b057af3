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

__all__ = [
    "FlatGradient",
    "Objective",
    "PenaltySettings",
    "Split",
    "TermWeights",
    "Terms",
    "exact",
    "fast_difference",
    "finite_difference",
    "is_finite",
    "plain_gradient",
]
