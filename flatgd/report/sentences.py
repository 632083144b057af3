"""Findings in words. Nothing reads the sentences back; code that needs a value uses the finding."""

from collections import defaultdict

from flatgd.report.cells import interval, lost_after, significant
from flatgd.report.findings import (
    Difference,
    ExpertContrast,
    Finding,
    FlatnessAtSameLoss,
    GeneralisationGap,
    JudgeCuts,
    JudgeFloor,
    JudgeHasFewLabels,
    JudgeIsFlat,
    JudgePower,
    MethodDifference,
    QualityKept,
    SafetyLost,
    StudyIsStale,
)

QUESTIONS = {"missing_negatives": "toxic replies missing", "left_out": "left out"}


def sentence(finding: Finding) -> str:
    """One finding in words."""
    match finding:
        case ExpertContrast():
            return _experts(finding)
        case MethodDifference():
            return _method(finding)
        case QualityKept():
            return _quality(finding)
        case JudgeFloor() | JudgePower() | JudgeIsFlat() | JudgeCuts() | JudgeHasFewLabels():
            return _judge(finding)
        case FlatnessAtSameLoss():
            return _flatness(finding)
        case SafetyLost():
            return (
                f"Until half of the gain in contrast is lost to {finding.attack} tuning, from the "
                f"same L_S: flatgd {lost_after(finding.flatgd)}, safety_loss "
                f"{lost_after(finding.other)}."
            )
        case GeneralisationGap():
            return _generalisation(finding)
        case StudyIsStale():
            name = finding.study
            return f"The study of {name} is of earlier checkpoints and left out; run it again."


def _experts(finding: ExpertContrast) -> str:
    dataset, shown = finding.difference.dataset, _shown(finding.difference)
    if finding.are_apart:
        return f"{dataset}: the experts differ, toxic − clean in contrast {shown}."
    return (
        f"{dataset}: the experts do not differ, toxic − clean in contrast {shown}. There is "
        "nothing to steer by; train them longer or on more labelled replies."
    )


def _method(finding: MethodDifference) -> str:
    parts = [
        f"{one.dataset} {_shown(one)}{'' if one.is_decided else ' (undecided)'}"
        for one in finding.differences
    ]
    text = f"{finding.method} − {finding.base}, {finding.metric}: {', '.join(parts)}."
    if finding.judge_shows is None:
        return text
    return f"{text} This judge can hardly tell: it shows {finding.judge_shows:.0%} of a difference."


def _quality(finding: QualityKept) -> str:
    """The metrics by verdict; the test sets are named where they differ in it."""
    by_metric: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for metric, dataset, verdict in finding.verdicts:
        by_metric[metric][verdict].append(dataset)
    parts = []
    for verdict in ("kept", "lost", "undecided"):
        named = [
            metric if len(by_verdict) == 1 else f"{metric} on {', '.join(by_verdict[verdict])}"
            for metric, by_verdict in by_metric.items()
            if verdict in by_verdict
        ]
        if named:
            parts.append(f"{verdict}: {', '.join(named)}")
    heading = f"{finding.method}, within {finding.margin:.0%} of {finding.base}'s quality"
    return f"{heading}: {'; '.join(parts)}."


def _judge(
    finding: JudgeFloor | JudgePower | JudgeIsFlat | JudgeCuts | JudgeHasFewLabels,
) -> str:
    if isinstance(finding, JudgePower):
        subject = f"The judge {finding.judge}" if finding.judge else "It"
        return (
            f"{subject} tells toxic from safe with AUC {finding.auc:.2f} ({finding.rows_of}). It "
            f"flags {finding.toxic:.1%} of the toxic and {finding.safe:.1%} of the safe ones, so a "
            f"true difference shows at {finding.shown:.0%} of its size."
        )
    subject = f"The judge {finding.judge}" if finding.judge else "The judge"
    match finding:
        case JudgeFloor():
            return (
                f"{subject} is set to flag {finding.rate:.1%} of the safe replies that people "
                f"labelled. On replies like those, a model without toxic replies has up to "
                f"{finding.floor:.3f} on any of {finding.samples}."
            )
        case JudgeIsFlat():
            return (
                f"{subject} does not tell toxic from safe on the replies it was calibrated on. Its "
                "P(toxic) is nearly the same for every reply, so figures by it say nothing."
            )
        case JudgeCuts():
            return (
                f"{subject} reads no more than fits: of {finding.inputs:,} labelled replies, "
                f"{finding.histories:,} lost older history and {finding.replies:,} lost their "
                "beginning."
            )
        case JudgeHasFewLabels():
            return (
                f"{subject} learned from few labels: {finding.safe} safe, {finding.toxic} toxic. "
                "Its figures may be chance. Label more, or name a ready classifier (kind: hf)."
            )


def _flatness(finding: FlatnessAtSameLoss) -> str:
    ours, theirs = (
        f"{significant(one.relative)} ± {significant(one.error, 2)}"
        for one in (finding.flatgd, finding.other)
    )
    return (
        f"At the same L_S of {finding.safety_loss:.4f} flatgd's relative flatness is {ours}, "
        f"safety_loss's {theirs}: {finding.verdict}; ‖grad L_S‖ "
        f"{significant(finding.flatgd.grad_norm)} and {significant(finding.other.grad_norm)}."
    )


def _generalisation(finding: GeneralisationGap) -> str:
    gap = finding.gap
    shown = interval(gap["value"], gap["low"], gap["high"], 3)
    return (
        f"{finding.dataset} {QUESTIONS[finding.question]}: flatgd's change in contrast − "
        f"safety_loss's {shown}{'' if finding.is_decided else ' (undecided)'}; above 0, it "
        "generalises better."
    )


def _shown(difference: Difference) -> str:
    return f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
