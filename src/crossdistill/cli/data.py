"""``crossdistill data``: what a data set holds, and what training will see of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from crossdistill.cli import options as o
from crossdistill.cli.show import print_json
from crossdistill.cli.show_data import show_data

Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe", metavar="NAME|FILE", help="Show what its student sees under its settings.", show_default=False
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size", min=4, help="Height and width in pixels.", show_default="the student's, else 224 or its own"
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", min=0, help="Of the random changes.", show_default="the recipe's first, else 0"),
]
Quick = Annotated[bool, typer.Option("--quick", help="Read headers only; duplicates are then files of equal bytes.")]


def command(
    data: Annotated[str, typer.Argument(metavar="DATA", help=o.DATA_HELP)],
    overrides: o.Overrides = None,
    recipe: Recipe = None,
    image_size: ImageSize = None,
    seed: Seed = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Rows of the picture.")] = 8,
    out: Annotated[Path, typer.Option("--out", metavar="PNG", help="The picture.")] = Path("data-samples.png"),
    quick: Quick = False,
    as_json: o.Json = False,
) -> None:
    """Count, measure and compare the images of a data set, and draw some as training will see them.

    Example:
    crossdistill data folder:photos data.augment.rand_augment=rand-m9-mstd0.5-inc1 data.augment.mixup=0.8
    """
    from crossdistill import runs

    with _progress() as watch:
        found = runs.look(
            data,
            recipe,
            overrides or (),
            image_size=image_size,
            seed=seed,
            num_samples=samples,
            picture=out,
            quick=quick,
            watch=watch,
        )
    if as_json:
        print_json(found)
    else:
        show_data(found)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each split on a terminal; standard output holds the answer alone."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), *Progress.get_default_columns()[1:2], MofNCompleteColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        tasks: dict[str, Any] = {}

        def watch(split: str, done: int, total: int) -> None:
            if split not in tasks:
                tasks[split] = progress.add_task(f"looking at {split}", total=total)
            progress.update(tasks[split], completed=done)

        yield watch
