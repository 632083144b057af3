"""The likelihood of given replies under a model, from which perplexity and contrast follow, and how
far a model has moved from another one.

Shapes: N reply tokens of a batch, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flatgd.dialogue import Dialogue
from flatgd.losses import kl_divergence, negative_log_likelihood
from flatgd.losses.divergence import LN_2
from flatgd.losses.fused import wide_log_softmax
from flatgd.models.batching import READ_AT_ONCE, at_once, token_batches
from flatgd.models.encoding import IGNORE, Batch, DialogueFormat, Example, padded
from flatgd.models.heads import reply_logits, reply_tokens
from flatgd.models.reader import Reader
from flatgd.runtime import distributed

LogProbs = Callable[[nn.Module, Batch], Tensor]
SHARED = 2  # replies to a history, on average, from which on it is read once for all of them
SAME = 8  # tokens at the beginning of all rows, from which on they are read once
CHUNK = 256  # tokens whose logits are raised to float32 at once


class ReplyLikelihood(NamedTuple):
    """Negative log-likelihood of one reply given its history: `nll` is the sum in nats over its
    `tokens` tokens."""

    nll: float
    tokens: int


class ReplyDivergence(NamedTuple):
    """KL divergence over one reply: `kl` is the sum in nats over its `tokens` tokens."""

    kl: float
    tokens: int


def score_replies(
    model: nn.Module,
    dialogue_format: DialogueFormat,
    dialogues: Sequence[Dialogue],
    tokens_at_once: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
    log_probs: LogProbs | None = None,
) -> list[ReplyLikelihood]:
    """The likelihood of each reply, its end token included, in the order of `dialogues`.

    `log_probs` gives a guide's distribution at each token, instead of the model's own. A batch
    holds `tokens_at_once` tokens. Where many replies answer one history, it is read once for them,
    and so is a beginning that all rows of a batch share.
    Several processes divide the batches among them, and each returns all results.
    """
    encoded = dialogue_format.encode_all(dialogues)
    device = next(model.parameters()).device
    budget = tokens_at_once or at_once(READ_AT_ONCE, device)
    work = _Work(model, dialogue_format, encoded, device, log_probs)
    groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, example in enumerate(encoded):
        groups[tuple(example.history_ids)].append(row)
    is_shared = log_probs is None and len(encoded) >= SHARED * len(groups)
    parts = (
        _shared(encoded, list(groups.values()), budget) if is_shared else _alone(encoded, budget)
    )
    model.eval()
    of_part = work.of_groups if is_shared else work.of_rows
    return [ReplyLikelihood(*found) for found in _summed(encoded, parts, of_part, progress)]


def kl_to(
    first: tuple[nn.Module, LogProbs | None],
    second: tuple[nn.Module, LogProbs | None],
    dialogue_format: DialogueFormat,
    dialogues: Sequence[Dialogue],
    progress: Callable[[int], None] = lambda done: None,
) -> list[ReplyDivergence]:
    """KL(first || second) of the distributions over the next token at each reply token, exact.

    Both are models with one vocabulary, on one device, each with its guide's `log_probs` or None.
    """
    encoded = dialogue_format.encode_all(dialogues)
    device = next(first[0].parameters()).device
    works = [_Work(m, dialogue_format, encoded, device, guide) for m, guide in (first, second)]

    def of_rows(rows: list[int]) -> Tensor:
        first_NV, second_NV = (work.logits(rows) for work in works)
        pairs = zip(first_NV.split(CHUNK), second_NV.split(CHUNK), strict=True)
        return LN_2 * torch.cat([kl_divergence(*map(wide_log_softmax, pair)) for pair in pairs])

    for model, _ in (first, second):
        model.eval()
    parts = _alone(encoded, at_once(READ_AT_ONCE, device))
    return [ReplyDivergence(*found) for found in _summed(encoded, parts, of_rows, progress)]


def _summed(
    encoded: Sequence[Example],
    parts: Iterable[list[int]],
    of_part: Callable[[list[int]], Tensor],
    progress: Callable[[int], None],
) -> list[tuple[float, int]]:
    """(sum, number) of the values [N] that `of_part` gives to the reply tokens of each row."""
    results: dict[int, tuple[float, int]] = {}
    for rows in list(parts)[distributed.rank() :: distributed.count()]:
        with torch.no_grad():
            values_N = of_part(rows)
        tokens = [len(encoded[row].reply_ids) for row in rows]
        for row, part, count in zip(rows, values_N.split(tokens), tokens, strict=True):
            results[row] = float(part.double().sum()), count
        progress(len(rows) * distributed.count())
    merged = {row: found for part in distributed.gathered(results) for row, found in part.items()}
    return [merged[row] for row in range(len(encoded))]


def _alone(encoded: Sequence[Example], budget: int) -> Iterator[list[int]]:
    """Batches of rows, each with its history."""
    yield from token_batches([len(e.history_ids) + len(e.reply_ids) for e in encoded], budget)


def _shared(
    encoded: Sequence[Example], groups: Sequence[list[int]], budget: int
) -> Iterator[list[int]]:
    """Batches of whole groups, the rows of one history."""
    lengths = [
        len(encoded[rows[0]].history_ids) + len(rows) * max(len(encoded[r].reply_ids) for r in rows)
        for rows in groups
    ]
    for batch in token_batches(lengths, budget):
        yield [row for group in batch for row in groups[group]]


class _Work(NamedTuple):
    """Batches of rows scored with one model."""

    model: nn.Module
    dialogue_format: DialogueFormat
    encoded: Sequence[Example]
    device: torch.device
    log_probs: LogProbs | None

    def of_rows(self, rows: list[int]) -> Tensor:
        """NLL [N] of every reply token, row by row."""
        batch = self._batch(rows)
        targets_N = reply_tokens(batch)[0]
        if self.log_probs is not None:
            return negative_log_likelihood(self.log_probs(self.model, batch), targets_N)
        beginning = self._beginning(batch)
        if beginning < SAME:
            return _nll(reply_logits(self.model, batch), targets_N)
        first = {key: batch[key][:1, :beginning] for key in ("input_ids", "attention_mask")}
        reader = Reader(self.model, first)
        reader.select(torch.zeros(len(rows), dtype=torch.long, device=self.device))
        rest = {key: value[:, beginning:] for key, value in batch.items() if value.dim() == 2}
        given = rest["input_ids"], rest["attention_mask"] > 0, rest["targets"] != IGNORE
        return _nll(reader.logits_at(*given), targets_N)

    def _beginning(self, batch: Batch) -> int:
        """The number of tokens with which all rows begin, such as a template's system message;
        none of them has a target. 0 for encoder-decoders."""
        if "decoder_input_ids" in batch or len(batch["input_ids"]) == 1:
            return 0
        ids_RT = batch["input_ids"]
        differs_T = (ids_RT != ids_RT[:1]).any(0) | (batch["targets"] != IGNORE).any(0)
        return int(differs_T.int().argmax())

    def logits(self, rows: list[int]) -> Tensor:
        """What log_softmax turns into the distributions [N, V] at every reply token."""
        batch = self._batch(rows)
        if self.log_probs is not None:
            return self.log_probs(self.model, batch)
        return reply_logits(self.model, batch)

    def of_groups(self, rows: list[int]) -> Tensor:
        """The same for rows of which those with one history follow each other."""
        firsts: list[Example] = []  # of each group
        group_of = []
        for row in rows:
            if not firsts or self.encoded[row].history_ids != firsts[-1].history_ids:
                firsts.append(self.encoded[row])
            group_of.append(len(firsts) - 1)
        reader = Reader(self.model, self._moved(self.dialogue_format.prompt(firsts)))
        reader.select(torch.tensor(group_of, device=self.device))
        replies = [self.encoded[row].reply_ids for row in rows]
        first_R1 = _nll(reader.logits, self._tensor([[ids[0]] for ids in replies])[:, 0])[:, None]
        targets_RT = self._tensor([[*ids[1:], IGNORE] for ids in replies])
        real_RT = targets_RT != IGNORE
        if not real_RT.any():
            return first_R1[:, 0]
        width = int(real_RT.sum(1).max())
        fed_RT = self._tensor([[*ids[:-1], IGNORE] for ids in replies]).clamp(min=0)
        targets_RT, real_RT, fed_RT = (t[:, :width] for t in (targets_RT, real_RT, fed_RT))
        rest_RT = torch.zeros_like(targets_RT, dtype=first_R1.dtype)
        rest_RT[real_RT] = _nll(reader.logits_at(fed_RT, real_RT, real_RT), targets_RT[real_RT])
        is_token_RT = torch.cat([torch.ones_like(real_RT[:, :1]), real_RT], 1)
        return torch.cat([first_R1, rest_RT], 1)[is_token_RT]

    def _tensor(self, rows: list[list[int]]) -> Tensor:
        return padded(rows, IGNORE).to(self.device)

    def _batch(self, rows: list[int]) -> Batch:
        return self._moved(self.dialogue_format.collate([self.encoded[row] for row in rows]))

    def _moved(self, batch: Batch) -> Batch:
        return {key: value.to(self.device) for key, value in batch.items()}


def _nll(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """-log softmax at the targets in at least float32, [N], without log-probabilities of the other
    tokens."""
    parts = []
    for logits_CV, targets_C in zip(logits_NV.split(CHUNK), targets_N.split(CHUNK), strict=True):
        wide_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
        said_C = wide_CV.gather(-1, targets_C[:, None])[:, 0]
        parts.append(wide_CV.logsumexp(-1) - said_C)
    return torch.cat(parts)
