"""The embedding judge: a frozen encoder under a linear head.

Any encoder of sentences reads history and reply as a pair of texts. The features are means of its
hidden states, over the reply and over both texts, after some of its layers. A logistic regression
over them is trained here, in minutes on two cores, most of which the encoder takes. Features are
cached on disk, so another head, or another judge with the same encoder, takes seconds.

Shapes: N pairs, R rows, S positions, D width, F features.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save, save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from transformers import AutoModel, PreTrainedTokenizerBase

from flatgd.config.judge import JudgeSettings
from flatgd.dialogue import Dialogue
from flatgd.errors import ModelError
from flatgd.io.files import atomic_writer
from flatgd.judges.base import Judge, Progress, pairs_of
from flatgd.judges.calibration import Scores, auc, calibrate, toxic_labels
from flatgd.judges.linear import folds_between
from flatgd.judges.reading import Cuts, Pair, longest_input
from flatgd.judges.text_pairs import check_text_pairs, shortened, text_pairs
from flatgd.models.batching import READ_AT_ONCE, at_once, token_batches
from flatgd.models.loading import load_as, load_config, load_tokenizer

HEAD = "judge.safetensors"
Features = NDArray[np.float32]
LETTERS = 4  # to a token, for batches of similar length
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2)  # C of the logistic regression; held-out folds choose


class _Head(NamedTuple):
    """A logistic regression over standardised features, [F] each."""

    mean: Features
    scale: Features
    weights: Features
    bias: float

    def predict(self, features_NF: Features) -> Scores:
        """P(toxic), [N]."""
        logits = self.logits(features_NF)
        return np.asarray(1.0 / (1.0 + np.exp(-logits)))

    def logits(self, features_NF: Features) -> Scores:
        standard_NF = (features_NF - self.mean) / self.scale
        return np.asarray(standard_NF @ self.weights, dtype=np.float64) + self.bias


def _fitted(features_NF: Features, labels: NDArray[np.bool_], penalty: float) -> _Head:
    """Both labels have equal total weight in the fit."""
    mean, scale = features_NF.mean(0), features_NF.std(0) + 1e-6
    model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=300)
    model.fit((features_NF - mean) / scale, labels)
    return _Head(mean, scale, model.coef_[0].astype(np.float32), float(model.intercept_[0]))


class FeatureCache:
    """Features of pairs that an encoder has read, in a file. Without a path, in memory alone."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._rows: dict[str, Features] = {}
        if path is not None and path.is_file():
            try:
                tensors = load_file(path)
            except (OSError, SafetensorError):  # cut off: it is made again
                return
            names = [bytes(name).hex() for name in tensors["digests"]]
            self._rows = dict(zip(names, tensors["features"], strict=True))

    def missing(self, pairs: Sequence[Pair]) -> list[int]:
        """The places of the pairs that no one has read, each pair once."""
        first = {_digest(pair): place for place, pair in reversed(list(enumerate(pairs)))}
        return sorted(place for name, place in first.items() if name not in self._rows)

    def add(self, pair: Pair, features_F: Features) -> None:
        self._rows[_digest(pair)] = features_F.astype(np.float16)

    def of(self, pairs: Sequence[Pair]) -> Features:
        """The features of pairs that are all known, [N, F]."""
        return np.stack([self._rows[_digest(pair)] for pair in pairs]).astype(np.float32)

    def save(self) -> None:
        if self.path is None or not self._rows:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        digests = np.array([list(bytes.fromhex(name)) for name in self._rows], dtype=np.uint8)
        with atomic_writer(self.path) as file:
            found = np.stack(list(self._rows.values()))
            file.write(save({"digests": digests, "features": found}))


def _digest(pair: Pair) -> str:
    text = json.dumps([list(pair[0]), pair[1]])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass
