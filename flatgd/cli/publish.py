"""`flatgd push` and `flatgd export`: trained models for others."""

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
    repo: Annotated[str, typer.Option(help="The repository, as USER/NAME.", show_default=False)],
    method: OneMethodOption = "flatgd",
    license_: Annotated[
        str | None, typer.Option("--license", help="The license on the card, such as apache-2.0.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make it visible to everyone. Default: private.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the card and send nothing.")
    ] = False,
    even_toxic: ToxicOption = False,
    set_: SetOption = None,
) -> None:
    """Send a trained model and its card to a private repository on the Hugging Face hub.

    Log in first, with `hf auth login`. The toxic expert is sent only with --even-toxic, to a new
    repository that is private and gated.
    """
    from flatgd.config.loading import load_recipe

    loaded = load_recipe(recipe, set_)
    from flatgd.publish.hub import ModelPackage

    package = ModelPackage(loaded, method, repo, license_, even_toxic)
    if dry_run:
        typer.echo(package.card)
        typer.echo("To be sent: " + ", ".join(["README.md", *(p.name for p in package.files)]))
        return
    typer.echo(f"{method} is at {package.push(private=not public)}")


@commands.command(epilog="Example: flatgd export recipes/demo.yaml --to safe-bot")
def export(
    recipe: RecipeArgument,
    to: Annotated[Path, typer.Option(help="The folder to create.", show_default=False)],
    method: OneMethodOption = "flatgd",
    merged: Annotated[
        bool, typer.Option("--merged", help="Merge an adapter into its base.")
    ] = False,
    even_toxic: ToxicOption = False,
    set_: SetOption = None,
) -> None:
    """Copy a trained model, its card and the report into a folder for others.

    The toxic expert is packed only with --even-toxic. The report holds sampled replies, which are
    hidden until a reader opens them.
    """
    from flatgd.config.loading import load_recipe

    loaded = load_recipe(recipe, set_)
    from flatgd.publish.hub import ModelPackage

    package = ModelPackage(loaded, method, to.name, even_toxic=even_toxic)
    typer.echo(f"{method} is in {package.pack(to, merged)}")
