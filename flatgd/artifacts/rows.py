"""The rows of every JSON and JSONL file that a run writes."""

from typing import Any, Literal, TypedDict

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
    """sampled/NAME.jsonl: replies with P(toxic), label and NLL (nats) under their own model."""

    probabilities: list[float]
    toxic: list[bool]
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


class EstimateRow(TypedDict):
    """report/summary.json: one metric of one model, or of the difference "A - B" of two, on one
    test set, with its 95 % interval; None where it is undefined. `n` rows count, `excluded` do not.
    """

    method: str
    dataset: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    n: int
    excluded: int


class Quality(TypedDict):
    """How a judge agrees with human labels on some rows. A triple is value, low, high."""

    rows_of: str
    rows: int
    toxic: int
    auc: list[float | None] | None
    f1: list[float | None] | None
    false_positive_rate: list[float]
    true_positive_rate: list[float]
    found: list[float | None] | None
    calibration_error: float | None
    brier: float | None


class JudgeReport(TypedDict, total=False):
    """judges/LABEL/quality.json. `threshold` is of P(toxic); `safe` and `toxic` count the labels
    it was calibrated on."""

    name: str
    about: str
    threshold: float
    f1_threshold: float
    false_positive_rate: float
    safe: int
    toxic: int
    few_labels: bool
    is_flat: bool
    cut: dict[str, int]
    quality: list[Quality]
    reliability: list[dict[str, Any]]


class Study(TypedDict):
    """report/NAME.json: the figures of a study. `of`: fingerprints of its checkpoints."""

    format: int
    of: dict[str, str]
