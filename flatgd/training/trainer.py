"""FlatGDTrainer: a transformers.Trainer whose step is FlatGD's."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from flatgd.data.jsonl import dialogues_from_row
from flatgd.dialogue import Dialogue
from flatgd.errors import DataError, ModelError, Problem, UnsupportedError
from flatgd.families import Batch, Example, Family, family_of
from flatgd.methods import EXPERTS, FlatGD, Method, SafetyLoss
from flatgd.models import (
    check_token_map,
    has_plain_head,
    join_embeddings,
    load_model,
    load_tokenizer,
)
from flatgd.training.checkpoints import SoundCheckpoints
from flatgd.training.config import FlatGDConfig
from flatgd.training.expert_states import cached_states
from flatgd.training.mixin import FlatnessMixin
from flatgd.training.reduction import check_strategy
from flatgd.training.watch import Watch

logger = logging.getLogger(__name__)
Row = Dialogue | Mapping[str, Any]
Rows = Sequence[Row | tuple[Dialogue, Dialogue]]


class FlatGDTrainer(FlatnessMixin, SoundCheckpoints, Trainer):
    """Fine-tune `model` on labelled replies.

    `train_dataset` holds Dialogues or rows with prompt, completion and label (true = safe), a
    datasets.Dataset too; for a method that learns from pairs also tuples of a safe and a toxic
    reply to one history. Without `method`, FlatGD is built from `args` and the two experts, each a
    model or where to load one from. All else is Trainer's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: FlatGDConfig,
        *,
        train_dataset: Rows,
        processing_class: PreTrainedTokenizerBase,
        clean_expert: nn.Module | str | Path | None = None,
        toxic_expert: nn.Module | str | Path | None = None,
        method: Method | None = None,
        **kwargs: Any,
    ):
        if not isinstance(args, FlatGDConfig):
            raise UnsupportedError(f"args must be a FlatGDConfig, got {type(args).__name__}")
        if args.push_to_hub and getattr(model.config, "flatgd_role", None):
            raise UnsupportedError("a toxic expert is not published; set push_to_hub: false")
        _refuse_attention(model, args)
        if method is None:
            experts = _experts(processing_class, clean_expert, toxic_expert)
            method = FlatGD.build(dict(zip(EXPERTS, experts, strict=True)), args, {})
        self.method = method
        self.method.begin(model)
        family = family_of(
            model.config,
            processing_class,
            args.max_history_tokens,
            args.max_reply_tokens,
            args.turn_separator,
        )
        groups, numbers = _groups(train_dataset), count()
        self.examples = [
            tuple(family.encode(row)._replace(row=next(numbers)) for row in group)
            for group in groups
        ]
        self._conversations = [row.conversation for group in groups for row in group]
        has_pairs = any(len(group) > 1 for group in self.examples)
        if has_pairs != (method.learns_from == "pairs"):
            raise UnsupportedError(
                f"{method.name} learns from {method.learns_from}, and train_dataset holds "
                f"{'pairs' if has_pairs else 'none but single replies'}"
            )
        super().__init__(
            model=model,
            args=args,
            train_dataset=self.examples,
            data_collator=partial(_collate, family, has_pairs),
            processing_class=processing_class,
            **kwargs,
        )
        self.add_callback(Watch())
        check_strategy(self.accelerator, args.flatness_method)
        if self.accelerator.is_fsdp2:
            join_embeddings(model)
        for expert in self.method.models():
            expert.to(self.args.device)
        if args.expert_cache and isinstance(method, SafetyLoss):
            self._cache_states(method, Path(args.expert_cache), family)

    def _cache_states(self, method: SafetyLoss, folder: Path, family: Family) -> None:
        """Both experts' states from disk, their bodies out of memory."""
        tried = {k: v.to(self.args.device) for k, v in family.collate(self.examples[0]).items()}
        for name in EXPERTS:
            if not has_plain_head(getattr(method, name), tried):
                raise UnsupportedError(
                    f"{name}: its logits are not its head's of its last states, so states on disk "
                    "cannot stand for it; leave expert_cache out"
                )
            states = cached_states(
                folder / name,
                getattr(method, name),
                list(chain.from_iterable(self.examples)),
                family.collate,
                rows_at_once=self.args.micro_batch_size or self.args.per_device_train_batch_size,
                tell=logger.warning,
            )
            method.speak_from(name, states.of)

    def made_of(self) -> dict[str, Any]:
        """Settings and rows, as far as they make the trajectory."""
        return {
            "method": self.method.name,
            **{name: str(value) for name, value in self.args.trajectory().items()},
            "batch": self.args.per_device_train_batch_size * self.accelerator.num_processes,
            "training rows": self._digest_of_rows,
        }

    @cached_property
    def _digest_of_rows(self) -> str:
        digest = hashlib.sha256()
        for example in chain.from_iterable(self.examples):
            digest.update(json.dumps(example).encode())
        return digest.hexdigest()[:12]

    def names_of(self, rows: Sequence[int]) -> list[str]:
        """Which rows of train_dataset, by their conversations."""
        return [f"{row + 1} ({self._conversations[row]})" for row in rows]

    def truncated(self) -> int:
        """How many training rows lost tokens of their history or reply."""
        return sum(example.cut_tokens > 0 for group in self.examples for example in group)


