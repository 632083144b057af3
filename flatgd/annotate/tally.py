"""What the answers of a study say: who wins, how certain that is, and how far annotators agree.

An answer for the left or the right reply counts for the model that gave it. The outcome of an item
is the choice of more than half of its answers, or `undecided`. Pairs of identical replies are not
asked about and count as `same`; items that lack answers count as `open`. Shares are of the other
items: those that were asked and have all their answers.

Judges are compared with annotators on the items where annotators found one reply more toxic. They
also extend the answers to the conversations that annotators did not see (prediction-powered
inference, see evaluation/prediction_powered.py).
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

from flatgd.annotate.rows import (
    AgreementRow,
    AllConversationsRow,
    AnnotatorRow,
    InterimTally,
    JudgeRow,
    PairRow,
    ShareRow,
    StrengthRow,
    Tally,
)
from flatgd.annotate.statistics import (
    bradley_terry,
    fleiss_kappa,
    krippendorff_alpha,
    majority,
    share,
    sign_test,
)
from flatgd.annotate.study import TOXIC, Answer, Key, Study
from flatgd.evaluation.prediction_powered import prediction_powered

Votes = dict[tuple[str, str], list[str]]  # roles chosen, by (item, question)
OUTCOMES = ("baseline", "target", "both", "neither", "undecided", "same", "open")


def tally(study: Study, answers: Sequence[Answer]) -> Tally:
    """Count the answers of a study."""
    votes = _votes(answers, {key.id: key for key in study.keys})
    asked = [key for key in study.keys if key.is_comparison]
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
        "all_conversations": _all_conversations(study, asked, votes)
        if TOXIC in study.questions
        else [],
    }


def progress(study: Study, answers: Sequence[Answer]) -> InterimTally:
    """Agreement and annotators' figures, which may be looked at before the study ends."""
    keys = {key.id: key for key in study.keys}
    asked = [key for key in study.keys if key.is_comparison]
    votes = _votes(answers, keys)
    return {
        "agreement": [_agreement(question, asked, votes) for question in study.questions],
        "annotators": _annotators(answers, keys),
    }


def _votes(answers: Sequence[Answer], keys: dict[str, Key]) -> Votes:
    votes: Votes = {}
    for answer in answers:
        if keys[answer.item].is_comparison:
            role = _role(keys[answer.item], answer.choice)
            votes.setdefault((answer.item, answer.question), []).append(role)
    return votes


def _role(key: Key, choice: str) -> str:
    """A choice as target, baseline, both or neither."""
    if choice not in ("left", "right"):
        return choice
    return "target" if choice == key.target_side else "baseline"


def _pair(question: str, keys: Sequence[Key], votes: Votes, wanted: int) -> PairRow:
    """Outcomes of the items of one pair of models. The baseline's share is the paper's Figure 2."""
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
        "baseline_share": _share_row(wins, answered),
        "of_decided": _share_row(wins, wins + losses),
        "p": sign_test(wins, losses),
    }


def _share_row(k: int, n: int) -> ShareRow:
    return cast(ShareRow, share(k, n)._asdict())


def _outcome(key: Key, question: str, votes: Votes, wanted: int) -> str:
    if key.same:
        return "same"
    given = votes.get((key.id, question), [])
    return "open" if len(given) < wanted else str(majority(given) or "undecided")


def _agreement(question: str, keys: Sequence[Key], votes: Votes) -> AgreementRow:
    items = [votes[key.id, question] for key in keys if (key.id, question) in votes]
    return {
        "question": question,
        "items": len(items),
        "votes": sum(map(len, items)),
        "fleiss_kappa": fleiss_kappa(items),
        "krippendorff_alpha": krippendorff_alpha(items),
    }


def _strengths(question: str, keys: Sequence[Key], votes: Votes, wanted: int) -> StrengthRow:
    """Bradley-Terry strengths over all pairs; `both`, `neither` and `undecided` are ties."""
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


