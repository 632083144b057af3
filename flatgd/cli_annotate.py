"""`flatgd annotate`: people compare two models' replies."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flatgd.errors import RecipeError

app = typer.Typer(
    help="People compare two models' replies side by side: draw pairs, count answers.",
    epilog="Example: flatgd annotate create recipes/demo.yaml --against safety_loss",
    no_args_is_help=True,
    rich_markup_mode=None,
)

StudyArgument = Annotated[Path, typer.Argument(help="The study's folder.", show_default=False)]


@app.command(
    epilog="Example: flatgd annotate create recipes/demo.yaml --to study --against safety_loss"
)
def create(
    recipe: Annotated[Path, typer.Argument(help="The recipe of a finished run.")],
    to: Annotated[Path, typer.Option(help="The folder to make.")] = Path("study"),
    target: Annotated[str, typer.Option(help="The model that is compared.")] = "flatgd",
    against: Annotated[
        list[str] | None, typer.Option(help="A baseline; again for more. Default: all methods.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Histories a baseline.")] = 50,
    repeats: Annotated[
        int, typer.Option(min=0, help="Items shown twice, sides swapped, to see who reads.")
    ] = 0,
    votes: Annotated[int, typer.Option(min=1, help="Answers that each item is to have.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Draws histories, replies and sides.")] = 0,
) -> None:
    """Draw pairs of replies to the same histories, sides at random, models' names left out.

    items.jsonl is what people see and holds toxic language; key.jsonl says who said what.
    """
    from flatgd.annotate.study import create as draw
    from flatgd.evaluation.human import generations_of
    from flatgd.recipe_file import load_recipe

    loaded = load_recipe(recipe)
    baselines = against or [name for name in loaded.methods if name != target]
    if not baselines or target in baselines:
        raise RecipeError(f"{target} is compared with other models than itself; name --against")
    generations = generations_of(loaded, (target, *baselines))
    study = draw(generations, target, baselines, count, seed, repeats, votes)
    study.save(to)
    same = sum(key.same for key in study.keys)
    told = f", {same} more where both said the same" if same else ""
    typer.echo(f"{len(study.items)} pairs to compare in {to / 'items.jsonl'}{told}")


@app.command(epilog="Example: flatgd annotate export study")
def export(study: StudyArgument) -> None:
    """Write the study as tasks and labelling configuration of Label Studio, into its folder."""
    from flatgd.annotate.label_studio import write
    from flatgd.annotate.study import load_study

    for path in write(load_study(study), study):
        typer.echo(str(path))


@app.command("import", epilog="Example: flatgd annotate import study project-1-export.json")
def import_(
    study: StudyArgument,
    path: Annotated[Path, typer.Argument(help="Label Studio's JSON export.", show_default=False)],
) -> None:
    """Add answers to answers.jsonl; who answered before is taken at the last word."""
    from flatgd.annotate.label_studio import answers as of_export
    from flatgd.annotate.study import last_said, load_answers, load_study
    from flatgd.files import write_whole

    loaded = load_study(study)
    kept = study / "answers.jsonl"
    before = load_answers(kept, loaded) if kept.exists() else []
    merged = last_said([*before, *of_export(path, loaded)])
    write_whole(kept, "".join(json.dumps(answer._asdict()) + "\n" for answer in merged))
    typer.echo(f"{len(merged) - len(before)} new answers, {len(merged)} in {kept}")


@app.command(epilog="Example: flatgd annotate tally study")
def tally(
    study: StudyArgument,
    answers: Annotated[
        Path | None, typer.Option(help="Rows {item, annotator, question, choice, seconds}.")
    ] = None,
) -> None:
    """Who won, how sure that is, how far people agree; also as tally.json in the study's folder.

    `answers` is answers.jsonl in the study's folder unless another file is named.
    """
    from flatgd.annotate.study import load_answers, load_study
    from flatgd.annotate.tally import tally as count

    loaded = load_study(study)
    found = count(loaded, load_answers(answers or study / "answers.jsonl", loaded))
    (study / "tally.json").write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
    for title, rows in _tables(found):
        _show(title, rows)


def _tables(found: dict[str, Any]) -> list[tuple[str, list[dict[str, str]]]]:
    from flatgd.report.cells import share_of

    pairs: dict[str, list[dict[str, str]]] = {}
    for row in found["pairs"]:
        shown = {
            "pair": f"{row['baseline']} or {row['target']}",
            **{outcome: str(count) for outcome, count in row["counts"].items()},
            "baseline's share": share_of(row["baseline_share"]),
            "of the decided": share_of(row["of_decided"]),
            "p": _number(row["p"]),
        }
        pairs.setdefault(row["question"], []).append(shown)
    rest = [
        (title, [{name: _number(value) for name, value in row.items()} for row in found[key]])
        for title, key in (("agreement", "agreement"), ("annotators", "annotators"))
    ]
    strengths = [
        {"question": row["question"], "model": model, **{k: _number(v) for k, v in found_.items()}}
        for row in found["strengths"]
        for model, found_ in row["models"].items()
    ]
    return [*pairs.items(), ("strengths, log-odds", strengths), *rest]


def _number(value: Any) -> str:
    """
    >>> _number(0.1234), _number(None), _number(3), _number("a")
    ('0.123', 'undefined', '3', 'a')
    """
    from flatgd.report.cells import number

    return number(value, 3) if value is None or isinstance(value, float) else str(value)


def _show(title: str, rows: list[dict[str, str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", box=None)
    for name in rows[0] if rows else ():
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row.values()))
    console = Console(highlight=False)
    console.width = max(console.width, 120)  # a figure cut off is worse than a line that wraps
    console.print(table, "")
