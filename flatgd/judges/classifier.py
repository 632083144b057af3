"""The hf judge: any Hugging Face sequence classifier, by name or folder.

The head may be a softmax over classes or independent sigmoids; the class that means toxic is named
in the recipe or found among the model's labels; history and reply are put together by a template,
as each such model wants them:

    {reply}                                    the reply alone (the default)
    {history}\\n{reply}                        ParlAI: one line a turn, the last one judged
    [HST]{history}[ANS]{reply}                 with separator "[END]" between the turns

Inputs of one length are read together, so nothing is padded: a model without a padding token works,
and no score depends on the other inputs of its batch.
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
from flatgd.judges.base import Judge, Pair, calibrate, pairs_of
from flatgd.judges.reading import Cuts, check_room, longest_input, without_oldest
from flatgd.models.loading import load_as, load_config, load_tokenizer

Input = dict[str, NDArray[np.int32]]  # what the model's forward takes, of one text
Piece = tuple[str, str]  # a piece of an input: HISTORY, REPLY or "", the template's own
HISTORY, REPLY = "{history}", "{reply}"
NO_TOKEN = -1
TOXIC = {
    *("toxic", "toxicity", "offensive", "unsafe", "notok", "not ok", "abusive", "abuse"),
    *("hate", "hateful", "hate speech", "harmful", "inappropriate", "nsfw"),
}


@dataclass
class HFJudge:
    """A sequence classifier at work."""

    settings: JudgeSettings
    model: Any
    tokenizer: PreTrainedTokenizerBase
    cuts: Cuts = field(default_factory=Cuts)

    @classmethod
    def load(cls, settings: JudgeSettings) -> "HFJudge":
        assert settings.model is not None
        model: Any = load_as(AutoModelForSequenceClassification, settings.model, "classifier")
        own = model.config.get_text_config()
        if own.pad_token_id is None:  # heads of causal models look for the last token that is none
            own.pad_token_id = NO_TOKEN
        device = "cuda" if torch.cuda.is_available() else "cpu"
        tokenizer = load_tokenizer(settings.model)
        return cls(settings, model.to(device).eval(), tokenizer)

    def calibrated(self, rows: Sequence[Dialogue]) -> Judge:
        """The judge, its calibration from labelled rows."""
        scores = self.score(pairs_of(rows))
        rate, mend = self.settings.false_positive_rate, _mend(self.settings, self.model.config)
        return Judge(self, calibrate(scores, rows, rate, mend))

    def save(self, folder: Path) -> None:
        """Nothing: its weights stay where they are."""

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """Score of each (history, reply), 0..1."""
        inputs = [self._read(pair) for pair in pairs]
        lengths = [len(one["input_ids"]) for one in inputs]
        scores = np.zeros(len(inputs))
        order = sorted(range(len(inputs)), key=lengths.__getitem__)
        for _, group in groupby(order, key=lengths.__getitem__):
            alike, size = list(group), self.settings.batch_size
            for places in (alike[n : n + size] for n in range(0, len(alike), size)):
                scores[places] = self._probabilities([inputs[place] for place in places])
        return scores

    def _read(self, pair: Pair) -> Input:
        """The input of one (history, reply), cut to what fits the model."""
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
        """Token ids and what goes with them; one token where the text has none."""
        encoded = dict(self.tokenizer(text, verbose=False, **options))
        if encoded["input_ids"]:
            return encoded
        own = self.tokenizer
        known = (own.bos_token_id, own.eos_token_id, own.pad_token_id, 0)
        token = next(token for token in known if token is not None)
        alone = {"input_ids": token, "attention_mask": 1, "offset_mapping": (0, 0)}
        return {key: [alone.get(key, 0)] for key in encoded}

    def _cut_by_letters(self, pair: Pair, limit: int) -> dict[str, list[int]]:
        """For a tokenizer in Python, which does not say which letters a token stands for."""

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
        """Of inputs of one length."""
        tokens = {
            key: torch.tensor(np.stack([one[key] for one in inputs]), dtype=torch.long)
            for key in inputs[0]
        }
        with torch.no_grad():
            on_device = {key: values.to(self.model.device) for key, values in tokens.items()}
            logits_BC = self.model(**on_device).logits.double()
        if _is_sigmoid(self.settings, self.model.config):
            chances_BC = logits_BC.sigmoid()
        else:
            chances_BC = logits_BC.softmax(-1)
        probabilities = np.asarray(chances_BC[:, self._column].cpu().numpy())
        return 1 - probabilities if self.settings.negate else probabilities

    @property
    def _column(self) -> int:
        return toxic_column(self.settings, self.model.config)


def check_judge(settings: JudgeSettings) -> None:
    """Raise ModelError when config, labels or template do not fit; loads no weights."""
    assert settings.model is not None
    config, tokenizer = load_config(settings.model), load_tokenizer(settings.model)
    toxic_column(settings, config)
    empty = tokenizer(render(settings, (), ""), verbose=False)["input_ids"]
    check_room(len(empty) + 1, longest_input(settings, config, tokenizer))


def toxic_column(settings: JudgeSettings, config: Any) -> int:
    """Which output means toxic: as named, or the one label that says so."""
    labels = {int(place): str(name) for place, name in config.id2label.items()}
    told = ", ".join(labels.values())
    if settings.toxic_label is not None:
        for place, name in labels.items():
            if settings.toxic_label in (name, str(place)):
                return place
        raise ModelError(f"toxic_label {settings.toxic_label!r} is none of its labels: {told}")
    if len(labels) == 1:
        return 0
    found = [place for place, name in labels.items() if _plain(name) in TOXIC]
    if len(found) != 1:
        raise ModelError(f"which of its labels means toxic? Set toxic_label to one of: {told}")
    return found[0]


def _mend(settings: JudgeSettings, config: Any) -> str:
    """What to change where the score falls with toxicity."""
    column, labels = toxic_column(settings, config), list(config.id2label.values())
    turned = "take negate out" if settings.negate else "set negate: true"
    if len(labels) == 1:
        return (
            f"{settings.model} has one output, which seems to rise with good replies, as a reward "
            f"model's does; if so, {turned}"
        )
    others = ", ".join(str(label) for place, label in enumerate(labels) if place != column)
    return (
        f"of {settings.model}, {labels[column]!r} is read as toxic; name another one in "
        f"toxic_label ({others}), or {turned}"
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
    """The classifier's input. The line before the reply counts as the human's, and so on in turn.

    >>> asked = {"template": "{history}|{reply}", "separator": "|", "history_lines": 2}
    >>> asked |= {"kind": "hf", "model": "a/b", "human": "A: ", "bot": "B: "}
    >>> render(JudgeSettings(**asked), ["hi", "hello", "tea?"], "yes")
    'B: hello|A: tea?|B: yes'
    """
    return _text(_pieces(settings, history, reply))


def _pieces(settings: JudgeSettings, history: Sequence[str], reply: str) -> list[Piece]:
    """What the template makes of a history and a reply, in order, each with the part it is."""
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
    """Which tokens, by their letters in the text, are of the history and which of the reply.

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
    """The pair without its oldest letters.

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
