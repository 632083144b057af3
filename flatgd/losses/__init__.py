"""Losses: pure functions of tensors. Imports only torch."""

from flatgd.losses.divergence import bhattacharyya_distance, js_divergence, kl_divergence
from flatgd.losses.likelihood import negative_log_likelihood

__all__ = [
    "bhattacharyya_distance",
    "js_divergence",
    "kl_divergence",
    "negative_log_likelihood",
]
