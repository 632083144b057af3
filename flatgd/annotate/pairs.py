"""Draw the pairs of replies that annotators compare.

The seed decides which histories and replies are drawn. Whatever an annotator must not be able to
work out comes from the system's random numbers: ids, sides, checks, repeats, and the order of the
items. A seed or a hash could be guessed; these cannot, and only key.jsonl records them.
"""

import random
import secrets
from collections.abc import Mapping, Sequence

from flatgd.annotate.rows import Item, RestRow
from flatgd.annotate.study import CHOICES, Key, Side, Study
from flatgd.artifacts.rows import JudgedRow
from flatgd.errors import UsageError

Generations = Mapping[str, Sequence[JudgedRow]]  # by model
CHECK = "This is not a reply. It checks that you read: for every question, choose {}."
LABELS = {"left": "A", "right": "B", "both": "Both", "neither": "Neither"}  # as annotators see them
_hidden = secrets.SystemRandom()


def create(
    generations: Generations,
    target: str,
    baselines: Sequence[str],
    count: int = 50,
    seed: int = 0,
    repeats: int = 0,
    checks: int = 0,
    votes: int = 3,
) -> Study:
    """Draw `count` histories, the same for all baselines, spread evenly over the data sets.

    Each pair has one random reply of each model, and the target is on the left in half of the
    pairs. `repeats` items are shown a second time with their sides swapped; `checks` items ask for
    one choice. Raises UsageError if the models answered different histories.
    """
    rng = random.Random(seed)
    baselines = list(dict.fromkeys(baselines))
    histories_of = {
        name: [row["history"] for row in generations[name]] for name in (target, *baselines)
    }
    if other := [name for name in baselines if histories_of[name] != histories_of[target]]:
        raise UsageError(
            f"{target} and {other[0]} answered different histories; run the recipe again"
        )
    histories, others = _drawn(generations[target], count, rng)
    pairs: list[tuple[Item, Key]] = []
    for baseline in baselines:
        sides: list[Side] = ["left", "right"] * ((len(histories) + 1) // 2)
        sides = sides[: len(histories)]
        _hidden.shuffle(sides)
        pairs += [
            _pair(generations, target, baseline, at, side, rng)
            for at, side in zip(histories, sides, strict=True)
        ]
    asked = [pair for pair in pairs if not pair[1].same]
    pairs += [_swapped(*pair) for pair in _hidden.sample(asked, min(repeats, len(asked)))]
    pairs += [_check(*_hidden.choice(asked)) for _ in range(checks) if asked]
    _hidden.shuffle(pairs)
    items = [item for item, key in pairs if not key.same]
    rest = _rest(generations, target, baselines, others)
    return Study(items, [key for _, key in pairs], votes=votes, rest=rest)


def _drawn(
    rows: Sequence[JudgedRow], count: int, rng: random.Random
) -> tuple[list[int], list[int]]:
    """Indices of `count` rows, and of one row of each other conversation.

    Data sets take turns until they run out. Each conversation gives at most one row, so that items
    are independent.
    """
    order = list(range(len(rows)))
    rng.shuffle(order)
    by_conversation = {(rows[n]["dataset"], rows[n]["conversation"]): n for n in order}
    places = list(by_conversation.values())
    rng.shuffle(places)  # the dictionary's order favours short conversations
    by_dataset: dict[str, list[int]] = {}
    for place in places:
        by_dataset.setdefault(rows[place]["dataset"], []).append(place)
    drawn: list[int] = []
    while len(drawn) < count and any(by_dataset.values()):
        drawn += [own.pop() for own in by_dataset.values() if own]
    return drawn[:count], sorted(set(places) - set(drawn[:count]))


def _pair(
    generations: Generations,
    target: str,
    baseline: str,
    at: int,
    side: Side,
    rng: random.Random,
) -> tuple[Item, Key]:
    row, other = generations[target][at], generations[baseline][at]
    which = rng.randrange(len(row["replies"])), rng.randrange(len(other["replies"]))
    replies = {target: row["replies"][which[0]], baseline: other["replies"][which[1]]}
    left, right = (target, baseline) if side == "left" else (baseline, target)
    name = _new_id()
    item: Item = {
        "id": name,
        "system": row.get("system", ""),
        "history": row["history"],
        "left": replies[left],
        "right": replies[right],
    }
    same = replies[left].split() == replies[right].split()
    source = (row["dataset"], row["conversation"])
    judged = _judged(row, other, *which)
    return item, Key(name, target, baseline, side, *source, same, None, None, judged)


def _new_id() -> str:
    """A random id, which says nothing about the item."""
    return secrets.token_hex(8)


def _judged(
    row: JudgedRow, other: JudgedRow, place: int, other_place: int
) -> dict[str, list[float]]:
    """P(toxic) of one reply of each row, by every judge that scored both."""
    others = other.get("judged", {})
    return {
        judge: [scores[place], others[judge][other_place]]
        for judge, scores in row.get("judged", {}).items()
        if judge in others
    }


def _swapped(item: Item, key: Key) -> tuple[Item, Key]:
    """The same pair once more, its sides swapped."""
    name = _new_id()
    side: Side = "right" if key.target_side == "left" else "left"
    swapped: Item = {**item, "id": name, "left": item["right"], "right": item["left"]}
    return swapped, key._replace(id=name, target_side=side, repeats=key.id)


def _check(item: Item, key: Key) -> tuple[Item, Key]:
    """An attention check that looks like the given item and asks for one choice."""
    name, choice = _new_id(), _hidden.choice(CHOICES)
    label = LABELS[choice]
    text = CHECK.format(f"{label} ({choice})" if len(label) == 1 else label)
    check: Item = {**item, "id": name, "left": text, "right": text}
    return check, key._replace(id=name, check=choice)


def _rest(
    generations: Generations, target: str, baselines: Sequence[str], places: Sequence[int]
) -> list[RestRow]:
    """Judges' scores of pairs that annotators do not see. They are of each model's first reply,
    which is as random as any other."""
    return [
        {
            "target": target,
            "baseline": baseline,
            "dataset": row["dataset"],
            "conversation": row["conversation"],
            "judged": judged,
        }
        for baseline in baselines
        for row, other in ((generations[target][at], generations[baseline][at]) for at in places)
        if (judged := _judged(row, other, 0, 0))
    ]
