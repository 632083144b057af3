"""Losses: pure functions of tensors. Imports torch and nothing of ours."""

from flatgd.losses.divergence import js_divergence
from flatgd.losses.likelihood import negative_log_likelihood

__all__ = ["js_divergence", "negative_log_likelihood"]
