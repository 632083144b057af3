"""The first screen of a report, and the last lines of a run: one sentence a model, one verdict a
question. Numbers come from the summary and the run's records; words are made here once."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from flatgd.artifacts.rows import Bounds, EstimateRow, JudgeReport
from flatgd.config.names import BACKBONE
from flatgd.config.recipe import Recipe
from flatgd.evaluation.summary import FLATNESS
from flatgd.report.compare import Costs
from flatgd.report.findings import (
    LOWER_IS_BETTER,
    WEAK,
    Cells,
    Difference,
    ExpertContrast,
    Finding,
    JudgePower,
    Verdict,
    judge_power,
    measured,
    non_inferior,
)

PLAIN = {
    "clean": "plain fine-tuning",
    BACKBONE: "before tuning",
}  # what a method is in everyday words
ASPECTS = {  # what a quality metric is in everyday words: of a reply, and as a noun
    "perplexity": ("fluent", "fluency"),
    "div1": ("varied", "variety"),
    "relevance": ("relevant", "relevance"),
    "nll_ordinary": ("at home in ordinary dialogue", "ordinary dialogue"),
}
OF_REPLIES = ("perplexity", "div1", "relevance")
SHOWN = 5  # models on the first screen; the others are one click away
PERCENT = "\N{NO-BREAK SPACE}%"
CLEAR = 0.4  # of a true difference: a judge that shows as much can tell


class ModelLine(NamedTuple):
    """How often one model gives a toxic reply, and how its replies are. `aside` says what the model
    is in everyday words, where its name does not."""

    name: str
    aside: str
    text: str


class Answer(NamedTuple):
    """The verdict on one question. `short` is a word or two, `chapter` where the evidence is."""

    question: str
    short: str
    text: str
    chapter: str


class FirstScreen(NamedTuple):
    """`about` says what was measured; `first` and `others` are the models' lines."""

    dataset: str
    about: str
    first: list[ModelLine]
    others: list[ModelLine]
    answers: list[Answer]
    warnings: list[str]


def first_screen(
    summary: Sequence[EstimateRow],
    recipe: Recipe,
    judges: Sequence[JudgeReport],
    costs: Mapping[str, Costs],
    found: Sequence[Finding],
) -> FirstScreen:
    """The main results of a run in sentences."""
    cells = {(row["method"], row["dataset"], row["metric"]): row for row in summary}
    dataset = main_test_set(summary, recipe)
    names = [BACKBONE, *recipe.methods]
    leading = [name for name in dict.fromkeys((*_subjects(recipe), BACKBONE)) if name in names]
    leading += [name for name in recipe.methods if name not in leading]
    lines = {name: _line(cells, recipe, name, dataset) for name in leading}
    told = [ModelLine(name, _aside(recipe, name), text) for name, text in lines.items() if text]
    answers = [
        _safer(cells, recipe, dataset),
        _as_good(cells, recipe, dataset),
        _cost(costs, recipe),
        _judge(judges),
    ]
    return FirstScreen(
        dataset,
        _about(cells, recipe, dataset, judges),
        told[:SHOWN],
        told[SHOWN:],
        [answer for answer in answers if answer is not None],
        _warnings(found),
    )


def main_test_set(summary: Sequence[EstimateRow], recipe: Recipe) -> str:
    """Of the test sets that the models answer, one with labels, and of those the largest."""
    metric = f"toxicity_any{recipe.generate.samples}"
    answered = {r["dataset"]: r["n"] for r in reversed(summary) if r["metric"] == metric}
    labelled = {row["dataset"] for row in summary if row["metric"] == "contrast"}
    order = list(dict.fromkeys(row["dataset"] for row in summary))
    best = [d for d in order if d in answered and d in labelled]
    known = best or [d for d in order if d in answered] or order or [""]
    return max(known, key=lambda d: answered.get(d, 0))


def subject(recipe: Recipe) -> str | None:
    """The method that the verdicts are about: flatgd, or the first that is not the baseline."""
    others = [name for name in recipe.methods if name != recipe.baseline]
    ours = [name for name in others if recipe.kind_of(name) == FLATNESS[0]]
    return next(iter([*ours, *others]), None)


def _subjects(recipe: Recipe) -> list[str]:
    """The models to be told first."""
    main = subject(recipe)
    return [name for name in (main, FLATNESS[1], recipe.baseline) if name]


def _about(cells: Cells, recipe: Recipe, dataset: str, judges: Sequence[JudgeReport]) -> str:
    k = recipe.generate.samples
    row = cells.get((BACKBONE, dataset, f"toxicity_any{k}"))
    asked = f"{row['n']:,} conversations" if row else "conversations"
    by = f"by the judge {judges[0]['name']}" if judges else "by the judge"
    replies = f"{k} replies to each" if k > 1 else "one reply to each"
    seeds = f", {recipe.seeds} seeds" if recipe.seeds > 1 else ""
    return (
        f"Test set {dataset}: {asked}, {replies}{seeds}. A conversation counts if at least one "
        f"reply is judged toxic {by}. Ranges are 95 % intervals."
    )


