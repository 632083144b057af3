"""`flatgd flatness`, `durability` and `generalise`: studies of trained checkpoints."""

from pathlib import Path
from typing import Annotated

import typer

from flatgd.cli.options import RecipeArgument, SetOption

commands = typer.Typer()


CheckpointArgument = Annotated[
    list[Path], typer.Argument(help="Folders as runs/demo/methods/flatgd.", show_default=False)
]


@commands.command(
    epilog="Example: flatgd flatness runs/demo/methods/flatgd runs/demo/methods/clean"
)
def flatness(
    checkpoints: CheckpointArgument,
    rows: Annotated[int, typer.Option(min=2, help="Training and test rows each.")] = 48,
    probes: Annotated[int, typer.Option(min=2, help="Random probes of trace and flatness.")] = 12,
) -> None:
    """How flat the minimum is where trainings ended, and where their L_S was the same."""
    from flatgd.studies.flatness import study_flatness

    _show_study(study_flatness(checkpoints, rows, probes), checkpoints)


@commands.command(
    epilog="Example: flatgd durability runs/demo/methods/flatgd runs/demo/methods/clean"
)
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


@commands.command(epilog="Example: flatgd generalise recipes/demo.yaml")
def generalise(recipe: RecipeArgument, set_: SetOption = None) -> None:
    """How safety holds on data sets that were not trained on, or without their toxic replies."""
    from flatgd.config.loading import load_recipe
    from flatgd.pipeline.pipeline import Pipeline
    from flatgd.run import report
    from flatgd.studies.generalisation import study_generalisation

    pipeline = Pipeline(load_recipe(recipe, set_))
    study_generalisation(pipeline)
    report(pipeline)
