"""The hf judge: any Hugging Face sequence classifier, by name or folder.

The head may be a softmax over classes or independent sigmoids. The recipe names the class that
means toxic, or it is found among the model's labels. A template joins history and reply in the form
that the model expects:

    {reply}                                    the reply alone (the default)
    {history}\\n{reply}                        ParlAI: one line for each turn, the last is judged
    [HST]{history}[ANS]{reply}                 with separator "[END]" between the turns

Inputs of equal length form a batch, so nothing is padded. Models without a padding token work, and
no score depends on the other inputs of its batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from flatgd.config.judge import JudgeSettings
from flatgd.errors import ModelError
from flatgd.judges.base import Progress
from flatgd.judges.reading import (
    Cuts,
    Pair,
    check_room,
    encode_within,
    longest_input,
    newest,
    without_oldest,
)
from flatgd.judges.templates import HISTORY, joined, pieces_of, places_of, render
from flatgd.models.loading import load_as, load_config, load_tokenizer, on_device

Input = dict[str, NDArray[np.int32]]  # the arguments of the model's forward for one text
NO_TOKEN = -1
TOXIC = {
    *("toxic", "toxicity", "offensive", "unsafe", "notok", "not ok", "abusive", "abuse"),
    *("hate", "hateful", "hate speech", "harmful", "inappropriate", "nsfw"),
}


@dataclass
class HFJudge:
    """A loaded sequence classifier with its settings."""

    settings: JudgeSettings
    model: Any
    tokenizer: PreTrainedTokenizerBase
    cuts: Cuts = field(default_factory=Cuts)

    @classmethod
    def load(cls, settings: JudgeSettings, dtype: torch.dtype = torch.float32) -> "HFJudge":
        assert settings.model is not None
        kind = AutoModelForSequenceClassification
        model: Any = load_as(kind, settings.model, "classifier", dtype)
        own = model.config.get_text_config()
        if (
            own.pad_token_id is None
        ):  # heads of causal models read the last token that is no padding
            own.pad_token_id = NO_TOKEN
        tokenizer = load_tokenizer(settings.model)
        return cls(settings, on_device(model).eval(), tokenizer)

    def save(self, folder: Path) -> None:
        """Save nothing: the recipe names the model."""

    def score(
        self, pairs: Sequence[Pair], advance: Progress = lambda count: None
    ) -> NDArray[np.float64]:
        """Score of each (history, reply), 0..1."""
        inputs = [self._read(pair) for pair in pairs]
        lengths = [len(one["input_ids"]) for one in inputs]
        scores = np.zeros(len(inputs))
        order = sorted(range(len(inputs)), key=lengths.__getitem__)
        for _, group in groupby(order, key=lengths.__getitem__):
            alike, size = list(group), self.settings.batch_size
            for places in (alike[n : n + size] for n in range(0, len(alike), size)):
                scores[places] = self._probabilities([inputs[place] for place in places])
                advance(len(places))
        return scores

    def _read(self, pair: Pair) -> Input:
        """The input of one (history, reply), truncated to the model's length."""
        limit = longest_input(self.settings, self.model.config, self.tokenizer)
        pieces = pieces_of(self.settings, self.settings.template, *pair)
        if self.tokenizer.is_fast:
            encoded = self._encoded(joined(pieces), return_offsets_mapping=True)
            places = places_of(pieces, encoded.pop("offset_mapping"))
            encoded = without_oldest(encoded, *places, limit, self.cuts)
        else:
            encoded = self._cut_by_letters(pair, limit)
        return {key: np.array(values, dtype=np.int32) for key, values in encoded.items()}

    def _encoded(self, text: str, **options: Any) -> dict[str, list[Any]]:
        """Token ids, attention mask and so on; a single token if the text has none."""
        encoded = dict(self.tokenizer(text, verbose=False, **options))
        if encoded["input_ids"]:
            return encoded
        own = self.tokenizer
        known = (own.bos_token_id, own.eos_token_id, own.pad_token_id, 0)
        token = next(token for token in known if token is not None)
        alone = {"input_ids": token, "attention_mask": 1, "offset_mapping": (0, 0)}
        return {key: [alone.get(key, 0)] for key in encoded}

    def _cut_by_letters(self, pair: Pair, limit: int) -> dict[str, list[int]]:
        """Truncate by characters, for tokenizers in Python that have no character offsets."""

        def encoded(shorter: Pair) -> dict[str, list[int]]:
            return self._encoded(render(self.settings, *shorter))

        lines = self.settings.history_lines if HISTORY in self.settings.template else 0
        kept = newest(pair[0], lines), pair[1]
        found = encode_within(kept, encoded, lambda one: len(one["input_ids"]), limit, self.cuts)
        return without_oldest(found, (), (), limit, Cuts())

    def _probabilities(self, inputs: list[Input]) -> NDArray[np.float64]:
        """P(toxic) of each input, before calibration. All inputs have one length."""
        tokens = {
            key: torch.tensor(np.stack([one[key] for one in inputs]), dtype=torch.long)
            for key in inputs[0]
        }
        with torch.no_grad():
            on_device = {key: values.to(self.model.device) for key, values in tokens.items()}
            logits_BC = self.model(**on_device).logits.double()
        if _is_sigmoid(self.settings, self.model.config):
            probabilities_BC = logits_BC.sigmoid()
        else:
            probabilities_BC = logits_BC.softmax(-1)
        probabilities = np.asarray(probabilities_BC[:, self._column].cpu().numpy())
        return 1 - probabilities if self.settings.negate else probabilities

    @property
    def _column(self) -> int:
        return toxic_column(self.settings, self.model.config)


