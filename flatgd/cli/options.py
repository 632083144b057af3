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
        help="Override a field, as --set train.max_steps=50. Paths start at the recipe's folder.",
    ),
]
SkipOption = Annotated[
    bool,
    typer.Option(
        "--skip-bad", help="Leave out rows that cannot be read, and list them in rejected.jsonl."
    ),
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="End with the tables and all findings, too.")
]
OneMethodOption = Annotated[str, typer.Option("--method", help="A method of the recipe.")]
ToxicOption = Annotated[
    bool,
    typer.Option(
        "--even-toxic", help="Include the toxic expert; read docs/responsible-use.md first."
    ),
]
MethodOption = Annotated[
    list[str] | None,
    typer.Option("--method", help="Only this model; repeat it for several. Default: all."),
]
