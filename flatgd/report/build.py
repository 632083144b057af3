"""summary.json, tables.md, figures/ and index.html from the files of a run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from flatgd.errors import RecipeError
from flatgd.evaluation.summary import summarise
from flatgd.recipe import Recipe
from flatgd.records import read_jsonl
from flatgd.report.figures import draw_figures
from flatgd.report.findings import findings
from flatgd.report.tables import judge_table, main_tables, markdown
from flatgd.report.trained import trained_with
from flatgd.stages import key_of

Row = dict[str, Any]


def build_report(recipe: Recipe) -> Path:
    """Write OUTPUT/report and return its page; the same files give the same report."""
    root, names, samples = recipe.output, recipe.models, recipe.generate.samples
    missing = [n for n in names if not (root / f"scores/{n}.jsonl").exists()]
    if missing:
        raise RecipeError(f"no scores yet of {', '.join(missing)}; `flatgd run` makes them")
    folder = root / "report"
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    judges = [
        json.loads((root / f"judges/{judge.label}/quality.json").read_text())
        for judge in recipe.judges
    ]
    scores = {n: list(read_jsonl(root / f"scores/{n}.jsonl")) for n in [*names, "reference"]}
    for name in recipe.methods:
        trained_with(recipe, name)
    _refuse_other_recipes(scores, recipe)
    summary = summarise(
        scores,
        samples,
        {judge["name"]: judge["threshold"] for judge in judges},
        recipe.report.resamples,
        recipe.seed,
        recipe.yardstick,
    )
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    tables = [*main_tables(summary, names, samples), *map(judge_table, judges)]
    told = findings(summary, recipe)
    intro = "\n".join(f"- {sentence}" for sentence in told)
    text = "\n\n".join([f"# {recipe.name}", intro, *(markdown(t) for t in tables)])
    (folder / "tables.md").write_text(text + "\n")
    figures = draw_figures(summary, names, _training_logs(root, names), folder / "figures")
    page = _template().render(
        name=recipe.name,
        seed=recipe.seed,
        findings=told,
        tables=tables,
        figures=[(title, Markup(path.read_text())) for title, path in figures],
        samples=_samples(root, names, recipe),
        recipe=recipe.model_dump_json(indent=2),
    )
    (folder / "index.html").write_text(page)
    return folder / "index.html"


def _refuse_other_recipes(scores: dict[str, list[Row]], recipe: Recipe) -> None:
    """Scores must be by the recipe's judges, of its number of replies, of one set of histories."""
    first = recipe.models[0]
    judges = [judge.label for judge in recipe.judges]
    answered = {name: [r for r in scores[name] if "toxic" in r] for name in recipe.models}
    for name, rows in answered.items():
        same = [r["conversation"] for r in rows] == [r["conversation"] for r in answered[first]]
        counts = {len(chances) for row in rows for chances in row["toxic"].values()}
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


def _training_logs(root: Path, names: Sequence[str]) -> dict[str, list[Row]]:
    """The logged steps of each method of the recipe."""
    logs = {name: root / f"methods/{name}/training.jsonl" for name in names}
    return {name: list(read_jsonl(path)) for name, path in logs.items() if path.exists()}


def _samples(root: Path, names: Sequence[str], recipe: Recipe) -> list[Row]:
    """Histories with the first reply of each model; which ones is drawn by a hash of their text."""
    shown = {n: list(read_jsonl(root / f"generations/{n}.jsonl")) for n in names}
    rows = shown[names[0]]
    order = sorted(range(len(rows)), key=lambda i: key_of(rows[i]["history"]))
    return [
        {
            "history": rows[i]["history"],
            "replies": [(n, shown[n][i]["replies"][0]) for n in names],
        }
        for i in order[: recipe.report.samples_shown]
    ]
