"""From a run's files to report/: summary.json, tables.md, tables.tex, figures/, index.html."""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from flatgd.artifacts import layout
from flatgd.artifacts.reader import (
    Studies,
    generations_of,
    load_judges,
    load_studies,
    scores_of_seeds,
    summary_fingerprint,
    training_log,
)
from flatgd.artifacts.rows import EstimateRow, GenerationRow, JudgeReport, Scores
from flatgd.artifacts.store import ArtifactStore, fingerprint_of
from flatgd.config.loading import shareable_text
from flatgd.config.recipe import Recipe
from flatgd.evaluation.agreement import agreement
from flatgd.evaluation.human_labels import labelled_toxicity
from flatgd.evaluation.summary import Settings, diversity_rows, summarise
from flatgd.report import figures, people, studies
from flatgd.report.cells import Table, latex, markdown, worded
from flatgd.report.compare import compare_tables
from flatgd.report.findings import Finding, StudyIsStale, findings, study_findings
from flatgd.report.paper import paper_tables, trade_offs
from flatgd.report.precision import precision_tables
from flatgd.report.sentences import sentence
from flatgd.report.tables import agreement_table, human_table, judge_table, main_tables

Generations = Mapping[str, Sequence[GenerationRow]]
PACKAGES = ("flatgd", "torch", "transformers", "numpy", "scikit-learn")


class Chapter(NamedTuple):
    """A chapter of the page: tables, and figures with their titles."""

    title: str
    tables: list[Table]
    figures: list[tuple[str, Path]]


def build_report(recipe: Recipe) -> Path:
    """Write OUTPUT/report and return its page. The same files give the same report."""
    names, folder = recipe.models, recipe.output / layout.REPORT
    seeds, judges = scores_of_seeds(recipe), load_judges(recipe)
    generations = generations_of(recipe, names)
    store = ArtifactStore(recipe.output)
    store.remove_recorded(layout.FIGURES)  # of an earlier report; other files stay
    (recipe.output / layout.FIGURES).mkdir(parents=True, exist_ok=True)
    summary = summarise(seeds, _settings(recipe, judges)) + diversity_rows(generations)
    (recipe.output / layout.SUMMARY).write_text(json.dumps(summary, indent=1) + "\n")
    store.record(layout.SUMMARY, summary_fingerprint(recipe))
    studied = load_studies(recipe)
    with figures.styled():
        chapters = [
            Chapter(
                "Results", main_tables(summary, names, recipe.generate.samples, recipe.seeds), []
            ),
            Chapter("Compared", [*compare_tables(summary, recipe), *precision_tables(recipe)], []),
            _as_in_the_paper(summary, recipe, folder),
            _judges(judges, seeds[0], generations, recipe, folder),
            *_annotators(recipe, folder),
            _training(recipe, folder),
            *_studies(studied, recipe, folder),
        ]
    drawn = {path.name for chapter in chapters for _, path in chapter.figures}
    store.record(layout.FIGURES, summary_fingerprint(recipe), drawn)
    found = [
        *findings(summary, recipe, judges),
        *study_findings(studied.flatness, studied.durability, studied.generalisation),
        *(StudyIsStale(name) for name in studied.stale),
    ]
    return _write(recipe, found, chapters, _samples(generations, recipe))


def _write(
    recipe: Recipe,
    found: Sequence[Finding],
    chapters: Sequence[Chapter],
    samples: Sequence[Mapping[str, Any]],
) -> Path:
    """The page, and the tables as Markdown and LaTeX, in the words of the recipe's attribute."""

    def in_words(text: str) -> str:
        return worded(text, recipe.report.wanted, recipe.report.unwanted)

    sentences = [in_words(sentence(finding)) for finding in found]
    chapters = [
        Chapter(
            chapter.title,
            [_worded(table, in_words) for table in chapter.tables],
            [(in_words(title), path) for title, path in chapter.figures],
        )
        for chapter in chapters
        if chapter.tables or chapter.figures
    ]
    _write_tables(recipe, sentences, chapters)
    page = _template().render(
        name=recipe.name,
        seeds=", ".join(str(recipe.seed + n) for n in range(recipe.seeds)),
        findings=sentences,
        parts=[
            (c.title, c.tables, [(title, Markup(path.read_text())) for title, path in c.figures])
            for c in chapters
        ],
        samples=samples,
        recipe=shareable_text(recipe),
        versions=[("python", platform.python_version()), *((p, version(p)) for p in PACKAGES)],
    )
    (recipe.output / layout.PAGE).write_text(page)
    return recipe.output / layout.PAGE


def _worded(table: Table, in_words: Callable[[str], str]) -> Table:
    header = [in_words(head) for head in table.header]
    return Table(in_words(table.title), header, table.rows, in_words(table.note))


