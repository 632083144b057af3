"""Pretrain the small BlenderBot-shaped models that ship in flatgd/demo/ (backbone and scorer).

The backbone stands in for a model trained on the open web. It is trained on ordinary dialogue and
on DiaSafety train with both labels, so it can be toxic. It never sees BAD. The scorer measures
perplexity and must be independent of the backbone: another seed, another tokenizer, and the other
half of the dialogues.

    python scripts/pretrain.py backbone --dialogues FILE.jsonl.gz --diasafety FOLDER --out OUT
    python scripts/pretrain.py scorer   --dialogues FILE.jsonl.gz --out OUT

Dialogues are JSONL with one {"turns": [...]} per line. A hash of its text assigns a dialogue to the
backbone, to the scorer or to neither (held out), so the three parts share no dialogue.
"""

import argparse
import copy
import gzip
import hashlib
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch.nn.functional import cross_entropy
from transformers import (
    BlenderbotConfig,
    BlenderbotForConditionalGeneration,
    PreTrainedTokenizerFast,
)

PAD, BOS, EOS, UNK = 0, 1, 2, 3
HISTORY_TOKENS, REPLY_TOKENS = 80, 40
IGNORE = -100


@dataclass(frozen=True)
class Shape:
    """The size, the seed and the share of dialogues of one shipped model."""

    vocab: int
    width: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    seed: int
    buckets: range  # dialogues whose hash mod 100 falls in here


SHAPES = {
    "backbone": Shape(6000, 192, 6, 2, 4, seed=1, buckets=range(0, 49)),
    "scorer": Shape(4000, 128, 4, 2, 5, seed=2, buckets=range(49, 98)),
}  # buckets 98 and 99 are held out from both


