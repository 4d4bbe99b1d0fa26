"""``crossdistill models``: names of networks, and the stages that each gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from crossdistill.cli import options as o
from crossdistill.cli.show import print_json, print_table

if TYPE_CHECKING:
    from crossdistill.models.coverage import Coverage


def command(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="PATTERN", help="A part of the name, or a pattern such as 'vit_tiny*'.", show_default=False
        ),
    ] = None,
    coverage: Annotated[
        bool,
        typer.Option(
            "--coverage",
            help="Build each and show its family and stages; without PATTERN the smallest of every file of timm.",
        ),
    ] = False,
    as_json: o.Json = False,
) -> None:
    """List the networks that can be built by name, or show which stages they have.

    Example:
    crossdistill models 'mobilenetv2*'
    crossdistill models 'convnextv2_*' --coverage
    """
    from crossdistill.models import list_models

    if coverage:
        _coverage(None if pattern is None else _matching(pattern, timm_only=True), as_json=as_json)
        return
    names = list_models() if pattern is None else _matching(pattern)
    if as_json:
        print_json(names)
    else:
        typer.echo("\n".join(names))


def _matching(pattern: str, *, timm_only: bool = False) -> list[str]:
    from crossdistill.errors import InputError, nearest
    from crossdistill.models import list_models

    names = [name for name in list_models(pattern) if not (timm_only and "/" in name)]
    if not names:
        raise InputError(f"model pattern {pattern!r}", "a pattern that matches a name", nearest(pattern, list_models()))
    return names


def _coverage(names: list[str] | None, *, as_json: bool) -> None:
    from dataclasses import asdict

    from rich.console import Console
    from rich.progress import track

    from crossdistill.models.coverage import coverage
    from crossdistill.models.points import ENOUGH_STAGES
    from crossdistill.models.zoo import smallest_variants

    total = len(smallest_variants() if names is None else names)
    console = Console(stderr=True)  # so that standard output holds the answer alone
    rows = coverage(names)
    found = list(track(rows, "staging", total, console=console, transient=True, disable=not console.is_terminal))
    if as_json:
        print_json([asdict(one) for one in found])
        return
    columns = ("File", "Network", "Family", "px", "Stages")
    print_table(columns, [_row(one) for one in found], numbers=("px",))
    enough = sum(len(one.stages) >= ENOUGH_STAGES for one in found)
    typer.echo(f"{enough} of {len(found)} networks have {ENOUGH_STAGES} or more stages")


def _row(one: Coverage) -> tuple[Any, ...]:
    stages = ", ".join(stage.describe() for stage in one.stages)
    shown = "; ".join(text for text in (stages, one.reason) if text)
    return one.file, one.name, one.family, str(one.image_size or ""), shown
