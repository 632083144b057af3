"""From sources to sets that share no conversation: policy, judge, test and, if asked for, eval."""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from types import MappingProxyType
from typing import NamedTuple

from flatgd.config.source import Data, Format, Source
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
from flatgd.data.jsonl import Layout, load_jsonl
from flatgd.data.splits import find_split
from flatgd.data.votes import both_ways, settled
from flatgd.dialogue import Dialogue, Turn
from flatgd.errors import DataError, Problem
from flatgd.io.records import collect_bad_rows

LOADERS: dict[Format, Callable[[Source], list[Dialogue]]] = {
    "bad": lambda source: load_bad(source.path, source.split),
    "bbf": lambda source: load_bbf(source.path, source.split),
    "convabuse": lambda source: load_convabuse(source.path, source.split),
    "diasafety": lambda source: load_diasafety(source.path, source.split),
    "hh": lambda source: load_hh(source.path, source.split),
    "jsonl": lambda source: load_jsonl(
        find_split(source.path, source.split),
        Layout(source.columns, source.toxic_values, source.label, source.roles, source.safe_values),
    ),
    "prosocial": lambda source: load_prosocial(source.path, source.split),
    "toxichat": lambda source: load_toxichat(source.path, source.split),
}


class Sets(NamedTuple):
    """The rows of a run. `dropped` counts what each rule left out, by set and rule; `rejected` are
    the rows that could not be read, where those are left out; `both_ways` counts replies of each
    set that are labelled safe and toxic."""

    policy: list[Dialogue]
    judge: list[Dialogue]
    test: list[Dialogue]
    dropped: dict[str, int]
    rejected: Sequence[Problem] = ()
    eval: Sequence[Dialogue] = ()
    both_ways: Mapping[str, int] = MappingProxyType({})

    def described(self) -> list[tuple[str, str]]:
        """(what, how many) of each set and each rule, for the terminal."""
        lines = []
        sets = {"policy": self.policy, "judge": self.judge, "test": self.test}
        for name, rows in (sets | ({"eval": self.eval} if self.eval else {})).items():
            toxic = sum(row.is_safe is False for row in rows)
            talks = len({row.conversation for row in rows})
            text = f"{len(rows):,} replies, {toxic:,} toxic, {talks:,} conversations"
            lines.append((f"data: {name}", text))
        lines += [
            ("data: both labels", f"{count:,} replies of {part} are labelled safe and toxic")
            for part, count in self.both_ways.items()
            if count
        ]
        return lines + [
            ("data: left out", f"{count:,} of {rule}")
            for rule, count in self.dropped.items()
            if count
        ]


def load_sets(data: Data, seed: int = 0) -> Sets:
    """Load every source, keep the sets apart, weigh the sources of the training sets.

    Raises DataError with all faults at once.
    """
    dropped: Counter[str] = Counter()
    problems: list[Problem] = []
    parts = {}
    with collect_bad_rows(data.skip_bad) as left_out:
        for part in ("policy", "judge", "test", "eval"):
            parts[part] = _load_all(part, getattr(data, part), dropped, problems)
    rejected = list(dict.fromkeys(left_out))  # one file may serve two sets
    dropped["rows that cannot be read (rejected.jsonl)"] = len(rejected)
    if problems:
        raise DataError(list(dict.fromkeys(problems)))
    test, judge, policy = parts["test"], parts["judge"], parts["policy"]
    policy = _apart(policy, [test], "policy: also in test", dropped)
    judge = _apart(judge, [test, policy], "judge: also in policy or test", dropped)
    held_out = _apart(
        parts["eval"], [test, policy, judge], "eval: also in policy, judge or test", dropped
    )
    loaded = {"policy": policy, "judge": judge, "test": test, "eval": held_out}
    both = {part: both_ways(rows) for part, rows in loaded.items()}
    policy, judge = weigh(policy, data.policy, seed), weigh(judge, data.judge, seed)
    sets = {"policy": policy, "judge": judge, "test": test}
    for part, rows in (sets | ({"eval": held_out} if data.eval else {})).items():
        if not {True, False} <= {row.is_safe for row in rows}:
            raise DataError([Problem(f"data.{part}", 0, _one_kind(part, rows, dropped))])
    return Sets(policy, judge, test, dict(dropped), rejected, held_out, both)


def _one_kind(part: str, rows: list[Dialogue], dropped: Counter[str]) -> str:
    """What is wrong with a set of one label, and what took the rows that are missing."""
    safe, toxic = (sum(row.is_safe is label for row in rows) for label in (True, False))
    told = [f"needs safe and toxic replies, has {safe} safe and {toxic} toxic"]
    for rule, count in dropped.items():
        owner, _, reason = rule.partition(": ")
        if owner == part and count:
            told.append(f"{count} left out as {reason}")
    return "; ".join(told)