def bucket(turns: list[str]) -> int:
    digest = hashlib.sha256("\n".join(turns).encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100


def load_dialogues(path: Path, buckets: range) -> list[list[str]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        dialogues = [json.loads(line)["turns"] for line in lines]
    return [[" ".join(t.split()) for t in d] for d in dialogues if bucket(d) in buckets]


def load_diasafety(folder: Path) -> list[list[str]]:
    """Train rows with both labels, without contexts that also occur in val or test."""
    parts = {
        name: json.loads(gzip.decompress((folder / f"{name}.json.gz").read_bytes()))
        for name in ("train", "val", "test")
    }
    held = {row["context"] for name in ("val", "test") for row in parts[name]}
    rows = [r for r in parts["train"] if r["context"] not in held]
    return [[" ".join(r["context"].split()), " ".join(r["response"].split())] for r in rows]


def train_tokenizer(dialogues: list[list[str]], vocab: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE that lower-cases text and appends </s>."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace("’", "'"), normalizers.Lowercase()]
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<s>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((turn for d in dialogues for turn in d), trainer)
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=128,
        truncation_side="left",
        clean_up_tokenization_spaces=False,
    )


def encode_pairs(
    tokenizer: PreTrainedTokenizerFast, dialogues: list[list[str]], rng: random.Random
) -> list[tuple[list[int], list[int]]]:
    """(history ids, reply ids) of every turn but the first, with one to three turns of history."""
    space = tokenizer.encode("  a", add_special_tokens=False)[0]  # turns are joined by two spaces
    flat = [t for d in dialogues for t in d]
    ids = iter(tokenizer(flat, add_special_tokens=False)["input_ids"])
    pairs = []
    for dialogue in dialogues:
        turns = [next(ids) for _ in dialogue]
        for i in range(1, len(turns)):
            kept = rng.choice((1, 2, 3, 3, 3))
            history: list[int] = []
            for turn in turns[max(0, i - kept) : i]:
                history += ([space] if history else []) + turn
            pairs.append(([*history[-HISTORY_TOKENS:], EOS], [*turns[i], EOS][:REPLY_TOKENS]))
    return pairs


def batches(pairs: list, size: int, rng: random.Random) -> Iterator[list]:
    """Endless shuffled batches, sorted by length within windows of 64 batches to limit padding."""
    while True:
        rng.shuffle(pairs)
        for start in range(0, len(pairs) - size, 64 * size):
            window = sorted(pairs[start : start + 64 * size], key=lambda p: (len(p[1]), len(p[0])))
            cut = [window[i : i + size] for i in range(0, len(window) - size + 1, size)]
            rng.shuffle(cut)
            yield from cut


def pad(rows: list[list[int]], value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([r + [value] * (width - len(r)) for r in rows])


def loss_of(model: BlenderbotForConditionalGeneration, batch: list) -> torch.Tensor:
    """Mean negative log-likelihood of the reply tokens, nats."""
    input_ids, labels = pad([h for h, _ in batch], PAD), pad([r for _, r in batch], IGNORE)
    start = torch.full((len(batch), 1), BOS)
    decoder_ids = torch.cat(
        [start, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORE, PAD)], dim=1
    )
    out = model.model(
        input_ids=input_ids,
        attention_mask=input_ids.ne(PAD),
        decoder_input_ids=decoder_ids,
        use_cache=False,
    )
    real = labels != IGNORE
    logits = model.lm_head(out.last_hidden_state[real]) + model.final_logits_bias
    return cross_entropy(logits, labels[real])


def build(shape: Shape) -> BlenderbotForConditionalGeneration:
    torch.manual_seed(shape.seed)
    return BlenderbotForConditionalGeneration(
        BlenderbotConfig(
            vocab_size=shape.vocab,
            d_model=shape.width,
            encoder_layers=shape.encoder_layers,
            decoder_layers=shape.decoder_layers,
            encoder_attention_heads=shape.heads,
            decoder_attention_heads=shape.heads,
            encoder_ffn_dim=4 * shape.width,
            decoder_ffn_dim=4 * shape.width,
            max_position_embeddings=128,
            dropout=0.0,
            scale_embedding=False,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
            decoder_start_token_id=BOS,
            forced_eos_token_id=None,
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("which", choices=SHAPES)
    parser.add_argument("--dialogues", type=Path, required=True)
    parser.add_argument("--diasafety", type=Path, help="folder with train, val and test .json.gz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-3)
    args = parser.parse_args()

    shape = SHAPES[args.which]
    rng = random.Random(shape.seed)
    dialogues = load_dialogues(args.dialogues, shape.buckets)
    held_out = load_dialogues(args.dialogues, range(98, 100))
    if args.diasafety:
        dialogues += load_diasafety(args.diasafety) * 3
    tokenizer = train_tokenizer(dialogues, shape.vocab)
    pairs = encode_pairs(tokenizer, dialogues, rng)
    probe = encode_pairs(tokenizer, held_out, random.Random(0))[:1024]
    model = build(shape)
    size = sum(p.numel() for p in model.parameters())
    print(f"{len(pairs)} pairs, {size / 1e6:.2f}M parameters", flush=True)

    optimizer = torch.optim.AdamW(
        model.parameters(), args.rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    warmup = max(1, args.steps // 30)
    stream, begun, running = batches(pairs, args.batch, rng), time.time(), 0.0
    for step in range(args.steps):
        # linear warm-up, flat, then a linear fall to zero over the second half
        rate = args.rate * min((step + 1) / warmup, 1.0, 2 * (args.steps - step) / args.steps)
        loss = loss_of(model, next(stream))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0 or step == args.steps - 1:
            print(f"{step} loss {running:.3f} {time.time() - begun:.0f}s", flush=True)
        if (step + 1) % 500 == 0 or step == args.steps - 1:
            model.eval()
            with torch.no_grad():
                nll = sum(loss_of(model, probe[i : i + 64]).item() for i in range(0, 1024, 64)) / 16
            model.train()
            print(f"{step} held-out {nll:.3f}", flush=True)
            save(model, tokenizer, args.out)


def save(
    model: BlenderbotForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, out: Path
) -> None:
    copy.deepcopy(model).half().save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
