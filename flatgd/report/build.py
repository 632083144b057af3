"""From a run's files to report/: summary.json, tables.md, tables.tex, figures/, index.html."""

import json
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from flatgd.artifacts import layout
from flatgd.artifacts.reader import (
    generations_of,
    load_judges,
    load_studies,
    load_summary,
    scores_of_seeds,
    summary_fingerprint,
)
from flatgd.artifacts.rows import JudgeReport
from flatgd.artifacts.store import ArtifactStore
from flatgd.config.loading import shareable_text
from flatgd.config.recipe import Recipe
from flatgd.evaluation.summary import Settings, diversity_rows, summarise
from flatgd.report.blocks import Chapter, Figure, Forest
from flatgd.report.cells import Table, latex, markdown, worded
from flatgd.report.chapters import Material, chapters
from flatgd.report.charts import marks, standalone
from flatgd.report.compare import costs
from flatgd.report.figures import main_figure
from flatgd.report.findings import Finding, StudyIsStale, findings, study_findings
from flatgd.report.page import CHART_CSS, render
from flatgd.report.samples import samples_of
from flatgd.report.sentences import sentence
from flatgd.report.tables import all_numbers, main_tables
from flatgd.report.verdicts import FirstScreen, first_screen, in_lines

PACKAGES = ("flatgd", "torch", "transformers", "numpy", "scikit-learn")


def build_report(recipe: Recipe) -> Path:
    """Write OUTPUT/report and return its page. The same files give the same report."""
    names, store = recipe.models, ArtifactStore(recipe.output)
    seeds, judges = scores_of_seeds(recipe), load_judges(recipe)
    generations = generations_of(recipe, names)
    (recipe.output / layout.REPORT).mkdir(parents=True, exist_ok=True)
    summary = summarise(seeds, _settings(recipe, judges)) + diversity_rows(generations)
    (recipe.output / layout.SUMMARY).write_text(json.dumps(summary, indent=1) + "\n")
    store.record(layout.SUMMARY, summary_fingerprint(recipe))
    studied = load_studies(recipe)
    found: list[Finding] = [
        *findings(summary, recipe, judges),
        *study_findings(studied.flatness, studied.durability, studied.generalisation),
        *(StudyIsStale(name) for name in studied.stale),
    ]
    named, took = marks(names), costs(recipe)
    material = Material(recipe, summary, judges, seeds[0], generations, studied, found, took, named)
    screen = first_screen(summary, recipe, judges, took, found)
    in_words = _words_of(recipe)
    main = main_figure(material.cells, recipe, named, screen.dataset)
    drawn = main and _worded_figure(main, in_words)
    written = [_in_words(chapter, in_words) for chapter in chapters(material)]
    numbers = _worded(all_numbers(summary, names, recipe.generate.samples), in_words)
    _write_figures(recipe, [f for f in (drawn, *(f for c in written for f in c.figures)) if f])
    shown = [*main_tables(summary, names, recipe.generate.samples, recipe.seeds)]
    _write_tables(recipe, screen, found, [_worded(table, in_words) for table in shown], written)
    page = render(
        "report.html",
        name=recipe.name,
        seeds=", ".join(str(recipe.seed + n) for n in range(recipe.seeds)),
        screen=screen,
        in_words=in_words,
        named=named,
        main=drawn,
        chapters=written,
        numbers=numbers,
        samples=samples_of(generations, seeds[0], recipe),
        recipe=shareable_text(recipe),
        versions=[("python", platform.python_version()), *((p, version(p)) for p in PACKAGES)],
    )
    (recipe.output / layout.PAGE).write_text(page)
    return recipe.output / layout.PAGE


def summary_lines(recipe: Recipe) -> list[str]:
    """The first screen of a finished report as lines of text."""
    summary, judges = load_summary(recipe), load_judges(recipe)
    found = findings(summary, recipe, judges)
    screen = first_screen(summary, recipe, judges, costs(recipe), found)
    return in_lines(screen, _words_of(recipe))


def _settings(recipe: Recipe, judges: Sequence[JudgeReport]) -> Settings:
    return Settings(
        recipe.generate.samples,
        {judge["name"]: judge["threshold"] for judge in judges},
        recipe.report.resamples,
        recipe.seed,
        recipe.baseline,
    )


def _words_of(recipe: Recipe) -> Callable[[str], str]:
    """Texts in the words of the recipe's attribute."""
    return lambda text: worded(text, recipe.report.wanted, recipe.report.unwanted)


def _in_words(chapter: Chapter, in_words: Callable[[str], str]) -> Chapter:
    return chapter._replace(
        title=in_words(chapter.title),
        says=[in_words(text) for text in chapter.says],
        forests=[_worded_forest(forest, in_words) for forest in chapter.forests],
        values=[_worded_forest(forest, in_words) for forest in chapter.values],
        figures=[_worded_figure(figure, in_words) for figure in chapter.figures],
        tables=[_worded(table, in_words) for table in chapter.tables],
        more=[_worded(table, in_words) for table in chapter.more],
    )


def _worded(table: Table, in_words: Callable[[str], str]) -> Table:
    header = [in_words(head) for head in table.header]
    return Table(in_words(table.title), header, table.rows, in_words(table.note))


def _worded_forest(forest: Forest, in_words: Callable[[str], str]) -> Forest:
    return forest._replace(title=in_words(forest.title))


def _worded_figure(figure: Figure, in_words: Callable[[str], str]) -> Figure:
    return figure._replace(
        title=in_words(figure.title),
        panels=[
            panel._replace(title=in_words(panel.title), svg=type(panel.svg)(in_words(panel.svg)))
            for panel in figure.panels
        ],
        table=_worded(figure.table, in_words),
        note=in_words(figure.note),
    )


def _write_figures(recipe: Recipe, drawn: Sequence[Figure]) -> None:
    """Every panel as a file of its own."""
    store, folder = ArtifactStore(recipe.output), recipe.output / layout.FIGURES
    store.remove_recorded(layout.FIGURES)  # of an earlier report; other files stay
    folder.mkdir(parents=True, exist_ok=True)
    names = set()
    for figure in drawn:
        for panel in figure.panels:
            (folder / f"{panel.name}.svg").write_text(standalone(panel.svg, CHART_CSS))
            names.add(f"{panel.name}.svg")
    store.record(layout.FIGURES, summary_fingerprint(recipe), names)


def _write_tables(
    recipe: Recipe,
    screen: FirstScreen,
    found: Sequence[Finding],
    main: Sequence[Table],
    written: Sequence[Chapter],
) -> None:
    """The sentences and tables as Markdown, the tables as LaTeX."""
    in_words = _words_of(recipe)
    tables = [*main, *(t for chapter in written for t in (*chapter.tables, *chapter.more))]
    said = [*in_lines(screen, in_words), *(in_words(sentence(finding)) for finding in found)]
    intro = "\n".join(f"- {text}" for text in said)
    text = "\n\n".join([f"# {recipe.name}", intro, *map(markdown, tables)])
    folder = recipe.output / layout.REPORT
    (folder / "tables.md").write_text(text + "\n")
    (folder / "tables.tex").write_text(latex(tables))
