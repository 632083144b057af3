"""Text to token ids, such that text from users never becomes a special token.

Otherwise a text with "</s>" or "<|im_end|>" would end a turn, or forge one. `mark` wraps such
strings before a template or separator adds the model's own; `ids` turns wrapped strings into
ordinary tokens and encodes the rest as the tokenizer does.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from flatgd.errors import ModelError

# noncharacters of Unicode, which texts for exchange never contain
PROBES = ("a", " a", "  a", "\n\na", "1", "\u0301a", "\u2581a", ".", "<")
OPEN, CLOSE = "\ufdd0", "\ufdd1"


def _overlaps(name: str, other: str) -> bool:
    """Whether `other` can take up a part of `name` where both are in a text."""
    inside = name in other and name != other
    return inside or any(other.endswith(name[:size]) for size in range(1, len(name)))


class TextEncoder:
    """A tokenizer's ids for texts. `vocabulary` is the number of rows of the model's embedding.

    `control` is the set of strings that only the model's own layout may use: all special tokens,
    and other added tokens that the chat template writes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int):
        self.tokenizer, self.vocabulary = tokenizer, vocabulary
        template = tokenizer.chat_template or ""
        written = template if isinstance(template, str) else "".join(template.values())
        added: dict[int, Any] = tokenizer.added_tokens_decoder
        self.control = {token for token in tokenizer.all_special_tokens if token} | {
            token.content
            for token in added.values()
            if token.special or (token.content.strip() and token.content in written)
        }
        self.control_ids = {self.id_of(token) for token in self.control}
        longest_first = sorted(self.control, key=len, reverse=True)
        names = "|".join(map(re.escape, longest_first)) or r"(?!)"
        self._names = re.compile(names)
        self._marked = re.compile(f"{OPEN}({names}){CLOSE}")
        self._is_break: dict[str, bool] = {}
        self.is_larger = len(tokenizer) > vocabulary

    @property
    def is_fast(self) -> bool:
        """Whether texts are encoded by the library `tokenizers` and nothing else."""
        kind = type(self.tokenizer)
        return (
            issubclass(kind, PreTrainedTokenizerFast)
            and kind.__module__.startswith("transformers.")
            and all(
                getattr(kind, name, None) is getattr(PreTrainedTokenizerFast, name, None)
                for name in ("__call__", "_encode_plus")
            )
        )

    def identity(self) -> str | None:
        """Everything that changes the ids of a text, or the text that a chat template renders; None
        where that is not known, because the tokenizer has code of its own."""
        if not self.is_fast:
            return None
        tokenizer: Any = self.tokenizer
        parts = (
            (
                type(tokenizer),
                sorted(self.control),
                self.vocabulary,
                tokenizer.split_special_tokens,
            ),
            (sorted(tokenizer.special_tokens_map.items()), tokenizer.chat_template),
            tokenizer.backend_tokenizer.to_str(),
        )
        return repr(parts)

    def break_in(self, text: str) -> int:
        """A place in `text`. Up to it the ids stay the same whatever is written after `text`, and
        what follows it can be encoded on its own. 0 if no place is known."""
        last = None
        for found in self._names.finditer(text):
            last = found
        if last is None or OPEN in text or CLOSE in text:
            return 0
        if last[0] not in self._is_break:
            self._is_break[last[0]] = self._can_break_after(last[0])
        return last.end() if self._is_break[last[0]] else 0

    def _can_break_after(self, name: str) -> bool:
        """Whether the tokenizer cuts this token out of any text before it does anything else: as it
        is written, without white space beside it, and never as a part of another such token."""
        if not self.is_fast or self.tokenizer.split_special_tokens or name != name.strip():
            return False
        added: list[Any] = list(self.tokenizer.added_tokens_decoder.values())
        own = [token for token in added if token.content == name]
        if any(token.single_word or _overlaps(name, token.content) for token in added):
            return False
        if not own or any(token.normalized or token.lstrip or token.rstrip for token in own):
            return False
        # whatever else the tokenizer does, it must do to both sides alone
        texts = [text for after in PROBES for text in (f"a {name}{after}", f"a {name}", after)]
        ids = self._ids_of(texts)
        return all(ids[n] == ids[n + 1] + ids[n + 2] for n in range(0, len(ids), 3))

    def id_of(self, token: str) -> int:
        found: Any = self.tokenizer.convert_tokens_to_ids(token)
        return int(found)

    def mark(self, text: str) -> str:
        """The text with all control strings wrapped."""
        return self._names.sub(lambda found: f"{OPEN}{found[0]}{CLOSE}", text)

    def first_control(self, text: str) -> re.Match[str] | None:
        """The first control string that is not wrapped: the layout itself wrote it."""
        return self._names.search(self._marked.sub(lambda found: " " * len(found[0]), text))

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, which may contain wrapped strings. No token is added. Raises
        ModelError for an id beyond the embedding."""
        if not texts:
            return []
        whole = [n for n, text in enumerate(texts) if OPEN not in text and CLOSE not in text]
        encoded: list[list[int]] = [[] for _ in texts]
        if whole:
            for n, row in zip(whole, self._ids_of([texts[n] for n in whole]), strict=True):
                encoded[n] = row
        for n in set(range(len(texts))).difference(whole):
            encoded[n] = self._ids_of_marked(texts[n])
        if self.is_larger:
            for row in encoded:
                self.check(row)
        return encoded

    def _ids_of(self, texts: list[str]) -> list[list[int]]:
        """The tokenizer's ids. Of many texts a fast tokenizer is asked for ids alone, which takes
        three quarters of the time."""
        is_many = len(texts) > 1 and self.is_fast
        # verbose=False: no warning about long texts, which are cut and counted later
        asked: Any = self.tokenizer(
            texts[:1] if is_many else texts,  # one text sets truncation and the like
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        if not is_many:
            return list(asked)
        core: Any = self.tokenizer.backend_tokenizer
        return [found.ids for found in core.encode_batch_fast(texts, add_special_tokens=False)]

    def plain(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts without any control token."""
        forged = {n for n, text in enumerate(texts) if self._names.search(text)}
        ids = self.ids(["" if n in forged else text for n, text in enumerate(texts)])
        for n in forged:
            ids[n] = self._broken(texts[n])
        return ids

    def _broken(self, text: str) -> list[int]:
        """The ids of a text with control strings, as ordinary tokens."""
        ids = self._without_added_tokens(text)
        if self.control_ids.isdisjoint(ids) or len(text) < 2:
            return ids
        # the vocabulary has the control string as an ordinary token too: split the text inside it
        found = self._names.search(text)
        cut = found.start() + 1 if found else 1
        return [number for part in self.plain([text[:cut], text[cut:]]) for number in part]

    def check(self, ids: Iterable[int]) -> None:
        """Raise ModelError for an id that the embedding lacks."""
        for number in ids:
            if number >= self.vocabulary:
                token = self.tokenizer.convert_ids_to_tokens(int(number))
                raise ModelError(
                    f"the tokenizer gives {token!r} the id {number}, but the model's embedding has "
                    f"{self.vocabulary} rows; call model.resize_token_embeddings("
                    f"{len(self.tokenizer)}) and save the model, or use the model's own tokenizer"
                )

    def _ids_of_marked(self, text: str) -> list[int]:
        """The ids of a text with wrapped strings: those as ordinary tokens, the rest as usual."""
        ids: list[int] = []
        for place, piece in enumerate(self._marked.split(text)):
            # a template may have cut a wrapped string in two
            piece = piece.replace(OPEN, "").replace(CLOSE, "")
            if piece:
                ids += self._broken(piece) if place % 2 else self.ids([piece])[0]
        return ids

    def _without_added_tokens(self, text: str) -> list[int]:
        core = getattr(self.tokenizer, "backend_tokenizer", None)
        if core is None:
            own = {"add_special_tokens": False, "split_special_tokens": True}
            return list(self.tokenizer.encode(text, **own))
        if core.normalizer is not None:
            text = core.normalizer.normalize_str(text)
        pieces = [text]
        if core.pre_tokenizer is not None:
            pieces = [piece for piece, _ in core.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for piece in pieces for token in core.model.tokenize(piece)]
