"""The sets of a recipe: policy, judge, test and, optionally, eval. They share no conversation."""

import hashlib
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain, compress, zip_longest
from types import MappingProxyType
from typing import NamedTuple, cast

from flatgd.config.source import ONLY_TABLES, TABLES, Data, Source
from flatgd.data.behaviour import behaviour
from flatgd.data.canned import is_canned, strip_canned
from flatgd.data.fetch import DATASETS
from flatgd.data.formats.bad import load_bad
from flatgd.data.formats.bbf import load_bbf
from flatgd.data.formats.convabuse import load_convabuse
from flatgd.data.formats.diasafety import load_diasafety
from flatgd.data.formats.hh import load_hh
from flatgd.data.formats.prosocial import load_prosocial
from flatgd.data.formats.toxichat import load_toxichat
from flatgd.data.hub import load_hub
from flatgd.data.jsonl import RowFormat, load_jsonl
from flatgd.data.published import PUBLISHED, load_published
from flatgd.data.splits import Split, find_split
from flatgd.data.votes import count_contradictory, resolve_votes
from flatgd.dialogue import Dialogue, Turn
from flatgd.errors import DataError, Problem
from flatgd.io.records import KEPT, collect_bad_rows, collect_left_out
from flatgd.runtime.collector import without_collector


def _row_format(source: Source) -> RowFormat:
    return RowFormat(
        source.columns, source.toxic_values, source.label, source.roles, source.safe_values
    )


def _split(source: Source) -> Split:
    return cast(Split, source.split)


def _load_table(source: Source) -> list[Dialogue]:
    return load_jsonl(find_split(source.file, source.split), _row_format(source))


def _published(name: str) -> Callable[[Source], list[Dialogue]]:
    return lambda source: load_published(name, source.file, source.split)


LOADERS: dict[str, Callable[[Source], list[Dialogue]]] = {
    "bad": lambda source: load_bad(source.file, _split(source)),
    "bbf": lambda source: load_bbf(source.file, _split(source)),
    "convabuse": lambda source: load_convabuse(source.file, _split(source)),
    "diasafety": lambda source: load_diasafety(source.file, _split(source)),
    "hh": lambda source: load_hh(source.file, _split(source)),
    "hub": lambda source: load_hub(
        str(source.path), source.subset, source.split, source.max_rows, _row_format(source)
    ),
    **dict.fromkeys(TABLES, _load_table),
    **{name: _published(name) for name in PUBLISHED},
    "prosocial": lambda source: load_prosocial(source.file, _split(source)),
    "toxichat": lambda source: load_toxichat(source.file, _split(source)),
}


# the fields of a source that a loader sees; the others select among the rows that were read
READ_BY = {"format", "path", "split", "subset", "max_rows", *ONLY_TABLES}
# the order in which sets claim conversations, and the rule that leaves rows out of each
OVERLAP = {
    "test": "",
    "policy": "also in test",
    "judge": "also in policy or test",
    "eval": "also in policy, judge or test",
}


class Sets(NamedTuple):
    """The rows of a run.

    `dropped` counts the rows that each rule left out, by "set: rule". `rejected` lists the rows
    that could not be read, if those are skipped. `contradictory` counts, for each set, the replies
    that are labelled both safe and toxic.
    """

    policy: list[Dialogue]
    judge: list[Dialogue]
    test: list[Dialogue]
    dropped: dict[str, int]
    rejected: Sequence[Problem] = ()
    eval: Sequence[Dialogue] = ()
    contradictory: Mapping[str, int] = MappingProxyType({})

    def described(self) -> list[tuple[str, str]]:
        """(heading, count) lines about each set and each rule, for the terminal."""
        lines = []
        sets = {"policy": self.policy, "judge": self.judge, "test": self.test}
        for name, rows in (sets | ({"eval": self.eval} if self.eval else {})).items():
            toxic = sum(row.is_safe is False for row in rows)
            conversations = len({row.conversation for row in rows})
            text = f"{len(rows):,} replies, {toxic:,} toxic, {conversations:,} conversations"
            lines.append((f"data: {name}", text))
        lines += [
            ("data: both labels", f"{count:,} replies of {part} are labelled safe and toxic")
            for part, count in self.contradictory.items()
            if count
        ]
        return lines + [
            ("data: note" if rule.endswith(KEPT) else "data: left out", f"{count:,} of {rule}")
            for rule, count in self.dropped.items()
            if count
        ]


def load_sets(data: Data, seed: int = 0) -> Sets:
    """Load all sources, remove overlap between the sets, and apply the sources' weights.

    Raises DataError with all problems at once.
    """
    with without_collector():
        return _load_sets(data, seed)


