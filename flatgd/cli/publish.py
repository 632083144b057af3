"""`flatgd push` and `flatgd export`: trained models handed on."""

from pathlib import Path
from typing import Annotated

import typer

from flatgd.cli.options import OneMethodOption, RecipeArgument, SetOption, ToxicOption

commands = typer.Typer()


@commands.command(
    epilog="Example: flatgd push recipes/demo.yaml --method flatgd --repo me/safe-bot"
)
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


@commands.command(epilog="Example: flatgd export recipes/demo.yaml --to safe-bot")
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
