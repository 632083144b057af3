"""`flatgd annotate`: people compare two models' replies."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

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
    recipe: Annotated[
        Path, typer.Argument(help="The recipe of a finished run, or a session of `flatgd chat`.")
    ],
    to: Annotated[Path, typer.Option(help="The folder to make.")] = Path("study"),
    target: Annotated[str, typer.Option(help="The model that is compared.")] = "flatgd",
    against: Annotated[
        list[str] | None, typer.Option(help="A baseline; again for more. Default: all methods.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Histories a baseline.")] = 50,
    repeats: Annotated[
        int, typer.Option(min=0, help="Items shown twice, sides swapped, to see who reads.")
    ] = 0,
    checks: Annotated[
        int, typer.Option(min=0, help="Items that ask for one choice, to see who reads.")
    ] = 0,
    votes: Annotated[int, typer.Option(min=1, help="Answers that each item is to have.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Draws histories, replies and sides.")] = 0,
) -> None:
    """Draw pairs of replies to the same histories, sides at random, models' names left out.

    items.jsonl is what people see and holds toxic language; key.jsonl says who said what.
    """
    from flatgd.annotate.pairs import create as draw

    names, replies_of = _replies(recipe)
    baselines = against or [name for name in names if name != target]
    if not baselines or target in baselines:
        raise RecipeError(f"{target} is compared with other models than itself; name --against")
    generations = replies_of((target, *baselines))
    study = draw(generations, target, baselines, count, seed, repeats, checks, votes)
    study.save(to)
    same = sum(key.same for key in study.keys)
    told = f", {same} more where both said the same" if same else ""
    typer.echo(f"{len(study.items)} pairs to compare in {to / 'items.jsonl'}{told}")


def _replies(path: Path) -> tuple[list[str], Callable[[Sequence[str]], dict[str, Any]]]:
    """Names of the models to compare, and what gives the replies of some of them."""
    if path.suffix == ".jsonl":
        from flatgd.chat.session import replies_of, said_in

        said = said_in(path)
        return list(said), lambda names: replies_of(said, names)
    from flatgd.artifacts.reader import judged_generations_of
    from flatgd.config.loading import load_recipe

    recipe = load_recipe(path)
    return list(recipe.methods), lambda names: judged_generations_of(recipe, names)


@app.command(epilog="Example: flatgd annotate serve study --invite ann --invite bob --invite cy")
def serve(
    study: StudyArgument,
    invite: Annotated[
        list[str] | None,
        typer.Option(help="Print a link for a person of this name; again for more."),
    ] = None,
    each: Annotated[
        int | None, typer.Option(min=1, help="Items a person. Default: all there are.")
    ] = None,
    prolific: Annotated[
        str | None, typer.Option(help="Completion code of a study on Prolific.", metavar="CODE")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    host: Annotated[str, typer.Option(help="Default: this machine alone can ask.")] = "127.0.0.1",
    url: Annotated[
        str | None, typer.Option(help="What browsers call this page, behind a proxy with TLS.")
    ] = None,
) -> None:
    """The page on which people compare: prints the administrator's link and serves until Ctrl-C.

    Every answer is on the disk before the next pair is shown; the same command goes on later.
    """
    from flatgd.annotate.server import StudyPage
    from flatgd.annotate.study import load_study
    from flatgd.annotate.votes import Votes
    from flatgd.io.files import lock_folder
    from flatgd.web.site import address, port_at, server

    loaded = load_study(study)
    lock = lock_folder(study)
    at = port_at(host, port)
    base = address(at, url)
    page = StudyPage(loaded, Votes(study, loaded, each), base, prolific)
    typer.echo(f"administrator  {page.admin_link}")
    for name in invite or []:
        typer.echo(f"{name:<13}  {page.link_of(page.votes.invite(name))}")
    if prolific:
        typer.echo(f"Prolific       {page.join_link}")
    typer.echo("These links are secrets. Ctrl-C ends the page; answers stay.")
    server(page.application()).run(sockets=[at])
    page.votes.close()
    lock.release()


@app.command(epilog="Example: flatgd annotate export study --form mturk")
def export(
    study: StudyArgument,
    form: Annotated[
        Literal["label-studio", "mturk"], typer.Option(help="What is to read it.")
    ] = "label-studio",
) -> None:
    """Write the study for another place, into its folder: tasks and labelling configuration of
    Label Studio, or HITs of Amazon Mechanical Turk."""
    from flatgd.annotate import label_studio, mturk
    from flatgd.annotate.study import load_study

    for path in (mturk if form == "mturk" else label_studio).write(load_study(study), study):
        typer.echo(str(path))


@app.command("import", epilog="Example: flatgd annotate import study project-1-export.json")
def import_(
    study: StudyArgument,
    path: Annotated[
        Path,
        typer.Argument(
            help="Label Studio's JSON export, or Mechanical Turk's CSV.", show_default=False
        ),
    ],
) -> None:
    """Add answers to answers.jsonl; who answered before is taken at the last word. What else is in
    the file is counted."""
    from flatgd.annotate import label_studio, mturk
    from flatgd.annotate.study import last_said, load_answers, load_study
    from flatgd.io.files import write_atomically
    from flatgd.io.records import json_lines, printable

    loaded = load_study(study)
    kept = study / "answers.jsonl"
    before = load_answers(kept, loaded) if kept.exists() else []
    of = mturk if path.suffix.lower() == ".csv" else label_studio
    left_out: Counter[str] = Counter()
    merged = last_said([*before, *of.answers(path, loaded, left_out)])
    write_atomically(kept, json_lines(answer._asdict() for answer in merged))
    typer.echo(f"{len(merged) - len(before)} new answers, {len(merged)} in {kept}")
    for what, count in left_out.items():
        if count:
            typer.echo(f"left out: {count:,} {printable(what)}")


@app.command(epilog="Example: flatgd annotate tally study")
def tally(
    study: StudyArgument,
    answers: Annotated[
        Path | None, typer.Option(help="Rows {item, annotator, question, choice, seconds}.")
    ] = None,
) -> None:
    """Who won, how sure that is, how far people agree; also as tally.json in the study's folder.

    Counts what was answered on the page and what was imported, unless `answers` names a file.
    """
    from flatgd.annotate.study import load_answers, load_study
    from flatgd.annotate.tally import tally as count
    from flatgd.annotate.votes import all_answers

    loaded = load_study(study)
    found = count(loaded, load_answers(answers, loaded) if answers else all_answers(study, loaded))
    (study / "tally.json").write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
    for title, rows in _tables(found):
        _show(title, rows)


def _tables(found: dict[str, Any]) -> list[tuple[str, list[dict[str, str]]]]:
    from flatgd.annotate.tally import shown
    from flatgd.report.cells import interval, share_of

    pairs: dict[str, list[dict[str, str]]] = {}
    for row in found["pairs"]:
        counted = {
            "pair": f"{row['baseline']} or {row['target']}",
            **{outcome: str(count) for outcome, count in row["counts"].items()},
            "baseline's share": share_of(row["baseline_share"]),
            "of the decided": share_of(row["of_decided"]),
            "p": shown(row["p"], 3),
        }
        pairs.setdefault(row["question"], []).append(counted)
    rest = [
        (title, [{name: shown(value, 3) for name, value in row.items()} for row in found[title]])
        for title in ("agreement", "annotators")
    ]
    judges = [
        {"judge": row["judge"], "where people decided": share_of(row["agrees"])}
        for row in found["judges"]
    ]
    stretched = [
        {
            **{name: row[name] for name in ("baseline", "target", "dataset", "judge")},
            "share": interval(row["value"], row["low"], row["high"], 2),
            "worth": shown(row["effective"], 3),
        }
        for row in found["stretched"]
    ]
    strengths = [
        {"question": row["question"], "model": model, **{k: shown(v, 3) for k, v in own.items()}}
        for row in found["strengths"]
        for model, own in row["models"].items()
    ]
    return [
        *pairs.items(),
        ("strengths, log-odds", strengths),
        *rest,
        ("judges that agree with people", judges),
        ("baseline more toxic, stretched to all conversations by a judge", stretched),
    ]


def _show(title: str, rows: list[dict[str, str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.measure import Measurement
    from rich.table import Table

    if not rows:
        return
    table = Table(title=escape(title), title_justify="left", box=None)
    for name in rows[0]:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row.values()))
    console = Console(highlight=False)
    wide = console.options.update(max_width=1000)
    needed = Measurement.get(console, wide, table).maximum
    console.width = max(console.width, needed)  # a figure cut off is worse than a line that wraps
    console.print(table, "")
