"""``crossdistill models``: names of networks."""

from __future__ import annotations

from typing import Annotated

import typer

from crossdistill.cli import options as o


def command(
    pattern: Annotated[
        str | None, typer.Argument(help="Shell pattern, such as 'vit_tiny*'.", show_default=False)
    ] = None,
    as_json: o.Json = False,
) -> None:
    """List the networks that can be built by name.

    Example: crossdistill models 'mobilenetv2*'
    """
    from crossdistill.models import list_models

    names = list_models(pattern)
    if as_json:
        o.print_json(names)
    else:
        typer.echo("\n".join(names) if names else f"no name matches {pattern!r}")
