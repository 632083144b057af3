"""From the files of a run to report/: summary.json, tables.md, tables.tex, figures/, index.html."""

import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from flatgd.artifacts import layout
from flatgd.artifacts.reader import load_judges, trained_with
from flatgd.artifacts.rows import GenerationRow
from flatgd.artifacts.store import ArtifactStore, fingerprint_of
from flatgd.config.loading import as_text
from flatgd.config.names import REFERENCE
from flatgd.config.recipe import Recipe
from flatgd.errors import RecipeError
from flatgd.evaluation.agreement import agreement
from flatgd.evaluation.human_labels import labelled_toxicity
from flatgd.evaluation.summary import Settings, diversity_rows, summarise
from flatgd.io.records import read_jsonl
from flatgd.report import figures, people, studies
from flatgd.report.cells import Table, latex, markdown, worded
from flatgd.report.compare import compare_tables
from flatgd.report.findings import findings
from flatgd.report.paper import paper_tables, trade_offs
from flatgd.report.tables import agreement_table, human_table, judge_table, main_tables

Row = dict[str, Any]
ARTIFACTS = (layout.generations, layout.scores)
STUDIES = ("flatness", "durability", "generalisation")
PACKAGES = ("flatgd", "torch", "transformers", "numpy", "scikit-learn")


class Part(NamedTuple):
    """A chapter of the page."""

    title: str
    tables: list[Table]
    figures: list[tuple[str, Path]]


def build_report(recipe: Recipe) -> Path:
    """Write OUTPUT/report and return its page; the same files give the same report."""
    root, names = recipe.output, recipe.models
    missing = [n for n in names if not (root / layout.scores(n)).exists()]
    if missing:
        raise RecipeError(f"no scores yet of {', '.join(missing)}; `flatgd run` makes them")
    folder = root / layout.REPORT
    shutil.rmtree(folder / "figures", ignore_errors=True)
    (folder / "figures").mkdir(parents=True)
    for name in recipe.methods:
        trained_with(recipe, name)
    judges, seeds = load_judges(recipe), _scores_of_seeds(recipe)
    generations: dict[str, list[GenerationRow]] = {
        n: list(read_jsonl(root / layout.generations(n))) for n in names
    }
    for scores in seeds:
        _refuse_other_recipes(scores, recipe)
    summary = summarise(seeds, _settings(recipe, judges)) + diversity_rows(generations)
    (root / layout.SUMMARY).write_text(json.dumps(summary, indent=1) + "\n")
    studied = [studies.load_study(recipe, name) for name in STUDIES]
    told = findings(summary, recipe, judges) + studies.told_by(*studied)
    told += [
        f"A study of {name} is of other checkpoints and left out; make it again."
        for name, study in zip(STUDIES, studied, strict=True)
        if study is None and (folder / f"{name}.json").exists()
    ]
    with figures.styled():
        parts = [
            Part("Results", main_tables(summary, names, recipe.generate.samples, recipe.seeds), []),
            Part("Compared", compare_tables(summary, recipe), []),
            _as_in_the_paper(summary, recipe, folder),
            _judged(judges, seeds[0], generations, recipe, folder),
            *_people(recipe, folder),
            _trained(recipe, folder),
            *_studied(studied, recipe, folder),
        ]
    parts, told = _worded(parts, told, recipe)
    _write_tables(recipe, told, parts, folder)
    page = _template().render(
        name=recipe.name,
        seeds=", ".join(str(recipe.seed + place) for place in range(recipe.seeds)),
        findings=told,
        parts=[
            (part.title, part.tables, [(t, Markup(path.read_text())) for t, path in part.figures])
            for part in parts
            if part.tables or part.figures
        ],
        samples=_samples(generations, recipe),
        recipe=as_text(recipe),
        versions=[("python", platform.python_version()), *((p, version(p)) for p in PACKAGES)],
    )
    (root / layout.PAGE).write_text(page)
    return root / layout.PAGE


def _scores_of_seeds(recipe: Recipe) -> list[dict[str, list[Row]]]:
    """The score files of each seed, those of the first with the reference; all must be there."""
    first = recipe.output
    further = [first / layout.seed(recipe.seed + n) for n in range(1, recipe.seeds)]
    seeds = []
    for root in (first, *further):
        store = ArtifactStore(root)
        for artifact in (of(name) for of in ARTIFACTS for name in recipe.models):
            if store.is_stale(artifact):
                raise RecipeError(
                    f"{root / artifact} is of an earlier checkpoint or judge; `flatgd run` brings "
                    "all up to date"
                )
        paths = {n: root / layout.scores(n) for n in [*recipe.models, REFERENCE]}
        if absent := [path for path in paths.values() if not path.exists()]:
            raise RecipeError(f"no scores yet at {absent[0]}; `flatgd run` makes them")
        seeds.append({name: list(read_jsonl(path)) for name, path in paths.items()})
    return seeds


