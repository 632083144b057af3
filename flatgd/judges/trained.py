"""The trained judge: a transformer that reads history and reply, tuned here on labelled rows.

It starts from any encoder-decoder or causal model that flatgd supports (such as the shipped
backbone), or from any encoder of the hub (RoBERTa, DeBERTa ...). A linear head reads the mean and
the maximum of the reply's last hidden states, concatenated:

    encoder-decoder   the encoder reads the history, the decoder the reply
    causal            history and reply in one sequence
    encoder           both as a pair of texts

An input of more than `max_tokens` (history and reply together) loses its oldest text.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import (
    AutoModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from flatgd.config.judge import JudgeSettings
from flatgd.dialogue import Dialogue, before
from flatgd.errors import DataError, ModelError
from flatgd.judges.base import Judge, Progress, pairs_of
from flatgd.judges.calibration import calibrate, toxic_labels
from flatgd.judges.linear import folds_between
from flatgd.judges.reading import Cuts, Pair, check_room, letters_of, longest_input, oldest
from flatgd.judges.text_pairs import check_text_pairs, shortened, text_pairs
from flatgd.models.dialogue_format import format_for, speaks
from flatgd.models.encoding import IGNORE, DialogueFormat, Example
from flatgd.models.heads import FORWARD_KEYS
from flatgd.models.loading import load_as, load_config, load_tokenizer, on_device
from flatgd.models.loading_report import key_faults
from flatgd.runtime.callbacks import Advance

UNCUT = 10**9  # tokens; truncation happens here, where it is counted
Item = dict[str, Any]  # {"pair": Pair, "toxic": float}


class _Classifier(nn.Module):
    """The model and its head. Shapes: B rows, S positions, D width."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        config: Any = model.config
        width = getattr(config, "hidden_size", None) or config.d_model
        self.head = nn.Linear(2 * int(width), 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, reply_mask: Tensor, toxic: Tensor | None = None, **inputs: Tensor) -> Any:
        hidden_BSD = self.model(**inputs).last_hidden_state
        of_reply = reply_mask[..., None]
        mean_BD = (hidden_BSD * of_reply).sum(1) / of_reply.sum(1).clamp(min=1)
        max_BD = hidden_BSD.masked_fill(of_reply == 0, -1e4).amax(1)
        logits_B = self.head(torch.cat([mean_BD, max_BD], -1)).squeeze(-1)
        if toxic is None:
            return {"logits": logits_B}
        return {"loss": binary_cross_entropy_with_logits(logits_B, toxic), "logits": logits_B}


