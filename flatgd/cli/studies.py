"""`flatgd flatness`, `durability` and `generalise`: studies of trained checkpoints."""

from pathlib import Path
from typing import Annotated

import typer

from flatgd.cli.options import RecipeArgument, SetOption

commands = typer.Typer()


CheckpointArgument = Annotated[
    list[Path],
    typer.Argument(help="Checkpoints such as runs/demo/methods/flatgd.", show_default=False),
]


@commands.command(
    epilog="Example: flatgd flatness runs/demo/methods/flatgd runs/demo/methods/clean"
)
def flatness(
    checkpoints: CheckpointArgument,
    rows: Annotated[
        int, typer.Option(min=2, help="Number of training rows, and of test rows.")
    ] = 48,
    probes: Annotated[int, typer.Option(min=2, help="Random probes for trace and flatness.")] = 12,
) -> None:
    """Measure how flat L_S is at the end of each training, and where their L_S is the same."""
    from flatgd.studies.flatness import study_flatness

    _show_study(study_flatness(checkpoints, rows, probes), checkpoints)


@commands.command(
    epilog="Example: flatgd durability runs/demo/methods/flatgd runs/demo/methods/clean"
)
def durability(
    checkpoints: CheckpointArgument,
    rows: Annotated[int, typer.Option(min=2, help="Labelled rows from each test set.")] = 200,
    steps: Annotated[int, typer.Option(min=1, help="Steps of fine-tuning.")] = 40,
) -> None:
    """Measure how much fine-tuning, noise or rounding it takes to lose half of the safety."""
    from flatgd.studies.durability import study_durability

    _show_study(study_durability(checkpoints, rows, steps), checkpoints)


def _show_study(file: Path, checkpoints: list[Path]) -> None:
    """Rebuild the report, which then includes the study."""
    from flatgd.report.build import build_report
    from flatgd.studies.landscape import recipe_of

    typer.echo(f"Measured: {file}")
    typer.echo(f"Report: {build_report(recipe_of(checkpoints)[0])}")


@commands.command(epilog="Example: flatgd generalise recipes/demo.yaml")
def generalise(recipe: RecipeArgument, set_: SetOption = None) -> None:
    """Train without each data set, or without its toxic replies, and measure the safety on it."""
    from flatgd.config.loading import load_recipe
    from flatgd.pipeline.pipeline import Pipeline
    from flatgd.run import report
    from flatgd.studies.generalisation import study_generalisation

    pipeline = Pipeline(load_recipe(recipe, set_))
    study_generalisation(pipeline)
    report(pipeline)
