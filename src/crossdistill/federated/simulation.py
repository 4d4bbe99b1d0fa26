"""A federation on this machine: Flower's simulation engine, or all clients in this process one after the other."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message
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
        workers: processes that clients share; 0 runs them in this one. Default: one a core, or none where a GPU is
            used, which processes would have to share.

    Raises:
        InputError: what server or clients refuse.
    """
    settings = federation.settings
    cores = num_cores()
    on_gpu = settings.device != "cpu" and torch.cuda.is_available()
    count = min(settings.clients, (0 if on_gpu else cores) if workers is None else workers)
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
    stopped = threading.Event()
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        pull = grid.pull_messages

        def pull_until_stopped(message_ids: Iterable[str]) -> Iterable[Message]:
            if stopped.is_set():  # else Flower's thread would go on waiting for clients
                raise Interrupted("stopped")
            return pull(message_ids)

        grid.pull_messages = pull_until_stopped  # type: ignore[method-assign]
        try:
            run(grid)
        except BaseException as error:
            failed.append(error)

    backend: Any = {
        "init_args": {"num_cpus": workers, "include_dashboard": False, "log_to_driver": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    try:
        with _told_to_stop(stopped):
            run_simulation(server, app, num_supernodes=settings.clients, backend_config=backend)
    except RuntimeError as error:
        if not failed:
            raise InputError(
                f"Flower's simulation, which stopped ({error})",
                "a simulation that runs to its end",
                "try --workers 0, which runs all clients in this process",
            ) from error
    finally:
        stopped.set()
    if failed and isinstance(failed[0], Interrupted):
        raise Interrupted("interrupted; finished rounds are kept: go on with --resume")
    if failed:
        raise failed[0]


@contextlib.contextmanager
def _told_to_stop(stopped: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the server's waiting, and with it the simulation; a second one ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def stop(number: int, frame: Any) -> None:
        stopped.set()
        for one, handler in before.items():
            signal.signal(one, handler)

    for number in signals:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
