"""`flatgd data`: fetch, stats, show, convert."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    help="Data sets: download, count, inspect and convert them.",
    epilog="Example: flatgd data stats bad demo:data/bad_test.txt.gz",
    no_args_is_help=True,
    rich_markup_mode=None,
)

FormatArgument = Annotated[
    str,
    typer.Argument(
        metavar="FORMAT",
        help="A format (bad, table, beavertails, hub ...).",
        show_default=False,
    ),
]
FilesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="[FORMAT] FILE...",
        help="One file per split, or a folder or file with all splits. demo:NAME is shipped data.",
        show_default=False,
    ),
]
PathArgument = Annotated[str, typer.Argument(help="A file or a folder.", show_default=False)]
SplitOption = Annotated[
    str | None, typer.Option(help="train, val or test, for a folder or file with several splits.")
]
OptionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a field of a source: --set toxic_values=[hate] --set columns.label=class",
    ),
]


@app.command(epilog="Example: flatgd data fetch bad bbf prosocial --to data")
def fetch(
    names: Annotated[list[str], typer.Argument(help="bad, bbf, prosocial", show_default=False)],
    to: Annotated[
        Path, typer.Option(help="The parent folder. Each set gets a folder of its name.")
    ] = Path("data"),
) -> None:
    """Download data sets, check their SHA-256 and unpack them. Run it again to resume."""
    from flatgd.data.browse import check_path
    from flatgd.data.fetch import DATASETS
    from flatgd.data.fetch import fetch as fetch_one
    from flatgd.errors import UsageError, nearest
    from flatgd.runtime.display import Display

    for name in names:
        if name not in DATASETS:
            raise UsageError(f"no data set {name!r} to fetch{nearest(name, list(DATASETS))}")
    check_path(str(to))
    display = Display()
    for name in names:
        for download in DATASETS[name]:
            with display.download(download.file) as progress:
                files = fetch_one(download, to / name, progress=progress)
            for file in files:
                display.line(name, str(file))


def _format_and_paths(given: list[str]) -> tuple[str, list[str]]:
    """`FORMAT FILE...`, or `FILE...` of tables."""
    from flatgd.config.source import FORMATS, format_of
    from flatgd.errors import UsageError, nearest

    first, *rest = given
    if first in FORMATS and rest:
        return first, rest
    if all(format_of(name) for name in given):
        return "table", given
    if first in FORMATS:
        raise UsageError(f"{first} of which file? Give a path after the format")
    raise UsageError(
        f"{first!r} is neither a format nor a table by its name{nearest(first, list(FORMATS))} "
        f"Formats: {', '.join(FORMATS)}"
    )


def _guessed(format_: str, paths: list[str], given: list[str]) -> list[str]:
    """`--set` for a table whose columns and labels have other names. Says what it guessed."""
    from flatgd.config.section import SHIPPED
    from flatgd.data.guess import guess_file

    is_plain = format_ == "table" and len(paths) == 1 and not paths[0].startswith(SHIPPED)
    if given or not is_plain or not Path(paths[0]).is_file():
        return given
    found = guess_file(Path(paths[0]))
    if found is None:
        return given
    typer.echo("Guessed, because the keys or labels are not flatgd's own:")
    for reason in found.reasons:
        typer.echo(f"  {reason}")
    typer.echo("In a recipe:")
    typer.echo(f"  {found.as_yaml(paths[0])}\n")
    return [
        f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in found.fields().items()
    ]


@app.command(epilog="Example: flatgd data stats replies.csv")
def stats(
    given: FilesArgument,
    set_: OptionOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Numbers as JSON.")] = False,
) -> None:
    """Count rows by split, label, speaker and length; canned replies, duplicates and overlap.

    FILE alone is a table of any columns: this command guesses what they mean, says what it guessed,
    and shows what to write into a recipe. FORMAT FILE is a published set.

    Complete files are counted: canned replies are kept and histories are not shortened. A DiaSafety
    folder is split again by context, as in recipes; name its files for the published splits.
    """
    from rich.console import Console

    from flatgd.data.browse import load_splits
    from flatgd.data.stats import count, overlaps
    from flatgd.io.records import collect_left_out

    format_, paths = _format_and_paths(given)
    fields = _guessed(format_, paths, set_ or []) if not as_json else set_ or []
    with collect_left_out() as unused:
        splits = load_splits(format_, paths, fields)
    left_out = dict(Counter(problem.reason for problem in dict.fromkeys(unused)))
    counts = [count(name, rows) for name, rows in splits.items()]
    shared = overlaps(splits)
    if as_json:
        plain = {"splits": [c._asdict() for c in counts], "overlap": [o._asdict() for o in shared]}
        typer.echo(json.dumps({**plain, "left_out": left_out}, indent=2))
        return
    console = Console(highlight=False)
    heads = [("", *(c.split for c in counts))]
    names = [name for name in counts[0]._fields if name != "split"]
    _table(console, heads + [(_plain(n), *(getattr(c, n) for c in counts)) for n in names])
    for reason, number in left_out.items():
        console.print(f"left out: {number:,} x {reason}")
    if shared:
        pairs = [("rows of", "shared with", *map(_plain, shared[0]._fields[2:]))]
        console.print()
        _table(console, pairs + [(o.second, o.first, *o[2:]) for o in shared])


@app.command(epilog="Example: flatgd data show jsonl replies.jsonl --count 3 --label safe")
def show(
    format_: FormatArgument,
    path: PathArgument,
    split: SplitOption = None,
    count: Annotated[int, typer.Option(min=1, help="How many records.")] = 5,
    label: Annotated[str | None, typer.Option(help="safe, toxic or none.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random draw.")] = 0,
    unmask: Annotated[bool, typer.Option("--unmask", help="Print toxic text too.")] = False,
    set_: OptionOption = None,
) -> None:
    """Print random records. Text that the data do not label safe is masked."""
    from flatgd.data.browse import TextMask, load_split, sample_rows
    from flatgd.errors import UsageError
    from flatgd.io.records import printable

    if label not in (None, "safe", "toxic", "none"):
        raise UsageError(f"--label must be safe, toxic or none, got {label!r}")
    rows = load_split(format_, path, split, set_ or [])
    mask = TextMask(rows)
    names = {True: "safe", False: "toxic", None: "no label"}
    for row in sample_rows(rows, count, seed, label):
        lines = (*row.texts, row.reply) if unmask else mask.apply(row)
        typer.echo(f"{names[row.is_safe]} reply of a {row.speaker}, {printable(row.conversation)}")
        if row.system:
            typer.echo(f"  system  {printable(row.system)}")
        roles = ["human" if turn.role == "user" else "bot" for turn in row.history]
        for role, line in zip([*roles, row.speaker], lines, strict=True):
            typer.echo(f"  {role:<6}  {printable(line)}")
        typer.echo("")
    if not unmask:
        typer.echo("Lines that the data do not label safe are masked; --unmask shows them.")


@app.command(
    epilog="Example: flatgd data convert diasafety demo:data/diasafety --split train --to my.jsonl"
)
def convert(
    format_: FormatArgument,
    path: PathArgument,
    to: Annotated[Path, typer.Option(help="The JSONL file to write.", show_default=False)],
    split: SplitOption = None,
    speaker: Annotated[str, typer.Option(help="Whose turns: bot, human or all.")] = "bot",
    set_: OptionOption = None,
) -> None:
    """Convert labelled replies to JSON lines with prompt, completion and label (true = safe)."""
    from flatgd.data.browse import check_path, load_split, to_row
    from flatgd.errors import UsageError
    from flatgd.io.files import atomic_writer, writing
    from flatgd.io.records import collect_left_out, json_lines

    if speaker not in ("bot", "human", "all"):
        raise UsageError(f"--speaker must be bot, human or all, got {speaker!r}")
    check_path(str(to))
    if to.exists():
        raise UsageError(f"{to} exists. Choose another file with --to, or delete it first")
    with collect_left_out() as unused:
        rows = load_split(format_, path, split, set_ or [])
    selected = [row for row in rows if speaker in ("all", row.speaker)]
    labelled = [row for row in selected if row.is_safe is not None]
    with writing(to, "No file was written"), atomic_writer(to) as file:
        file.write(json_lines(map(to_row, labelled)).encode())
    typer.echo(f"{to}: {len(labelled):,} rows; {len(selected) - len(labelled):,} had no label")
    for reason, number in Counter(problem.reason for problem in dict.fromkeys(unused)).items():
        typer.echo(f"left out: {number:,} x {reason}")


def _table(console: "Console", rows: list[tuple[Any, ...]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    head, *body = rows
    table = Table(box=None, pad_edge=False)
    for index, name in enumerate(head):
        table.add_column(escape(str(name)), justify="right" if index else "left", no_wrap=True)
    for row in body:
        table.add_row(*(escape(c) if isinstance(c, str) else _number(c) for c in row))
    console.print(table)


def _number(value: Any) -> str:
    return f"{value:,}".removesuffix(".0")


def _plain(name: str) -> str:
    return name.replace("_", " ")
