"""The command line. Heavy imports stand inside the commands: --help must answer at once."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from flatgd.cli.annotate import app as annotate_app
from flatgd.cli.data import app as data_app
from flatgd.errors import FlatGDError, RecipeError, StoppedError
from flatgd.models import trust
from flatgd.models.trust import Risk
from flatgd.runtime import distributed

app = typer.Typer(
    name="flatgd",
    help="Make a dialogue model safe without making it dull, and measure both.",
    epilog="Begin with: flatgd run recipes/demo.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")
app.add_typer(annotate_app, name="annotate")

RecipeArgument = Annotated[
    Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a field, paths from the recipe's folder: --set train.max_steps=50",
    ),
]
SkipOption = Annotated[
    bool, typer.Option("--skip-bad", help="Leave rows out that cannot be read; see rejected.jsonl.")
]
OneMethodOption = Annotated[str, typer.Option("--method", help="Which of the recipe's methods.")]
ToxicOption = Annotated[
    bool, typer.Option("--even-toxic", help="Let the toxic expert pass; see responsible-use.md.")
]
MethodOption = Annotated[
    list[str] | None,
    typer.Option("--method", help="Only this model; give it again for more. Default: all."),
]


def _open(recipe: Path, overrides: list[str] | None):  # type: ignore[no-untyped-def]
    from flatgd.config.loading import load_recipe

    loaded = load_recipe(recipe, overrides)
    from flatgd.pipeline.pipeline import Pipeline

    return Pipeline(loaded)


@app.command(
    epilog="Example: flatgd run recipes/demo.yaml --set output=../runs/second --set seed=2"
)
def run(recipe: RecipeArgument, skip_bad: SkipOption = False, set_: SetOption = None) -> None:
    """Do the whole job: experts, methods, generations, scores, report.

    If it is interrupted, the same command resumes. Finished and unchanged artifacts are kept.
    """
    from flatgd.config.loading import load_recipe
    from flatgd.report.tables import show_in_terminal
    from flatgd.runtime.display import Display

    loaded = load_recipe(recipe, [*(set_ or []), *(["data.skip_bad=true"] if skip_bad else [])])
    from flatgd.run import run as run_all

    display = Display(quiet=not distributed.is_first())
    page = run_all(loaded, display)
    if not distributed.is_first():
        return
    display.console.print()
    show_in_terminal(loaded, display.console)
    display.console.print(f"\nReport: {page}", soft_wrap=True)


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
    """Tables, figures and page from finished scores, without loading a model."""
    from flatgd.config.loading import load_recipe
    from flatgd.report.build import build_report

    typer.echo(f"Report: {build_report(load_recipe(recipe, set_))}")


@app.command(
    epilog="Example: flatgd label recipes/demo.yaml --count 50 --to labels.jsonl --method flatgd"
)
def label(
    recipe: RecipeArgument,
    to: Annotated[Path, typer.Option(help="The file to write.")] = Path("labels.jsonl"),
    count: Annotated[int, typer.Option(min=1, help="Replies of each model and test set.")] = 100,
    method: MethodOption = None,
    set_: SetOption = None,
) -> None:
    """Draw sampled replies for people to label, without the models' names.

    Fill in `toxic` (true or false), then name the file in the recipe (report: human_labels) and
    build the report again: it estimates toxicity without trust in the judge. The file holds toxic
    language.
    """
    from flatgd.artifacts.reader import generations_of
    from flatgd.config.loading import load_recipe
    from flatgd.evaluation.human_labels import to_label
    from flatgd.io.records import write_jsonl

    loaded = load_recipe(recipe, set_)
    generations = generations_of(loaded, method or loaded.models)
    if to.exists():
        raise RecipeError(f"{to} exists; its labels stay, name another file")
    rows = to_label(generations, count, loaded.seed)
    to.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(to, rows)
    typer.echo(f"{len(rows):,} replies to label in {to}")


@app.command(
    epilog="Example: flatgd chat runs/demo/methods/flatgd runs/demo/methods/clean --samples 5"
)
def chat(
    checkpoints: Annotated[
        list[str], typer.Argument(help="Folders or hub names; several answer side by side.")
    ],
    to: Annotated[
        Path | None, typer.Option(help="Keep the session in this JSONL file as it goes.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Replies of each model.")] = 1,
    seed: Annotated[
        int, typer.Option(min=0, help="The same seed and words, the same replies.")
    ] = 0,
    web: Annotated[bool, typer.Option("--web", help="On a page in the browser.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page.")] = 8766,
) -> None:
    """Talk to one model, or to several side by side; they may answer with toxic language.

    Checkpoints of a run answer with its settings, and its judge can be asked. What is kept with
    --to is read by `flatgd data stats jsonl FILE --set label=none`, and by `flatgd annotate
    create FILE`.
    """
    from flatgd.chat.models import load_talkers
    from flatgd.chat.session import Session, SessionFile
    from flatgd.web.site import address, port_at, server

    file = SessionFile(to) if to else None
    at = port_at("127.0.0.1", port) if web else None
    talkers = load_talkers(checkpoints)
    session = Session(talkers.speakers, talkers.judge, samples, seed)
    if at is None:
        from rich.console import Console

        from flatgd.chat.terminal import Terminal

        Terminal(session, Console(highlight=False), file).talk()
        return
    from flatgd.chat.page import ChatPage

    page = ChatPage(session, address(at, None), file)
    typer.echo(f"{page.link}\nOnly this link opens the page. Ctrl-C ends it.")
    server(page.application()).run(sockets=[at])


CheckpointArgument = Annotated[
    list[Path], typer.Argument(help="Folders as runs/demo/methods/flatgd.", show_default=False)
]


@app.command(epilog="Example: flatgd flatness runs/demo/methods/flatgd runs/demo/methods/clean")
def flatness(
    checkpoints: CheckpointArgument,
    rows: Annotated[int, typer.Option(min=2, help="Training and test rows each.")] = 48,
    probes: Annotated[int, typer.Option(min=2, help="Random probes of trace and flatness.")] = 12,
) -> None:
    """How flat the minimum is where trainings ended, and where their L_S was the same."""
    from flatgd.studies.flatness import study_flatness

    _show_study(study_flatness(checkpoints, rows, probes), checkpoints)


@app.command(epilog="Example: flatgd durability runs/demo/methods/flatgd runs/demo/methods/clean")
def durability(
    checkpoints: CheckpointArgument,
    rows: Annotated[int, typer.Option(min=2, help="Labelled rows of each test set.")] = 200,
    steps: Annotated[int, typer.Option(min=1, help="Steps of tuning.")] = 40,
) -> None:
    """What it takes until safety is lost: tuning, noise, rounding."""
    from flatgd.studies.durability import study_durability

    _show_study(study_durability(checkpoints, rows, steps), checkpoints)


def _show_study(file: Path, checkpoints: list[Path]) -> None:
    """The report anew, with the study in it."""
    from flatgd.report.build import build_report
    from flatgd.studies.landscape import recipe_of

    typer.echo(f"Measured: {file}")
    typer.echo(f"Report: {build_report(recipe_of(checkpoints)[0])}")


@app.command(epilog="Example: flatgd generalise recipes/demo.yaml")
def generalise(recipe: RecipeArgument, set_: SetOption = None) -> None:
    """How safety holds on data sets that were not trained on, or without their toxic replies."""
    from flatgd.run import report
    from flatgd.studies.generalisation import study_generalisation

    pipeline = _open(recipe, set_)
    study_generalisation(pipeline)
    report(pipeline)


@app.command(epilog="Example: flatgd check recipes/paper.yaml --offline")
def check(
    recipe: RecipeArgument,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no network; tell what could not be checked.")
    ] = False,
    processes_: Annotated[
        int, typer.Option("--processes", min=1, help="For the memory estimate: how many GPUs.")
    ] = 1,
    strategy: Annotated[
        Literal["ddp", "fsdp2"], typer.Option(help="For the memory estimate: how they share.")
    ] = "ddp",
    set_: SetOption = None,
) -> None:
    """Find what can be wrong, without loading weights; estimate what memory and room it takes."""
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
    from flatgd.pipeline.estimates import free, memory_of, predicted

    sets = loader.load_validated(loaded)
    for label, text in sets.described():
        typer.echo(f"{label:<18}{text}")
    dialogue_format, example = loader.training_example(loaded, sets.policy)
    typer.echo(dialogue_format.spelled(example))
    typer.echo(f"{'disk':<18}{predicted(loaded, sets)}; {free(loaded.output)} free")
    for name, memory in memory_of(loaded, processes_, strategy).items():
        typer.echo(f"{'memory: ' + name:<26}{memory}")
    typer.echo(f"{recipe}: nothing wrong found")


@app.command(epilog="Example: flatgd init mine.yaml --backbone Qwen/Qwen2.5-0.5B-Instruct")
def init(
    recipe: Annotated[Path, typer.Argument(help="The recipe to write.")] = Path("recipe.yaml"),
    backbone: Annotated[
        str, typer.Option(help="The model to make safe: a folder or a hub name.")
    ] = "facebook/blenderbot-400M-distill",
    replies: Annotated[str, typer.Option(help="Your labelled replies.")] = "replies.jsonl",
) -> None:
    """Write a commented recipe for your own model and data, to be filled in."""
    from flatgd.config.loading import write_template

    write_template(recipe, backbone, replies)
    if not Path(replies).exists():
        typer.echo(f"{replies} is not there yet")
    typer.echo(f"{recipe} is written. Look through it, then: flatgd check {recipe}")


@app.command(epilog="Example: flatgd push recipes/demo.yaml --method flatgd --repo me/safe-bot")
def push(
    recipe: RecipeArgument,
    repo: Annotated[str, typer.Option(help="Where to, as USER/NAME.", show_default=False)],
    method: OneMethodOption = "flatgd",
    license_: Annotated[
        str | None, typer.Option("--license", help="For the card, as apache-2.0.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Visible to all. Default: private.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the card, send nothing.")
    ] = False,
    even_toxic: ToxicOption = False,
    set_: SetOption = None,
) -> None:
    """Send a trained model with a model card to the Hugging Face hub, private unless asked.

    Log in first, with `hf auth login`. The toxic expert is not sent, but with --even-toxic to a new
    repository, private and gated.
    """
    from flatgd.config.loading import load_recipe

    loaded = load_recipe(recipe, set_)
    from flatgd.publish.hub import ModelPackage

    parcel = ModelPackage(loaded, method, repo, license_, even_toxic)
    if dry_run:
        typer.echo(parcel.card)
        typer.echo("To be sent: " + ", ".join(["README.md", *(p.name for p in parcel.files)]))
        return
    typer.echo(f"{method} is at {parcel.push(private=not public)}")


@app.command(epilog="Example: flatgd export recipes/demo.yaml --to safe-bot")
def export(
    recipe: RecipeArgument,
    to: Annotated[Path, typer.Option(help="The folder to make.", show_default=False)],
    method: OneMethodOption = "flatgd",
    merged: Annotated[
        bool, typer.Option("--merged", help="An adapter as whole weights, on its base.")
    ] = False,
    even_toxic: ToxicOption = False,
    set_: SetOption = None,
) -> None:
    """Pack a trained model with its card and report, and nothing else of the run.

    The toxic expert is not packed, but with --even-toxic. The report shows sampled replies, toxic
    ones behind a click.
    """
    from flatgd.config.loading import load_recipe

    loaded = load_recipe(recipe, set_)
    from flatgd.publish.hub import ModelPackage

    parcel = ModelPackage(loaded, method, to.name, even_toxic=even_toxic)
    typer.echo(f"{method} is in {parcel.pack(to, merged)}")


def _allow(risks: list[Risk] | None) -> None:
    trust.allow(*risks or [])


def _version(asked: bool) -> None:
    if asked:
        from flatgd import __version__

        typer.echo(f"flatgd {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
    allow: Annotated[
        list[Risk] | None,
        typer.Option(callback=_allow, help="What of others may run here, if you trust it."),
    ] = None,
) -> None:
    """Make a dialogue model safe without making it dull, and measure both."""


def main() -> None:
    """Entry point: our own errors are told in a few lines and exit with 2."""
    try:
        app()
    except SystemExit as stopped:
        if stopped.code == 130:  # Ctrl-C, which typer turns into this code without a word
            typer.echo("flatgd: stopped; the same command goes on where it was", err=True)
        raise
    except StoppedError as stopped:
        typer.echo(f"flatgd: {stopped}; the same command goes on there", err=True)
        sys.exit(stopped.code)
    except FlatGDError as error:
        typer.echo(f"flatgd: {error}", err=True)
        sys.exit(2)
    finally:
        distributed.leave()
