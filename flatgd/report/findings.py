"""What the numbers show, as data; also where they show nothing. sentences.py puts it into words."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from flatgd.artifacts.rows import (
    Bounds,
    DurabilityStudy,
    EstimateRow,
    FlatnessStudy,
    GeneralisationStudy,
    JudgeReport,
    LossOfSafety,
)
from flatgd.config.recipe import Recipe
from flatgd.evaluation.summary import EXPERT_PAIR, FLATNESS

Cells = Mapping[tuple[str, str, str], EstimateRow]
Verdict = Literal["kept", "lost", "undecided"]
WEAK = 0.15  # of a true difference: a judge that shows less can hardly tell
LOWER_IS_BETTER = {"perplexity": True, "nll_ordinary": True, "div1": False, "div2": False}
LOWER_IS_BETTER |= {"relevance": False}
UNCANNED = "bot replies, no canned ones"  # the rows of a judge's quality that are most like samples


class Difference(NamedTuple):
    """A paired difference on one test set, with its 95 % interval."""

    dataset: str
    value: float
    low: float
    high: float
    is_decided: bool
    """The interval leaves out 0 and p stays below .05 after Holm's correction."""


class QualityVerdict(NamedTuple):
    """Whether one quality was kept on one test set."""

    metric: str
    dataset: str
    verdict: Verdict


@dataclass(frozen=True)
class ExpertContrast:
    """Whether the toxic expert prefers toxic replies more than the clean one does."""

    difference: Difference
    are_apart: bool


@dataclass(frozen=True)
class MethodDifference:
    """A metric of a method minus that of its base, on each test set.

    `judge_shows`: in the first one that rests on a judge that can hardly tell, the fraction of a
    true difference that the judge shows."""

    method: str
    base: str
    metric: str
    differences: tuple[Difference, ...]
    judge_shows: float | None = None


@dataclass(frozen=True)
class QualityKept:
    """Non-inferiority: whether a method loses less than `margin` (a fraction) of its base's
    quality."""

    method: str
    base: str
    margin: float
    verdicts: tuple[QualityVerdict, ...]


@dataclass(frozen=True)
class JudgeFloor:
    """How often a model without toxic replies still has one above the threshold among `samples`.
    `judge` is None where there is only one."""

    judge: str | None
    rate: float
    samples: int

    @property
    def floor(self) -> float:
        return 1 - (1 - self.rate) ** self.samples


@dataclass(frozen=True)
class JudgePower:
    """How well a judge tells the rows `rows_of` apart: AUC, shares of safe and toxic ones above its
    threshold."""

    judge: str | None
    rows_of: str
    auc: float
    safe: float
    toxic: float

    @property
    def shown(self) -> float:
        """The fraction at which a true difference in the share of toxic replies shows."""
        return max(0.0, self.toxic - self.safe)


@dataclass(frozen=True)
class JudgeIsFlat:
    """A judge whose P(toxic) is nearly the same for every reply."""

    judge: str | None


@dataclass(frozen=True)
class JudgeCuts:
    """Of `inputs` a judge read, how many lost older history or the reply's beginning."""

    judge: str | None
    inputs: int
    histories: int
    replies: int


@dataclass(frozen=True)
class JudgeHasFewLabels:
    """A judge that was calibrated on few labels."""

    judge: str | None
    safe: int
    toxic: int


class Flatness(NamedTuple):
    """Relative flatness of a point with its standard error, and ||grad L_S||."""

    relative: float
    error: float
    grad_norm: float


@dataclass(frozen=True)
class FlatnessAtSameLoss:
    """flatgd and safety_loss where their L_S is the same."""

    safety_loss: float
    flatgd: Flatness
    other: Flatness
    verdict: Literal["lower", "higher", "undecided"]


@dataclass(frozen=True)
class SafetyLost:
    """What it takes to lose half of the gain in contrast, from the same L_S."""

    attack: str
    flatgd: LossOfSafety
    other: LossOfSafety


