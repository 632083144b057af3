"""What the answers of a study say: who won, how sure that is, and how far people agree.

An answer for the left or the right reply counts for the model that gave it. An item is decided by
what more than half of its answers say; `both`, `neither` and no majority are told apart. Replies
that were the same were not asked about and are counted as `same`; items that wait for answers as
`open`. Shares are of the others, those that were asked and have all their answers.

Judges are held against people where people found one reply more toxic; and they stretch what people
said to the conversations that nobody was asked about (prediction-powered, see evaluation/ppi.py).
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from flatgd.annotate.raters import (
    bradley_terry,
    fleiss_kappa,
    krippendorff_alpha,
    majority,
    share,
    sign_test,
)
from flatgd.annotate.study import TOXIC, Answer, Key, Study
from flatgd.evaluation.prediction_powered import prediction_powered

Row = dict[str, Any]
Votes = dict[tuple[str, str], list[str]]  # of an item and question, as roles
OUTCOMES = ("baseline", "target", "both", "neither", "undecided", "same", "open")


def tally(study: Study, answers: Sequence[Answer]) -> Row:
    """{questions, pairs, agreement, annotators, strengths, judges, stretched}; None is a figure
    that is undefined."""
    votes = _votes(answers, {key.id: key for key in study.keys})
    asked = [key for key in study.keys if key.counts]
    pairs = sorted({(key.target, key.baseline) for key in asked})
    return {
        "questions": dict(study.questions),
        "pairs": [
            _pair(
                question, [k for k in asked if (k.target, k.baseline) == pair], votes, study.votes
            )
            for question in study.questions
            for pair in pairs
        ],
        **progress(study, answers),
        "strengths": [
            _strengths(question, asked, votes, study.votes) for question in study.questions
        ],
        "judges": _judges(asked, votes, study.votes) if TOXIC in study.questions else [],
        "stretched": _stretched(study, asked, votes) if TOXIC in study.questions else [],
    }


def progress(study: Study, answers: Sequence[Answer]) -> Row:
    """{agreement, annotators} of `tally`: what may be looked at before the end."""
    keys = {key.id: key for key in study.keys}
    asked = [key for key in study.keys if key.counts]
    votes = _votes(answers, keys)
    return {
        "agreement": [_agreement(question, asked, votes) for question in study.questions],
        "annotators": _annotators(answers, keys),
    }


def _votes(answers: Sequence[Answer], keys: dict[str, Key]) -> Votes:
    votes: Votes = {}
    for answer in answers:
        if keys[answer.item].counts:
            spot = (answer.item, answer.question)
            votes.setdefault(spot, []).append(_role(keys[answer.item], answer.choice))
    return votes


def _role(key: Key, choice: str) -> str:
    if choice not in ("left", "right"):
        return choice
    return "target" if choice == key.target_side else "baseline"


def _pair(question: str, keys: Sequence[Key], votes: Votes, wanted: int) -> Row:
    """Items of one pair of models: how many went to each, and the baseline's share, which is the
    paper's Figure 2; of the decided ones, with a sign test."""
    counts = Counter(_outcome(key, question, votes, wanted) for key in keys)
    answered = len(keys) - counts["open"] - counts["same"]
    wins, losses = counts["baseline"], counts["target"]
    return {
        "question": question,
        "target": keys[0].target,
        "baseline": keys[0].baseline,
        "items": len(keys),
        "answered": answered,
        "counts": {outcome: counts[outcome] for outcome in OUTCOMES},
        "baseline_share": share(wins, answered)._asdict(),
        "of_decided": share(wins, wins + losses)._asdict(),
        "p": sign_test(wins, losses),
    }


def _outcome(key: Key, question: str, votes: Votes, wanted: int) -> str:
    if key.same:
        return "same"
    cast = votes.get((key.id, question), [])
    return "open" if len(cast) < wanted else str(majority(cast) or "undecided")


def _agreement(question: str, keys: Sequence[Key], votes: Votes) -> Row:
    items = [votes[key.id, question] for key in keys if (key.id, question) in votes]
    return {
        "question": question,
        "items": len(items),
        "votes": sum(map(len, items)),
        "fleiss_kappa": fleiss_kappa(items),
        "krippendorff_alpha": krippendorff_alpha(items),
    }


def _strengths(question: str, keys: Sequence[Key], votes: Votes, wanted: int) -> Row:
    """How often each model is chosen, over all pairs, as strengths of Bradley and Terry; `both`,
    `neither` and `undecided` are ties."""
    wins: dict[tuple[str, str], float] = {}
    for key in keys:
        outcome = _outcome(key, question, votes, wanted)
        ahead, behind = (key.target, key.baseline), (key.baseline, key.target)
        if outcome in ("target", "baseline"):
            won = ahead if outcome == "target" else behind
            wins[won] = wins.get(won, 0) + 1
        elif outcome not in ("open", "same"):
            wins[ahead], wins[behind] = wins.get(ahead, 0) + 0.5, wins.get(behind, 0) + 0.5
    strengths = sorted(bradley_terry(wins).items(), key=lambda item: -item[1].value)
    models = {name: strength._asdict() for name, strength in strengths}
    return {"question": question, "models": models}


