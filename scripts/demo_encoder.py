"""Tune the small sentence encoder that ships in flatgd/demo/encoder, for the demo's judge.

    python scripts/demo_encoder.py MINILM --data FOLDER --convabuse FOLDER --out OUT

MINILM is all-MiniLM-L6-v2 (Apache-2.0). It is tuned on eight public sets of toxic text whose
licences allow that it ships, each with a head of its own, because they mean different things by
toxic. None of them is a test set here, and BAD and DiaSafety are not among them: the judge's linear
head learns from those, on conversations that no method is trained on. Then the vocabulary is cut to
the word pieces of the texts at hand, and the weights are saved in bfloat16, in files of at most
11 MB.
"""

import argparse
import csv
import gzip
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from flatgd.data.formats.convabuse import load_convabuse

MOST_ROWS, MOST_TOKENS = 12_000, 96  # of a set; of a text
BATCH, RATE, WARMUP, EPOCHS = 64, 1e-4, 100, 2
BUCKET = 20  # batches that are sorted by length together
SETS = ("davidson", "edos", "hatexplain", "surge", "paradetox", "implicit_hate", "toxigen_human")
KEPT_LETTERS = 1  # word pieces of so many letters stay, so that any text can be spelled


class Text(NamedTuple):
    source: str
    history: str
    reply: str
    is_toxic: bool


class Item(NamedTuple):
    source: str
    ids: list[int]
    types: list[int]
    is_toxic: bool


def table(path: Path, **options: Any) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, **options))


def labelled(folder: Path) -> Iterator[tuple[str, str, bool]]:
    """(set, text, whether it is toxic) of each row."""
    for row in table(folder / "davidson.csv.gz"):
        yield "davidson", row["tweet"], row["class"] != "2"
    for row in table(folder / "edos.csv.gz"):
        yield "edos", row["text"], row["label_sexist"] != "not sexist"
    for row in table(folder / "hatexplain.csv.gz"):
        yield "hatexplain", row["text"], row["label"] != "0"
    for row in table(folder / "surge.csv.gz"):
        yield "surge", row["text"], "not" not in row["is_toxic"].lower()
    pairs = table(folder / "paradetox.tsv.gz", delimiter="\t")
    yield from (("paradetox", row["toxic"], True) for row in pairs)
    yield from (("paradetox", row["neutral1"], False) for row in pairs)
    for name in ("implicit_hate", "toxigen_human"):
        with gzip.open(folder / f"{name}.json.gz", "rt") as file:
            yield from ((name, row["text"], row["label"] == "hate") for row in json.load(file))


def texts_of(data: Path, convabuse: Path) -> list[Text]:
    """The rows of all sets, at most MOST_ROWS of each."""
    found: dict[str, list[Text]] = {name: [] for name in SETS}
    for name, text, is_toxic in labelled(data):
        if text.strip():
            found[name].append(Text(name, "", text.strip(), is_toxic))
    found["convabuse"] = [
        Text("convabuse", "\n".join(row.texts[-3:]), row.reply, row.is_safe is False)
        for row in load_convabuse(convabuse, "train")
    ]
    rng = random.Random(0)
    chosen = (
        rng.sample(rows, MOST_ROWS) if len(rows) > MOST_ROWS else rows for rows in found.values()
    )
    return [text for rows in chosen for text in rows]


class Classifier(nn.Module):
    """The encoder, and a linear head over the mean of the reply's states for each set."""

    def __init__(self, encoder: Any, names: Sequence[str]):
        super().__init__()
        self.encoder = encoder
        width = encoder.config.hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(width, 1) for name in names})

    def loss(self, items: Sequence[Item]) -> Tensor:
        longest = max(len(item.ids) for item in items)
        ids, types = (
            torch.tensor([row + [0] * (longest - len(row)) for row in rows])
            for rows in ([item.ids for item in items], [item.types for item in items])
        )
        real = (ids != 0).long()
        with torch.autocast("cpu", torch.bfloat16):
            given = {"input_ids": ids, "attention_mask": real, "token_type_ids": types}
            states = self.encoder(**given).last_hidden_state
        of_reply = ((types == 1) & (real == 1)).float()[..., None]
        means = (states.float() * of_reply).sum(1) / of_reply.sum(1)
        parts = []
        for name, head in self.heads.items():
            if rows := [n for n, item in enumerate(items) if item.source == name]:
                toxic = torch.tensor([float(items[n].is_toxic) for n in rows])
                logits = head(means[rows])[:, 0]
                parts.append(binary_cross_entropy_with_logits(logits, toxic, reduction="sum"))
        return torch.stack(parts).sum() / len(items)


