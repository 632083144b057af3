"""The rows of every JSON and JSONL file that a run writes."""

from typing import Literal, TypedDict

from flatgd.dialogue import Message

STUDY_FORMAT = 1  # of report/NAME.json; a study with another one is ignored


class GenerationRow(TypedDict):
    """generations/NAME.jsonl: one history and a model's sampled replies."""

    dataset: str
    conversation: str
    system: str
    history: list[Message]
    replies: list[str]


class JudgedRow(GenerationRow, total=False):
    """A generation with each judge's P(toxic) of each reply; without `judged` before scoring."""

    judged: dict[str, list[float]]


class SampledRow(GenerationRow):
    """sampled/NAME.jsonl: replies with P(toxic), label and NLL (nats) under their own model. The
    label is None where the judge is unsure."""

    probabilities: list[float]
    toxic: list[bool | None]
    nll: list[float]


class ReplyScores(TypedDict):
    """scores/NAME.jsonl: one history; lists have one value a reply.

    `toxic` holds P(toxic) by judge. `nll` (nats) and `tokens` are the scorer's, empty without one;
    `relevance` (nats a token) is empty but for ordinary dialogue.
    """

    kind: Literal["generated", "reference"]
    dataset: str
    conversation: str
    toxic: dict[str, list[float]]
    words: list[int]
    div1: float | None
    div2: float | None
    question: list[int]
    refusal: list[int]
    topic_change: list[int]
    evasive: list[int]
    nll: list[float]
    tokens: list[int]
    relevance: list[float]


class GivenScores(TypedDict):
    """scores/NAME.jsonl: one reply of the test data and its NLL (nats) under the model. `context`
    is a digest of the history and the same for all replies to it."""

    kind: Literal["labelled", "ordinary"]
    dataset: str
    conversation: str
    context: str
    is_safe: bool | None
    nll: float
    tokens: int


class DriftScores(TypedDict):
    """scores/NAME.jsonl: one reply of the backbone to ordinary dialogue, and KL(backbone || model)
    over it, a sum over its tokens in nats."""

    kind: Literal["drift"]
    dataset: str
    conversation: str
    kl: float
    tokens: int


ScoreRow = ReplyScores | GivenScores | DriftScores  # one line of scores/NAME.jsonl
Scores = dict[str, list[ScoreRow]]  # the score files of a run, by model


class Bounds(TypedDict):
    """A value with its 95 % interval; None where it is undefined."""

    value: float | None
    low: float | None
    high: float | None


class EstimateRow(Bounds):
    """report/summary.json: one metric of one model, or of the difference "A - B" of two, on one
    test set. `p` is of no difference, `p_holm` the same after Holm's correction; both are None for
    a single model. `n` rows count, `excluded` do not.
    """

    method: str
    dataset: str
    metric: str
    p: float | None
    p_holm: float | None
    n: int
    excluded: int


Triple = list[float | None]  # value, low, high


class Quality(TypedDict):
    """How a judge agrees with annotators' labels of some rows; None where one label is missing."""

    rows_of: str
    rows: int
    toxic: int
    auc: Triple | None
    f1: Triple | None
    false_positive_rate: Triple | None
    true_positive_rate: Triple | None
    found: Triple | None
    calibration_error: float | None
    brier: float | None


class Cut(TypedDict):
    """Of `inputs` that a judge read, how many lost older history or the reply's beginning."""

    inputs: int
    histories: int
    replies: int


class ReliabilityBin(TypedDict):
    """Mean P(toxic) and the share of toxic replies among some rows."""

    said: float
    true: float


class JudgeReport(TypedDict):
    """judges/LABEL/quality.json. Thresholds are of P(toxic); `safe` and `toxic` count the labels
    it was calibrated on, with Platt's `slope` and `intercept`."""

    name: str
    about: str
    slope: float
    intercept: float
    threshold: float
    f1_threshold: float
    false_positive_rate: float
    safe: int
    toxic: int
    few_labels: bool
    is_flat: bool
    cut: Cut
    quality: list[Quality]
    reliability: list[ReliabilityBin]


class Study(TypedDict):
    """What every report/NAME.json of a study has. `of`: fingerprints of its checkpoints."""

    format: int
    of: dict[str, str | None]


class LossLevels(TypedDict):
    """L_S on training and on test rows."""

    safety_loss: float
    safety_loss_test: float


class PathRow(LossLevels):
    """One step of a method's training."""

    method: str
    step: int
    grad_norm: float


class SliceRow(LossLevels):
    """One point on the line from the backbone to an end point ("along"; 0 is the backbone, 1 the
    end), or on a random direction through the end point ("across"; relative to the weights)."""

    method: str
    slice: Literal["along", "across"]
    at: float


class FlatnessPoint(LossLevels):
    """One point in weight space; `at` is end or matched. `trace` and `relative_flatness` are (mean,
    standard error), and so is each of `random`; `random` and `worst` have one value a radius."""

    method: str
    at: str
    step: float
    grad_norm: float
    top_eigenvalue: float
    trace: list[float]
    relative_flatness: list[float]
    random: list[list[float]]
    worst: list[float]


class FlatnessFigures(TypedDict):
    """Measured by `flatgd flatness`; `radii` are relative to the weights."""

    rows: int
    probes: int
    radii: list[float]
    points: list[FlatnessPoint]
    path: list[PathRow]
    slices: list[SliceRow]


class FlatnessStudy(FlatnessFigures, Study):
    """report/flatness.json."""


class AttackRow(TypedDict):
    """The contrast (nats a token) of one point under an attack of some strength: steps of tuning,
    relative size of the noise, or bits of the weights."""

    method: str
    at: str
    step: float
    attack: str
    strength: float
    contrast: float


class LossOfSafety(TypedDict):
    """What an attack left of one point's gain in contrast (nats a token): the share `kept` at the
    end, and the strength at which half of it was lost (None: never)."""

    method: str
    at: str
    step: float
    attack: str
    gain: float
    kept: float | None
    half_lost: float | None


class DurabilityFigures(TypedDict):
    """Measured by `flatgd durability`."""

    rows: int
    steps: int
    curves: list[AttackRow]
    lost: list[LossOfSafety]


class DurabilityStudy(DurabilityFigures, Study):
    """report/durability.json."""


class Gap(Bounds):
    """A metric of a method that was trained with a data set (`seen`) and of one trained without it
    (`unseen`); the value is unseen - seen."""

    method: str
    dataset: str
    metric: str
    seen: float | None
    unseen: float | None
    p: float | None


class GapRow(Gap):
    """A gap, and what was left out: the data set, or its toxic replies alone."""

    question: str


class GeneralisationStudy(Study):
    """report/generalisation.json."""

    rows: list[GapRow]