def _load_sets(data: Data, seed: int) -> Sets:
    dropped: Counter[str] = Counter()
    problems: list[Problem] = []
    parts = {}
    with collect_bad_rows(data.skip_bad) as left_out:
        read = _each_file_once()
        for part in ("policy", "judge", "test", "eval"):
            parts[part] = _load_all(part, getattr(data, part), dropped, problems, read)
    rejected = list(dict.fromkeys(left_out))  # one file may serve two sets
    dropped["rows that cannot be read (rejected.jsonl)"] = len(rejected)
    if problems:
        raise DataError(list(dict.fromkeys(problems)))
    _leave_out_overlap(parts, dropped)
    contradictory = {part: count_contradictory(rows) for part, rows in parts.items()}
    test, held_out = parts["test"], parts["eval"]
    policy = apply_weights(parts["policy"], data.policy, seed)
    judge = apply_weights(parts["judge"], data.judge, seed)
    sets = {"policy": policy, "judge": judge, "test": test}
    for part, rows in (sets | ({"eval": held_out} if data.eval else {})).items():
        if not {True, False} <= {row.is_safe for row in rows}:
            raise DataError(
                [Problem(f"data.{part}", 0, _missing_label_reason(part, rows, dropped))]
            )
    return Sets(policy, judge, test, dict(dropped), rejected, held_out, contradictory)


def _missing_label_reason(part: str, rows: list[Dialogue], dropped: Counter[str]) -> str:
    """Why a set lacks one label: its counts, and the rules that left rows out."""
    safe, toxic = (sum(row.is_safe is label for row in rows) for label in (True, False))
    reasons = [f"needs safe and toxic replies, has {safe} safe and {toxic} toxic"]
    for rule, count in dropped.items():
        owner, _, reason = rule.partition(": ")
        if owner == part and count:
            reasons.append(f"{count} left out as {reason}")
    return "; ".join(reasons)


def _load_all(
    part: str,
    sources: list[Source],
    dropped: Counter[str],
    problems: list[Problem],
    read: "Read",
) -> list[Dialogue]:
    rows: list[Dialogue] = []
    for source in sources:
        try:
            loaded = load_source(source, part != "test", read)
        except DataError as error:
            problems += error.problems
            continue
        labelled = [row for row in loaded.rows if part == "test" or row.is_safe is not None]
        for rule, count in loaded.left_out.items():
            dropped[f"{part}: {rule}"] += count
        dropped[f"{part}: without a label"] += len(loaded.rows) - len(labelled)
        rows += labelled
    return rows


def apply_weights(rows: list[Dialogue], sources: Iterable[Source], seed: int) -> list[Dialogue]:
    """Repeat or sample the rows of each source by its weight: 2 = twice, 0.25 = a quarter.

    The rows of a fractional part are drawn at random by `seed`.
    """
    weighed = []
    for name, weight in {source.name: source.weight for source in sources}.items():
        mine = [row for row in rows if row.source == name]
        repeats, rest = divmod(round(weight * len(mine)), max(1, len(mine)))
        drawn = sorted(random.Random(f"{seed}:{name}").sample(range(len(mine)), rest))
        weighed += mine * repeats + [mine[index] for index in drawn]
    return weighed


class LoadedSource(NamedTuple):
    """The rows of a source, and how many replies each rule left out."""

    rows: list[Dialogue]
    left_out: dict[str, int]


def read_source(source: Source) -> list[Dialogue]:
    """All rows of a source's file or split, before its fields are applied. Raises DataError."""
    try:
        return LOADERS[source.format](source)
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        raise DataError([Problem(str(source.path), 0, reason)]) from None


class ReadRows(NamedTuple):
    """All rows of a file, and what its loader left out on purpose."""

    rows: list[Dialogue]
    unused: list[Problem]


Read = Callable[[Source], ReadRows]


def _read(source: Source) -> ReadRows:
    with collect_left_out() as unused:
        return ReadRows(read_source(source), unused)


def _each_file_once() -> Read:
    """`_read` that remembers: sources often are shares of one file."""
    known: dict[str, ReadRows] = {}

    def read(source: Source) -> ReadRows:
        key = source.model_dump_json(include=READ_BY)
        if key not in known:
            known[key] = _read(source)
        return known[key]

    return read


def load_source(source: Source, drop_replies: bool = True, read: Read = _read) -> LoadedSource:
    """The rows of one source, with its fields applied.

    Test rows keep their canned replies (`drop_replies` is False), so that judges are measured on
    all rows. `answer_candidates` and `scorable` select the rows for other purposes.
    """
    if source.format != "hub" and not os.path.exists(
        source.path
    ):  # Path.exists raises for a name that is too long
        raise DataError(
            [Problem(str(source.path), 0, f"no such file{fetch_hint(str(source.format))}")]
        )
    every, unused = read(source)
    settled_rows, voted = resolve_votes(every, source.votes)
    rows = [row for row in settled_rows if _is_selected(row, source)]
    votes = Counter(rule for rule, row in voted if _is_selected(row, source))
    kept = rows
    if not source.keep_canned:
        kept = [strip_canned(row) for row in rows if not (drop_replies and is_canned(row.reply))]
    cut = [_relabelled(_cut_history(row, source), source) for row in kept]
    reasons = Counter(problem.reason for problem in dict.fromkeys(unused))
    return LoadedSource(cut, {"canned reply": len(rows) - len(kept), **votes, **reasons})


