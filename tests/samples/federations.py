"""Federations small enough to run in a second."""

from pathlib import Path

from crossdistill.federated.client_app import build_app
from crossdistill.federated.direct import DirectGrid
from crossdistill.federated.round_log import RoundLog
from crossdistill.federated.server import Federation
from crossdistill.federated.settings import FederateSettings, load_settings

SHORT = {"epochs": None, "steps": 3, "batch_size": 16}


def small(*overrides: str, **tree: object) -> FederateSettings:
    """Three clients, two rounds of a few steps on digits."""
    given = {
        "data": {"source": "digits"},
        "clients": 3,
        "rounds": 2,
        "models": ["mlp"],
        "train": SHORT,
        "tune": SHORT,
        "gather": 0.0,
        "patience": 5.0,
        "transfer": {"limit": 40},
        "partition": {"samples": 30, "alpha": 1.0},
        **tree,
    }
    return load_settings(given, overrides)


class Run:
    """A federation on a direct grid, with what it said."""

    def __init__(self, settings: FederateSettings, folder: Path, apps=None) -> None:
        self.said: list[str] = []
        self.log = RoundLog(folder / "run")
        self.federation = Federation(settings, self.log, self.said.append)
        self.app = build_app({"folder": str(folder / "clients"), "simulated": True})
        self.grid = DirectGrid(apps(self.app) if apps else self.app, settings.clients)

    def go(self) -> "Run":
        self.federation.run(self.grid)
        return self
