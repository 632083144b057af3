"""Truncation of a judge's inputs. An input that is too long loses its oldest text, token by token:
first the history, then the beginning of the reply. Markers and template stay. Cuts are counted.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from flatgd.config.judge import JudgeSettings
from flatgd.errors import ModelError

T = TypeVar("T")
Pair = tuple[tuple[str, ...], str]  # history, reply

# Model types whose first position is the one after the number of their padding token
AFTER_PADDING = {
    *("camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm"),
    *("mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
}


@dataclass
class Cuts:
    """The inputs that a judge read since the last summary, and how many of them were too long."""

    inputs: int = 0
    histories: int = 0
    """Inputs that lost older history."""
    replies: int = 0
    """Inputs that lost the beginning of their reply."""

    def count(self, of_history: int, of_reply: int) -> None:
        """Count one input and the tokens cut from its history and reply."""
        self.inputs += 1
        self.histories += of_history > 0
        self.replies += of_reply > 0

    def add(self, other: "Cuts") -> None:
        """Count the inputs of `other` too."""
        self.inputs += other.inputs
        self.histories += other.histories
        self.replies += other.replies

    def summary(self) -> str:
        """
        >>> Cuts(300, 12, 1).summary()
        'of 300 inputs 12 were too long and lost older history, 1 the beginning of the reply'
        >>> Cuts(300).summary()
        ''
        """
        if not self.histories and not self.replies:
            return ""
        return (
            f"of {self.inputs:,} inputs {self.histories:,} were too long and lost older history, "
            f"{self.replies:,} the beginning of the reply"
        )

    def take_summary(self) -> str:
        """The summary; the counts start again at zero."""
        summary = self.summary()
        self.inputs = self.histories = self.replies = 0
        return summary


def longest_input(settings: JudgeSettings, config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of tokens that fit the model, at most `max_tokens`."""
    own = config.get_text_config()
    limits = [settings.max_tokens, int(tokenizer.model_max_length)]
    positions = getattr(own, "max_position_embeddings", None)
    if positions is not None and positions > 0:  # XLNet has -1, which means no limit
        # at least two, as in all published models
        skipped = max(2, (own.pad_token_id or 0) + 1) if own.model_type in AFTER_PADDING else 0
        limits.append(positions - skipped)
    return min(limits)


def oldest(
    history: Sequence[int], reply: Sequence[int], excess: int
) -> tuple[Sequence[int], Sequence[int]]:
    """The positions of history and reply to remove from an input with `excess` tokens too many.

    >>> oldest([1, 2, 3], [5, 6], 2)
    ([1, 2], [])
    >>> oldest([1, 2, 3], [5, 6], 4)
    ([1, 2, 3], [5])
    >>> oldest([1, 2, 3], [5, 6], -7)
    ([], [])
    """
    of_history = history[: max(0, excess)]
    return of_history, reply[: max(0, excess - len(of_history))]


def without_oldest(
    encoded: dict[str, list[int]],
    history: Sequence[int],
    reply: Sequence[int],
    limit: int,
    cuts: Cuts,
) -> dict[str, list[int]]:
    """An encoded input truncated to `limit` tokens, and counted in `cuts`. `history` and `reply`
    are the positions of their tokens."""
    length = len(encoded["input_ids"])
    lost = oldest(history, reply, length - limit)
    cuts.count(*map(len, lost))
    gone = {*lost[0], *lost[1]}
    check_room(length - len(gone), limit)
    return {
        key: [value for place, value in enumerate(values) if place not in gone]
        for key, values in encoded.items()
    }


def check_room(length: int, limit: int) -> None:
    """Raise ModelError if the tokens of template and markers alone exceed the limit."""
    if length > limit:
        raise ModelError(
            f"the judge reads at most {limit} tokens, but its template and markers alone are "
            f"{length}; raise max_tokens, shorten the template, or use a model with more positions"
        )


def newest(history: Sequence[str], lines: int) -> tuple[str, ...]:
    """The last `lines` turns of a history.

    >>> newest(("a", "b", "c"), 2), newest(("a",), 2), newest(("a",), 0)
    (('b', 'c'), ('a',), ())
    """
    return tuple(history[max(0, len(history) - lines) :])


def letters_of(pair: Pair) -> int:
    """The characters of history and reply."""
    return sum(map(len, pair[0])) + len(pair[1])


def encode_within(
    pair: Pair, encode: Callable[[Pair], T], size: Callable[[T], int], limit: int, cuts: Cuts
) -> T:
    """A pair encoded without its oldest characters, as many as bring its size in tokens to `limit`,
    and counted in `cuts`. For inputs whose tokens cannot be told apart by where they come from."""
    whole = encode(pair)
    if size(whole) <= limit:  # nearly always
        cuts.count(0, 0)
        return whole
    every = range(letters_of(pair))
    cut = bisect_left(every, True, key=lambda count: size(encode(_without(pair, count))) <= limit)
    of_history = letters_of((pair[0], ""))
    cuts.count(min(cut, of_history), max(0, cut - of_history))
    return encode(_without(pair, cut))


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
