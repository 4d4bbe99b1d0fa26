"""``crossdistill models``: names of networks."""

from __future__ import annotations

from typing import Annotated

import typer

from crossdistill.cli import options as o
from crossdistill.cli.show import print_json


def command(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="PATTERN", help="A part of the name, or a pattern such as 'vit_tiny*'.", show_default=False
        ),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """List the networks that can be built by name.

    Example:
    crossdistill models 'mobilenetv2*'
    """
    from crossdistill.errors import InputError, nearest
    from crossdistill.models import list_models

    names = list_models(pattern)
    if not names:
        raise InputError(
            f"model pattern {pattern!r}", "a pattern that matches a name", nearest(str(pattern), list_models())
        )
    if as_json:
        print_json(names)
    else:
        typer.echo("\n".join(names))
