"""The ServerApp of Flower for a deployed federation: settings from the run config, results into a folder."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

import crossdistill.federated.panels  # noqa: F401  (registers the panels of its report)
from crossdistill.errors import InputError
from crossdistill.federated.client_app import RUN_CODE
from crossdistill.federated.results import federation_of, results_of
from crossdistill.federated.round_log import RoundLog
from crossdistill.federated.server import Federation
from crossdistill.federated.settings import FederateSettings, load_settings
from crossdistill.federated.strategy import STRATEGIES
from crossdistill.report import write_report
from crossdistill.runs.folder import RunFolder

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """A run with the clients that are connected, whose results and report are written to the folder ``out``."""
    settings, out, resume = read_config(dict(context.run_config))
    try:
        run(grid, settings, out, resume=resume)
    except InputError as error:
        print(error, flush=True)  # Flower would show where it was raised, and not what to do
        raise


def run(grid: Grid, settings: FederateSettings, out: Path, *, resume: bool) -> None:
    """Serve one run."""
    folder = RunFolder(out)
    if folder.check(settings, resume=resume) is not None:
        print(f"finished before: {out}", flush=True)
        return
    folder.make()
    folder.begin(settings)
    log, start = RoundLog(out), time.perf_counter()
    Federation(settings, log, lambda line: print(line, flush=True)).run(grid)
    record = federation_of(settings, log, folder=".")
    folder.write_results(results_of([record], settings, seconds=time.perf_counter() - start))
    write_report(out)
    print(f"report: {out / 'report.html'}", flush=True)


def read_config(config: dict[str, Any]) -> tuple[FederateSettings, Path, bool]:
    """(settings, folder, whether to go on) of a run config.

    Raises:
        InputError: something is missing, or a strategy that wants all images in one place.
    """
    for key in ("settings", "out"):
        if not config.get(key):
            raise InputError(
                f"a run config without {key!r}",
                "the app folder that `crossdistill federation app` writes",
                "write one, and run that",
            )
    settings = load_settings(json.loads(str(config["settings"])))
    check_deployed(settings)
    return settings, Path(str(config["out"])), bool(config.get("resume", False))


def check_deployed(settings: FederateSettings) -> None:
    """Refuse what only a simulation can do.

    Raises:
        InputError: a strategy that wants all images in one place, or networks that are code.
    """
    if STRATEGIES.get(settings.strategy).value.pools:
        raise InputError(
            f"strategy {settings.strategy!r}, which takes all images to one place",
            "a strategy between owners",
            "run it with `crossdistill federate`, or choose another",
        )
    for model in settings.models:
        if any(str(one).startswith(RUN_CODE) for one in (model.name, model.init)):
            raise InputError(f"model {model.name!r}, which is code", "a network by name", "sites run no code of others")