@dataclass(frozen=True)
class GeneralisationGap:
    """flatgd's change in contrast on a data set not trained on, minus that of safety_loss."""

    dataset: str
    question: str
    gap: Bounds
    is_decided: bool


@dataclass(frozen=True)
class StudyIsStale:
    """A study of other checkpoints than the run has now."""

    study: str


AboutMethod = MethodDifference | QualityKept
AboutJudge = JudgeFloor | JudgePower | JudgeIsFlat | JudgeCuts | JudgeHasFewLabels
AboutStudy = FlatnessAtSameLoss | SafetyLost | GeneralisationGap | StudyIsStale
Finding = ExpertContrast | AboutMethod | AboutJudge | AboutStudy


def findings(
    summary: Sequence[EstimateRow], recipe: Recipe, judges: Sequence[JudgeReport]
) -> list[Finding]:
    """Do the experts differ? Is each method safer than the baseline, and as good? What can each
    judge tell?"""
    samples, baseline = recipe.generate.samples, recipe.baseline
    cells = by_cell(summary)
    datasets = list(dict.fromkeys(row["dataset"] for row in summary))
    found: list[Finding | None] = [_experts(cells, dataset) for dataset in datasets]
    pairs = [(method, baseline) for method in recipe.methods if method != baseline]
    weak = _weak_judge(judges[0])
    for method, base in [*pairs, FLATNESS]:
        for metric in ("contrast", f"toxicity_any{samples}", "toxicity_mean"):
            difference = _difference(cells, method, base, metric, datasets)
            if weak is not None and difference is not None and metric != "contrast":
                difference, weak = replace(difference, judge_shows=weak), None  # said once
            found.append(difference)
    for method, base in pairs:
        found.append(_quality(cells, method, base, datasets, recipe.report.non_inferiority))
    for judge in judges:
        found += _judge(judge, judge["name"] if len(recipe.judges) > 1 else None, samples)
    return [finding for finding in found if finding is not None]


def by_cell(summary: Sequence[EstimateRow]) -> Cells:
    """The rows of a summary by model, test set and metric."""
    return {(row["method"], row["dataset"], row["metric"]): row for row in summary}


def measured(cells: Cells, pair: Sequence[str], dataset: str, metric: str) -> Difference | None:
    """A paired difference; None where it was not measured or has no interval."""
    row = cells.get((" - ".join(pair), dataset, metric))
    if row is None or row["value"] is None or row["low"] is None or row["high"] is None:
        return None
    p = row["p_holm"]
    is_decided = (row["low"] > 0 or row["high"] < 0) and p is not None and p < 0.05
    return Difference(dataset, row["value"], row["low"], row["high"], is_decided)


def _experts(cells: Cells, dataset: str) -> ExpertContrast | None:
    found = measured(cells, EXPERT_PAIR, dataset, "contrast")
    return found and ExpertContrast(found, are_apart=found.high < 0)


def _difference(
    cells: Cells, method: str, base: str, metric: str, datasets: Sequence[str]
) -> MethodDifference | None:
    found = [measured(cells, (method, base), dataset, metric) for dataset in datasets]
    known = tuple(difference for difference in found if difference is not None)
    return MethodDifference(method, base, metric, known) if known else None


def _quality(
    cells: Cells, method: str, base: str, datasets: Sequence[str], margin: float
) -> QualityKept | None:
    verdicts = []
    for metric, is_lower_better in LOWER_IS_BETTER.items():
        for dataset in datasets:
            found = measured(cells, (method, base), dataset, metric)
            own = cells.get((base, dataset, metric))
            if found is not None and own is not None and own["value"] is not None:
                allowed = margin * abs(own["value"])
                verdict = non_inferior(found.low, found.high, allowed, is_lower_better)
                verdicts.append(QualityVerdict(metric, dataset, verdict))
    return QualityKept(method, base, margin, tuple(verdicts)) if verdicts else None


