"""The flatness penalty ||grad E||^2 and its gradient. Imports torch and nothing of ours."""

from flatgd.flatness.penalty import (
    FlatGradient,
    Mix,
    Objective,
    PenaltySettings,
    Split,
    Terms,
    exact,
    fast_difference,
    finite_difference,
    is_finite,
    plain_gradient,
)

__all__ = [
    "FlatGradient",
    "Mix",
    "Objective",
    "PenaltySettings",
    "Split",
    "Terms",
    "exact",
    "fast_difference",
    "finite_difference",
    "is_finite",
    "plain_gradient",
]
