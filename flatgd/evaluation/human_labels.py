"""Human labels of sampled replies: drawing the replies, and estimating toxicity from the labels.

`flatgd label` draws replies of every model at random. It writes them in random order, without the
models' names, for annotators to fill in `toxic`:

    labels.jsonl      {"id": "0f3a...", "history": ["hi"], "reply": "hello!", "toxic": null}

The ids are random. Only the key says which reply of which model they stand for; it lies beside the
labels, its owner alone may read it, and annotators must not get it:

    labels.key.jsonl  {"id": "0f3a...", "reply": "77c1..."}

`reply` is a digest of the model, the reply's place in the run, and the texts, so labels of replies
that have changed since are noticed.
"""

import random
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, TypeVar

from flatgd.artifacts.rows import GenerationRow, ScoreRow
from flatgd.errors import DataError, Problem, UsageError
from flatgd.evaluation.prediction_powered import PPEstimate, prediction_powered
from flatgd.io.files import write_private
from flatgd.io.records import (
    digest,
    json_lines,
    parse_json_object,
    parse_lines,
    text_field,
    write_jsonl,
)

Label = TypeVar("Label")


class LabelRow(TypedDict):
    """A row of the labels' file. `toxic` is None until an annotator fills it in."""

    id: str
    history: list[str]
    reply: str
    toxic: bool | None


class KeyRow(TypedDict):
    """A row of the key: the `digest` of the reply that an id stands for."""

    id: str
    reply: str


class Sampled(NamedTuple):
    """One sampled reply and its place in the run. `digest` identifies it."""

    digest: str
    model: str
    dataset: str
    conversation: str
    history: list[str]
    reply: str
    place: tuple[int, int]  # (row, sample)


def sampled(model: str, generations: Sequence[GenerationRow]) -> list[Sampled]:
    """All replies of a model."""
    return [
        Sampled(
            digest("\n".join([model, row["dataset"], str((at, sample)), *_texts(row), reply])),
            model,
            row["dataset"],
            row["conversation"],
            _texts(row),
            reply,
            (at, sample),
        )
        for at, row in enumerate(generations)
        for sample, reply in enumerate(row["replies"])
    ]


def _texts(row: GenerationRow) -> list[str]:
    return [turn["content"] for turn in row["history"]]


def draw_replies(
    generations: Mapping[str, Sequence[GenerationRow]], count: int, seed: int
) -> list[Sampled]:
    """`count` replies of each model and test set, drawn at random, in an order that cannot be
    worked out from the seed."""
    rng = random.Random(seed)
    drawn: list[Sampled] = []
    for model, rows in generations.items():
        replies = sampled(model, rows)
        for dataset in dict.fromkeys(reply.dataset for reply in replies):
            own = [reply for reply in replies if reply.dataset == dataset]
            drawn += rng.sample(own, min(count, len(own)))
    secrets.SystemRandom().shuffle(drawn)
    return drawn


def key_path(labels: Path) -> Path:
    """The key of a labels' file.

    >>> key_path(Path("new/labels.jsonl")).name
    'labels.key.jsonl'
    """
    return labels.with_name(f"{labels.name.removesuffix('.jsonl')}.key.jsonl")


def write_labels(path: Path, replies: Sequence[Sampled]) -> None:
    """Write the file for annotators and its key. Raises UsageError if either exists."""
    for file in (path, key_path(path)):
        if file.exists():
            raise UsageError(f"{file} already exists. Choose another file, or delete it first.")
    labels: list[LabelRow] = []
    key: list[KeyRow] = []
    for reply in replies:
        name = secrets.token_hex(8)
        labels.append({"id": name, "history": reply.history, "reply": reply.reply, "toxic": None})
        key.append({"id": name, "reply": reply.digest})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(key_path(path), json_lines(key))
    write_jsonl(path, labels)


def load_labels(path: Path) -> dict[str, bool]:
    """The label of each reply by its digest; rows without a label are left out.

    Raises UsageError if the key is missing, DataError for rows that the key does not have.
    """
    if not key_path(path).exists():
        raise UsageError(
            f"{key_path(path)} is missing. `flatgd label` writes it beside the labels; without it, "
            "they cannot be assigned to models. Put it back, or draw replies again."
        )
    key = _unique(key_path(path), parse_lines(key_path(path), _key_row))

    def parse(line: str) -> tuple[str, bool | None]:
        row = parse_json_object(line)
        name, toxic = row.get("id"), row.get("toxic")
        if not isinstance(name, str) or name not in key:
            raise ValueError(f"id {name!r} is not in {key_path(path).name}; keep the ids unchanged")
        if toxic is not None and not isinstance(toxic, bool):
            raise ValueError(f"toxic must be true, false or null, got {toxic!r}")
        return key[name], toxic

    labels = _unique(path, parse_lines(path, parse))
    return {reply: toxic for reply, toxic in labels.items() if toxic is not None}


def _unique(path: Path, rows: Sequence[tuple[int, tuple[str, Label]]]) -> dict[str, Label]:
    """The value of each id. Raises DataError for an id that occurs twice."""
    lines: dict[str, int] = {}
    for line, (name, _) in rows:
        if name in lines:
            reason = f"the same id as in line {lines[name]}; keep one of the two"
            raise DataError([Problem(str(path), line, reason)])
        lines[name] = line
    return dict(row for _, row in rows)


def _key_row(line: str) -> tuple[str, str]:
    row = parse_json_object(line)
    return text_field(row, "id"), text_field(row, "reply")


def labelled_toxicity(
    path: Path,
    generations: Mapping[str, Sequence[GenerationRow]],
    scores: Mapping[str, Sequence[ScoreRow]],
    judge: str,
) -> list[dict[str, Any]]:
    """The prediction-powered share of toxic replies, for each model and test set.

    Rows are {method, dataset, and the fields of PPEstimate}. Raises DataError for labels of replies
    that the run does not have.
    """
    labels, used = load_labels(path), set()
    rows = []
    for model, generated in generations.items():
        probabilities = [row["toxic"][judge] for row in scores[model] if row["kind"] == "generated"]
        replies = sampled(model, generated)
        for dataset in dict.fromkeys(reply.dataset for reply in replies):
            own = [reply for reply in replies if reply.dataset == dataset]
            used |= {reply.digest for reply in own if reply.digest in labels}
            rows.append(
                {"method": model, "dataset": dataset, **_estimate(own, labels, probabilities)}
            )
    if unknown := labels.keys() - used:
        reason = (
            f"{len(unknown):,} of {len(labels):,} labels are of replies that this run does not "
            "have. If the models were trained again since, draw replies again with `flatgd label`"
        )
        raise DataError([Problem(str(path), 0, reason)])
    return [row for row in rows if row["labels"]]


def _estimate(
    replies: Sequence[Sampled], labels: Mapping[str, bool], probabilities: Sequence[Sequence[float]]
) -> dict[str, Any]:
    known = [reply for reply in replies if reply.digest in labels]
    rest = [reply for reply in replies if reply.digest not in labels]

    def judged(part: Sequence[Sampled]) -> list[float]:
        return [probabilities[row][sample] for row, sample in (reply.place for reply in part)]

    estimate: PPEstimate = prediction_powered(
        [labels[reply.digest] for reply in known],
        judged(known),
        [reply.conversation for reply in known],
        judged(rest),
        [reply.conversation for reply in rest],
    )
    return estimate._asdict()