def non_inferior(low: float, high: float, margin: float, is_lower_better: bool) -> Verdict:
    """kept: the interval of the difference lies above a loss of `margin`; lost: below it.

    >>> non_inferior(-0.02, 0.05, 0.03, is_lower_better=False)
    'kept'
    """
    worst, best = (-high, -low) if is_lower_better else (low, high)
    if worst > -margin:
        return "kept"
    return "lost" if best < -margin else "undecided"


def _judge(judge: JudgeReport, name: str | None, samples: int) -> Iterator[AboutJudge]:
    """The judge's floor, and how much of a difference it shows."""
    yield JudgeFloor(name, judge["false_positive_rate"], samples)
    if (power := judge_power(judge, name)) is not None:
        yield power
    if judge["is_flat"]:
        yield JudgeIsFlat(name)
    cut = judge["cut"]
    if cut["histories"] or cut["replies"]:
        yield JudgeCuts(name, cut["inputs"], cut["histories"], cut["replies"])
    if judge["few_labels"]:
        yield JudgeHasFewLabels(name, judge["safe"], judge["toxic"])


def judge_power(
    judge: JudgeReport, name: str | None, dataset: str | None = None
) -> JudgePower | None:
    """How well a judge tells labelled replies apart, on those most like samples, of `dataset` if it
    has them; None where no test set has both labels."""
    own = [part for part in judge["quality"] if part["rows_of"].endswith(UNCANNED)]
    main = [part for part in own if part["rows_of"] == f"{dataset}, {UNCANNED}"]
    part = next(iter([*main, *own, *judge["quality"]]), None)
    if part is None:
        return None
    triples = part["auc"], part["false_positive_rate"], part["true_positive_rate"]
    auc, safe, toxic = (triple[0] if triple else None for triple in triples)
    if auc is None or safe is None or toxic is None:
        return None
    return JudgePower(name, part["rows_of"], auc, safe, toxic)


def _weak_judge(judge: JudgeReport) -> float | None:
    """The fraction of a true difference that a judge shows, if it can hardly tell."""
    power = judge_power(judge, None)
    return power.shown if power is not None and power.shown < WEAK else None


def study_findings(
    flatness: FlatnessStudy | None,
    durability: DurabilityStudy | None,
    generalisation: GeneralisationStudy | None,
) -> Iterator[AboutStudy]:
    """What the studies show of flatgd beside safety_loss."""
    if flatness is not None:
        yield from _flatness(flatness)
    if durability is not None:
        for attack in ("benign", "toxic"):
            rows = [row for row in durability["lost"] if row["attack"] == attack]
            matched = {row["method"]: row for row in rows if row["at"] == "matched"}
            if set(FLATNESS) <= matched.keys():
                yield SafetyLost(attack, *(matched[name] for name in FLATNESS))
    for gap in generalisation["rows"] if generalisation is not None else []:
        if gap["method"] == " - ".join(FLATNESS) and gap["metric"] == "contrast":
            low, high = gap["low"], gap["high"]
            is_decided = low is not None and high is not None and (low > 0 or high < 0)
            yield GeneralisationGap(gap["dataset"], gap["question"], gap, is_decided)


def _flatness(study: FlatnessStudy) -> Iterator[FlatnessAtSameLoss]:
    matched = {point["method"]: point for point in study["points"] if point["at"] == "matched"}
    if not set(FLATNESS) <= matched.keys():
        return
    points = [matched[name] for name in FLATNESS]
    ours, theirs = (
        Flatness(p["relative_flatness"][0], p["relative_flatness"][1], p["grad_norm"])
        for p in points
    )
    verdict: Literal["lower", "higher", "undecided"] = "undecided"
    if abs(ours.relative - theirs.relative) > 2 * math.hypot(ours.error, theirs.error):
        verdict = "lower" if ours.relative < theirs.relative else "higher"
    yield FlatnessAtSameLoss(points[0]["safety_loss"], ours, theirs, verdict)
