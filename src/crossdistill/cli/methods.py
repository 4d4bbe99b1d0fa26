"""``crossdistill methods``: what there is to distil with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from crossdistill.cli import options as o
from crossdistill.cli.show import print_indented, print_json


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
        for key, option in described[0]["options"].items():
            typer.echo(f"method.{key}={_as_yaml(option['default'])}")
            print_indented("", f"{option['type']}: {option['meaning']}" if option["meaning"] else option["type"])
    elif not as_json:
        typer.echo("`crossdistill methods NAME` shows its options; docs/methods has a page for each")


def _show(one: Mapping[str, Any]) -> None:
    """A method in a few lines."""
    typer.echo(f"{one['name']}: {one['title']}")
    lines = [("paper", one["paper"]), ("what", one["summary"]), ("pick it", one["pick_when"])]
    lines += [("needs", _needs(one)), *(("cost", _cost(cost)) for cost in one["costs"] or [None])]
    for key, text in lines:
        print_indented(key, text or "–")
    typer.echo()


def _needs(one: Mapping[str, Any]) -> str:
    """What it asks of the teacher."""
    return "what its parts need" if one["is_sum"] else ", ".join(one["needs"]) or "no teacher"


def _cost(cost: Mapping[str, Any] | None) -> str:
    """What a step with it takes, on one pair."""
    if cost is None:
        return "not measured"
    return (
        f"{cost['time']:.2f} x kd's time a step, {cost['memory']:.2f} x its memory, {cost['parameters']:,} parameters "
        f"of its own ({cost['teacher']} to {cost['student']}, {cost['device']})"
    )


def _as_yaml(value: Any) -> str:
    """The value as it is written on the command line."""
    import yaml

    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000)
    return text.removesuffix("...\n").strip()
