"""How each metric is named, rounded and read."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flatgd.artifacts.rows import EstimateRow
from flatgd.config.names import MAJORITY

LOWER, HIGHER = "↓", "↑"


class Metric(NamedTuple):
    """`words` is its name in words. `arrow` says which way is better, "" where neither is. `brief`
    is its head in the terminal, None for metrics that are not shown there."""

    name: str
    words: str
    arrow: str
    brief: str | None
    decimals: int

    @property
    def head(self) -> str:
        """The head of its column."""
        return f"{self.words} {self.arrow}".rstrip()

    @property
    def is_lower_better(self) -> bool | None:
        return None if not self.arrow else self.arrow == LOWER

    def of(self, samples: int) -> "Metric":
        """The metric for `samples` replies a history."""
        brief = self.brief and self.brief.format(k=samples)
        return self._replace(
            name=self.name.format(k=samples), words=self.words.format(k=samples), brief=brief
        )

    def by(self, judge: str) -> "Metric":
        """The metric by a further judge, or by the vote of all; in the report only."""
        is_share = judge == MAJORITY and self.name == "toxicity_mean"
        words = "replies that most judges flag" if is_share else f"{self.words} by {judge}"
        return self._replace(name=f"{self.name}@{judge}", words=words, brief=None)


MAIN = [
    Metric("contrast", "contrast", HIGHER, "contrast ↑", 3),
    Metric("contrast_paired", "contrast, paired", HIGHER, "paired ↑", 3),
    Metric("toxicity_any{k}", "toxic, any of {k}", LOWER, "any{k} ↓", 3),
    Metric("toxicity_any{k}_p50", "any of {k}, P > .5", LOWER, None, 3),
    Metric("toxicity_mean", "mean P(toxic)", LOWER, "P(toxic) ↓", 3),
    Metric("toxicity_matched", "P(toxic), same length", LOWER, None, 3),
    Metric("perplexity", "perplexity", LOWER, "ppl ↓", 1),
    Metric("div1", "div1", HIGHER, "div1 ↑", 3),
    Metric("div2", "div2", HIGHER, "div2 ↑", 3),
    Metric("nll_ordinary", "NLL of human replies", LOWER, "nll ↓", 3),
    Metric("kl_backbone", "KL from the backbone", LOWER, "KL ↓", 3),
    Metric("relevance", "relevance", HIGHER, "rel ↑", 3),
    Metric("evasive", "evasive", LOWER, None, 3),
    Metric("reply_words", "words", "", "words", 1),
]
MORE = [
    Metric("toxicity_max", "expected max. P(toxic)", LOWER, None, 3),
    Metric("perplexity_corpus", "perplexity, corpus", LOWER, None, 1),
    Metric("div1_corpus", "div1, corpus", HIGHER, None, 3),  # these three of the first seed
    Metric("div2_corpus", "div2, corpus", HIGHER, None, 3),
    Metric("ead", "EAD", HIGHER, None, 3),
    Metric("question", "questions", "", None, 3),
    Metric("refusal", "refusals", LOWER, None, 3),
    Metric("topic_change", "topic changes", LOWER, None, 3),
]
_BY_NAME = {metric.name: metric for metric in (*MAIN, *MORE)}
SAFETY = [_BY_NAME[name] for name in ("toxicity_any{k}", "toxicity_mean", "contrast")]
QUALITY = [
    _BY_NAME[name]
    for name in (
        *("perplexity", "div1", "div2", "relevance", "nll_ordinary", "kl_backbone", "refusal"),
        "reply_words",
    )
]


def used(
    cells: Mapping[tuple[str, str], EstimateRow],
    methods: Sequence[str],
    known: Sequence[Metric],
    samples: int,
) -> list[Metric]:
    """The metrics that some method has. Those of further judges follow those of the first. `cells`
    are those of one test set, by method and metric."""
    metrics = [metric.of(samples) for metric in known]
    others = dict.fromkeys(name.partition("@")[2] for _, name in cells if "@" in name)
    metrics += [metric.by(judge) for judge in others for metric in metrics]
    return [m for m in metrics if any((method, m.name) in cells for method in methods)]
