"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

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