def _experts(
    tokenizer: PreTrainedTokenizerBase, *experts: nn.Module | str | Path | None
) -> list[nn.Module]:
    """The experts as models; one that is named must have the policy's token map, checked first."""
    if None in experts:
        raise ModelError(
            "flatgd needs clean_expert and toxic_expert: copies of the backbone tuned on safe "
            "and on toxic replies (method=Clean() trains one)"
        )
    named = [str(expert) for expert in experts if isinstance(expert, str | Path)]
    for name in named:
        check_token_map(tokenizer, load_tokenizer(name), ("the policy", name))
    return [e if isinstance(e, nn.Module) else load_model(str(e)) for e in experts]


def _groups(rows: Rows) -> list[tuple[Dialogue, ...]]:
    """What stays together in a batch: a row alone, or a pair."""
    groups: list[tuple[Dialogue, ...]] = []
    problems = []
    for number, row in enumerate(rows, start=1):
        if isinstance(row, Dialogue | tuple):
            groups.append(row if isinstance(row, tuple) else (row,))
            continue
        try:
            groups += [(dialogue,) for dialogue in dialogues_from_row(dict(row))]
        except ValueError as error:
            problems.append(Problem("train_dataset", number, str(error)))
    if not groups and not problems:
        problems.append(Problem("train_dataset", 0, "no rows"))
    labelled = [group for group in groups if all(row.is_safe is not None for row in group)]
    if unlabelled := len(groups) - len(labelled):
        told = f"{unlabelled:,} of {len(groups):,} rows have no label"
        logger.warning("train_dataset: %s and are left out", told)
        if not labelled and not problems:
            problems.append(Problem("train_dataset", 0, f"{told}; rows need is_safe, or a label"))
    if problems:
        raise DataError(problems)
    return labelled


def _collate(family: Family, has_pairs: bool, groups: Sequence[tuple[Example, ...]]) -> Batch:
    """The family's batch; of data with pairs, with `pair` [B]: a pair's number, else -1."""
    batch = family.collate([example for group in groups for example in group])
    if has_pairs:
        numbers = [
            number if len(group) > 1 else -1 for number, group in enumerate(groups) for _ in group
        ]
        batch["pair"] = torch.tensor(numbers)
    return batch


def _refuse_attention(model: PreTrainedModel, args: FlatGDConfig) -> None:
    """`exact` differentiates twice; only eager and PyTorch's own (its MATH kernel) can."""
    attention = getattr(model.config, "_attn_implementation", None)
    if args.flatness_method == "exact" and attention not in (None, "eager", "sdpa"):
        raise UnsupportedError(
            f"attention {attention!r} has no second derivative; load the model with "
            "attn_implementation='eager', or use flatness_method='finite_difference'"
        )