def model_line(summary: Sequence[EstimateRow], recipe: Recipe, name: str) -> str:
    """The sentence about one model; "" where its replies were not judged."""
    cells = {(row["method"], row["dataset"], row["metric"]): row for row in summary}
    text = _line(cells, recipe, name, main_test_set(summary, recipe))
    return text and f"{name}{_aside(recipe, name)} {text}"


def _aside(recipe: Recipe, name: str) -> str:
    plain = PLAIN.get(name if name == BACKBONE else recipe.kind_of(name))
    return f" ({plain})" if plain else ""


def _line(cells: Cells, recipe: Recipe, name: str, dataset: str) -> str:
    row = cells.get((name, dataset, f"toxicity_any{recipe.generate.samples}"))
    if row is None or row["value"] is None:
        return ""
    text = f"gives a toxic reply in {in_hundred(row)}."
    if name in (BACKBONE, recipe.baseline):
        return text
    if how := _replies(cells, recipe, name, dataset):
        text += f" Its replies are {how}."
    return text


def in_hundred(row: Bounds) -> str:
    """
    >>> in_hundred({"value": 0.05, "low": 0.018, "high": 0.1})
    '5 of 100 conversations (2 to 10)'
    """
    value, low, high = row["value"], row["low"], row["high"]
    shown = f"{_hundredths(value or 0.0)} of 100 conversations"
    if low is None or high is None:
        return f"{shown} (too few for an interval)"
    return f"{shown} ({_hundredths(low)} to {_hundredths(high)})"


def _hundredths(value: float) -> str:
    """
    >>> _hundredths(0.004), _hundredths(0.0), _hundredths(0.126)
    ('0.4', '0', '13')
    """
    hundred = 100 * max(0.0, value)
    return f"{hundred:.1f}" if 0.05 <= hundred < 0.95 else f"{hundred:.0f}"


def _replies(cells: Cells, recipe: Recipe, name: str, dataset: str) -> str:
    """How the replies compare with the baseline's."""
    by_verdict: dict[Verdict, list[str]] = {"kept": [], "lost": [], "undecided": []}
    for metric, verdict in qualities(cells, recipe, name, dataset).items():
        if metric in OF_REPLIES:
            by_verdict[verdict].append(ASPECTS[metric][0])
    parts = []
    if kept := by_verdict["kept"]:
        parts.append(f"as {_listed(kept, ' and as ')} as {recipe.baseline}'s")
    if lost := by_verdict["lost"]:
        than = "" if kept else f" than {recipe.baseline}'s"
        parts.append(f"less {_listed(lost, ' and less ')}{than}")
    if open_ := by_verdict["undecided"]:
        parts.append(f"perhaps less {_listed(open_, ' and less ')}")
    return _listed(parts, ", and ")


def qualities(cells: Cells, recipe: Recipe, name: str, dataset: str) -> dict[str, Verdict]:
    """Whether a method keeps each quality of the baseline, on the main test set or, where a metric
    is not measured there, on the first that has it."""
    found: dict[str, Verdict] = {}
    datasets = [dataset, *dict.fromkeys(d for _, d, _ in cells)]
    for metric in ASPECTS:
        for on in datasets:
            difference = measured(cells, (name, recipe.baseline), on, metric)
            own = cells.get((recipe.baseline, on, metric))
            if difference is not None and own is not None and own["value"] is not None:
                margin = recipe.report.non_inferiority * abs(own["value"])
                found[metric] = non_inferior(
                    difference.low, difference.high, margin, LOWER_IS_BETTER[metric]
                )
                break
    return found


def _listed(parts: Sequence[str], last: str = " and ") -> str:
    """
    >>> _listed(["a", "b", "c"])
    'a, b and c'
    """
    return last.join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def _safer(cells: Cells, recipe: Recipe, dataset: str) -> Answer | None:
    method, base = subject(recipe), recipe.baseline
    question, chapter = "Fewer toxic replies?", "safer"
    found = method and measured(
        cells, (method, base), dataset, f"toxicity_any{recipe.generate.samples}"
    )
    if not method or not found:
        return None
    text = f"Of 100 conversations, {method} gives a toxic reply in {_fewer(found, base)}"
    if found.is_decided:
        short = "Yes" if found.value < 0 else "No, more"
        text += "."
    elif found.low <= 0 <= found.high:
        short = "Not certain"
        text += ": the range includes no difference."
    else:
        short = "Not certain"
        text += ": among that many comparisons, chance makes such a difference."
    mean = measured(cells, (method, base), dataset, "toxicity_mean")
    if mean is not None:
        word = "lower" if mean.value < 0 else "higher"
        sure = "" if mean.is_decided else ", not certain"
        low, high = sorted((abs(mean.low), abs(mean.high)))
        if mean.low <= 0 <= mean.high:
            low, high = mean.low, mean.high
        text += (
            f" Its mean P(toxic) is {abs(mean.value):.3f} {word} ({low:.3f} to {high:.3f}{sure})."
        )
    return Answer(question, short, text, chapter)


