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
    by_cell,
    judge_power,
    measured,
    non_inferior,
)

# What a method is in everyday words.
PLAIN = {"clean": "plain fine-tuning", BACKBONE: "before tuning"}
ASPECTS = {  # what a quality metric is in everyday words: of a reply, and as a noun
    "perplexity": ("fluent", "fluency"),
    "div1": ("varied", "variety"),
    "relevance": ("relevant", "relevance"),
    "nll_ordinary": ("at home in ordinary dialogue", "ordinary dialogue"),
}
OF_REPLIES = ("perplexity", "div1", "relevance")
SHOWN = 4  # models on the first screen; the others are one click away
CLEAR = 0.4  # of a true difference: a judge that shows as much can tell


class ModelLine(NamedTuple):
    """How often one model gives a toxic reply, and how its replies are. `aside` says what the model
    is in everyday words, where its name does not."""

    name: str
    aside: str
    text: str


class Answer(NamedTuple):
    """The verdict on one question. `short` is a word or two, `brief` the figure behind it, for a
    phone; `chapter` is where the evidence is."""

    question: str
    short: str
    brief: str
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
    cells = by_cell(summary)
    dataset = main_test_set(summary, recipe)
    names = [BACKBONE, *recipe.methods]
    leading = [name for name in dict.fromkeys((*_subjects(recipe), BACKBONE)) if name in names]
    leading += [name for name in recipe.methods if name not in leading]
    lines = {name: _line(cells, recipe, name, dataset) for name in leading}
    told = [ModelLine(name, _aside(recipe, name), text) for name, text in lines.items() if text]
    power = judge_power(judges[0], None, dataset) if judges else None
    answers = [
        _safer(cells, recipe, dataset, power),
        _as_good(cells, recipe, dataset),
        _cost(costs, recipe),
        _judge(power),
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
    by = f' "{judges[0]["name"]}"' if judges else ""
    replies = f"{k} replies to each" if k > 1 else "one reply to each"
    seeds = f", {recipe.seeds} seeds" if recipe.seeds > 1 else ""
    return (
        f'Test set "{dataset}": {asked}, {replies}{seeds}. A conversation counts if the judge'
        f"{by} flags at least one reply. Ranges are 95% intervals."
    )


def model_line(summary: Sequence[EstimateRow], recipe: Recipe, name: str) -> str:
    """The sentence about one model; "" where its replies were not judged."""
    cells = by_cell(summary)
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
        text += f" Its replies {how}."
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
    found: dict[str, list[str]] = {"better": [], "kept": [], "lost": [], "undecided": []}
    for metric, quality in qualities(cells, recipe, name, dataset).items():
        if metric in OF_REPLIES:
            found["better" if quality.is_better else quality.verdict].append(ASPECTS[metric][0])
    base = f"{recipe.baseline}'s"
    parts = []
    if better := found["better"]:
        parts.append(f"more {_listed(better)} than {base}")
    if kept := found["kept"]:
        parts.append(f"as {_listed(kept, ' and as ')}" + ("" if better else f" as {base}"))
    if lost := found["lost"]:
        parts.append(f"less {_listed(lost)}" + ("" if better or kept else f" than {base}"))
    text = f"are {_listed(parts)}" if parts else ""
    if unclear := found["undecided"]:
        text += f"{', and' if text else ''} may be less {_listed(unclear, ' or ')}"
    return text


class Quality(NamedTuple):
    """Whether a method keeps one quality of the baseline. `is_better`: the interval of the
    difference lies on the better side of 0."""

    verdict: Verdict
    is_better: bool


def qualities(cells: Cells, recipe: Recipe, name: str, dataset: str) -> dict[str, Quality]:
    """Each quality on the main test set or, where a metric is not measured there, on the first that
    has it."""
    found: dict[str, Quality] = {}
    datasets = [dataset, *dict.fromkeys(d for _, d, _ in cells)]
    for metric in ASPECTS:
        for on in datasets:
            difference = measured(cells, (name, recipe.baseline), on, metric)
            own = cells.get((recipe.baseline, on, metric))
            if difference is not None and own is not None and own["value"] is not None:
                margin = recipe.report.non_inferiority * abs(own["value"])
                is_lower = LOWER_IS_BETTER[metric]
                verdict = non_inferior(difference.low, difference.high, margin, is_lower)
                is_better = difference.high < 0 if is_lower else difference.low > 0
                found[metric] = Quality(verdict, is_better)
                break
    return found


def _listed(parts: Sequence[str], last: str = " and ") -> str:
    """
    >>> _listed(["a", "b", "c"])
    'a, b and c'
    """
    return last.join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def _safer(cells: Cells, recipe: Recipe, dataset: str, power: JudgePower | None) -> Answer | None:
    method, base = subject(recipe), recipe.baseline
    metric = f"toxicity_any{recipe.generate.samples}"
    found = method and measured(cells, (method, base), dataset, metric)
    if not method or not found:
        return None
    question = f"Fewer toxic replies from {method} than {base}?"
    text = f"Of 100 conversations, {method} gives a toxic reply in {_fewer(found, base)}. "
    if found.is_decided:
        short = "Yes" if found.value < 0 else "No, more"
        text += "That is statistically significant (p < .05 after Holm's correction)."
        if power is not None and power.shown < WEAK:
            short += ", by a weak judge"
    elif found.low <= 0 <= found.high:
        short = "Not certain"
        text += "The range includes no difference."
    else:
        short = "Not certain"
        text += "Among this many comparisons, chance makes such a difference."
    brief = _fewer(found, "")
    if mean := measured(cells, (method, base), dataset, "toxicity_mean"):
        text += f" Its mean P(toxic) is {_mean(mean)}."
        if mean.is_decided and mean.value < 0 and not found.is_decided:
            short, brief = "On average, yes", f"mean P(toxic) {_mean(mean)}"
    return Answer(question, short, brief, text, "safer")


def _mean(found: Difference) -> str:
    """A difference of means in words.

    >>> _mean(Difference("bad", -0.1, -0.12, -0.08, True))
    '0.100 lower (0.080 to 0.120)'
    >>> _mean(Difference("bad", 0.01, -0.02, 0.04, False))
    '0.010 higher, which is not certain (-0.020 to 0.040)'
    """
    sign = -1 if found.value < 0 else 1
    low, high = sorted((sign * found.low, sign * found.high))
    doubt = "" if found.is_decided else ", which is not certain"
    word = "lower" if sign < 0 else "higher"
    return f"{abs(found.value):.3f} {word}{doubt} ({low:.3f} to {high:.3f})"


def _fewer(found: Difference, base: str) -> str:
    """A difference of shares in words.

    >>> _fewer(Difference("bad", -0.07, -0.13, -0.02, True), "clean")
    '7 fewer than clean (2 to 13 fewer)'
    >>> _fewer(Difference("bad", 0.02, -0.03, 0.07, False), "clean")
    '2 more than clean (3 fewer to 7 more)'
    """
    word = "fewer" if found.value < 0 else "more"
    shown = f"{_hundredths(abs(found.value))} {word}{f' than {base}' if base else ' in 100'}"
    if found.low < 0 < found.high:
        return f"{shown} ({_hundredths(-found.low)} fewer to {_hundredths(found.high)} more)"
    low, high = sorted((abs(found.low), abs(found.high)))
    return f"{shown} ({_hundredths(low)} to {_hundredths(high)} {word})"


def _as_good(cells: Cells, recipe: Recipe, dataset: str) -> Answer | None:
    method, base = subject(recipe), recipe.baseline
    found = qualities(cells, recipe, method, dataset) if method else {}
    if not found:
        return None
    kept, lost, unclear = (
        [ASPECTS[metric][1] for metric, own in found.items() if own.verdict == verdict]
        for verdict in ("kept", "lost", "undecided")
    )
    margin = f"{_hundredths(recipe.report.non_inferiority)}%"
    parts = []
    if kept:
        parts.append(f"Within {margin} of {base}, or better: {_listed(kept)}.")
    if lost:
        parts.append(f"More than {margin} worse: {_listed(lost)}.")
    if unclear:
        parts.append(f"Not certain: {_listed(unclear)}.")
    short = "Yes" if len(kept) == len(found) else "No" if not kept and lost else "In part"
    if not lost and not kept:
        short = "Not certain"
    doubt = [*lost, *unclear]
    brief = (
        f"not certain: {_listed(doubt)}"
        if doubt and not lost
        else f"{len(kept)} of {len(found)} kept"
    )
    return Answer("Are the replies as good?", short, brief, " ".join(parts), "quality")


def _cost(costs: Mapping[str, Costs], recipe: Recipe) -> Answer | None:
    method, base = subject(recipe), recipe.baseline
    own, other = costs.get(method or "", {}), costs.get(base, {})
    seconds, theirs = own.get("needed_seconds"), other.get("needed_seconds")
    if not seconds:
        return None
    took = duration(seconds)
    times = f"{seconds / theirs:.1f} times {base}" if theirs else took
    text = f"Training {method} and all that it needs took {took}"
    text += f": {times} ({duration(theirs)}). " if theirs else ". "
    models = own.get("models") or 1
    text += (
        "A reply costs what it did before tuning."
        if models == 1
        else f"{models:.0f} models compute each token of a reply."
    )
    return Answer("At what training cost?", times, took, text, "cost")


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


def _judge(power: JudgePower | None) -> Answer | None:
    if power is None:
        return None
    short = "Yes" if power.shown >= CLEAR else "Only weakly" if power.shown < WEAK else "In part"
    toxic, safe = _hundredths(power.toxic), _hundredths(power.safe)
    text = f"It flags {toxic}% of the toxic and {safe}% of the safe replies that people labelled"
    if power.shown > 0:
        text += f", so differences look about {1 / power.shown:.1f} times smaller than they are"
    text += f". It ranks a toxic reply above a safe one in {100 * power.auc:.0f} of 100 pairs."
    brief = f"flags {toxic}% of the toxic, {safe}% of the safe"
    return Answer("Can the judge be trusted?", short, brief, text, "judges")


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
        screen.about,
        *(f"{line.name}{line.aside} {line.text}" for line in screen.first),
        *(f"{one.question} {one.short}. {one.text}" for one in screen.answers),
        *screen.warnings,
    ]
    return [change(text) for text in said]
