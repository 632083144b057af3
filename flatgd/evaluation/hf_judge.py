"""The hf judge: any Hugging Face sequence classifier, by name or folder.

The head may be a softmax over classes or independent sigmoids; the class that means toxic is named
in the recipe or found among the model's labels; history and reply are put together by a template,
as each such model wants them:

    {reply}                                    the reply alone (the default)
    {history}\\n{reply}                        ParlAI: one line a turn, the last one judged
    [HST]{history}[ANS]{reply}                 with separator "[END]" between the turns
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from flatgd.dialogue import Dialogue
from flatgd.errors import ModelError
from flatgd.evaluation.judge import Judge, Pair, calibrate, pairs_of
from flatgd.models import load_as, load_config, load_tokenizer
from flatgd.recipe import JudgeSettings

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

    @classmethod
    def load(cls, settings: JudgeSettings) -> "HFJudge":
        assert settings.model is not None
        model = load_as(AutoModelForSequenceClassification, settings.model)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        tokenizer = load_tokenizer(settings.model)
        tokenizer.truncation_side = "left"  # what is too long loses its beginning, not the reply
        return cls(settings, model.to(device).eval(), tokenizer)  # type: ignore[arg-type]

    def calibrated(self, rows: Sequence[Dialogue]) -> Judge:
        """The judge, its calibration from labelled rows."""
        scores = self.score(pairs_of(rows))
        return Judge(self, calibrate(scores, rows, self.settings.false_positive_rate))

    def save(self, folder: Path) -> None:
        """Nothing: its weights stay where they are."""

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """Score of each (history, reply), 0..1."""
        texts = [render(self.settings, history, reply) for history, reply in pairs]
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        scores = np.zeros(len(texts))
        for start in range(0, len(order), self.settings.batch_size):
            places = order[start : start + self.settings.batch_size]
            scores[places] = self._probabilities([texts[place] for place in places])
        return scores

    def _probabilities(self, texts: list[str]) -> NDArray[np.float64]:
        tokens = self.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=longest_input(self.settings, self.model.config, self.tokenizer),
            return_tensors="pt",
        ).to(self.model.device)
        with torch.no_grad():
            logits_BC = self.model(**tokens).logits.double()
        if _is_sigmoid(self.settings, self.model.config):
            chances_BC = logits_BC.sigmoid()
        else:
            chances_BC = logits_BC.softmax(-1)
        return np.asarray(chances_BC[:, self._column].cpu().numpy())

    @property
    def _column(self) -> int:
        return toxic_column(self.settings, self.model.config)


def check_judge(settings: JudgeSettings) -> None:
    """Raise ModelError when config or labels do not fit; loads no weights."""
    assert settings.model is not None
    toxic_column(settings, load_config(settings.model))
    load_tokenizer(settings.model)


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


def longest_input(settings: JudgeSettings, config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that fit the model."""
    positions = getattr(config, "max_position_embeddings", None) or settings.max_tokens
    if config.model_type in ("roberta", "xlm-roberta"):
        positions -= 2  # RoBERTa counts positions from the padding's on
    return int(min(settings.max_tokens, positions, tokenizer.model_max_length))


def render(settings: JudgeSettings, history: Sequence[str], reply: str) -> str:
    """The classifier's input. The line before the reply counts as the human's, and so on in turn.

    >>> asked = {"template": "{history}|{reply}", "separator": "|", "history_lines": 2}
    >>> asked |= {"kind": "hf", "model": "a/b", "human": "A: ", "bot": "B: "}
    >>> render(JudgeSettings(**asked), ["hi", "hello", "tea?"], "yes")
    'B: hello|A: tea?|B: yes'
    """
    kept = history[max(0, len(history) - settings.history_lines) :]
    lines = [
        (settings.bot if (len(kept) - place) % 2 == 0 else settings.human) + line
        for place, line in enumerate(kept)
    ]
    before, after = settings.template.split("{reply}", 1)
    joined = settings.separator.join(lines)
    parts = (before.replace("{history}", joined), settings.bot + reply)
    return ("".join(parts) + after.replace("{history}", joined)).strip()
