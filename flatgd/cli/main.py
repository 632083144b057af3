"""The command line. Heavy imports are inside the commands, so that --help answers at once."""

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flatgd.cli import publish, studies
from flatgd.cli.annotate import app as annotate_app
from flatgd.cli.data import app as data_app
from flatgd.cli.options import MethodOption, RecipeArgument, SetOption, SkipOption, VerboseOption
from flatgd.errors import DataError, FlatGDError, StoppedError, UsageError
from flatgd.models import trust
from flatgd.models.trust import Risk
from flatgd.runtime import distributed

BACKBONE, REPLIES = "facebook/blenderbot-400M-distill", "replies.jsonl"  # of a new recipe
app = typer.Typer(
    name="flatgd",
    help="Make a dialogue model safe without making it dull, and measure both.",
    epilog="Begin with: flatgd run recipes/demo.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")
app.add_typer(annotate_app, name="annotate")


def _open(recipe: Path, overrides: list[str] | None):  # type: ignore[no-untyped-def]
    from flatgd.config.loading import load_recipe

    loaded = load_recipe(recipe, overrides)
    from flatgd.pipeline.pipeline import Pipeline

    return Pipeline(loaded)


@app.command(
    epilog="Example: flatgd run recipes/demo.yaml --set output=../runs/second --set seed=2"
)
def run(
    recipe: RecipeArgument,
    skip_bad: SkipOption = False,
    verbose: VerboseOption = False,
    set_: SetOption = None,
) -> None:
    """Do the whole job: experts, methods, generations, scores, report.

    If it is interrupted, the same command resumes. Finished and unchanged artifacts are kept.
    """
    _run(recipe, [*(set_ or []), *(["data.skip_bad=true"] if skip_bad else [])], verbose)


@app.command(epilog="Example: flatgd demo --to runs/demo")
def demo(
    to: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    verbose: VerboseOption = False,
    set_: SetOption = None,
) -> None:
    """The main job on dialogue and small models that ship with flatgd, in about five minutes."""
    from flatgd.config.section import shipped_recipe

    _run(shipped_recipe("demo"), [f"output={to.absolute()}", *(set_ or [])], verbose)


def _run(recipe: Path, overrides: list[str], verbose: bool) -> None:
    from flatgd.config.loading import load_recipe
    from flatgd.runtime.display import Display

    loaded = load_recipe(recipe, overrides)
    from flatgd.run import run as run_all

    display = Display(quiet=not distributed.is_first())
    page = run_all(loaded, display)
    if not distributed.is_first():
        return
    from flatgd.report.build import summary_lines
    from flatgd.report.tables import show_tables

    display.console.print()
    if verbose:
        show_tables(loaded, display.console)
        display.console.print()
    for line in summary_lines(loaded):
        display.console.print(line, markup=False)
    display.console.print(f"Report: {page}", markup=False, soft_wrap=True)


@app.command(epilog="Example: flatgd train recipes/demo.yaml --method flatgd")
def train(recipe: RecipeArgument, method: MethodOption = None, set_: SetOption = None) -> None:
    """Train methods, and the experts they need."""
    pipeline = _open(recipe, set_)
    for name in method or list(pipeline.context.recipe.methods):
        pipeline.models.train(name)


@app.command(epilog="Example: flatgd experts recipes/demo.yaml")
def experts(recipe: RecipeArgument, set_: SetOption = None) -> None:
    """Train the clean and the toxic expert."""
    _open(recipe, set_).models.experts()


@app.command(epilog="Example: flatgd generate recipes/demo.yaml --method flatgd --method clean")
def generate(recipe: RecipeArgument, method: MethodOption = None, set_: SetOption = None) -> None:
    """Sample replies to the test histories."""
    pipeline = _open(recipe, set_)
    for name in method or pipeline.context.recipe.models:
        pipeline.evaluation.generate(name)


@app.command(epilog="Example: flatgd score recipes/demo.yaml --method flatgd")
def score(recipe: RecipeArgument, method: MethodOption = None, set_: SetOption = None) -> None:
    """Judge and score the sampled replies; score the labelled ones."""
    pipeline = _open(recipe, set_)
    for name in method or pipeline.context.recipe.models:
        pipeline.evaluation.score(name)


@app.command(epilog="Example: flatgd report recipes/demo.yaml")
def report(recipe: RecipeArgument, set_: SetOption = None) -> None:
    """Build tables, figures and page from finished scores, without loading a model."""
    from flatgd.config.loading import load_recipe
    from flatgd.report.build import build_report

    typer.echo(f"Report: {build_report(load_recipe(recipe, set_))}")