def check_judge(settings: JudgeSettings) -> None:
    """Raise ModelError if config, labels or template do not fit. Loads no weights."""
    assert settings.model is not None
    config, tokenizer = load_config(settings.model), load_tokenizer(settings.model)
    toxic_column(settings, config)
    empty = tokenizer(render(settings, (), ""), verbose=False)["input_ids"]
    check_room(len(empty) + 1, longest_input(settings, config, tokenizer))


def toxic_column(settings: JudgeSettings, config: Any) -> int:
    """The output that means toxic: the one that the recipe names, or the one with such a label.
    Raises ModelError if it is not clear."""
    labels = {int(place): str(name) for place, name in config.id2label.items()}
    known = ", ".join(labels.values())
    if settings.toxic_label is not None:
        for place, name in labels.items():
            if settings.toxic_label in (name, str(place)):
                return place
        raise ModelError(
            f"{settings.model} has no label {settings.toxic_label!r} (toxic_label); its labels are "
            f"{known}"
        )
    if len(labels) == 1:
        return 0
    found = [place for place, name in labels.items() if _plain(name) in TOXIC]
    if len(found) != 1:
        raise ModelError(
            f"it is not clear which label of {settings.model} means toxic; set toxic_label to one "
            f"of: {known}"
        )
    return found[0]


def head_remedy(settings: JudgeSettings) -> str:
    """What to change if the score falls with toxicity."""
    config = load_config(str(settings.model))
    column, labels = toxic_column(settings, config), list(config.id2label.values())
    turned = "remove negate" if settings.negate else "set negate: true"
    if len(labels) == 1:
        return (
            f"the single output of {settings.model} seems to rise with good replies, as that of a "
            f"reward model does; if so, {turned}"
        )
    others = ", ".join(str(label) for place, label in enumerate(labels) if place != column)
    return (
        f"{labels[column]!r} of {settings.model} is taken for the toxic label; set toxic_label to "
        f"another one ({others}), or {turned}"
    )


def _plain(label: str) -> str:
    """
    >>> _plain("__Not_OK__")
    'not ok'
    """
    return label.lower().replace("_", " ").replace("-", " ").strip()


def _is_sigmoid(settings: JudgeSettings, config: Any) -> bool:
    if settings.activation is not None:
        return settings.activation == "sigmoid"
    return config.num_labels == 1 or config.problem_type == "multi_label_classification"