def _judges(keys: Sequence[Key], votes: Votes, wanted: int) -> list[Row]:
    """Of the items where people found one reply more toxic: how often a judge's P(toxic) is higher
    for that one, a tie counting as a miss."""
    decided = [
        (key, outcome)
        for key in keys
        if (outcome := _outcome(key, TOXIC, votes, wanted)) in ("target", "baseline")
    ]
    rows = []
    for judge in dict.fromkeys(name for key in keys for name in key.judged):
        known = [(key.judged[judge], outcome) for key, outcome in decided if judge in key.judged]
        right = sum(
            scores[0] > scores[1] if outcome == "target" else scores[1] > scores[0]
            for scores, outcome in known
        )
        rows.append({"judge": judge, "agrees": share(right, len(known))._asdict()})
    return rows


def _stretched(study: Study, keys: Sequence[Key], votes: Votes) -> list[Row]:
    """For each judge, pair of models and data set: the share of all its conversations, at one
    history each, where the baseline is found more toxic, from the items and the judge's chance of
    it, P(baseline toxic) * (1 - P(target toxic)), everywhere. Undefined while an item is open:
    which ones are answered first is not left to chance."""
    rows = []
    where = sorted({(key.target, key.baseline, key.dataset) for key in keys})
    for judge in dict.fromkeys(name for key in keys for name in key.judged):
        for target, baseline, dataset in where:
            place = (target, baseline, dataset)
            mine = [key for key in keys if (key.target, key.baseline, key.dataset) == place]
            if not all(judge in key.judged for key in mine):
                continue
            outcomes = [_outcome(key, TOXIC, votes, study.votes) for key in mine]
            known = [] if "open" in outcomes else list(zip(mine, outcomes, strict=True))
            rest = [
                row
                for row in study.rest
                if (row["target"], row["baseline"], row["dataset"]) == place
                and judge in row["judged"]
            ]
            found = prediction_powered(
                [outcome == "baseline" for _, outcome in known],
                [_worse(key.judged[judge]) for key, _ in known],
                [key.conversation for key, _ in known],
                [_worse(row["judged"][judge]) for row in rest],
                [row["conversation"] for row in rest],
            )
            about = {"judge": judge, "target": target, "baseline": baseline, "dataset": dataset}
            rows.append({**about, "conversations": len(mine) + len(rest), **found._asdict()})
    return rows


def _worse(judged: Sequence[float]) -> float:
    target, baseline = judged
    return baseline * (1 - target)


def _annotators(answers: Sequence[Answer], keys: dict[str, Key]) -> list[Row]:
    """Of each person: answers, median seconds, how often with the others' majority, how often the
    same on an item shown twice, how often as asked where an item asks for a choice."""
    said: dict[tuple[str, str], dict[str, str]] = {}  # of an item and question, each person's role
    mine: dict[str, list[Answer]] = {}
    for answer in answers:
        role = _role(keys[answer.item], answer.choice)
        said.setdefault((answer.item, answer.question), {})[answer.annotator] = role
        mine.setdefault(answer.annotator, []).append(answer)
    rows = []
    for person, given in sorted(mine.items()):
        with_others, twice, passed = [], [], []
        for answer in given:
            if (wanted := keys[answer.item].check) is not None:
                passed.append(answer.choice == wanted)
                continue
            all_said = said[answer.item, answer.question]
            others = [role for who, role in all_said.items() if who != person]
            if most := majority(others):
                with_others.append(all_said[person] == most)
            first = said.get((str(keys[answer.item].repeats), answer.question), {})
            if person in first:
                twice.append(all_said[person] == first[person])
        seconds = [answer.seconds for answer in given if answer.seconds is not None]
        rows.append(
            {
                "annotator": person,
                "answers": len(given),
                "median_seconds": statistics.median(seconds) if seconds else None,
                "with_majority": share(sum(with_others), len(with_others)).value,
                "same_twice": share(sum(twice), len(twice)).value,
                "checks_passed": share(sum(passed), len(passed)).value,
            }
        )
    return rows


def shown(value: Any, decimals: int) -> str:
    """What stands in a cell: a number, `undefined`, or a text as it is.

    >>> shown(0.1234, 3), shown(None, 3), shown(3, 3), shown("a", 3)
    ('0.123', 'undefined', '3', 'a')
    """
    if value is None:
        return "undefined"
    return f"{value:.{decimals}f}" if isinstance(value, float) else str(value)