def _settings(recipe: Recipe, judges: Sequence[Row]) -> Settings:
    return Settings(
        recipe.generate.samples,
        {judge["name"]: judge["threshold"] for judge in judges},
        recipe.report.resamples,
        recipe.seed,
        recipe.baseline,
    )


def _as_in_the_paper(summary: Sequence[Row], recipe: Recipe, folder: Path) -> Part:
    """The models side by side: as in the paper, in the trade-off plane, with their intervals."""
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
    return Part("As in the paper", tables, [(t, p) for t, p in drawn if p is not None])


def _judged(
    judges: Sequence[Row],
    scores: Mapping[str, Sequence[Row]],
    generations: Mapping[str, Sequence[GenerationRow]],
    recipe: Recipe,
    folder: Path,
) -> Part:
    """What the toxicity figures rest on."""
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
    return Part("The judges", tables, [(title, drawn)])


def _people(recipe: Recipe, folder: Path) -> list[Part]:
    """What people said of pairs of replies."""
    if not recipe.report.study:
        return []
    found = people.load_tally(recipe.report.study)
    drawn = people.draw_people(found, folder / "figures")
    return [Part("People", people.people_tables(found), [("Figure 2, of this run", drawn)])]


def _trained(recipe: Recipe, folder: Path) -> Part:
    paths = {n: recipe.output / layout.training_log(n) for n in recipe.methods}
    logs = {name: list(read_jsonl(path)) for name, path in paths.items() if path.exists()}
    drawn = figures.draw_training(logs, recipe.models, folder / "figures")
    return Part("Training", [], [("Step by step, smoothed", drawn)] if drawn else [])


def _studied(studied: Sequence[Any], recipe: Recipe, folder: Path) -> list[Part]:
    """The studies that were made of this run."""
    names, at, parts = recipe.models, folder / "figures", []
    flat, durable, unseen = studied
    if flat:
        drawn = [
            ("Figure 1, from real checkpoints", studies.draw_slices(flat, names, at)),
            ("Perturbation, and the way there", studies.draw_flatness(flat, names, at)),
        ]
        parts.append(Part("Flatness", [studies.flatness_table(flat)], drawn))
    if durable:
        drawn = [("What is left of the contrast", studies.draw_durability(durable, names, at))]
        parts.append(Part("Durability", [studies.durability_table(durable, flat)], drawn))
    if unseen:
        drawn = [("Seen and unseen", studies.draw_generalisation(unseen, names, at))]
        parts.append(Part("Generalisation", [studies.generalisation_table(unseen)], drawn))
    return parts


def _worded(
    parts: Sequence[Part], told: Sequence[str], recipe: Recipe
) -> tuple[list[Part], list[str]]:
    """All in the words of the recipe's attribute."""

    def say(text: str) -> str:
        return worded(text, recipe.report.wanted, recipe.report.unwanted)

    said = [
        part._replace(
            tables=[
                table._replace(
                    title=say(table.title), header=[*map(say, table.header)], note=say(table.note)
                )
                for table in part.tables
            ],
            figures=[(say(title), path) for title, path in part.figures],
        )
        for part in parts
    ]
    return said, [*map(say, told)]


def _write_tables(recipe: Recipe, told: Sequence[str], parts: Sequence[Part], folder: Path) -> None:
    tables = [table for part in parts for table in part.tables]
    intro = "\n".join(f"- {sentence}" for sentence in told)
    text = "\n\n".join([f"# {recipe.name}", intro, *map(markdown, tables)])
    (folder / "tables.md").write_text(text + "\n")
    (folder / "tables.tex").write_text(latex(tables))


def _refuse_other_recipes(scores: dict[str, list[Row]], recipe: Recipe) -> None:
    """Scores must be by the recipe's judges, of its number of replies, of one set of histories."""
    first = recipe.models[0]
    judges = [judge.label for judge in recipe.judges]
    answered = {name: [r for r in scores[name] if "toxic" in r] for name in recipe.models}
    for name, rows in answered.items():
        same = [r["conversation"] for r in rows] == [r["conversation"] for r in answered[first]]
        counts = {len(probabilities) for row in rows for probabilities in row["toxic"].values()}
        if not same or counts - {recipe.generate.samples}:
            raise RecipeError(
                f"the scores of {name} are of other histories or another number of replies than "
                "this recipe asks for; `flatgd run` brings all up to date"
            )
        if any(list(row["toxic"]) != judges for row in rows):
            raise RecipeError(
                f"the scores of {name} are not by {', '.join(judges)}; `flatgd run` brings all up "
                "to date"
            )


def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _samples(generations: Mapping[str, Sequence[GenerationRow]], recipe: Recipe) -> list[Row]:
    """Histories with the first reply of each model; which ones is drawn by a hash of their text."""
    rows = generations[recipe.models[0]]
    order = sorted(range(len(rows)), key=lambda i: fingerprint_of(rows[i]["history"]))
    return [
        {
            "history": rows[i]["history"],
            "replies": [(n, generations[n][i]["replies"][0]) for n in recipe.models],
        }
        for i in order[: recipe.report.samples_shown]
    ]
