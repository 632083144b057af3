"""Likelihood of given replies. Shapes: N reply tokens, V vocabulary."""

from torch import Tensor


def negative_log_likelihood(log_p_NV: Tensor, targets_N: Tensor) -> Tensor:
    """-log p of each target token (Eq. 3 before its sum); no reduction; nats, >= 0. Shape [N]."""
    return -log_p_NV.gather(-1, targets_N[:, None]).squeeze(-1)
