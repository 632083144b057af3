"""The report by question. Each chapter answers one: in a sentence, then with the evidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flatgd.artifacts.reader import Studies, training_log
from flatgd.artifacts.rows import EstimateRow, GenerationRow, JudgeReport, Scores
from flatgd.config.recipe import Recipe
from flatgd.evaluation.agreement import agreement
from flatgd.evaluation.human_labels import labelled_toxicity
from flatgd.report import figures, people, studies
from flatgd.report.blocks import Chapter, Figure
from flatgd.report.charts import Mark
from flatgd.report.compare import Costs, compare_tables, cost_table
from flatgd.report.findings import (
    AboutJudge,
    Cells,
    ExpertContrast,
    Finding,
    FlatnessAtSameLoss,
    GeneralisationGap,
    JudgeCuts,
    JudgeFloor,
    JudgeHasFewLabels,
    JudgeIsFlat,
    SafetyLost,
    StudyIsStale,
    by_cell,
)
from flatgd.report.forests import quality_forests, safety_forests
from flatgd.report.paper import paper_tables, trade_offs
from flatgd.report.precision import precision_tables
from flatgd.report.sentences import sentence
from flatgd.report.tables import agreement_table, human_table, judge_table

PAIRED = (
    "Paired differences with 95% intervals over conversations. A filled mark is certain after "
    "Holm's correction over all methods and test sets. A hollow mark is not."
)
NON_INFERIORITY = "Shaded: a loss of up to {margin:.0%} of {base}'s value, which counts as kept."
Generations = Mapping[str, Sequence[GenerationRow]]


@dataclass(frozen=True)
class Material:
    """What the chapters are made of."""

    recipe: Recipe
    summary: Sequence[EstimateRow]
    judges: Sequence[JudgeReport]
    scores: Scores
    generations: Generations
    studied: Studies
    found: Sequence[Finding]
    costs: Mapping[str, Costs]
    named: Mapping[str, Mark]

    @cached_property
    def cells(self) -> Cells:
        """The summary by model, test set and metric."""
        return by_cell(self.summary)

    def said(self, kinds: Any) -> list[str]:
        """The findings of some kinds, in words."""
        return [sentence(finding) for finding in self.found if isinstance(finding, kinds)]


def chapters(material: Material) -> list[Chapter]:
    """Every chapter that the run has something for, in the order of the page."""
    found = [
        _safer(material),
        _as_good(material),
        _cost(material),
        _judges(material),
        _annotators(material),
        _training(material),
        *_trade_offs(material),
        *_studies(material),
    ]
    return [chapter for chapter in found if not chapter.is_empty]


def _safer(m: Material) -> Chapter:
    differences, values = safety_forests(m.cells, m.recipe, m.named)
    at_k = figures.toxicity_at_k_figure(
        m.cells, m.recipe.models, m.recipe.generate.samples, m.named
    )
    return Chapter(
        "safer",
        "Fewer toxic replies?",
        [PAIRED, *m.said(ExpertContrast)],
        differences,
        _known(at_k),
        values=values,
    )


def _as_good(m: Material) -> Chapter:
    differences, values = quality_forests(m.cells, m.recipe, m.named)
    note = NON_INFERIORITY.format(margin=m.recipe.report.non_inferiority, base=m.recipe.baseline)
    return Chapter(
        "quality",
        "Are the replies as good?",
        [note] if differences else [],
        differences,
        values=values,
    )


def _cost(m: Material) -> Chapter:
    tables = [cost_table(m.costs), *precision_tables(m.recipe)]
    compared = compare_tables(m.summary, m.recipe, m.costs)
    return Chapter("cost", "At what cost?", tables=tables, more=compared)


def _judges(m: Material) -> Chapter:
    """How far the toxicity metrics can be trusted."""
    tables = [judge_table(judge) for judge in m.judges]
    thresholds = {judge["name"]: judge["threshold"] for judge in m.judges}
    if len(m.judges) > 1:
        rows = [row for name in m.recipe.models for row in m.scores[name]]
        tables.append(agreement_table(agreement(rows, thresholds)))
    if labels := m.recipe.report.human_labels:
        judge = m.judges[0]["name"]
        tables.append(human_table(labelled_toxicity(labels, m.generations, m.scores, judge)))
    drawn = figures.reliability_figure(m.judges)
    others = JudgeFloor | JudgeIsFlat | JudgeCuts | JudgeHasFewLabels
    says = m.said(others if len(m.judges) == 1 else AboutJudge)  # its power is the verdict
    return Chapter("judges", "Can the judge be trusted?", says, (), [drawn], tables)


def _annotators(m: Material) -> Chapter:
    """How annotators compared pairs of replies, if the recipe names a study."""
    title = "What do people say?"
    if not m.recipe.report.study:
        return Chapter("people", title)
    found = people.load_tally(m.recipe.report.study)
    drawn, tables = [people.people_figure(found)], people.people_tables(found)
    return Chapter("people", title, figures=drawn, tables=tables)


def _training(m: Material) -> Chapter:
    read = {name: training_log(m.recipe, name) for name in m.recipe.methods}
    logs = {name: log for name, log in read.items() if log is not None}
    drawn = figures.training_figure(logs, m.named)
    return Chapter("training", "How did training go?", figures=_known(drawn))


def _trade_offs(m: Material) -> list[Chapter]:
    """The frontier of safety and quality, and the paper's tables."""
    recipe = m.recipe
    methods, samples = list(recipe.methods), recipe.generate.samples
    parts = trade_offs(m.summary, methods, samples)
    drawn = [figure for part in parts for figure in figures.trade_off_figures(part, m.named)]
    tables = paper_tables(m.summary, methods, samples, recipe.report.trade_off_weight)
    return [
        Chapter("frontier", "Which trade-offs are best?", figures=drawn),
        Chapter("paper", "How does it compare with the paper?", tables=tables),
    ]


def _studies(m: Material) -> list[Chapter]:
    """The studies of this run's checkpoints."""
    flat, durable, unseen = m.studied.flatness, m.studied.durability, m.studied.generalisation
    found = []
    if flat:
        drawn = studies.flatness_figures(flat, m.named)
        said, table = m.said(FlatnessAtSameLoss), studies.flatness_table(flat)
        found.append(Chapter("flatness", "Is the minimum flat?", said, (), drawn, [table]))
    if durable:
        drawn = [studies.durability_figure(durable, m.named)]
        said, table = m.said(SafetyLost), studies.durability_table(durable, flat)
        found.append(Chapter("durability", "Does safety last?", said, (), drawn, [table]))
    if unseen:
        drawn = [studies.generalisation_figure(unseen, m.named)]
        said, table = m.said(GeneralisationGap), studies.generalisation_table(unseen)
        title = "Does it hold on unseen toxicity?"
        found.append(Chapter("generalisation", title, said, (), drawn, [table]))
    if stale := m.said(StudyIsStale):
        found.append(Chapter("stale", "Studies left out", stale))
    return found


def _known(figure: Figure | None) -> list[Figure]:
    return [] if figure is None else [figure]