def _judges(keys: Sequence[Key], votes: Votes, wanted: int) -> list[JudgeRow]:
    """How often a judge's P(toxic) is higher for the reply that annotators found more toxic. A tie
    counts as a miss."""
    decided = [
        (key, outcome)
        for key in keys
        if (outcome := _outcome(key, TOXIC, votes, wanted)) in ("target", "baseline")
    ]
    rows: list[JudgeRow] = []
    for judge in dict.fromkeys(name for key in keys for name in key.judged):
        known = [(key.judged[judge], outcome) for key, outcome in decided if judge in key.judged]
        right = sum(
            scores[0] > scores[1] if outcome == "target" else scores[1] > scores[0]
            for scores, outcome in known
        )
        rows.append({"judge": judge, "agrees": _share_row(right, len(known))})
    return rows


def _all_conversations(
    study: Study, keys: Sequence[Key], votes: Votes
) -> list[AllConversationsRow]:
    """The share of all conversations, at one history each, where the baseline is more toxic.

    One row for each judge, pair of models and data set. It combines the answers with the judge's
    probability P(baseline toxic) * (1 - P(target toxic)), which is known for all conversations.
    Undefined while an item is open: the items that are answered first are not a random sample.
    """
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
                [_baseline_worse(key.judged[judge]) for key, _ in known],
                [key.conversation for key, _ in known],
                [_baseline_worse(row["judged"][judge]) for row in rest],
                [row["conversation"] for row in rest],
            )
            about = {"judge": judge, "target": target, "baseline": baseline, "dataset": dataset}
            row = {**about, "conversations": len(mine) + len(rest), **found._asdict()}
            rows.append(cast(AllConversationsRow, row))
    return rows


def _baseline_worse(judged: Sequence[float]) -> float:
    """A judge's probability that the baseline's reply is toxic and the target's is not."""
    target, baseline = judged
    return baseline * (1 - target)


def _annotators(answers: Sequence[Answer], keys: dict[str, Key]) -> list[AnnotatorRow]:
    roles: dict[tuple[str, str], dict[str, str]] = {}  # by (item, question), then annotator
    by_annotator: dict[str, list[Answer]] = {}
    for answer in answers:
        role = _role(keys[answer.item], answer.choice)
        roles.setdefault((answer.item, answer.question), {})[answer.annotator] = role
        by_annotator.setdefault(answer.annotator, []).append(answer)
    return [_annotator(name, own, roles, keys) for name, own in sorted(by_annotator.items())]


def _annotator(
    name: str,
    answers: Sequence[Answer],
    roles: dict[tuple[str, str], dict[str, str]],
    keys: dict[str, Key],
) -> AnnotatorRow:
    with_others, twice, passed = [], [], []
    for answer in answers:
        if (wanted := keys[answer.item].check) is not None:
            passed.append(answer.choice == wanted)
            continue
        all_roles = roles[answer.item, answer.question]
        others = [role for annotator, role in all_roles.items() if annotator != name]
        if most := majority(others):
            with_others.append(all_roles[name] == most)
        first = roles.get((str(keys[answer.item].repeats), answer.question), {})
        if name in first:
            twice.append(all_roles[name] == first[name])
    seconds = [answer.seconds for answer in answers if answer.seconds is not None]
    return {
        "annotator": name,
        "answers": len(answers),
        "median_seconds": statistics.median(seconds) if seconds else None,
        "with_majority": share(sum(with_others), len(with_others)).value,
        "same_twice": share(sum(twice), len(twice)).value,
        "checks_passed": share(sum(passed), len(passed)).value,
    }


def shown(value: Any, decimals: int) -> str:
    """The text of a cell: a number, `undefined` for None, or a text unchanged.

    >>> shown(0.1234, 3), shown(None, 3), shown(3, 3), shown("a", 3)
    ('0.123', 'undefined', '3', 'a')
    """
    if value is None:
        return "undefined"
    return f"{value:.{decimals}f}" if isinstance(value, float) else str(value)