class Encoder:
    """A frozen encoder, and what it made of each text so far."""

    settings: JudgeSettings
    model: Any
    tokenizer: PreTrainedTokenizerBase
    room: int
    """Tokens of an input."""
    cache: FeatureCache
    cuts: Cuts = field(default_factory=Cuts)

    @classmethod
    def load(
        cls, settings: JudgeSettings, dtype: torch.dtype, folder: Path | None = None
    ) -> "Encoder":
        """The encoder, with its cache in `folder`."""
        name = str(settings.model)
        tokenizer = load_tokenizer(name)
        model: Any = load_as(AutoModel, name, "body", dtype)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        room = longest_input(settings, model.config, tokenizer)
        path = folder and folder / f"{_reading(settings, model, room)}.safetensors"
        return cls(settings, model.to(device).eval(), tokenizer, room, FeatureCache(path))

    def features(self, pairs: Sequence[Pair], advance: Progress = lambda count: None) -> Features:
        """[N, F] in float16 steps, from the cache where they are known."""
        pairs = [shortened(self.settings, pair) for pair in pairs]
        new = self.cache.missing(pairs)
        advance(len(pairs) - len(new))
        letters = [sum(map(len, pairs[place][0])) + len(pairs[place][1]) for place in new]
        budget = LETTERS * at_once(READ_AT_ONCE, self.model.device)
        for batch in token_batches(letters, budget, self.settings.batch_size):
            places = [new[number] for number in batch]
            for place, row_F in zip(places, self._read([pairs[p] for p in places]), strict=True):
                self.cache.add(pairs[place], row_F)
            advance(len(places))
        if new:
            self.cache.save()
        return self.cache.of(pairs)

    def _read(self, pairs: Sequence[Pair]) -> Features:
        """[R, F] of one batch."""
        given = self.settings, self.tokenizer, self.model.config, pairs, self.room, self.cuts
        batch = {key: value.to(self.model.device) for key, value in text_pairs(*given).items()}
        reply_RS = batch.pop("reply_mask")
        with torch.no_grad():
            states = self.model(**batch, output_hidden_states=True).hidden_states
        parts = [
            _mean(states[layer], mask_RS)
            for layer in _layers(len(states) - 1)
            for mask_RS in (reply_RS, batch["attention_mask"])
        ]
        return np.asarray(torch.cat(parts, -1).cpu().numpy())


def _layers(count: int) -> list[int]:
    """The layers whose states are read."""
    return sorted({count // 2, 3 * count // 4, count})


def _mean(states_RSD: Tensor, mask_RS: Tensor) -> Tensor:
    """The mean over the positions of a mask, [R, D], in float32."""
    weights_RS1 = mask_RS[..., None].float()
    return (states_RSD.float() * weights_RS1).sum(1) / weights_RS1.sum(1).clamp(min=1)


def _reading(settings: JudgeSettings, model: Any, room: int) -> str:
    """A digest of everything that the features of a text depend on."""
    found = hashlib.blake2b(repr((settings.separator, room)).encode(), digest_size=8)
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


@dataclass
class EmbeddingJudge:
    """The scorer."""

    encoder: Encoder
    head: _Head

    @property
    def cuts(self) -> Cuts:
        return self.encoder.cuts

    def score(self, pairs: Sequence[Pair], advance: Progress = lambda count: None) -> Scores:
        """Score of each (history, reply), 0..1."""
        if not pairs:
            return np.zeros(0)
        return self.head.predict(self.encoder.features(pairs, advance))

    def save(self, folder: Path) -> None:
        mean, scale, weights, bias = self.head
        parts: dict[str, NDArray[Any]] = {
            "mean": mean,
            "scale": scale,
            "weights": weights,
            "bias": np.array([bias]),
        }
        save_file(parts, folder / HEAD)

    @classmethod
    def load(
        cls, settings: JudgeSettings, folder: Path, dtype: torch.dtype, features: Path | None = None
    ) -> "EmbeddingJudge":
        try:
            parts = load_file(folder / HEAD)
            head = _Head(parts["mean"], parts["scale"], parts["weights"], float(parts["bias"][0]))
        except (OSError, SafetensorError, KeyError) as error:
            raise ModelError(f"no judge in {folder}: {error}; `flatgd run` builds it") from None
        return cls(Encoder.load(settings, dtype, features), head)


def train_head(
    rows: Sequence[Dialogue],
    settings: JudgeSettings,
    dtype: torch.dtype,
    features: Path | None = None,
    advance: Progress = lambda count: None,
) -> Judge:
    """Fit the head on labelled rows, with the penalty that ranks held-out conversations best, and
    calibrate it on its scores for those."""
    encoder = Encoder.load(settings, dtype, features)
    features_NF = encoder.features(pairs_of(rows), advance)
    labels = toxic_labels(rows)
    folds = folds_between(labels, [row.conversation for row in rows])
    held_out = {penalty: np.zeros(len(rows)) for penalty in PENALTIES}
    for fit, rest in folds:
        for penalty, scores in held_out.items():
            scores[rest] = _fitted(features_NF[fit], labels[fit], penalty).predict(
                features_NF[rest]
            )
    whole = np.ones((1, len(rows)))
    best = max(held_out, key=lambda penalty: float(auc(labels, held_out[penalty], whole)[0]))
    calibration = calibrate(held_out[best], rows, settings.false_positive_rate)
    return Judge(EmbeddingJudge(encoder, _fitted(features_NF, labels, best)), calibration)


def check_encoder(settings: JudgeSettings) -> None:
    """Raise ModelError if model, tokenizer or max_tokens do not fit. Loads no weights."""
    name = str(settings.model)
    config, tokenizer = load_config(name), load_tokenizer(name)
    if config.is_encoder_decoder:
        raise ModelError(
            f"an embedding judge reads texts with an encoder alone; {name} is an encoder-decoder "
            "(kind: trained takes it)"
        )
    check_text_pairs(tokenizer, longest_input(settings, config, tokenizer))
