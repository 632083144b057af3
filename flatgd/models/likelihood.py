"""The likelihood of given replies under a model, from which perplexity and contrast follow."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flatgd.dialogue import Dialogue
from flatgd.losses import negative_log_likelihood
from flatgd.models.encoding import IGNORE, Batch, DialogueFormat
from flatgd.models.heads import reply_log_probs, reply_tokens
from flatgd.runtime import distributed


class ReplyLikelihood(NamedTuple):
    """Negative log-likelihood of one reply given its history: `nll` is the sum in nats over its
    `tokens` tokens."""

    nll: float
    tokens: int


def score_replies(
    model: nn.Module,
    dialogue_format: DialogueFormat,
    dialogues: Sequence[Dialogue],
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda done: None,
    log_probs: Callable[[nn.Module, Batch], Tensor] = reply_log_probs,
) -> list[ReplyLikelihood]:
    """The likelihood of each reply, its end token included, in the order of `dialogues`.

    `log_probs` gives the distribution at each token: the model's own or a guide's. Several
    processes divide the batches among them, and each returns all results.
    """
    encoded = dialogue_format.encode_all(dialogues)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].history_ids))
    device = next(model.parameters()).device
    results: dict[int, ReplyLikelihood] = {}
    model.eval()
    for start in range(0, len(order), batch_size)[distributed.rank() :: distributed.count()]:
        rows = order[start : start + batch_size]
        batch = {
            k: v.to(device) for k, v in dialogue_format.collate([encoded[i] for i in rows]).items()
        }
        with torch.no_grad():
            nll_N = negative_log_likelihood(log_probs(model, batch), reply_tokens(batch)[0])
        tokens_B = (batch["targets"] != IGNORE).sum(1).tolist()
        for row, part, tokens in zip(rows, nll_N.split(tokens_B), tokens_B, strict=True):
            results[row] = ReplyLikelihood(float(part.double().sum()), tokens)
        progress(len(rows) * distributed.count())
    merged = {row: found for part in distributed.gathered(results) for row, found in part.items()}
    return [merged[row] for row in range(len(encoded))]
