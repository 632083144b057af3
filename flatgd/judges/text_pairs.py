"""What an encoder reads: history and reply as a pair of texts.

Shapes: R rows, S positions.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from flatgd.config.judge import JudgeSettings
from flatgd.errors import ModelError
from flatgd.judges.reading import Cuts, Pair, check_room, newest, without_oldest


def shortened(settings: JudgeSettings, pair: Pair) -> Pair:
    """The pair with the newest turns of its history, as many as the judge reads."""
    return newest(pair[0], settings.history_lines), pair[1]


def text_pairs(
    settings: JudgeSettings,
    tokenizer: PreTrainedTokenizerBase,
    config: Any,
    pairs: Sequence[Pair],
    room: int,
) -> tuple[dict[str, Tensor], list[Cuts]]:
    """A batch of pairs, padded on the right, with `reply_mask` [R, S]: 1 at the reply's tokens; and
    what each pair lost, cut to `room` tokens. The first text of a pair may be empty."""
    rows, lost = [], [Cuts() for _ in pairs]
    for (history, reply), cuts in zip(pairs, lost, strict=True):
        pair = settings.separator.join(history), reply or " "
        encoded = tokenizer(*pair, verbose=False)
        parts = encoded.sequence_ids(0)
        old, new = ([at for at, part in enumerate(parts) if part == n] for n in (0, 1))
        row = {**encoded, "reply_mask": [int(part == 1) for part in parts]}
        rows.append(without_oldest(row, old, new, room, cuts))
    pad = config.get_text_config().pad_token_id or 0
    batch = {
        key: pad_sequence(
            [torch.tensor(row[key]) for row in rows],
            batch_first=True,
            padding_value=pad if key == "input_ids" else 0,
        )
        for key in rows[0]
    }
    return {**batch, "reply_mask": batch["reply_mask"].float()}, lost


def check_text_pairs(tokenizer: PreTrainedTokenizerBase, room: int) -> None:
    """Raise ModelError for a tokenizer that cannot tell the two texts apart, and for too few
    tokens."""
    if not tokenizer.is_fast:
        raise ModelError(
            "a judge from an encoder needs a fast tokenizer, which separates the reply's tokens "
            f"from the history's; {type(tokenizer).__name__} is not one. Take another encoder"
        )
    check_room(tokenizer.num_special_tokens_to_add(pair=True) + 1, room)