def tune(encoder: Any, items: list[Item]) -> None:
    """Tune the encoder in place."""
    classifier = Classifier(encoder, sorted({item.source for item in items})).train()
    weights = list(classifier.parameters())
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.01)
    total, rng, begun = EPOCHS * len(items) // BATCH, random.Random(0), time.time()
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, max(0.0, 1 - step / total))
    )
    for epoch in range(EPOCHS):
        rng.shuffle(items)
        size = BATCH * BUCKET
        buckets = [items[n : n + size] for n in range(0, len(items), size)]
        ordered = [sorted(bucket, key=lambda item: len(item.ids)) for bucket in buckets]
        batches = [part[n : n + BATCH] for part in ordered for n in range(0, len(part), BATCH)]
        rng.shuffle(batches)
        for step, batch in enumerate(batches):
            loss = classifier.loss(batch)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if step % 50 == 0:
                print(f"{epoch} {step}/{len(batches)} {loss:.3f} {time.time() - begun:.0f} s")


def encoded(tokenizer: Any, texts: Sequence[Text]) -> list[Item]:
    found = []
    for text in texts:
        pair = text.history, text.reply
        one = tokenizer(*pair, truncation="longest_first", max_length=MOST_TOKENS)
        found.append(Item(text.source, one["input_ids"], one["token_type_ids"], text.is_toxic))
    return found


def cut_vocabulary(encoder: Any, tokenizer: Any, texts: Sequence[str], most: int) -> Any:
    """Keep the special tokens, the letters and the `most` frequent word pieces of the texts.
    Returns the tokenizer that goes with the encoder."""
    counts = torch.zeros(len(tokenizer), dtype=torch.long)
    for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
        counts += torch.bincount(torch.tensor(ids, dtype=torch.long), minlength=len(counts))
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    always = {
        n
        for n, name in enumerate(names)
        if n in tokenizer.all_special_ids or len(name.removeprefix("##")) <= KEPT_LETTERS
    }
    frequent = [n for n in counts.argsort(descending=True).tolist() if counts[n]]
    kept = sorted({*always, *frequent[: most - len(always)]})
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    new = {names[old]: place for place, old in enumerate(kept)}
    state["model"]["vocab"] = new
    for token in state["added_tokens"]:
        token["id"] = new[token["content"]]
    processor = state["post_processor"]
    for special in processor.get("special_tokens", {}).values():
        special["ids"] = [new[token] for token in special["tokens"]]
    for side in ("sep", "cls"):  # of BertProcessing
        if side in processor:
            processor[side][1] = new[processor[side][0]]
    backend = type(tokenizer.backend_tokenizer).from_str(json.dumps(state))
    old = encoder.get_input_embeddings().weight
    embedding = nn.Embedding(len(kept), old.shape[1], padding_idx=new[tokenizer.pad_token])
    embedding.weight = nn.Parameter(old.detach()[kept].clone())
    encoder.set_input_embeddings(embedding)
    encoder.config.vocab_size = len(kept)
    encoder.config.pad_token_id = new[tokenizer.pad_token]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=encoder.config.max_position_embeddings,
        model_input_names=tokenizer.model_input_names, **tokenizer.special_tokens_map,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True, help="the folder of the seven sets")
    parser.add_argument("--convabuse", type=Path, required=True)
    parser.add_argument("--more", type=Path, nargs="*", default=[], help="texts for the vocabulary")
    parser.add_argument("--vocabulary", type=int, default=14_000)
    parser.add_argument("--layers", type=int, help="keep so many layers (default: all)")
    parser.add_argument("--tuned", action="store_true", help="the model is tuned already")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.manual_seed(0)
    encoder: Any = AutoModel.from_pretrained(given.model)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    texts = texts_of(given.data, given.convabuse)
    if not given.tuned:
        tune(encoder, encoded(tokenizer, texts))
        encoder.save_pretrained(given.out / "whole")
        tokenizer.save_pretrained(given.out / "whole")
    words = [text.reply for text in texts]
    for path in given.more:
        with gzip.open(path, "rt") as file:
            words += file.read().splitlines()
    tokenizer = cut_vocabulary(encoder, tokenizer, words, given.vocabulary)
    if given.layers:
        encoder.encoder.layer = encoder.encoder.layer[: given.layers]
        encoder.config.num_hidden_layers = given.layers
    encoder.to(torch.bfloat16).eval().save_pretrained(given.out, max_shard_size="11MB")
    tokenizer.save_pretrained(given.out)


if __name__ == "__main__":
    main()
