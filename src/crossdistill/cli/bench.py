"""``crossdistill bench``: how fast it is here, and why it is not faster."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from crossdistill.cli.options import ClassMap, Training, at_least, training_command
from crossdistill.cli.show import print_json, print_table, show_results

_HELP = """Measure speed on your own networks, data and machine.

Example:
crossdistill bench speed --teacher runs/teacher --student timm/resnet18 --data digits
"""

app = typer.Typer(help=_HELP, no_args_is_help=True)

# A step has no results and nothing to go on with, and its time does not depend on a seed; --steps means others here.
_NOT_OFFERED = {"out": Path("."), "seeds": "0", "steps": None, "resume": False}


@app.command()
@functools.partial(training_command, fixed=_NOT_OFFERED)
def speed(
    teacher: Annotated[
        list[str], typer.Option("--teacher", help="Run folder, NAME@PATH, plain NAME, store …; repeat for an ensemble.")
    ],
    student: Annotated[str, typer.Option("--student", help="The model to train, by name.")],
    training: Training,
    class_map: ClassMap = None,
    method: Annotated[str, typer.Option("--method", help="`crossdistill methods` lists them.")] = "kd",
    steps: Annotated[int, typer.Option("--steps", help="Steps that are measured.")] = 20,
    warmup: Annotated[int, typer.Option("--warmup", help="Steps before them.")] = 5,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", help="Folder for the profiler's trace and a one-page breakdown.", show_default=False),
    ] = None,
) -> None:
    """Say how long a training step takes, and where the time goes.

    Example:
    crossdistill bench speed --teacher runs/teacher --student timm/mobilenetv2_100 \\
      --method ofa --data folder:photos --trace runs/speed

    Takes what `distill` takes and runs its loop. Steps are timed without a profiler; then a few are profiled for the
    shares of the parts; then some are taken in turn with plain training of the same student. Nothing is trained to an
    end: a teacher with random weights will do.
    """
    at_least(1, steps=steps)
    at_least(0, warmup=warmup)
    from crossdistill import runs

    own: dict[str, Any] = {
        "student": {"name": student},
        "teachers": [{"name": name} | ({} if class_map is None else {"class_map": class_map}) for name in teacher],
        "method": {"name": method},
    }
    settings = training.plan(own).settings
    if training.dry_run:
        trial = runs.try_speed(settings, steps=steps, warmup=warmup, trace=trace, quiet=training.as_json)
        show_results(trial, as_json=training.as_json, out=training.out)
        return
    figures = runs.bench_speed(settings, steps=steps, warmup=warmup, trace=trace, quiet=training.as_json)
    if training.as_json:
        print_json(figures)
    else:
        _show(figures, trace)


def _show(figures: Mapping[str, Any], trace: Path | None) -> None:
    """The sentences and tables of the page."""
    from crossdistill.report.breakdown_page import comparison, parts_table, sentences

    for sentence in sentences(figures):
        typer.echo(sentence)
    columns, rows = parts_table(figures)
    print_table(columns, rows, numbers=columns[1:])
    columns, rows = comparison(figures)
    print_table(columns, rows, numbers=columns[1:])
    if trace is not None:
        typer.echo(f"page: {trace / 'breakdown.html'}")
