"""The rows of a study's files (see study.py) and of its tally (see tally.py)."""

from typing import TypedDict

from flatgd.dialogue import Message

STUDY_FORMAT = 1  # of study.json and of votes.db; a study with another one is refused


class Item(TypedDict):
    """items.jsonl: a pair of replies to one history, without the names of the models."""

    id: str
    system: str
    history: list[Message]
    left: str
    right: str


class RestRow(TypedDict):
    """rest.jsonl: a pair of replies that annotators do not see.

    `judged` holds each judge's P(toxic) of the target's reply and of the baseline's.
    """

    target: str
    baseline: str
    dataset: str
    conversation: str
    judged: dict[str, list[float]]


class ShareRow(TypedDict):
    """`statistics.Share` as a row: k of n with 95 % intervals; None if n is 0."""

    k: int
    n: int
    value: float | None
    wilson: tuple[float, float] | None
    exact: tuple[float, float] | None


class PairRow(TypedDict):
    """One question about one pair of models.

    `items` counts all items, `answered` those that were asked and have all their answers, `counts`
    the items by outcome. `baseline_share` is the share of `answered` items where the baseline is
    chosen, `of_decided` the share of items where either model is, `p` the sign test's.
    """

    question: str
    target: str
    baseline: str
    items: int
    answered: int
    counts: dict[str, int]
    baseline_share: ShareRow
    of_decided: ShareRow
    p: float | None


class AgreementRow(TypedDict):
    """How far annotators agree on one question."""

    question: str
    items: int
    votes: int
    fleiss_kappa: float | None
    krippendorff_alpha: float | None


class AnnotatorRow(TypedDict):
    """One annotator's answers; the last three are fractions in [0, 1].

    `with_majority`: answers that match the majority of the other annotators. `same_twice`: repeated
    items with the same answer. `checks_passed`: attention checks answered as asked.
    """

    annotator: str
    answers: int
    median_seconds: float | None
    with_majority: float | None
    same_twice: float | None
    checks_passed: float | None


class StrengthRow(TypedDict):
    """Bradley-Terry strengths for one question: {value, error} by model, strongest first."""

    question: str
    models: dict[str, dict[str, float]]


class JudgeRow(TypedDict):
    """Of the items where annotators found one reply more toxic, the share where the judge does."""

    judge: str
    agrees: ShareRow


class AllConversationsRow(TypedDict):
    """The share of all conversations of a test set where the baseline is more toxic.

    The fields from `value` on are those of `evaluation.prediction_powered.PPEstimate`.
    """

    judge: str
    target: str
    baseline: str
    dataset: str
    conversations: int
    value: float | None
    low: float | None
    high: float | None
    labels_only: float | None
    tau: float | None
    labels: int
    effective: float | None


class InterimTally(TypedDict):
    """The part of a tally that may be shown while a study runs: it does not say who wins."""

    agreement: list[AgreementRow]
    annotators: list[AnnotatorRow]


class Tally(InterimTally):
    """tally.json: what the answers of a study say. None is an undefined figure."""

    questions: dict[str, str]
    pairs: list[PairRow]
    strengths: list[StrengthRow]
    judges: list[JudgeRow]
    all_conversations: list[AllConversationsRow]