@dataclass
class TrainedJudge:
    """The scorer: a tuned transformer."""

    settings: JudgeSettings
    classifier: _Classifier
    tokenizer: PreTrainedTokenizerBase
    dialogue_format: DialogueFormat | None  # None: an encoder, which reads pairs
    room: int
    """Tokens of an input."""
    markers: int
    """Tokens of an empty history, which are never cut."""
    dtype: torch.dtype = torch.float32
    """The weights are float32; bfloat16 is that of the forward passes."""
    cuts: Cuts = field(default_factory=Cuts)

    @classmethod
    def untrained(
        cls, settings: JudgeSettings, dtype: torch.dtype = torch.float32
    ) -> "TrainedJudge":
        assert settings.model is not None
        torch.manual_seed(0)  # for dropout; the head starts at 0
        tokenizer = load_tokenizer(settings.model)
        config = load_config(settings.model)
        dialogue_format, room, markers = _reading(settings, config, tokenizer)
        classifier = _Classifier(load_as(AutoModel, settings.model, "body"))
        if settings.top_layers is not None:
            _check_top_layers(settings, config)
            _freeze_below(classifier.model, settings.top_layers)
        classifier = on_device(classifier).eval()
        return cls(settings, classifier, tokenizer, dialogue_format, room, markers, dtype)

    @classmethod
    def load(
        cls, settings: JudgeSettings, folder: Path, dtype: torch.dtype = torch.float32
    ) -> "TrainedJudge":
        judge = cls.untrained(settings, dtype)
        try:
            tensors = load_file(folder / "judge.safetensors")
            report = judge.classifier.load_state_dict(tensors, strict=False)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"no judge in {folder}: {error}; `flatgd run` builds it") from None
        except RuntimeError as error:  # of another shape
            reason = " ".join(str(error).split())
            raise ModelError(f"{folder}: the judge does not fit its model: {reason}") from None
        if faults := key_faults(report.missing_keys, report.unexpected_keys):
            raise ModelError(
                f"{folder}: the judge's weights do not fit its model: {faults}. Delete the folder "
                "and run the judge stage again"
            )
        return judge

    def save(self, folder: Path) -> None:
        state = {k: v.detach().cpu().contiguous().clone() for k, v in self._state().items()}
        save_file(state, folder / "judge.safetensors")
        about = {"model": self.settings.model, "epochs": self.settings.epochs}
        (folder / "judge.json").write_text(json.dumps(about, indent=2) + "\n")

    def _state(self) -> dict[str, Tensor]:
        return cast(dict[str, Tensor], self.classifier.state_dict())

    def score(
        self, pairs: Sequence[Pair], advance: Progress = lambda count: None
    ) -> NDArray[np.float64]:
        """Score of each (history, reply), 0..1."""
        order = sorted(range(len(pairs)), key=lambda place: letters_of(pairs[place]))
        scores = np.zeros(len(pairs))
        device = next(self.classifier.parameters()).device
        self.classifier.eval()
        for start in range(0, len(order), self.settings.batch_size):
            places = order[start : start + self.settings.batch_size]
            batch = self.collate([{"pair": pairs[place]} for place in places], self.cuts)
            is_half = self.dtype != torch.float32
            with torch.no_grad(), torch.autocast(device.type, self.dtype, enabled=is_half):
                logits = self.classifier(**{k: v.to(device) for k, v in batch.items()})["logits"]
            scores[places] = logits.double().sigmoid().cpu().numpy()
            advance(len(places))
        return scores

    def collate(self, items: Sequence[Item], cuts: Cuts | None = None) -> dict[str, Tensor]:
        """A batch of pairs, padded on the right and masked. Truncation is counted in `cuts`."""
        pairs = [shortened(self.settings, item["pair"]) for item in items]
        encode: Callable[..., dict[str, Tensor]] = (
            self._joined if self.dialogue_format else self._as_texts
        )
        batch = encode(pairs, cuts or Cuts())
        if "toxic" in items[0]:
            batch["toxic"] = torch.tensor([item["toxic"] for item in items])
        return batch

    def _as_texts(self, pairs: Sequence[Pair], cuts: Cuts) -> dict[str, Tensor]:
        given = self.settings, self.tokenizer, self._config, pairs, self.room
        batch, lost = text_pairs(*given)
        for one in lost:
            cuts.add(one)
        return batch

    @property
    def _config(self) -> Any:
        return cast(Any, self.classifier.model).config

    def _joined(self, pairs: Sequence[Pair], cuts: Cuts) -> dict[str, Tensor]:
        assert self.dialogue_format is not None
        batch = self.dialogue_format.collate([self._example(pair, cuts) for pair in pairs])
        inputs = {key: batch[key] for key in FORWARD_KEYS if key in batch}
        return {**inputs, "reply_mask": (batch["targets"] != IGNORE).float()}

    def _example(self, pair: Pair, cuts: Cuts) -> Example:
        """One pair as an Example. The history gets the room that the reply leaves, and at least
        its markers."""
        assert self.dialogue_format is not None
        whole = self.dialogue_format.encode(Dialogue(before(pair[0]), pair[1], True, "", ""))
        history, reply = whole.history_ids, whole.reply_ids
        excess = len(history) + len(reply) - self.room
        of_history, of_reply = oldest(history[self.markers :], reply[:-1], excess)
        cuts.count(len(of_history) + whole.cut_tokens, len(of_reply))
        if of_history:
            narrow = replace(
                self.dialogue_format, max_history_tokens=len(history) - len(of_history)
            )
            try:
                history = narrow.history(pair[0])[0]
            except DataError:  # no text of it fits
                history = self.dialogue_format.history(())[0]
        return whole._replace(history_ids=history, reply_ids=reply[len(of_reply) :])


