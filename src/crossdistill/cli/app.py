"""The tree of commands."""

from __future__ import annotations

import typer

from crossdistill.cli import distill, evaluate, methods, models, predict, quickstart, recipes, train

app = typer.Typer(
    name="crossdistill",
    help="Distil any teacher into any student, whatever the architecture.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (quickstart, train, distill, evaluate, predict, methods, models):
    app.command(name=command.__name__.rpartition(".")[2])(command.command)
app.add_typer(recipes.app, name="recipes")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and stop."),
) -> None:
    """Distil any teacher into any student, whatever the architecture."""
    if version:
        from crossdistill import __version__

        typer.echo(f"crossdistill {__version__}")
        raise typer.Exit


def call(arguments: list[str]) -> int:
    """Run one command line; wrong usage prints what is right and gives exit code 2."""
    try:
        code = typer.main.get_command(app).main(args=arguments, prog_name="crossdistill", standalone_mode=False)
    except Exception as error:
        # Told by what they can do, not by class: typer has its own copy of click in some versions and not in others.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            return int(error.exit_code)
        if type(error).__name__ == "Abort":
            raise KeyboardInterrupt from None
        raise
    return code if isinstance(code, int) else 0
