"""``crossdistill methods``: what there is to distil with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from crossdistill.cli import options as o
from crossdistill.cli.show import print_indented, print_json, print_table


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show this method's options.", show_default=False)
    ] = None,
    as_json: o.Json = False,
) -> None:
    """List the distillation methods, or show one with its options.

    For each: its paper, what it asks of the teacher, when to pick it, and what it costs as measured (time and memory
    of a training step beside kd's, and parameters that only training has).

    Example:
    crossdistill methods ofa
    """
    from crossdistill import runs

    described = [runs.describe_method(name)] if name else runs.describe_methods()
    if as_json:
        print_json(described)
    else:
        for one in described:
            _show(one)
    if name and not as_json:
        options = described[0]["options"].items()
        rows = [[f"method.{key}", str(option["type"]), str(option["default"])] for key, option in options]
        if rows:
            print_table(["option", "type", "default"], rows)
    elif not as_json:
        typer.echo("`crossdistill methods NAME` shows its options")


def _show(one: Mapping[str, Any]) -> None:
    """A method in a few lines."""
    typer.echo(f"{one['name']}: {one['title']}")
    lines = [("paper", one["paper"]), ("what", one["summary"]), ("pick it", one["pick_when"])]
    lines += [("needs", ", ".join(one["needs"]) or "no teacher"), *(("cost", _cost(cost)) for cost in one["costs"])]
    for key, text in lines:
        print_indented(key, text or "–")
    typer.echo()


def _cost(cost: Mapping[str, Any]) -> str:
    return (
        f"{cost['time']:.2f} x kd's time a step, {cost['memory']:.2f} x its memory, {cost['parameters']:,} parameters "
        f"of its own ({cost['teacher']} to {cost['student']}, {cost['device']})"
    )