@app.command(
    epilog="Example: flatgd label recipes/demo.yaml --count 50 --to labels.jsonl --method flatgd"
)
def label(
    recipe: RecipeArgument,
    to: Annotated[Path, typer.Option(help="The file to write.")] = Path("labels.jsonl"),
    count: Annotated[
        int, typer.Option(min=1, help="Replies to draw from each model and test set.")
    ] = 100,
    method: MethodOption = None,
    set_: SetOption = None,
) -> None:
    """Draw sampled replies for annotators to label, without the models' names.

    Fill in `toxic` (true or false), name the file in the recipe (report: human_labels) and build
    the report again. It then estimates toxicity without relying on the judge. The file contains
    toxic language. Its key, FILE.key.jsonl, says which model gave which reply.
    """
    from flatgd.artifacts.reader import generations_of
    from flatgd.config.loading import load_recipe
    from flatgd.evaluation.human_labels import draw_replies, key_path, write_labels

    loaded = load_recipe(recipe, set_)
    generations = generations_of(loaded, method or loaded.models)
    replies = draw_replies(generations, count, loaded.seed)
    write_labels(to, replies)
    typer.echo(f"{len(replies):,} replies to label in {to}; keep {key_path(to)} from annotators")


@app.command(
    epilog="Example: flatgd chat runs/demo/methods/flatgd runs/demo/methods/clean --samples 5"
)
def chat(
    checkpoints: Annotated[
        list[str], typer.Argument(help="Folders or hub names. Several models answer side by side.")
    ],
    to: Annotated[
        Path | None, typer.Option(help="Write the session to this JSONL file as it goes.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Replies from each model.")] = 1,
    seed: Annotated[
        int, typer.Option(min=0, help="The same seed and input give the same replies.")
    ] = 0,
    web: Annotated[bool, typer.Option("--web", help="Open a page in the browser instead.")] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the page; 0 picks a free one.")
    ] = 8766,
) -> None:
    """Talk to one model, or to several side by side. They may answer with toxic language.

    Checkpoints of a run answer with the run's settings, and its judge scores on request. `flatgd
    data stats jsonl FILE --set label=none` and `flatgd annotate create FILE` read what --to wrote.
    """
    from flatgd.chat.models import load_chat_models
    from flatgd.chat.session import Session, SessionFile
    from flatgd.web.site import base_url, bind_port, make_server

    file = SessionFile(to) if to else None
    at = bind_port("127.0.0.1", port) if web else None
    loaded = load_chat_models(checkpoints)
    session = Session(loaded.models, loaded.judge, samples, seed)
    if at is None:
        from rich.console import Console

        from flatgd.chat.terminal import Terminal

        Terminal(session, Console(highlight=False), file).run()
        return
    from flatgd.chat.page import ChatPage

    page = ChatPage(session, base_url(at, None), file)
    typer.echo(f"{page.link}\nOnly this link opens the page. Press Ctrl-C to stop.")
    make_server(page.application()).run(sockets=[at])


@app.command(epilog="Example: flatgd check recipes/paper.yaml --offline")
def check(
    recipe: RecipeArgument,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use no network, and list what could not be checked.")
    ] = False,
    processes_: Annotated[
        int, typer.Option("--processes", min=1, help="Number of GPUs, for the memory estimate.")
    ] = 1,
    strategy: Annotated[
        Literal["ddp", "fsdp2"],
        typer.Option(help="How the GPUs share a training, for the memory estimate."),
    ] = "ddp",
    time: Annotated[
        bool, typer.Option("--time", help="Load the models and time a few steps of each stage.")
    ] = False,
    set_: SetOption = None,
) -> None:
    """List everything that is wrong, without loading weights; estimate memory and disk space."""
    from flatgd.config.loading import load_recipe

    loaded = load_recipe(recipe, set_)
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported
    from flatgd.pipeline import loader

    if offline:
        for line in (skipped := loader.check_offline(loaded)):
            typer.echo(f"not checked       {line}")
        typer.echo(f"{recipe}: nothing wrong found" + (" in the rest" if skipped else ""))
        return
    from flatgd.pipeline import checking
    from flatgd.runtime import threads

    sets = loader.load_validated(loaded)
    for label, text in sets.described():
        typer.echo(f"{label:<18}{text}")
    dialogue_format, example = loader.training_example(loaded, sets.policy)
    typer.echo(dialogue_format.spelled(example))
    for line in checking.estimated(loaded, sets, processes_, strategy, time):
        typer.echo(line)
    if shortage := threads.warning():
        typer.echo(f"{'threads':<18}warning: {shortage}")
    typer.echo(f"{recipe}: nothing wrong found")


