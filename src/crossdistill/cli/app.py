"""The tree of commands."""

from __future__ import annotations

from typing import Any

import typer

from crossdistill.cli import (
    bench,
    data,
    distill,
    evaluate,
    federate,
    federation,
    methods,
    models,
    predict,
    pretrain,
    probe,
    quickstart,
    recipes,
    store,
    train,
)
from crossdistill.errors import InputError

_INTERRUPTED = 130
"""What newer versions of typer make of Ctrl-C; older ones raise ``Abort``."""

app = typer.Typer(
    name="crossdistill",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (quickstart, train, distill, pretrain, federate, store, evaluate, predict, data, methods, models):
    app.command(name=command.__name__.rpartition(".")[2])(command.command)
app.add_typer(probe.app, name="probe")
app.add_typer(federation.app, name="federation")
app.add_typer(recipes.app, name="recipes")
app.add_typer(bench.app, name="bench")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and stop."),
) -> None:
    """Distil any teacher into any student, whatever the architecture.

    Example:
    crossdistill quickstart
    """
    if version:
        from crossdistill import __version__

        typer.echo(f"crossdistill {__version__}")
        raise typer.Exit


def call(arguments: list[str]) -> int:
    """Run one command line; wrong usage prints what is right and gives exit code 2."""
    try:
        code = typer.main.get_command(app).main(args=arguments, prog_name="crossdistill", standalone_mode=False)
    except Exception as error:
        # Told by name and by what they can do: typer has its own copy of click in some versions and not in others.
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
            return 2
        if hasattr(error, "format_message"):
            raise _wrong_usage(error) from None
        if type(error).__name__ == "Abort":
            raise KeyboardInterrupt from None
        raise
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _wrong_usage(error: Any) -> InputError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "crossdistill"
    usage = context.get_usage().removeprefix("Usage: ") if context else "crossdistill COMMAND"
    message = error.format_message().rstrip(".")
    return InputError(f"{command}: {message[0].lower()}{message[1:]}", usage, f"`{command} --help` shows what it takes")