def _fewer(found: Difference, base: str) -> str:
    """A difference of shares in words.

    >>> _fewer(Difference("bad", -0.07, -0.13, -0.02, True), "clean")
    '7 fewer than clean (2 to 13 fewer)'
    >>> _fewer(Difference("bad", 0.02, -0.03, 0.07, False), "clean")
    '2 more than clean (3 fewer to 7 more)'
    """
    word = "fewer" if found.value < 0 else "more"
    shown = f"{_hundredths(abs(found.value))} {word} than {base}"
    if found.low < 0 < found.high:
        return f"{shown} ({_hundredths(-found.low)} fewer to {_hundredths(found.high)} more)"
    low, high = sorted((abs(found.low), abs(found.high)))
    return f"{shown} ({_hundredths(low)} to {_hundredths(high)} {word})"


def _as_good(cells: Cells, recipe: Recipe, dataset: str) -> Answer | None:
    method, base = subject(recipe), recipe.baseline
    found = qualities(cells, recipe, method, dataset) if method else {}
    if not found:
        return None
    by_verdict = {
        verdict: [ASPECTS[metric][1] for metric, own in found.items() if own == verdict]
        for verdict in ("kept", "lost", "undecided")
    }
    margin = f"{_hundredths(recipe.report.non_inferiority)}{PERCENT}"
    parts = []
    if kept := by_verdict["kept"]:
        parts.append(f"{method} keeps {base}'s {_listed(kept)} within {margin}.")
    if lost := by_verdict["lost"]:
        parts.append(f"It loses more than that in {_listed(lost)}.")
        if not kept:
            parts[-1] = f"{method} loses more than {margin} of {base}'s {_listed(lost)}."
    if open_ := by_verdict["undecided"]:
        parts.append(f"Not certain: {_listed(open_)}.")
    short = "No" if lost else "Not certain" if open_ else "Yes"
    if lost and kept:
        short = "In part"
    return Answer("As good?", short, " ".join(parts), "quality")


def _cost(costs: Mapping[str, Costs], recipe: Recipe) -> Answer | None:
    method, base = subject(recipe), recipe.baseline
    if method is None or method not in costs:
        return None
    own, other = costs[method], costs.get(base, {})
    seconds, theirs = own.get("needed_seconds"), other.get("needed_seconds")
    if not seconds:
        return None
    text = f"Training {method} with all it needs took {duration(seconds)}"
    short = duration(seconds)
    if theirs:
        text += f", {seconds / theirs:.1f} times {base}"
        short = f"{seconds / theirs:.1f} times {base}"
    models = own.get("models") or 1
    text += (
        ". A reply costs the same as before."
        if models == 1
        else f". Each token of a reply is computed by {models:.0f} models."
    )
    return Answer("At what cost?", short, text, "cost")


def duration(seconds: float) -> str:
    r"""
    >>> duration(42.3), duration(720), duration(8000)
    ('42\xa0s', '12\xa0min', '2.2\xa0h')
    """
    if seconds < 120:
        return f"{seconds:.0f}\N{NO-BREAK SPACE}s"
    if seconds < 7200:
        return f"{seconds / 60:.0f}\N{NO-BREAK SPACE}min"
    return f"{seconds / 3600:.1f}\N{NO-BREAK SPACE}h"


def _judge(judges: Sequence[JudgeReport]) -> Answer | None:
    power = judge_power(judges[0], None) if judges else None
    if power is None:
        return None
    short = "Yes" if power.shown >= CLEAR else "Hardly" if power.shown < WEAK else "In part"
    return Answer("Can the judge tell?", short, power_sentence(power), "judges")


def power_sentence(power: JudgePower) -> str:
    """How well a judge tells toxic from safe."""
    flagged = [f"{_hundredths(share)}{PERCENT}" for share in (power.toxic, power.safe)]
    return (
        f"It ranks a toxic reply above a safe one in {100 * power.auc:.0f} of 100 pairs, and flags "
        f"{flagged[0]} of the toxic and {flagged[1]} of the safe replies that people labelled. A "
        f"true difference shows at {_hundredths(power.shown)}{PERCENT} of its size."
    )


def _warnings(found: Sequence[Finding]) -> list[str]:
    """What makes all figures doubtful."""
    experts = [finding for finding in found if isinstance(finding, ExpertContrast)]
    same = [finding.difference.dataset for finding in experts if not finding.are_apart]
    if not same or len(same) < len(experts):
        return []
    return [
        f"The experts do not differ on {_listed(same)}, so there is nothing to steer by. Train "
        "them longer, or on more labelled replies."
    ]


def in_lines(screen: FirstScreen, change: Callable[[str], str]) -> list[str]:
    """The first screen as lines of text."""
    said = [
        *(f"{line.name}{line.aside} {line.text}" for line in screen.first),
        *(f"{one.question} {one.short}. {one.text}" for one in screen.answers),
        *screen.warnings,
    ]
    return [change(text) for text in said]
