"""The embedding judge: a frozen encoder under a linear head.

Any encoder of sentences reads history and reply as a pair of texts. The features are the means of
the reply's hidden states after some of its layers. A logistic regression over them is trained
here, in minutes on two cores, most of which the encoder takes. It is mixed with one over n-grams (a
linear judge), which knows spellings that the encoder does not. Features are cached on disk, so
another head, or another judge with the same encoder, takes seconds.

Shapes: N pairs, R rows, S positions, D width, F features.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save, save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedTokenizerBase

from flatgd.config.judge import JudgeSettings
from flatgd.dialogue import Dialogue
from flatgd.errors import ModelError
from flatgd.io.files import atomic_writer
from flatgd.judges.base import Judge, Progress, pairs_of
from flatgd.judges.calibration import Scores, auc, calibrate, logit, sigmoid, toxic_labels
from flatgd.judges.linear import LinearJudge, fit_words, folds_between
from flatgd.judges.reading import Cuts, Pair, letters_of, longest_input
from flatgd.judges.text_pairs import check_text_pairs, shortened, text_pairs
from flatgd.models.batching import READ_AT_ONCE, at_once, token_batches
from flatgd.models.loading import load_as, load_config, load_tokenizer, on_device
from flatgd.runtime import distributed

logger = logging.getLogger(__name__)

HEAD, WORDS = "judge.safetensors", "words"
Features = NDArray[np.float32]
MOST_KEPT = 50_000  # texts whose features are kept: 310 MB where a state has 768 values
LARGEST = 65504.0  # in float16
LETTERS = 4  # to a token, for batches of similar length
PENALTIES = (1e-4, 3e-4, 1e-3)  # C of the logistic regression; held-out folds choose


class _Head(NamedTuple):
    """A logistic regression over standardised features, [F] each."""

    mean: Features
    scale: Features
    weights: Features
    bias: float

    def logits(self, features_NF: Features) -> Scores:
        """The logits of P(toxic), [N]."""
        standard_NF = (features_NF - self.mean) / self.scale
        return np.asarray(standard_NF @ self.weights, dtype=np.float64) + self.bias


def _fitted(features_NF: Features, labels: NDArray[np.bool_], penalty: float) -> _Head:
    """Both labels have equal total weight in the fit."""
    mean, scale = features_NF.mean(0), features_NF.std(0) + 1e-6
    model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=300)
    model.fit((features_NF - mean) / scale, labels)
    return _Head(mean, scale, model.coef_[0].astype(np.float32), float(model.intercept_[0]))


class _Row(NamedTuple):
    """The features of a text, [F] in float16, and what it lost to its length."""

    features: NDArray[np.float16]
    cuts: Cuts


class FeatureCache:
    """Features of pairs that an encoder has read, at most MOST_KEPT, in a file. Without a path, in
    memory alone."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: dict[str, _Row] = {}
        if path is not None and path.is_file():
            try:
                kept = load_file(path)
                parts = kept["digests"], kept["features"], kept["cut"]
            except (OSError, SafetensorError, KeyError):  # cut off: it is made again
                return
            for digest, features, cut in zip(*parts, strict=True):
                self.rows[bytes(digest).hex()] = _Row(features, Cuts(1, *cut.tolist()))

    def add(self, rows: Mapping[str, _Row]) -> None:
        """Keep these, by the digests of their pairs, and write them to the file."""
        room = MOST_KEPT - len(self.rows)
        self.rows |= dict(islice(rows.items(), room))
        if self.path is None or room <= 0 or not rows or not distributed.is_first():
            return
        digests = np.array([list(bytes.fromhex(name)) for name in self.rows], dtype=np.uint8)
        cut = [[row.cuts.histories, row.cuts.replies] for row in self.rows.values()]
        parts = {"digests": digests, "cut": np.array(cut, dtype=np.uint8)}
        parts["features"] = np.stack([row.features for row in self.rows.values()])
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_writer(self.path) as file:
                file.write(save(parts))
        except OSError as error:  # the judge does not need the file
            logger.warning("%s: features are not kept: %s", self.path, error)


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
    layers: list[int]
    """Those after which states are read."""
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
        room = longest_input(settings, model.config, tokenizer)
        check_text_pairs(tokenizer, room)
        path = folder and folder / f"{_cache_key(settings, model, tokenizer, room)}.safetensors"
        layers = _layers(int(model.config.get_text_config().num_hidden_layers))
        _drop_layers_above(model.eval(), layers[-1], tokenizer)
        return cls(settings, on_device(model), tokenizer, room, layers, FeatureCache(path))

    def features(self, pairs: Sequence[Pair], advance: Progress = lambda count: None) -> Features:
        """[N, F], rounded to float16, from the cache where they are known."""
        pairs = [shortened(self.settings, pair) for pair in pairs]
        names = [_digest(pair) for pair in pairs]
        new = {n: pair for n, pair in zip(names, pairs, strict=True) if n not in self.cache.rows}
        unread = list(new.items())
        advance(len(pairs) - len(new))
        letters = [letters_of(pair) for pair in new.values()]
        budget = LETTERS * at_once(READ_AT_ONCE, self.model.device)
        found: dict[str, _Row] = {}
        for places in token_batches(letters, budget, self.settings.batch_size):
            digests, texts = zip(*(unread[place] for place in places), strict=True)
            found |= zip(digests, self._read(texts), strict=True)
            advance(len(places))
        self.cache.add(found)
        known = self.cache.rows | found
        for name in names:
            self.cuts.add(known[name].cuts)
        return np.stack([known[name].features for name in names]).astype(np.float32)

    def _read(self, pairs: Sequence[Pair]) -> list[_Row]:
        """One batch."""
        given = self.settings, self.tokenizer, self.model.config, pairs, self.room
        batch, lost = text_pairs(*given)
        batch = {key: value.to(self.model.device) for key, value in batch.items()}
        reply_RS = batch.pop("reply_mask")
        with torch.no_grad():
            states = self.model(**batch, output_hidden_states=True).hidden_states
        parts = [_mean(states[layer], reply_RS) for layer in self.layers]
        features_RF = torch.cat(parts, -1).clamp(-LARGEST, LARGEST).half().cpu().numpy()
        return [_Row(*row) for row in zip(features_RF, lost, strict=True)]


