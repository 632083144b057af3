"""Text to token ids, such that text from users never becomes a special token.

Otherwise a text with "</s>" or "<|im_end|>" would end a turn, or forge one. `mark` wraps such
strings before a template or separator adds the model's own; `ids` turns wrapped strings into
ordinary tokens and encodes the rest as the tokenizer does.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from flatgd.errors import ModelError

# noncharacters of Unicode, which texts for exchange never contain
OPEN, CLOSE = "\ufdd0", "\ufdd1"


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
        self.is_larger = len(tokenizer) > vocabulary

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
            # verbose=False: no warning about long texts, which are cut and counted later
            found = self.tokenizer(
                [texts[n] for n in whole],
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]
            for n, row in zip(whole, found, strict=True):
                encoded[n] = row
        for n in set(range(len(texts))).difference(whole):
            encoded[n] = self._ids_of_marked(texts[n])
        if self.is_larger:
            for row in encoded:
                self.check(row)
        return encoded

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