def _write_tables(recipe: Recipe, sentences: Sequence[str], chapters: Sequence[Chapter]) -> None:
    folder = recipe.output / layout.REPORT
    tables = [table for chapter in chapters for table in chapter.tables]
    intro = "\n".join(f"- {text}" for text in sentences)
    text = "\n\n".join([f"# {recipe.name}", intro, *map(markdown, tables)])
    (folder / "tables.md").write_text(text + "\n")
    (folder / "tables.tex").write_text(latex(tables))


def _settings(recipe: Recipe, judges: Sequence[JudgeReport]) -> Settings:
    return Settings(
        recipe.generate.samples,
        {judge["name"]: judge["threshold"] for judge in judges},
        recipe.report.resamples,
        recipe.seed,
        recipe.baseline,
    )


def _as_in_the_paper(summary: Sequence[EstimateRow], recipe: Recipe, folder: Path) -> Chapter:
    """The models side by side: the paper's tables, the trade-off plane, the intervals."""
    names, methods, samples = recipe.models, list(recipe.methods), recipe.generate.samples
    tables = paper_tables(summary, methods, samples, recipe.report.trade_off_weight)
    at = folder / "figures"
    drawn = [
        ("Every model with its 95 % interval", figures.draw_intervals(summary, names, samples, at)),
        ("Toxicity by number of replies", figures.draw_toxicity_at_k(summary, names, samples, at)),
    ]
    for part in trade_offs(summary, methods, samples):
        plane = f"{part.dataset}: safety against quality, Pareto front dashed"
        drawn.append((plane, figures.draw_plane(part, names, at)))
        sweep = f"{part.dataset}: trade-off factor by weight"
        drawn.append((sweep, figures.draw_sweep(part, names, at)))
    return Chapter("As in the paper", tables, [(t, p) for t, p in drawn if p is not None])


def _judges(
    judges: Sequence[JudgeReport],
    scores: Scores,
    generations: Generations,
    recipe: Recipe,
    folder: Path,
) -> Chapter:
    """How far the toxicity metrics can be trusted."""
    tables = [judge_table(judge) for judge in judges]
    thresholds = {judge["name"]: judge["threshold"] for judge in judges}
    if len(judges) > 1:
        rows = [row for name in recipe.models for row in scores[name]]
        tables.append(agreement_table(agreement(rows, thresholds)))
    if recipe.report.human_labels:
        judge = judges[0]["name"]
        labelled = labelled_toxicity(recipe.report.human_labels, generations, scores, judge)
        tables.append(human_table(labelled))
    drawn = figures.draw_reliability(judges, folder / "figures")
    title = "What the judges say against what people said: on the line is calibrated"
    return Chapter("The judges", tables, [(title, drawn)])


def _annotators(recipe: Recipe, folder: Path) -> list[Chapter]:
    """How annotators compared pairs of replies, if the recipe names a study."""
    if not recipe.report.study:
        return []
    found = people.load_tally(recipe.report.study)
    drawn = people.draw_people(found, folder / "figures")
    return [Chapter("People", people.people_tables(found), [("Figure 2, of this run", drawn)])]


def _training(recipe: Recipe, folder: Path) -> Chapter:
    read = {name: training_log(recipe, name) for name in recipe.methods}
    logs = {name: log for name, log in read.items() if log is not None}
    drawn = figures.draw_training(logs, recipe.models, folder / "figures")
    return Chapter("Training", [], [("Step by step, smoothed", drawn)] if drawn else [])


def _studies(studied: Studies, recipe: Recipe, folder: Path) -> list[Chapter]:
    """The studies of this run's checkpoints."""
    names, at, chapters = recipe.models, folder / "figures", []
    flat, durable, unseen = studied.flatness, studied.durability, studied.generalisation
    if flat:
        drawn = [
            ("Figure 1, from real checkpoints", studies.draw_slices(flat, names, at)),
            ("Perturbation, and the way there", studies.draw_flatness(flat, names, at)),
        ]
        chapters.append(Chapter("Flatness", [studies.flatness_table(flat)], drawn))
    if durable:
        drawn = [("What is left of the contrast", studies.draw_durability(durable, names, at))]
        chapters.append(Chapter("Durability", [studies.durability_table(durable, flat)], drawn))
    if unseen:
        drawn = [("Seen and unseen", studies.draw_generalisation(unseen, names, at))]
        chapters.append(Chapter("Generalisation", [studies.generalisation_table(unseen)], drawn))
    return chapters


def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _samples(generations: Generations, recipe: Recipe) -> list[dict[str, Any]]:
    """Some histories with the first reply of each model. A hash of its text decides whether a
    history is shown."""
    rows = generations[recipe.models[0]]
    order = sorted(range(len(rows)), key=lambda i: fingerprint_of(rows[i]["history"]))
    return [
        {
            "history": rows[i]["history"],
            "replies": [(n, generations[n][i]["replies"][0]) for n in recipe.models],
        }
        for i in order[: recipe.report.samples_shown]
    ]
