"""Which replies people compare: histories drawn evenly, sides at random, names left out."""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from flatgd.annotate.study import CHOICES, Key, Side, Study
from flatgd.errors import RecipeError
from flatgd.io.records import digest

Row = dict[str, Any]
CHECK = "This is no reply but a check that you read: to every question choose {}."
NAMED = {"left": "A", "right": "B", "both": "Both", "neither": "Neither"}  # as people see choices


def create(
    generations: Mapping[str, Sequence[Row]],
    target: str,
    baselines: Sequence[str],
    count: int = 50,
    seed: int = 0,
    repeats: int = 0,
    checks: int = 0,
    votes: int = 3,
) -> Study:
    """`count` histories a baseline, spread evenly over the data sets, the same for all baselines;
    one reply of each model, at random; the target on the left in half of them.

    `generations`: rows {dataset, conversation, system, history, replies} of each model, and
    `judged`, the judges' P(toxic) of each reply, where it is known. `repeats`: how many items are
    shown a second time with their sides swapped. `checks`: how many items ask for one choice.
    """
    rng = random.Random(seed)
    baselines = list(dict.fromkeys(baselines))
    asked_of = {
        name: [row["history"] for row in generations[name]] for name in (target, *baselines)
    }
    if strange := [name for name in baselines if asked_of[name] != asked_of[target]]:
        raise RecipeError(
            f"{target} and {strange[0]} answered other histories; run the recipe again"
        )
    histories, others = _drawn(generations[target], count, rng)
    pairs: list[tuple[Row, Key]] = []
    for baseline in baselines:
        sides: list[Side] = ["left", "right"] * ((len(histories) + 1) // 2)
        sides = sides[: len(histories)]
        rng.shuffle(sides)
        pairs += [
            _item(generations, target, baseline, at, side, rng)
            for at, side in zip(histories, sides, strict=True)
        ]
    asked = [pair for pair in pairs if not pair[1].same]
    pairs += [_swapped(*pair) for pair in rng.sample(asked, min(repeats, len(asked)))]
    pairs += [_check(*rng.choice(asked), n, rng.choice(CHOICES)) for n in range(checks) if asked]
    rng.shuffle(pairs)
    shown = [item for item, key in pairs if not key.same]
    rest = _rest(generations, target, baselines, others)
    return Study(shown, [key for _, key in pairs], votes=votes, rest=rest)


def _drawn(rows: Sequence[Row], count: int, rng: random.Random) -> tuple[list[int], list[int]]:
    """Places of `count` rows, by turns from each data set as long as it has any; one of each
    conversation, so that items are independent. And of all other conversations, one of each."""
    order = list(range(len(rows)))
    rng.shuffle(order)
    by_talk = {(rows[n]["dataset"], rows[n]["conversation"]): n for n in order}
    places = list(by_talk.values())
    rng.shuffle(places)  # not by where its last row came: that of a long one comes late
    parts: dict[str, list[int]] = {}
    for place in places:
        parts.setdefault(rows[place]["dataset"], []).append(place)
    drawn: list[int] = []
    while len(drawn) < count and any(parts.values()):
        drawn += [part.pop() for part in parts.values() if part]
    return drawn[:count], sorted(set(places) - set(drawn[:count]))


def _item(
    generations: Mapping[str, Sequence[Row]],
    target: str,
    baseline: str,
    at: int,
    side: Side,
    rng: random.Random,
) -> tuple[Row, Key]:
    row, other = generations[target][at], generations[baseline][at]
    which = rng.randrange(len(row["replies"])), rng.randrange(len(other["replies"]))
    said = {target: row["replies"][which[0]], baseline: other["replies"][which[1]]}
    left, right = (target, baseline) if side == "left" else (baseline, target)
    name = digest(json.dumps([target, baseline, at, row["history"], said[left], said[right]]))
    shown = {"system": row.get("system", ""), "history": row["history"]}
    item = {"id": name, **shown, "left": said[left], "right": said[right]}
    same = said[left].split() == said[right].split()
    where = (row["dataset"], row["conversation"])
    judged = _judged(row, other, *which)
    return item, Key(name, target, baseline, side, *where, same, None, None, judged)


def _judged(row: Row, other: Row, place: int, other_place: int) -> dict[str, list[float]]:
    return {
        judge: [scores[place], other["judged"][judge][other_place]]
        for judge, scores in row.get("judged", {}).items()
        if judge in other.get("judged", {})
    }


def _swapped(item: Row, key: Key) -> tuple[Row, Key]:
    name = digest(f"{key.id} again")
    side: Side = "right" if key.target_side == "left" else "left"
    shown = {**item, "id": name, "left": item["right"], "right": item["left"]}
    return shown, key._replace(id=name, target_side=side, repeats=key.id)


def _check(item: Row, key: Key, number: int, choice: str) -> tuple[Row, Key]:
    name, label = digest(f"{key.id} check {number}"), NAMED[choice]
    text = CHECK.format(f"{label} ({choice})" if len(label) == 1 else label)
    shown = {**item, "id": name, "left": text, "right": text}
    return shown, key._replace(id=name, check=choice)


def _rest(
    generations: Mapping[str, Sequence[Row]],
    target: str,
    baselines: Sequence[str],
    places: Sequence[int],
) -> list[Row]:
    """What the judges say of the replies that nobody is asked about: the first reply of each model,
    which is as random as any."""
    return [
        {
            **{"target": target, "baseline": baseline},
            **{name: row[name] for name in ("dataset", "conversation")},
            "judged": _judged(row, other, 0, 0),
        }
        for baseline in baselines
        for row, other in ((generations[target][at], generations[baseline][at]) for at in places)
        if _judged(row, other, 0, 0)
    ]
