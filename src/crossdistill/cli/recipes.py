"""``crossdistill recipes``: experiments one can read, copy and run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossdistill.cli import options as o
from crossdistill.cli import pretrain
from crossdistill.cli.show import print_json, print_table, show_results

_HELP = """Experiments one can read, copy and run.

Example:
crossdistill recipes show digits/few-labels
"""

app = typer.Typer(help=_HELP, no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="As `recipes ls` prints it, or the path of a YAML file.")]


@app.command()
def ls(as_json: o.Json = False) -> None:
    """List the recipes.

    Example:
    crossdistill recipes ls
    """
    from crossdistill import runs

    found = runs.list_recipes()
    if as_json:
        print_json(found)
    else:
        print_table(["recipe", "what it does"], [[one["name"], one["description"]] for one in found])


@app.command()
def show(name: Name) -> None:
    """Print a recipe.

    Example:
    crossdistill recipes show digits/few-labels
    """
    from crossdistill import runs

    typer.echo(runs.recipe_path(name).read_text(encoding="utf-8"), nl=False)


@app.command()
def copy(name: Name, to: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")]) -> None:
    """Copy a recipe to a file of your own.

    Example:
    crossdistill recipes copy digits/few-labels mine.yaml
    """
    from crossdistill import runs

    runs.copy_recipe(name, to)
    typer.echo(f"copied to {to}; run it with: crossdistill recipes run {to} --out runs/mine")


@app.command()
def run(
    name: Name,
    out: o.Out,
    overrides: o.Overrides = None,
    resume: o.Resume = False,
    dry_run: o.DryRun = False,
    as_json: o.Json = False,
) -> None:
    """Run a recipe.

    Example:
    crossdistill recipes run digits/teacher --out runs/teacher train.epochs=5
    """
    from crossdistill import runs

    if runs.recipe_kind(name) == "pretrain":
        pretrain.run_recipe(name, out, overrides or (), as_json=as_json, resume=resume, dry_run=dry_run)
        return
    plan = runs.read_recipe(name, overrides or ())
    results = runs.execute(plan, out, resume=resume, dry_run=dry_run, quiet=as_json)
    show_results(results, as_json=as_json, out=out)