def _layers(count: int) -> list[int]:
    """The layers whose states are read, from a third to five sixths of the way: in encoders of
    sentences the last ones have forgotten much of the wording.

    >>> _layers(12), _layers(6), _layers(1)
    ([4, 6, 8, 10], [2, 3, 4, 5], [1])
    """
    return sorted({max(1, round(count * part / 6)) for part in (2, 3, 4, 5)})


def feature_bytes(config: Any) -> int:
    """Bytes that the features of a text take on disk."""
    text = config.get_text_config()
    return len(_layers(int(text.num_hidden_layers))) * int(text.hidden_size) * 2


def _drop_layers_above(model: Any, last: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Drop the layers that nothing reads, unless the states below would change."""
    stacks = [one for one in model.modules() if isinstance(one, nn.ModuleList) and len(one) > last]
    given = tokenizer("hello", return_tensors="pt")
    if len(stacks) != 1:
        return
    with torch.no_grad():
        before = model(**given, output_hidden_states=True).hidden_states[last]
        top = list(stacks[0][last:])
        del stacks[0][last:]
        try:
            states = model(**given, output_hidden_states=True).hidden_states
            is_same = len(states) == last + 1 and torch.equal(states[last], before)
        except Exception:  # a stranger's model may count its layers by its config
            is_same = False
    if not is_same:
        stacks[0].extend(top)


def _mean(states_RSD: Tensor, mask_RS: Tensor) -> Tensor:
    """The mean over the positions of a mask, [R, D], in float32."""
    weights_RS1 = mask_RS[..., None].float()
    return (states_RSD.float() * weights_RS1).sum(1) / weights_RS1.sum(1).clamp(min=1)


def _cache_key(
    settings: JudgeSettings, model: Any, tokenizer: PreTrainedTokenizerBase, room: int
) -> str:
    """A digest of everything that the features of a text depend on."""
    tokens = cast(Any, tokenizer).backend_tokenizer.to_str()
    config = model.config.to_json_string(use_diff=False)
    parts = repr((settings.separator, room, tokens, config, version("flatgd")))
    found = hashlib.blake2b(parts.encode(), digest_size=8)
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


@dataclass
class EmbeddingJudge:
    """The scorer. `mix` has the weights of the head's logit and of the n-grams', and a bias."""

    encoder: Encoder
    head: _Head
    words: LinearJudge
    mix: Scores

    @property
    def cuts(self) -> Cuts:
        return self.encoder.cuts

    def score(self, pairs: Sequence[Pair], advance: Progress = lambda count: None) -> Scores:
        """Score of each (history, reply), 0..1."""
        if not pairs:
            return np.zeros(0)
        by_head = self.head.logits(self.encoder.features(pairs, advance))
        return _mixed(self.mix, by_head, logit(self.words.score(pairs)))

    def save(self, folder: Path) -> None:
        mean, scale, weights, bias = self.head
        parts: dict[str, NDArray[Any]] = {"mean": mean, "scale": scale, "weights": weights}
        save_file(parts | {"bias": np.array([bias]), "mix": self.mix}, folder / HEAD)
        (folder / WORDS).mkdir(exist_ok=True)
        self.words.save(folder / WORDS)

    @classmethod
    def load(
        cls, settings: JudgeSettings, folder: Path, dtype: torch.dtype, features: Path | None = None
    ) -> "EmbeddingJudge":
        try:
            parts = load_file(folder / HEAD)
            head = _Head(parts["mean"], parts["scale"], parts["weights"], float(parts["bias"][0]))
            mix = parts["mix"]
        except (OSError, SafetensorError, KeyError) as error:
            raise ModelError(f"no judge in {folder}: {error}; `flatgd run` builds it") from None
        words = LinearJudge.load(folder / WORDS)
        return cls(Encoder.load(settings, dtype, features), head, words, mix)


def _mixed(mix: Scores, by_head: Scores, by_words: Scores) -> Scores:
    return sigmoid(mix[0] * by_head + mix[1] * by_words + mix[2])


def train_head(
    rows: Sequence[Dialogue],
    settings: JudgeSettings,
    dtype: torch.dtype,
    features: Path | None = None,
    advance: Progress = lambda count: None,
) -> Judge:
    """Fit the head on labelled rows, with the penalty that ranks held-out conversations best, mix
    it with a linear judge, and calibrate the mixture. Mixture and calibration see only scores for
    conversations that were held out."""
    encoder = Encoder.load(settings, dtype, features)
    features_NF = encoder.features(pairs_of(rows), advance)
    labels = toxic_labels(rows)
    held_out = {penalty: np.zeros(len(rows)) for penalty in PENALTIES}
    for fit, rest in folds_between(labels, [row.conversation for row in rows]):
        for penalty, logits in held_out.items():
            head = _fitted(features_NF[fit], labels[fit], penalty)
            logits[rest] = head.logits(features_NF[rest])
    whole = np.ones((1, len(rows)))
    best = max(held_out, key=lambda penalty: float(auc(labels, held_out[penalty], whole)[0]))
    words, by_words = fit_words(rows)
    both = held_out[best], logit(by_words)
    model = LogisticRegression(C=1e6, class_weight="balanced").fit(np.stack(both, 1), labels)
    mix = np.array([*model.coef_[0], model.intercept_[0]])
    calibration = calibrate(_mixed(mix, *both), rows, settings.false_positive_rate)
    head = _fitted(features_NF, labels, best)
    return Judge(EmbeddingJudge(encoder, head, words, mix), calibration)


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
