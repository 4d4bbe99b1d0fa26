"""What noisy training has cost of one client's images, over all runs that it ever took part in."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossdistill.errors import InputError
from crossdistill.federated.private import Spent, secret_seed
from crossdistill.files import write_text, writing

_FILE = "account.json"

History = list[list[float]]


@dataclass(slots=True)
class Account:
    """One client's budget, in a folder that outlives runs; it is charged on disk before the training that it pays.

    Args:
        folder: of this client's images alone, whatever run they are used in.
        budget: most epsilon to spend in all; ``None`` sets no limit.
        delta: largest delta that the client accepts; ``None`` accepts a run's.
        fixed_seed: what noise is drawn from in simulations, which are to repeat; else a secret of this folder.
    """

    folder: Path
    budget: float | None = None
    delta: float | None = None
    fixed_seed: int | None = None
    runs: dict[str, History] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = self.folder / _FILE
        if not path.exists():
            return
        try:
            given: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            self.runs = {str(run): [list(map(float, one)) for one in history] for run, history in given.items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"account of differential privacy {path}, which cannot be read ({type(error).__name__})",
                "what earlier training wrote",
                "restore it: without it nobody knows what was spent",
            ) from error

    @property
    def needs_noise(self) -> bool:
        """Whether this client trains with noise only."""
        return self.budget is not None

    @property
    def seed(self) -> int:
        """What noise is drawn from; steps that were taken before move it on, in whatever run they were."""
        return secret_seed(self.folder) if self.fixed_seed is None else self.fixed_seed

    def spent(self, delta: float, run: str | None = None) -> Spent:
        """What all runs have cost so far, or one of them."""
        histories = self.runs.values() if run is None else [self.runs.get(run, [])]
        return Spent([list(one) for history in histories for one in history], delta)

    def pay(self, run: str, noise_multiplier: float, rate: float, steps: int) -> None:
        """Charge steps to a run, on disk."""
        own = Spent(self.runs.setdefault(run, []), 0.5)
        own.charge(noise_multiplier, rate, steps)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / _FILE, json.dumps(self.runs))
