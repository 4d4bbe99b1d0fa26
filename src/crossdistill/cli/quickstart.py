"""``crossdistill quickstart``: the main job on embedded data, in at most three minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossdistill.cli import options as o
from crossdistill.cli.show import show_results


def command(
    out: Annotated[Path, typer.Option("--out", help="Folder of the run; made here.")] = Path("crossdistill-quickstart"),
    resume: o.Resume = False,
    as_json: o.Json = False,
) -> None:
    """Train a transformer teacher on real digits and distil it into a small CNN that has few labels.

    Example:
    crossdistill quickstart --out first-run

    Runs on the CPU without network and ends in a report.
    """
    from crossdistill import runs

    results = runs.quickstart(out, resume=resume, quiet=as_json)
    show_results(results, as_json=as_json, out=out)
