"""A federation on this machine: Flower's simulation engine, or all clients in this process one after the other."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from crossdistill.data.held import num_cores
from crossdistill.errors import InputError, Interrupted
from crossdistill.federated.client_app import build_app
from crossdistill.federated.direct import DirectGrid
from crossdistill.federated.server import Federation
from crossdistill.federated.settings import FederateSettings

CLIENTS = "clients"
"""The folder of a run in which simulated clients keep their networks."""

_MEMORY_SHARE = 0.3
"""Of this machine's memory, what Ray may use for messages on their way."""


def simulate(federation: Federation, folder: Path, *, workers: int | None) -> None:
    """Run a federation whose clients are all on this machine.

    Args:
        federation: the server's part.
        folder: of the run.
        workers: processes that clients share; 0 runs them in this one. Default: one a core, or in this process where a
            GPU is used, which processes would have to share.

    Raises:
        InputError: what server or clients refuse.
    """
    settings = federation.settings
    cores = num_cores()
    count = min(cores, settings.clients) if workers is None else min(workers, settings.clients)
    facts = {"folder": str((folder / CLIENTS).resolve()), "simulated": True}
    if count == 0:
        federation.run(DirectGrid(build_app(facts), settings.clients))
        return
    app = build_app({**facts, "threads": max(1, cores // count)})
    _on_ray(federation.run, app, settings, count)


def _on_ray(run: Callable[[Grid], None], app: Any, settings: FederateSettings, workers: int) -> None:
    """Flower's simulation engine, of which only errors are shown; the server's error is raised here as it was there."""
    from flwr.simulation import run_simulation

    failed: list[BaseException] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            run(grid)
        except BaseException as error:
            failed.append(error)

    backend: Any = {
        "init_args": {"num_cpus": workers, "include_dashboard": False, "log_to_driver": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    try:
        with _without_warnings():
            run_simulation(server, app, num_supernodes=settings.clients, backend_config=backend)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; what was finished is kept: go on with --resume") from None
    except RuntimeError as error:
        if not failed:
            raise InputError(
                f"Flower's simulation, which stopped ({error})",
                "a simulation that runs to its end",
                "try --workers 0, which runs all clients in this process",
            ) from error
    if failed:
        raise failed[0]


@contextlib.contextmanager
def _without_warnings() -> Any:
    """Flower tells on standard error that a newer way exists; ours is the one that takes objects."""
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    kept = io.StringIO()
    with contextlib.redirect_stderr(kept):
        yield


__all__ = ["CLIENTS", "simulate"]