@app.command(epilog="Example: flatgd init mine.yaml --backbone Qwen/Qwen3-0.6B --replies mine.csv")
def init(
    recipe: Annotated[Path, typer.Argument(help="The recipe to write.")] = Path("recipe.yaml"),
    backbone: Annotated[
        str | None,
        typer.Option(help=f"The model to make safe: a folder or a hub name. Default: {BACKBONE}."),
    ] = None,
    replies: Annotated[
        str | None,
        typer.Option(
            help="Your labelled replies: a table of any columns, or a data set's name on the hub. "
            f"Default: {REPLIES}."
        ),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(help="Copy a recipe that ships with flatgd instead: demo, smollm2, paper ..."),
    ] = None,
) -> None:
    """Write a commented recipe for your own model and data.

    The columns and labels of a table are guessed, and what was guessed is said.
    """
    from flatgd.config.loading import write_template

    if like is not None:
        if backbone or replies:
            raise UsageError("--like copies a recipe as it is; leave out --backbone and --replies")
        _copy_recipe(like, recipe)
        return
    fields = _fields_of(replies or REPLIES)
    write_template(recipe, backbone or BACKBONE, replies or REPLIES, fields)
    typer.echo(f"Wrote {recipe}. Look through it, then run: flatgd check {recipe}")


def _fields_of(replies: str) -> dict[str, Any]:
    """Further fields of the sources, with what was guessed said."""
    from flatgd.config.source import format_of
    from flatgd.data.guess import guess_file
    from flatgd.models.loading import is_hub_name

    path = Path(replies)
    if path.is_dir():
        raise UsageError(f"{replies} is a folder; name a file in it")
    if not path.exists():
        if not format_of(replies) and is_hub_name(replies):
            typer.echo(f"{replies} is read from the hub")
            return {"format": "hub"}
        typer.echo(f"{replies} does not exist yet")
        return {}
    if not format_of(replies):
        raise UsageError(f"the name {replies!r} does not tell its format; rename it, as mine.csv")
    try:
        found = guess_file(path)
    except DataError as error:
        typer.echo(f"Not guessed: {error.problems[0].reason}")
        return {}
    for reason in found.reasons if found else []:
        typer.echo(f"Guessed: {reason}")
    return found.fields() if found else {}


def _copy_recipe(name: str, to: Path) -> None:
    """Write a shipped recipe whose run is below its own folder."""
    from flatgd.config.loading import write_new
    from flatgd.config.section import shipped_recipe

    try:
        shipped = shipped_recipe(name)
    except ValueError as error:
        raise UsageError(str(error)) from None
    write_new(to, shipped.read_text(encoding="utf-8").replace(" ../", " "))
    typer.echo(f"Wrote {to}. Look through it, then run: flatgd check {to}")


app.registered_commands += studies.commands.registered_commands
app.registered_commands += publish.commands.registered_commands


def _allow(risks: list[Risk] | None) -> None:
    trust.allow(*risks or [])


def _version(asked: bool) -> None:
    if asked:
        for name in ("flatgd", "torch", "transformers"):
            typer.echo(f"{name} {version(name)}")
        typer.echo(f"Python {platform.python_version()}, {platform.platform()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print versions and exit."
        ),
    ] = False,
    allow: Annotated[
        list[Risk] | None,
        typer.Option(
            callback=_allow, help="Allow what is refused by default, if you trust its source."
        ),
    ] = None,
) -> None:
    """Make a dialogue model safe without making it dull, and measure both."""


def main() -> None:
    """Entry point. Every failure ends with a clear line: 2 is the exit code of an error, 130 and
    143 those of Ctrl-C and SIGTERM."""
    try:
        app()
    except SystemExit as stopped:
        if stopped.code == 130:  # typer turns Ctrl-C into this code without a message
            typer.echo("flatgd: stopped; run the same command again to resume", err=True)
        status = int(stopped.code or 0)
    except StoppedError as stopped:
        typer.echo(f"flatgd: {stopped}; run the same command again to resume", err=True)
        status = stopped.code
    except FlatGDError as error:
        typer.echo(f"flatgd: {error}", err=True)
        status = 2
    except BrokenPipeError:  # as of `flatgd ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except Exception as error:
        from flatgd.cli.failures import describe

        typer.echo(f"flatgd: {describe(error)}", err=True)
        status = 2
    distributed.leave(status)
    sys.exit(status)