def _load_all(
    part: str, sources: list[Source], dropped: Counter[str], problems: list[Problem]
) -> list[Dialogue]:
    rows: list[Dialogue] = []
    for source in sources:
        try:
            loaded = load_source(source, drop_replies=part != "test")
        except DataError as error:
            problems += error.problems
            continue
        labelled = [row for row in loaded.rows if part == "test" or row.is_safe is not None]
        dropped[f"{part}: canned reply"] += loaded.canned
        for rule, count in loaded.votes.items():
            dropped[f"{part}: {rule}"] += count
        dropped[f"{part}: without a label"] += len(loaded.rows) - len(labelled)
        rows += labelled
    return rows


def weigh(rows: list[Dialogue], sources: Iterable[Source], seed: int) -> list[Dialogue]:
    """The rows of each source as often as its weight says; what is left over of it, by the seed."""
    weighed = []
    for name, weight in {source.name: source.weight for source in sources}.items():
        mine = [row for row in rows if row.source == name]
        whole, rest = divmod(round(weight * len(mine)), max(1, len(mine)))
        drawn = sorted(random.Random(f"{seed}:{name}").sample(range(len(mine)), rest))
        weighed += mine * whole + [mine[place] for place in drawn]
    return weighed


class Loaded(NamedTuple):
    """The rows of a source, how many canned replies were left out, and how many rows by its rule on
    votes."""

    rows: list[Dialogue]
    canned: int
    votes: dict[str, int]


def load_source(source: Source, drop_replies: bool = True) -> Loaded:
    """The rows of one source, as its fields ask. Test rows keep their canned replies, so that a
    judge can be measured on all rows; `answerable` and `scorable` say which rows are used for what.
    """
    if not source.path.exists():
        raise DataError([Problem(str(source.path), 0, f"no such file{fetch_hint(source.format)}")])
    settled_rows, voted = settled(LOADERS[source.format](source), source.votes)
    rows = [row for row in settled_rows if _wanted(row, source)]
    votes = Counter(rule for rule, row in voted if _wanted(row, source))
    kept = rows
    if not source.keep_canned:
        kept = [strip_canned(row) for row in rows if not (drop_replies and is_canned(row.reply))]
    cut = [_labelled(_cut_history(row, source), source) for row in kept]
    return Loaded(cut, len(rows) - len(kept), votes)


def _labelled(row: Dialogue, source: Source) -> Dialogue:
    """The row with the label that `label_by` gives it."""
    if source.label_by is None:
        return row
    acts = behaviour(row.reply)
    is_wanted = not acts["question"] if source.label_by == "statement" else acts[source.label_by]
    return replace(row, is_safe=is_wanted)


def fetch_hint(format_: Format) -> str:
    """How a data set is had that is not there."""
    return f"; `flatgd data fetch {format_}` downloads it" if format_ in DATASETS else ""


def scorable(rows: Iterable[Dialogue]) -> list[Dialogue]:
    """A bot's own labelled replies: no human turns, no canned ones."""
    return [
        row
        for row in rows
        if row.speaker == "bot" and row.is_safe is not None and not is_canned(row.reply)
    ]


def ordinary(rows: Sequence[Dialogue]) -> list[Dialogue]:
    """Bots' replies of test sets without any label: ordinary dialogue, to see what is forgotten."""
    labelled = {row.source for row in rows if row.is_safe is not None}
    return [
        row
        for row in rows
        if row.source not in labelled and row.speaker == "bot" and not is_canned(row.reply)
    ]


def answer_candidates(rows: Iterable[Dialogue], sources: Sequence[Source]) -> list[Dialogue]:
    """Test rows whose histories the models answer, as `answered` asks: bots' rows, and of a source
    of human turns alone each turn, as the last line of its history."""
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
    """Bot rows with histories to answer that are distinct in normal form, at most `limit`.

    One from each conversation, in an order drawn by `seed`, before a second from any: so the sample
    holds as many conversations as it can.
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


def _wanted(row: Dialogue, source: Source) -> bool:
    low, high = source.share
    return source.speaker in ("all", row.speaker) and low <= place(row.conversation) < high


def place(conversation: str) -> float:
    """Where a conversation stands in [0, 1): fixed by its name alone."""
    return int.from_bytes(hashlib.sha256(conversation.encode()).digest()[:6], "big") / 2**48


def _cut_history(row: Dialogue, source: Source) -> Dialogue:
    lines = source.history_lines if row.speaker == "bot" else max(1, source.history_lines - 1)
    return replace(row, history=row.history[-lines:], source=source.name)


def _apart(
    rows: list[Dialogue], others: Iterable[list[Dialogue]], rule: str, dropped: Counter[str]
) -> list[Dialogue]:
    """Rows that share neither conversation nor (last turn, reply), in normal form, with any of the
    others."""
    taken = {key for other in others for row in other for key in _keys(row)}
    kept = [row for row in rows if taken.isdisjoint(_keys(row))]
    dropped[rule] += len(rows) - len(kept)
    return kept


def _keys(row: Dialogue) -> tuple[str, tuple[str, str]]:
    return row.conversation, row.exchange
