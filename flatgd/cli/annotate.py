"""`flatgd annotate`: annotators compare two models' replies."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flatgd.errors import UsageError

if TYPE_CHECKING:
    from flatgd.annotate.rows import Tally
    from flatgd.artifacts.rows import JudgedRow

app = typer.Typer(
    help="Let annotators compare two models' replies: draw pairs, collect and count answers.",
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
        Path, typer.Argument(help="Recipe of a finished run, or a session saved by `flatgd chat`.")
    ],
    to: Annotated[Path, typer.Option(help="Folder to create.")] = Path("study"),
    target: Annotated[str, typer.Option(help="Model to compare with the baselines.")] = "flatgd",
    against: Annotated[
        list[str] | None,
        typer.Option(help="Baseline; repeat for more. Default: all other methods."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Histories per baseline.")] = 50,
    repeats: Annotated[
        int, typer.Option(min=0, help="Items shown twice, sides swapped, to measure consistency.")
    ] = 0,
    checks: Annotated[
        int, typer.Option(min=0, help="Attention checks: items that ask for one choice.")
    ] = 0,
    votes: Annotated[int, typer.Option(min=1, help="Answers per item.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed for drawing histories and replies.")] = 0,
) -> None:
    """Draw pairs of replies to the same histories, in random order and without models' names.

    Annotators see items.jsonl, which contains toxic language. Keep key.jsonl from them: it says
    which model gave which reply.
    """
    from flatgd.annotate.pairs import create as draw

    names, load = _models(recipe)
    baselines = against or [name for name in names if name != target]
    if not baselines or target in baselines:
        raise UsageError(f"{target} needs another model to compare with. Add `--against NAME`.")
    study = draw(load((target, *baselines)), target, baselines, count, seed, repeats, checks, votes)
    study.save(to)
    same = sum(key.same for key in study.keys)
    note = f"; {same} more are left out because both replies are the same" if same else ""
    typer.echo(f"{len(study.items)} pairs to compare in {to / 'items.jsonl'}{note}")


def _models(
    path: Path,
) -> "tuple[list[str], Callable[[Sequence[str]], dict[str, list[JudgedRow]]]]":
    """The names of a run's or a session's models, and a function that loads their replies."""
    if path.suffix == ".jsonl":
        from flatgd.chat.session import load_session, session_generations

        session = load_session(path)
        return list(session), lambda names: session_generations(session, names)
    from flatgd.artifacts.reader import judged_generations_of
    from flatgd.config.loading import load_recipe

    recipe = load_recipe(path)
    return list(recipe.methods), lambda names: judged_generations_of(recipe, names)


@app.command(epilog="Example: flatgd annotate serve study --invite ann --invite bob --invite cy")
def serve(
    study: StudyArgument,
    invite: Annotated[
        list[str] | None,
        typer.Option(help="Print a link for an annotator of this name; repeat for more."),
    ] = None,
    each: Annotated[
        int | None, typer.Option(min=1, help="Comparisons per annotator. Default: all.")
    ] = None,
    prolific: Annotated[
        str | None, typer.Option(help="Completion code of the study on Prolific.", metavar="CODE")
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the page; 0 takes a free one.")
    ] = 8765,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Default: this machine only.")
    ] = "127.0.0.1",
    url: Annotated[
        str | None, typer.Option(help="The page's address in browsers, behind a proxy with TLS.")
    ] = None,
) -> None:
    """Serve the page for annotators until Ctrl-C. Prints the administrator's link.

    Each answer is on the disk before the next pair is shown. The same command resumes the study.
    """
    from flatgd.annotate.server import StudyPage
    from flatgd.annotate.study import load_study
    from flatgd.annotate.votes import Votes
    from flatgd.io.files import lock_folder
    from flatgd.web.site import base_url, bind_port, make_server

    loaded = load_study(study)
    lock = lock_folder(study)
    at = bind_port(host, port)
    base = base_url(at, url)
    page = StudyPage(loaded, Votes(study, loaded, each), base, prolific)
    typer.echo(f"administrator  {page.admin_link}")
    for name in invite or []:
        typer.echo(f"{name:<13}  {page.link_of(page.votes.invite(name))}")
    if prolific:
        typer.echo(f"Prolific       {page.join_link}")
    typer.echo("These links are secret. Ctrl-C stops the page; all answers are kept.")
    make_server(page.application()).run(sockets=[at])
    page.votes.close()
    lock.release()


@app.command(epilog="Example: flatgd annotate export study --form mturk")
def export(
    study: StudyArgument,
    form: Annotated[
        Literal["label-studio", "mturk"], typer.Option(help="Service to write the study for.")
    ] = "label-studio",
) -> None:
    """Write the study's files for another service into its folder.

    These are tasks and a labelling configuration for Label Studio, or HITs for Mechanical Turk.
    """
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
    """Add answers from another service to answers.jsonl.

    A new answer replaces the same annotator's earlier answer. Other content of the file is counted.
    """
    from flatgd.annotate import label_studio, mturk
    from flatgd.annotate.study import latest, load_answers, load_study
    from flatgd.io.files import write_private
    from flatgd.io.records import json_lines, printable

    loaded = load_study(study)
    stored = study / "answers.jsonl"
    before = load_answers(stored, loaded) if stored.exists() else []
    service = mturk if path.suffix.lower() == ".csv" else label_studio
    skipped: Counter[str] = Counter()
    merged = latest([*before, *service.answers(path, loaded, skipped)])
    write_private(stored, json_lines(answer._asdict() for answer in merged))
    typer.echo(f"{len(merged) - len(before)} new answers, {len(merged)} in {stored}")
    for what, count in skipped.items():
        if count:
            typer.echo(f"skipped: {count:,} {printable(what)}")


@app.command(epilog="Example: flatgd annotate tally study")
def tally(
    study: StudyArgument,
    answers: Annotated[
        Path | None, typer.Option(help="File of answers to count instead of the study's own.")
    ] = None,
) -> None:
    """Show who wins, how certain that is, and how far annotators agree; write tally.json.

    Counts the answers from the page and the imported ones, unless --answers names a file.
    """
    from flatgd.annotate.study import load_answers, load_study
    from flatgd.annotate.tally import tally as count
    from flatgd.annotate.votes import all_answers

    loaded = load_study(study)
    found = count(loaded, load_answers(answers, loaded) if answers else all_answers(study, loaded))
    (study / "tally.json").write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
    for title, rows in _tables(found):
        _show(title, rows)


def _tables(found: "Tally") -> list[tuple[str, list[dict[str, str]]]]:
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
        (title, [{name: shown(value, 3) for name, value in row.items()} for row in rows])
        for title, rows in (("agreement", found["agreement"]), ("annotators", found["annotators"]))
    ]
    judges = [
        {"judge": row["judge"], "agrees with annotators": share_of(row["agrees"])}
        for row in found["judges"]
    ]
    everywhere = [
        {
            "baseline": row["baseline"],
            "target": row["target"],
            "dataset": row["dataset"],
            "judge": row["judge"],
            "share": interval(row["value"], row["low"], row["high"], 2),
            "effective labels": shown(row["effective"], 3),
        }
        for row in found["all_conversations"]
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
        ("judges", judges),
        ("baseline more toxic, in all conversations (prediction-powered)", everywhere),
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
    console.width = max(console.width, needed)  # rather a wrapped line than a figure cut off
    console.print(table, "")
