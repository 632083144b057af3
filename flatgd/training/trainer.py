"""FlatGDTrainer: a transformers.Trainer whose step is FlatGD's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from flatgd.data.jsonl import dialogues_from_row
from flatgd.errors import DataError, ModelError, Problem, UnsupportedError
from flatgd.families import family_of
from flatgd.methods import FlatGD, Method
from flatgd.models import check_token_map, load_model, load_tokenizer
from flatgd.records import Dialogue
from flatgd.training.config import FlatGDConfig
from flatgd.training.mixin import FlatnessMixin

Rows = Sequence[Dialogue | Mapping[str, Any]]


class FlatGDTrainer(FlatnessMixin, Trainer):
    """Fine-tune `model` on labelled replies.

    `train_dataset` holds Dialogues or rows with prompt, completion and label (true = safe), a
    datasets.Dataset too. Without `method`, FlatGD is built from `args` and the two experts, each a
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
        _refuse_attention(model, args)
        self.method = method or FlatGD.from_config(
            args, _experts(processing_class, clean_expert, toxic_expert)
        )
        family = family_of(
            model.config,
            processing_class,
            args.max_history_tokens,
            args.max_reply_tokens,
            args.turn_separator,
        )
        self.examples = [family.encode(row) for row in _dialogues(train_dataset)]
        super().__init__(
            model=model,
            args=args,
            train_dataset=self.examples,
            data_collator=family.collate,
            processing_class=processing_class,
            **kwargs,
        )
        for expert in vars(self.method).values():
            if isinstance(expert, nn.Module):
                expert.to(self.args.device)

    def truncated(self) -> int:
        """How many training rows lost tokens of their history or reply."""
        return sum(example.cut_tokens > 0 for example in self.examples)


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


def _dialogues(rows: Rows) -> list[Dialogue]:
    dialogues: list[Dialogue] = []
    problems = []
    for number, row in enumerate(rows, start=1):
        try:
            dialogues += [row] if isinstance(row, Dialogue) else dialogues_from_row(dict(row))
        except ValueError as error:
            problems.append(Problem("train_dataset", number, str(error)))
    if not dialogues and not problems:
        problems.append(Problem("train_dataset", 0, "no rows"))
    if problems:
        raise DataError(problems)
    return dialogues


def _refuse_attention(model: PreTrainedModel, args: FlatGDConfig) -> None:
    """`exact` differentiates twice; only eager and PyTorch's own (its MATH kernel) can."""
    attention = getattr(model.config, "_attn_implementation", None)
    if args.flatness_method == "exact" and attention not in (None, "eager", "sdpa"):
        raise UnsupportedError(
            f"attention {attention!r} has no second derivative; load the model with "
            "attn_implementation='eager', or use flatness_method='finite_difference'"
        )
