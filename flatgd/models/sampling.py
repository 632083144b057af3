"""Sampling of replies from a model, many rows at once.

Each reply has its own random numbers, one for each token, so it depends on neither the rows that
share its batch nor their order. A token is drawn by inverting the cumulative distribution.

Shapes: G histories, R rows (G times replies), V vocabulary, T tokens of a reply.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from flatgd.config.recipe import Generate
from flatgd.models.encoding import Batch
from flatgd.models.reader import Reader

NUCLEUS = 1024  # tokens among which the nucleus is looked for first; sorting all takes longer
SHRINK = 4  # ended rows leave the batch when they are one in this many


def sample(
    model: nn.Module,
    prompt: Batch,
    settings: Generate,
    stops: Sequence[int],
    uniform_GST: Tensor,
    processor: LogitsProcessor | None = None,
) -> list[list[int]]:
    """`uniform_GST.shape[1]` replies to each history as ids, their end included; the replies to one
    history follow each other.

    A reply ends at an id in `stops`. `uniform_GST` are random numbers in [0, 1). A `processor`
    turns the model's logits into the distribution, with temperature and nucleus applied; it sees
    all rows at every step.
    """
    uniform_RT = uniform_GST.flatten(0, 1)
    device = prompt["input_ids"].device
    repeats = uniform_GST.shape[1]
    ends = torch.tensor(stops, device=device)
    rows = torch.arange(len(uniform_RT), device=device)
    whole = {key: value.repeat_interleave(repeats, 0) for key, value in prompt.items()}
    if processor is None:  # the prompt is read once for all its replies
        reader = Reader(model, prompt)
        reader.select(rows // repeats)
    else:
        reader = Reader(model, whole)
    said = whole.get("decoder_input_ids", whole["input_ids"])
    ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
    replies: list[list[int]] = [[] for _ in range(len(rows))]
    for place in range(settings.max_new_tokens):
        scores = reader.logits.float()
        if place < settings.min_new_tokens:
            scores = scores.index_fill(1, ends, float("-inf"))
        if processor is None:
            shape = settings.temperature, settings.top_p
        else:
            scores, shape = processor(said, scores), (1.0, 1.0)
        tokens = drawn(scores, *shape, uniform_RT[rows.cpu(), place].to(device))
        for row, token, is_over in zip(rows.tolist(), tokens.tolist(), ended.tolist(), strict=True):
            if not is_over:
                replies[row].append(token)
        ended = ended | torch.isin(tokens, ends)
        if ended.all() or place + 1 == settings.max_new_tokens:
            break
        if processor is not None:
            said = torch.cat([said, tokens[:, None]], 1)
        elif ended.sum() * SHRINK >= len(ended):
            left = (~ended).nonzero()[:, 0]
            reader.select(left)
            rows, tokens, ended = rows[left], tokens[left], ended[left]
        reader.read(tokens[:, None])
    return replies


def drawn(scores_RV: Tensor, temperature: float, top_p: float, uniform_R: Tensor) -> Tensor:
    """One token of each row, [R]: from the smallest set of most probable tokens that together reach
    `top_p`. The rows' random numbers decide."""
    p_RV = (scores_RV / temperature).softmax(-1)
    if top_p < 1:
        p_RV = _nucleus(p_RV, top_p)
    total_RV = p_RV.double().cumsum(-1)
    wanted_R1 = uniform_R.double()[:, None] * total_RV[:, -1:]
    place_R1 = torch.searchsorted(total_RV, wanted_R1, right=True)
    return place_R1.clamp(max=p_RV.shape[-1] - 1)[:, 0]


def _nucleus(p_RV: Tensor, top_p: float) -> Tensor:
    """The probabilities, with 0 outside of the nucleus. Rows that need more than NUCLEUS tokens are
    sorted as a whole; sorting all rows takes longer than the model's own pass."""
    if p_RV.shape[-1] <= NUCLEUS:
        return _kept(p_RV, *p_RV.sort(descending=True, stable=True), top_p)
    high_RK, ids_RK = p_RV.topk(NUCLEUS)
    is_wide_R = high_RK.sum(-1) < top_p
    kept_RV = _kept(p_RV, high_RK, ids_RK, top_p)
    if bool(is_wide_R.any()):
        wide_RV = p_RV[is_wide_R]
        kept_RV[is_wide_R] = _kept(wide_RV, *wide_RV.sort(descending=True, stable=True), top_p)
    return kept_RV


def _kept(p_RV: Tensor, high_RK: Tensor, ids_RK: Tensor, top_p: float) -> Tensor:
    before_RK = high_RK.cumsum(-1) - high_RK
    return torch.zeros_like(p_RV).scatter_(-1, ids_RK, high_RK.masked_fill(before_RK >= top_p, 0.0))


def uniform_numbers(seed: int, row: int, replies: int, tokens: int) -> Tensor:
    """Random numbers in [0, 1) for the replies to one history, [replies, tokens]."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + row) % 2**63)
    return torch.rand(replies, tokens, dtype=torch.float64, generator=generator)
