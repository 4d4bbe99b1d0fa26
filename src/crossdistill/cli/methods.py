"""``crossdistill methods``: what there is to distil with."""

from __future__ import annotations

from typing import Annotated

import typer

from crossdistill.cli import options as o
from crossdistill.cli.show import print_json, print_table


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show this method's options.", show_default=False)
    ] = None,
    as_json: o.Json = False,
) -> None:
    """List the distillation methods, or the options of one.

    Example:
    crossdistill methods ofa
    """
    from crossdistill import runs

    described = [runs.describe_method(name)] if name else runs.describe_methods()
    if as_json:
        print_json(described)
    elif name:
        one = described[0]
        for key in ("title", "paper", "summary", "pick_when"):
            typer.echo(f"{key.replace('_', ' '):>9}: {one[key] or '–'}")
        typer.echo(f"{'needs':>9}: {', '.join(one['needs']) or 'no teacher'}")
        rows = [
            [f"method.{key}", str(option["type"]), str(option["default"])] for key, option in one["options"].items()
        ]
        if rows:
            print_table(["option", "type", "default"], rows)
    else:
        rows = [[one["name"], one["summary"], one["pick_when"]] for one in described]
        print_table(["method", "what it does", "pick it"], rows)
        typer.echo("`crossdistill methods NAME` shows its paper and its options")
