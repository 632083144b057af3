"""FlatGDTrainer: a transformers.Trainer whose step is FlatGD's."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)

from flatgd.config.names import EXPERTS
from flatgd.data.jsonl import as_mappings, dialogues_from_row
from flatgd.dialogue import Dialogue
from flatgd.errors import DataError, ModelError, Problem, UnsupportedError
from flatgd.methods import FlatGD, Method, SafetyLoss
from flatgd.models.adapters import mark
from flatgd.models.dialogue_format import declare_stops, format_for
from flatgd.models.encoded_rows import EncodedGroups, EncodedRows, JoinedRows, RowEncoder
from flatgd.models.encoding import Batch, DialogueFormat, Example
from flatgd.models.heads import FORWARD_KEYS, has_plain_head, join_embeddings
from flatgd.models.loading import check_token_map, load_model, load_tokenizer
from flatgd.training import resume_fingerprint
from flatgd.training.callbacks import Watch
from flatgd.training.checkpoints import VerifiedCheckpoints
from flatgd.training.config import FlatGDConfig
from flatgd.training.evaluation import Evaluation, evaluation_faults
from flatgd.training.expert_cache import cached_states
from flatgd.training.flatness_mixin import FlatnessMixin
from flatgd.training.gradient_reduction import check_strategy
from flatgd.training.model_checks import refuse_attention, refuse_to_publish, refuse_untrainable
from flatgd.training.trainer_components import sampling_faults

logger = logging.getLogger(__name__)
Row = Dialogue | Mapping[str, Any]
Rows = Sequence[Row | tuple[Dialogue, Dialogue]]


class FlatGDTrainer(Evaluation, FlatnessMixin, VerifiedCheckpoints, Trainer):
    """Fine-tune `model` on labelled replies.

    `train_dataset` contains Dialogues, or rows with prompt, completion and label (true = safe); it
    may be a datasets.Dataset or a pandas.DataFrame. For a method that learns from pairs it also
    contains tuples of a safe and a toxic reply to one history. `eval_dataset` has the same form, or
    is a dict of such sets. Without `method`, FlatGD is built from `args` and the two experts; each
    is a model, or a folder or hub name. Trainings that share an `encoder` encode each row once.
    Everything else is Trainer's.

    Raises UnsupportedError, ModelError or DataError for arguments that cannot work together.
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
        eval_dataset: Rows | Mapping[str, Rows] | None = None,
        encoder: RowEncoder | None = None,
        **kwargs: Any,
    ):
        if not isinstance(args, FlatGDConfig):
            raise UnsupportedError(f"args must be a FlatGDConfig, got {type(args).__name__}")
        if args.push_to_hub:
            refuse_to_publish(model)
        if faults := [*sampling_faults(args)]:
            raise UnsupportedError("\n".join(faults))
        if kwargs.get("compute_loss_func") is not None:
            raise UnsupportedError(
                "compute_loss_func would have no effect, because the method defines the loss; "
                "remove it"
            )
        refuse_attention(model, args)
        refuse_untrainable(model)
        if method is None:
            experts = _experts(processing_class, clean_expert, toxic_expert)
            method = FlatGD.build(dict(zip(EXPERTS, experts, strict=True)), args, {})
        self.method = method
        self.method.begin(model)
        dialogue_format = format_for(
            model.config,
            processing_class,
            args.max_history_tokens,
            args.max_reply_tokens,
            args.turn_separator,
            args.template_date,
            args.chat_template_kwargs,
        )
        models = {"the model": model, **{n: getattr(method, n) for n in method.needs}}
        positions = {
            n: getattr(m.config, "max_position_embeddings", None) for n, m in models.items()
        }
        self._positions = {n: number for n, number in positions.items() if number}
        declare_stops(model, dialogue_format)
        self._format, self._conversations = dialogue_format, list[str]()
        self._encoder = encoder or RowEncoder()
        self.examples = self._numbered(train_dataset, "train_dataset")
        has_pairs = self.examples.have_pairs()
        if has_pairs != (method.learns_from == "pairs"):
            raise UnsupportedError(
                f"{method.name} learns from {method.learns_from}, but train_dataset contains "
                f"{'pairs' if has_pairs else 'only single replies'}"
            )
        super().__init__(
            model=model,
            args=args,
            train_dataset=self.examples,
            eval_dataset=self._eval_sets(eval_dataset),
            data_collator=partial(_collate, dialogue_format, has_pairs),
            processing_class=processing_class,
            method=method,
            callbacks=_with_early_stopping(args, eval_dataset, kwargs.pop("callbacks", None)),
            **kwargs,
        )
        handed = self.optimizer, self.lr_scheduler, self.optimizer_cls_and_kwargs
        of_model = resume_fingerprint.model_of(model)
        self._at_start = {**of_model, **resume_fingerprint.handed_in(*handed)}
        self._callbacks_at_start: list[Any] = []
        self.add_callback(Watch())
        check_strategy(self.accelerator, args.flatness_method)
        if self.accelerator.is_fsdp2:
            join_embeddings(model)
        for expert in self.method.models():
            expert.to(self.args.device)
        if args.expert_cache and isinstance(method, SafetyLoss):
            self._cache_states(method, Path(args.expert_cache), dialogue_format)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's. Raises UnsupportedError for a toxic expert."""
        refuse_to_publish(self.model)
        return super().push_to_hub(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Trainer's; marks an adapter of a toxic expert, whose folder has no config.json."""
        super()._save(output_dir, state_dict)
        model = self.accelerator.unwrap_model(self.model)
        mark(model, Path(output_dir or self.args.output_dir or "."))

    def _numbered(self, rows: Rows, place: str) -> EncodedGroups:
        """Encoded rows, each with its own number."""
        groups = _groups(rows, place)
        first = len(self._conversations)
        self._conversations += [row.conversation for group in groups for row in group]
        return self._encoded(groups, place, first)

    def _encoded(
        self, groups: Sequence[tuple[Dialogue, ...]], place: str, first: int | None
    ) -> EncodedGroups:
        rows = self._encoder.encode(self._format, list(chain.from_iterable(groups)), first)
        self._refuse_long(rows, place)
        return EncodedGroups(rows, map(len, groups))

    def _refuse_long(self, rows: EncodedRows, place: str) -> None:
        """Raise UnsupportedError if a row has more tokens than a model has positions."""
        history, reply = rows.lengths()
        for lengths in (history + reply, history, reply):
            longest = int(lengths.argmax())
            batch = self._format.collate([rows[longest]])
            width = max(batch[k].shape[1] for k in FORWARD_KEYS if k in batch)
            for name, positions in self._positions.items():
                if width > positions:
                    raise UnsupportedError(
                        f"{place}: row {longest + 1} is {width} tokens long, and "
                        f"{name} has {positions} positions; lower max_history_tokens or "
                        "max_reply_tokens"
                    )

    def _eval_sets(self, given: Rows | Mapping[str, Rows] | None) -> Any:
        if given is None:
            return None
        if not isinstance(given, Mapping):
            return self._whole_pairs(self._numbered(given, "eval_dataset"))
        named = (
            (name, self._numbered(rows, f"eval_dataset {name}")) for name, rows in given.items()
        )
        return {name: self._whole_pairs(groups) for name, groups in named}

    def _whole_pairs(self, groups: EncodedGroups) -> EncodedGroups:
        if self.method.learns_from != "pairs" and groups.have_pairs():
            raise UnsupportedError(
                f"{self.method.name} learns from {self.method.learns_from}, but eval_dataset "
                "contains pairs"
            )
        return groups

    def encode_rows(self, rows: Any, place: str) -> Any:
        """Encoded rows that were not known when the trainer was built. Expert states are not
        cached for them, so expert_cache raises UnsupportedError."""
        if self.args.expert_cache and isinstance(self.method, SafetyLoss):
            raise UnsupportedError(
                f"{place}: with expert_cache, the trainer keeps no expert for rows that come "
                "later; pass them as eval_dataset to the trainer, or leave expert_cache out"
            )
        return self._whole_pairs(self._encoded(_groups(rows, place), place, None))

    def _evaluated_rows(self) -> list[EncodedRows]:
        """The rows of each evaluation set."""
        sets: Any = self.eval_dataset or {}
        return [groups.rows for groups in (sets.values() if isinstance(sets, dict) else [sets])]

    def _cache_states(
        self, method: SafetyLoss, folder: Path, dialogue_format: DialogueFormat
    ) -> None:
        """Replace both experts by their heads and their cached states on disk."""
        tried = {
            k: v.to(self.args.device) for k, v in dialogue_format.collate(self.examples[0]).items()
        }
        for name in EXPERTS:
            if not has_plain_head(getattr(method, name), tried):
                logger.warning(
                    "%s: its logits are not those of its head on its last states, so cached states "
                    "cannot replace it; it runs in every step",
                    name,
                )
                continue
            states = cached_states(
                folder / name,
                getattr(method, name),
                JoinedRows([self.examples.rows, *self._evaluated_rows()]),
                dialogue_format.collate,
                weights=self._expert_digests[name],
                rows_at_once=self.args.micro_batch_size or self.args.per_device_train_batch_size,
                tell=logger.warning,
            )
            method.use_cached_states(name, states.of)

    def fingerprint(self) -> dict[str, Any]:
        """Everything that changes the result: method, experts, settings, model, rows, processes."""
        callbacks = self._callbacks_at_start
        counts = resume_fingerprint.evaluation_counts(self.args, callbacks)
        return {
            **resume_fingerprint.method_of(self.method),
            **{f"{name} weights": digest for name, digest in self._expert_digests.items()},
            **resume_fingerprint.settings_of(self.args, counts),
            **self._at_start,
            "frozen weights": self._digest_of_frozen,
            **resume_fingerprint.callbacks_of(callbacks),
            "batch": self.args.per_device_train_batch_size * self.accelerator.num_processes,
            "processes": self.accelerator.num_processes,
            "distributed": self.accelerator.distributed_type.value,
            "precision": self.accelerator.mixed_precision,
            "device": self.args.device.type,
            "training rows": self._row_digests[0],
            **({"evaluation rows": self._row_digests[1]} if counts else {}),
        }

    def _train_from(self, checkpoint: Path | None, *args: Any, **kwargs: Any) -> Any:
        self._callbacks_at_start = list(self.callback_handler.callbacks)
        if self.accelerator.is_fsdp2:  # before the weights are sharded
            _ = self._digest_of_frozen
        return super()._train_from(checkpoint, *args, **kwargs)

    @cached_property
    def _expert_digests(self) -> dict[str, str]:
        """Digests of the method's models, by name."""
        models = {name: getattr(self.method, name) for name in self.method.needs}
        return {
            n: resume_fingerprint.digest_of(m.state_dict().items())[:12] for n, m in models.items()
        }

    @cached_property
    def _digest_of_frozen(self) -> str | None:
        frozen = resume_fingerprint.frozen_weights(self.accelerator.unwrap_model(self.model))
        return resume_fingerprint.digest_of(frozen)[:12] if frozen else None

    @cached_property
    def _row_digests(self) -> list[str]:
        """Digests of the training rows and of the evaluation rows."""
        collate: Any = self.data_collator
        first = collate(self.examples[:1])  # includes how rows become batches
        layout = json.dumps({k: v.tolist() for k, v in first.items()})
        digests = []
        for sets in ([self.examples.rows], self._evaluated_rows()):
            whole = layout.encode() + b"".join(rows.digest() for rows in sets)
            digests.append(hashlib.sha256(whole).hexdigest()[:12])
        return digests

    def names_of(self, rows: Sequence[int]) -> list[str]:
        """Row numbers of train_dataset, with their conversations."""
        return [f"{row + 1} ({self._conversations[row]})" for row in rows]

    def truncated(self) -> int:
        """The number of training rows that lost tokens of history or reply."""
        return self.examples.rows.cut()

    def notes(self) -> dict[str, int]:
        """The number of training rows that each rule of the dialogue format changed."""
        return self.examples.rows.notes()

    def evaluated(self) -> tuple[int, int]:
        """(number of evaluation rows, how many of them lost tokens)."""
        sets = self._evaluated_rows()
        return sum(map(len, sets)), sum(rows.cut() for rows in sets)


def _with_early_stopping(args: FlatGDConfig, eval_dataset: Any, given: Any) -> list[Any]:
    """The callbacks. Raises UnsupportedError if they or the evaluations lack something."""
    callbacks = list(given or [])
    if args.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
    if faults := list(evaluation_faults(args, eval_dataset, callbacks)):
        raise UnsupportedError("\n".join(faults))
    return callbacks


def _experts(
    tokenizer: PreTrainedTokenizerBase, *experts: nn.Module | str | Path | None
) -> list[nn.Module]:
    """The experts as models. An expert given by name must have the policy's token map."""
    if None in experts:
        raise ModelError(
            "flatgd needs clean_expert and toxic_expert: copies of the backbone tuned on safe "
            "and on toxic replies (method=Clean() trains one)"
        )
    named = [str(expert) for expert in experts if isinstance(expert, str | Path)]
    for name in named:
        check_token_map(tokenizer, load_tokenizer(name), ("the policy", name))
    return [e if isinstance(e, nn.Module) else load_model(str(e)) for e in experts]


def _groups(rows: Rows, place: str) -> list[tuple[Dialogue, ...]]:
    """Rows that stay together in a batch: single rows, or pairs. Rows without a label are left out
    with a warning."""
    groups: list[tuple[Dialogue, ...]] = []
    problems = []
    for number, row in enumerate(as_mappings(rows), start=1):
        if isinstance(row, Dialogue | tuple):
            groups.append(row if isinstance(row, tuple) else (row,))
            continue
        try:
            groups += [(dialogue,) for dialogue in dialogues_from_row(dict(row))]
        except ValueError as error:
            problems.append(Problem(place, number, str(error)))
    if not groups and not problems:
        problems.append(Problem(place, 0, "no rows"))
    labelled = [group for group in groups if all(row.is_safe is not None for row in group)]
    if unlabelled := len(groups) - len(labelled):
        count_text = f"{unlabelled:,} of {len(groups):,} rows have no label"
        logger.warning("%s: %s and are left out", place, count_text)
        if not labelled and not problems:
            problems.append(Problem(place, 0, f"{count_text}; rows need is_safe, or a label"))
    if problems:
        raise DataError(problems)
    return labelled


def _collate(
    dialogue_format: DialogueFormat, has_pairs: bool, groups: Sequence[tuple[Example, ...]]
) -> Batch:
    """A batch of the dialogue format. For data with pairs it also has `pair` [B], the number of the
    row's pair or -1."""
    batch = dialogue_format.collate([example for group in groups for example in group])
    if has_pairs:
        numbers = [
            number if len(group) > 1 else -1 for number, group in enumerate(groups) for _ in group
        ]
        batch["pair"] = torch.tensor(numbers)
    return batch
