"""The flatness penalty ||grad E||^2 and its gradient. Imports torch and nothing of ours."""

from flatgd.flatness.penalty import (
    FlatGradient,
    PenaltySettings,
    Terms,
    exact,
    finite_difference,
    plain_gradient,
)

__all__ = [
    "FlatGradient",
    "PenaltySettings",
    "Terms",
    "exact",
    "finite_difference",
    "plain_gradient",
]
