"""One dialogue as token ids: the part that all models share.

A collated batch is a dict of tensors: the inputs of the model's forward, and

    targets  [B, T]  the token that each position of the logits predicts, IGNORE for no token
    is_safe  [B]     the row's label (not named `label`, which collators take for token ids)
    row      [B]     the row's number in the training data, or -1

B rows, T reply positions.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flatgd.dialogue import Dialogue, as_turns
from flatgd.errors import DataError, Problem
from flatgd.models.chat_template import Messages
from flatgd.models.text_encoder import TextEncoder

IGNORE = -100
T = TypeVar("T")
Batch = dict[str, Tensor]
CHUNK = 1024  # rows tokenized at once
PARTS_AHEAD = 3  # of so many rows, encoded before they are asked for
EMPTY = "empty turns left out"
APART = "reply whose first token is not merged with the prompt"
NOTHING_FITS = (
    "max_history_tokens is {room}, but the system message and the markers around the turns take "
    "{least} tokens; raise max_history_tokens or shorten the system message"
)


class Example(NamedTuple):
    """One encoded dialogue. `cut_tokens` is the number of tokens that truncation removed from
    history and reply, `row` its number in the training data or -1, `notes` the rules that changed
    its conversation."""

    history_ids: list[int]
    reply_ids: list[int]
    is_safe: bool
    cut_tokens: int
    row: int = -1
    notes: tuple[str, ...] = ()


class Prompt(NamedTuple):
    """The input before a reply: its ids, the number of older tokens that were cut, its text and
    messages if there is a chat template, and the rules that changed the conversation."""

    ids: list[int]
    cut: int
    text: str = ""
    messages: Messages = []  # noqa: RUF012  never changed
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DialogueFormat:
    """The encoding that both kinds of model share. `tokenizer` needs an end-of-sequence token.

    `vocabulary` is the number of rows of the model's embedding; a larger id raises ModelError.
    `prefix` and `suffix` are the ids around a history, `separator` is the text between its turns.
    """

    tokenizer: PreTrainedTokenizerBase
    vocabulary: int
    separator: str
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    max_history_tokens: int = 128
    max_reply_tokens: int = 64

    def __post_init__(self) -> None:
        self.text.check([self.pad, self.end, *self.prefix, *self.suffix])

    @cached_property
    def text(self) -> TextEncoder:
        return TextEncoder(self.tokenizer, self.vocabulary)

    def encode(self, dialogue: Dialogue) -> Example:
        """`encode_all` of one dialogue."""
        return self.encode_all([dialogue])[0]

    def encode_all(self, rows: Sequence[Dialogue]) -> list[Example]:
        """Encode dialogues: the newest part of each history and the beginning of each reply.

        Raises DataError with every row that does not fit.
        """
        return list(self.encode_each(rows))

    def encode_each(self, rows: Sequence[Dialogue]) -> Iterator[Example]:
        """`encode_all`, one by one. While a tokenizer that runs without Python's lock works on one
        part of the rows, the next part is laid out."""
        parts = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
        if len(parts) < 2 or not self.text.is_fast:
            yield from chain.from_iterable(map(self._encode_part, parts))
            return
        self.text.ids([""])  # sets truncation and the like, which then stay as they are
        with ThreadPoolExecutor(2) as pool:
            yield from chain.from_iterable(_in_turn(pool, self._encode_part, parts))

    def _encode_part(self, rows: Sequence[Dialogue]) -> list[Example]:
        examples: list[Example] = []
        prompts = self.prompts(rows)
        replies = self._replies(prompts, [row.reply for row in rows])
        for row, prompt, (reply, notes) in zip(rows, prompts, replies, strict=True):
            kept = reply[: self.max_reply_tokens]
            cut = prompt.cut + len(reply) - len(kept)
            examples.append(
                Example(prompt.ids, kept, bool(row.is_safe), cut, -1, (*prompt.notes, *notes))
            )
        return examples

    def identity(self) -> str | None:
        """A digest of everything that changes an encoding; None where that is not known."""
        tokenizer = self.text.identity()
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tokenizer"}
        try:
            json.dumps(own)
        except (TypeError, ValueError):  # an object whose repr may not show all that it is
            return None
        whole = repr((type(self), own, tokenizer))
        return None if tokenizer is None else hashlib.sha256(whole.encode()).hexdigest()

    def encode_histories(self, rows: Sequence[Dialogue]) -> list[Example]:
        """Encode histories alone, for generation."""
        return [Example(prompt.ids, [], True, prompt.cut) for prompt in self.prompts(rows)]

    def prompts(self, rows: Sequence[Dialogue]) -> list[Prompt]:
        """The input before each reply. Raises DataError with every row that does not fit."""
        raise NotImplementedError

    def _replies(
        self, prompts: Sequence[Prompt], replies: Sequence[str]
    ) -> list[tuple[list[int], tuple[str, ...]]]:
        """(ids of each reply with its end, notes)."""
        return [([*ids, self.end], ()) for ids in self.text.plain(replies)]

    def history(self, turns: Sequence[Any], system: str = "") -> tuple[list[int], int]:
        """(token ids of the newest part, number of older tokens cut) of turns, or of strings with
        alternating roles."""
        (prompt,) = self.prompts([Dialogue(as_turns(turns), "", None, "", "", system=system)])
        return prompt.ids, prompt.cut

    def spelled(self, example: Example) -> str:
        """Every token of an example with its id, prompt and target on separate lines."""
        lines = []
        for name, ids in (("prompt", example.history_ids), ("target", example.reply_ids)):
            tokens = (f"{self.tokenizer.decode([number])!r} {number}" for number in ids)
            lines.append(f"{name}, {len(ids)} tokens: {' | '.join(tokens)}")
        return "\n".join(lines)

    def collate(self, examples: Sequence[Example]) -> Batch:
        raise NotImplementedError

    def prompt(self, examples: Sequence[Example]) -> Batch:
        """Inputs for `generate`."""
        raise NotImplementedError

    @property
    def end(self) -> int:
        """The id that ends a reply."""
        return int(self.tokenizer.eos_token_id)

    def said(self, ids: Sequence[int], stops: Sequence[int]) -> str:
        """The text of a generated reply, up to the first of the ids in `stops`."""
        end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
        return str(self.tokenizer.decode(list(ids[:end]), skip_special_tokens=True)).strip()

    @property
    def pad(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def _joined(self, rows: Sequence[Dialogue], close: str = "") -> list[Prompt]:
        """Prompts without a chat template: turns with the separator between them and `close` after
        the last. The oldest tokens are cut; the system message comes first and is never cut."""
        turns = [[turn.text for turn in row.history if turn.text.strip()] for row in rows]
        mark, sep = self.text.mark, self.separator  # the separator may be a special token
        systems = [mark(row.system) + sep if row.system else "" for row in rows]
        body = [sep.join(map(mark, said)) + (close if said else "") for said in turns]
        found, problems = [], []
        heads = self.text.ids(systems)
        for row, said, head, ids in zip(rows, turns, heads, self.text.ids(body), strict=True):
            ids = ids or self._nothing(bool(head))
            least = len(self.prefix) + len(head) + len(self.suffix)
            room = self.max_history_tokens - least
            if room < min(1, len(ids)):
                reason = NOTHING_FITS.format(room=self.max_history_tokens, least=least)
                problems.append(Problem(row.where or row.conversation, 0, reason))
                continue
            kept = ids[max(0, len(ids) - room) :]
            notes = (EMPTY,) if len(said) < len(row.history) else ()
            whole = [*self.prefix, *head, *kept, *self.suffix]
            found.append(Prompt(whole, len(ids) - len(kept), notes=notes))
        if problems:
            raise DataError(problems)
        return found

    def _nothing(self, has_system: bool) -> list[int]:
        """The ids of a history without text."""
        return []


def _in_turn(
    pool: Executor, work: Callable[[T], list[Example]], parts: Iterable[T]
) -> Iterator[list[Example]]:
    """`map(work, parts)`, a few parts ahead of the one that is asked for."""
    waiting: deque[Future[list[Example]]] = deque()
    for part in parts:
        waiting.append(pool.submit(work, part))
        if len(waiting) > PARTS_AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def about(examples: Sequence[Example]) -> Batch:
    return {
        "is_safe": torch.tensor([e.is_safe for e in examples]),
        "row": torch.tensor([e.row for e in examples]),
    }


def padded(rows: Sequence[list[int]], value: int, left: bool = False) -> Tensor:
    width = max(len(row) for row in rows)
    fill = [[value] * (width - len(row)) for row in rows]
    return torch.tensor([f + r if left else r + f for r, f in zip(rows, fill, strict=True)])
