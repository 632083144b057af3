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

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from flatgd.config.recipe import JudgeSettings
from flatgd.dialogue import Dialogue
from flatgd.errors import ModelError
from flatgd.judges.base import Judge, Pair, Progress, pairs_of
from flatgd.judges.calibration import calibrate
from flatgd.judges.reading import Cuts, check_room, longest_input, without_oldest
from flatgd.models.loading import load_as, load_config, load_tokenizer

Input = dict[str, NDArray[np.int32]]  # the arguments of the model's forward for one text
Piece = tuple[str, str]  # (text, HISTORY, REPLY or "" for the template's own text)
HISTORY, REPLY = "{history}", "{reply}"
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
        device = "cuda" if torch.cuda.is_available() else "cpu"
        tokenizer = load_tokenizer(settings.model)
        return cls(settings, model.to(device).eval(), tokenizer)

    def calibrated(self, rows: Sequence[Dialogue], advance: Progress = lambda count: None) -> Judge:
        """The judge, calibrated on labelled rows."""
        scores = self.score(pairs_of(rows), advance)
        rate, remedy = self.settings.false_positive_rate, _remedy(self.settings, self.model.config)
        return Judge(self, calibrate(scores, rows, rate, remedy))

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
        pieces = _pieces(self.settings, *pair)
        if self.tokenizer.is_fast:
            encoded = self._encoded(_text(pieces), return_offsets_mapping=True)
            places = _places(pieces, encoded.pop("offset_mapping"))
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

        def encoded(letters: int) -> dict[str, list[int]]:
            return self._encoded(_text(_pieces(self.settings, *_without(pair, letters))))

        lines = self.settings.history_lines if HISTORY in self.settings.template else 0
        pair = pair[0][max(0, len(pair[0]) - lines) :], pair[1]
        total = sum(map(len, pair[0]))
        every = range(total + len(pair[1]))
        cut = bisect_left(every, True, key=lambda n: len(encoded(n)["input_ids"]) <= limit)
        self.cuts.count(min(cut, total), max(0, cut - total))
        return without_oldest(encoded(cut), (), (), limit, Cuts())

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


def _remedy(settings: JudgeSettings, config: Any) -> str:
    """What to change if the score falls with toxicity."""
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


def render(settings: JudgeSettings, history: Sequence[str], reply: str) -> str:
    """The classifier's input. Authors alternate; the line before the reply is the human's.

    >>> asked = {"template": "{history}|{reply}", "separator": "|", "history_lines": 2}
    >>> asked |= {"kind": "hf", "model": "a/b", "human": "A: ", "bot": "B: "}
    >>> render(JudgeSettings(**asked), ["hi", "hello", "tea?"], "yes")
    'B: hello|A: tea?|B: yes'
    """
    return _text(_pieces(settings, history, reply))


def _pieces(settings: JudgeSettings, history: Sequence[str], reply: str) -> list[Piece]:
    """The pieces of the filled template in order, each with its kind."""
    kept = history[max(0, len(history) - settings.history_lines) :]
    lines = [
        (settings.bot if (len(kept) - place) % 2 == 0 else settings.human) + line
        for place, line in enumerate(kept)
    ]
    joined = settings.separator.join(lines)
    pieces: list[Piece] = []
    for side in settings.template.split(REPLY, 1):
        for number, plain in enumerate(side.split(HISTORY)):
            pieces += [(joined, HISTORY), (plain, "")] if number else [(plain, "")]
        pieces += [(settings.bot, ""), (reply, REPLY)]
    return pieces[:-2]


def _text(pieces: Sequence[Piece]) -> str:
    return "".join(text for text, _ in pieces).strip()


def _places(
    pieces: Sequence[Piece], offsets: Sequence[tuple[int, int]]
) -> tuple[list[int], list[int]]:
    """The positions of the history's tokens and of the reply's, from the tokens' offsets.

    >>> _places([(" hi", HISTORY), ("|", ""), ("no", REPLY)], [(0, 0), (0, 2), (2, 3), (3, 5)])
    ([1], [3])
    """
    whole = "".join(text for text, _ in pieces)
    parts = [part for text, part in pieces for _ in text][len(whole) - len(whole.lstrip()) :]
    of_token = [parts[end - 1] if end > start else "" for start, end in offsets]
    history, reply = (
        [place for place, part in enumerate(of_token) if part == wanted]
        for wanted in (HISTORY, REPLY)
    )
    return history, reply


def _without(pair: Pair, letters: int) -> Pair:
    """The pair without its oldest `letters` characters.

    >>> _without((("old", "new"), "yes"), 4)
    (('ew',), 'yes')
    >>> _without((("old", "new"), "yes"), 7)
    ((), 'es')
    """
    kept = []
    for line in pair[0]:
        if letters < len(line):
            kept.append(line[letters:])
        letters = max(0, letters - len(line))
    return tuple(kept), pair[1][letters:]