def _relabelled(row: Dialogue, source: Source) -> Dialogue:
    """The row with its label replaced according to `label_by`."""
    if source.label_by is None:
        return row
    acts = behaviour(row.reply)
    is_wanted = not acts["question"] if source.label_by == "statement" else acts[source.label_by]
    return replace(row, is_safe=is_wanted)


def fetch_hint(format_: str) -> str:
    """How to obtain a missing data set, for the end of an error message."""
    return f"; `flatgd data fetch {format_}` downloads it" if format_ in DATASETS else ""


def scorable(rows: Iterable[Dialogue]) -> list[Dialogue]:
    """Labelled replies of bots, without canned ones."""
    return [
        row
        for row in rows
        if row.speaker == "bot" and row.is_safe is not None and not is_canned(row.reply)
    ]


def ordinary_dialogue(rows: Sequence[Dialogue]) -> list[Dialogue]:
    """Bots' replies from sources without any labels: ordinary dialogue, to measure forgetting."""
    labelled = {row.source for row in rows if row.is_safe is not None}
    return [
        row
        for row in rows
        if row.source not in labelled and row.speaker == "bot" and not is_canned(row.reply)
    ]


def answer_candidates(rows: Iterable[Dialogue], sources: Sequence[Source]) -> list[Dialogue]:
    """Test rows whose histories the models answer, from sources with `answered`.

    A source with speaker human has no replies of bots. There each human turn becomes the last turn
    of a history to answer.
    """
    speakers = {source.name: source.speaker for source in sources if source.answered}
    lines = {source.name: source.history_lines for source in sources}
    answered = []
    for row in rows:
        if speakers.get(row.source) == "human":
            history = (*row.history, Turn("user", row.reply))[-lines[row.source] :]
            answered.append(replace(row, history=history, is_safe=None, speaker="bot"))
        elif row.source in speakers:
            answered.append(row)
    return answered


def draw_histories(rows: Iterable[Dialogue], limit: int | None, seed: int) -> list[Dialogue]:
    """At most `limit` bot rows whose histories differ in normal form.

    The draw takes one row from each conversation, in an order drawn by `seed`, before it takes a
    second from any. The sample therefore holds as many conversations as possible.
    """
    rng = random.Random(seed)
    by_conversation: dict[str, list[Dialogue]] = {}
    seen = set()
    for row in rows:
        history, _ = row.normal_form
        if row.speaker == "bot" and history and history not in seen:
            seen.add(history)
            by_conversation.setdefault(row.conversation, []).append(row)
    queues = [rng.sample(part, len(part)) for part in by_conversation.values()]
    rng.shuffle(queues)
    rounds = zip_longest(*queues)
    drawn = [row for one_each in rounds for row in one_each if row is not None]
    return drawn if limit is None else drawn[:limit]


def _is_selected(row: Dialogue, source: Source) -> bool:
    low, high = source.share
    if source.speaker not in ("all", row.speaker):
        return False
    return source.share == (0, 1) or low <= share_position(row.conversation) < high


@lru_cache(maxsize=1024)  # rows of one conversation mostly follow each other
def share_position(conversation: str) -> float:
    """A conversation's position in [0, 1) for `share`, a hash of its name."""
    return int.from_bytes(hashlib.sha256(conversation.encode()).digest()[:6], "big") / 2**48


def _cut_history(row: Dialogue, source: Source) -> Dialogue:
    lines = source.history_lines if row.speaker == "bot" else max(1, source.history_lines - 1)
    return replace(row, history=row.history[-lines:], source=source.name)


def _leave_out_overlap(parts: dict[str, list[Dialogue]], dropped: Counter[str]) -> None:
    """Leave out the rows that share a conversation or an exchange with an earlier set of OVERLAP.

    An exchange is the last turn and the reply, in normal form. `dropped` counts the rows by rule.
    """
    taken: set[str | tuple[str, str]] = set()
    for part, rule in OVERLAP.items():
        keys = [(row.conversation, row.exchange) for row in parts[part]]
        if rule:
            kept = [taken.isdisjoint(pair) for pair in keys]
            dropped[f"{part}: {rule}"] += kept.count(False)
            parts[part] = list(compress(parts[part], kept))
            keys = list(compress(keys, kept))
        taken.update(chain.from_iterable(keys))