def _freeze_below(model: nn.Module, top: int) -> None:
    """Leave only the last `top` layers of the model to be tuned."""
    stacks = [one for one in model.modules() if isinstance(one, nn.ModuleList)]
    model.requires_grad_(False)
    max(stacks, key=len)[-top:].requires_grad_(True)


class _InBuckets(Trainer):
    """Batches of rows of similar length."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        items = cast(list[Item], self.train_dataset)
        generator = torch.Generator().manual_seed(self.args.seed)
        return LengthGroupedSampler(
            self.args.train_batch_size,
            lengths=[letters_of(item["pair"]) for item in items],
            generator=generator,
        )


def check_trained_judge(settings: JudgeSettings) -> None:
    """Raise ModelError if model, tokenizer, top_layers or max_tokens do not fit. Loads no
    weights."""
    name = str(settings.model)
    config = load_config(name)
    _reading(settings, config, load_tokenizer(name))
    _check_top_layers(settings, config)


def _check_top_layers(settings: JudgeSettings, config: Any) -> None:
    top, name = settings.top_layers, settings.model
    if top is None:
        return
    if config.is_encoder_decoder:
        raise ModelError(
            f"top_layers is for models with one stack of layers, and {name} has an encoder and a "
            "decoder; leave it out"
        )
    layers = config.get_text_config().num_hidden_layers
    if top > layers:
        raise ModelError(f"top_layers is {top}, but {name} has {layers} layers")


def _reading(
    settings: JudgeSettings, config: Any, tokenizer: PreTrainedTokenizerBase
) -> tuple[DialogueFormat | None, int, int]:
    """The judge's dialogue format (None for an encoder), the number of tokens that fit the model,
    and the number of markers among them."""
    room = longest_input(settings, config, tokenizer)
    if speaks(config):
        dialogue_format = format_for(config, tokenizer, UNCUT, UNCUT)
        markers = max(1, len(dialogue_format.history(())[0]))
        check_room(markers + 2, room)  # and a reply of one token, closed
        return dialogue_format, room, markers
    check_text_pairs(tokenizer, room)
    return None, room, 0


REMEDY = (
    "check that the labels of data.judge are not swapped in part, or tune with a lower "
    "learning_rate"
)


def tune_judge(
    rows: Sequence[Dialogue],
    settings: JudgeSettings,
    folder: Path,
    advance: Callable[[int], None] = lambda steps: None,
    dtype: torch.dtype = torch.float32,
) -> Judge:
    """Tune on four fifths of the labelled rows, and calibrate on the last fifth, which shares no
    conversation with them."""
    judge = TrainedJudge.untrained(settings, dtype)
    labels = toxic_labels(rows)
    fit, rest = folds_between(labels, [row.conversation for row in rows])[0]
    pairs = pairs_of(rows)
    items: list[Item] = [{"pair": pairs[i], "toxic": float(labels[i])} for i in fit]
    trainer = _InBuckets(
        judge.classifier,
        TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            per_device_train_batch_size=settings.train_batch_size,
            warmup_steps=0.06,
            weight_decay=0.01,
            seed=0,
            bf16=dtype == torch.bfloat16,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=cast(Any, items),
        data_collator=judge.collate,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Advance(advance))
    trainer.train()
    for start in range(0, len(items), settings.batch_size):
        judge.collate(items[start : start + settings.batch_size], judge.cuts)  # counts truncation
    scores = judge.score([pairs[i] for i in rest])
    held_out = [rows[i] for i in rest]
    return Judge(judge, calibrate(scores, held_out, settings.false_positive_rate, REMEDY))


def tuning_steps(rows: int, settings: JudgeSettings) -> int:
    """The approximate number of steps of `tune_judge`."""
    return round(settings.epochs * -(-rows * 4 // 5 // settings.train_batch_size))
