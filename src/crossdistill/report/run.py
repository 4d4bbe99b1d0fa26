"""A run folder as the report's panels see it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import yaml

from crossdistill.report.history import Axis, History, read_history
from crossdistill.report.results import Results, Row, read_results


@dataclass(frozen=True, slots=True)
class Run:
    """Results, settings as YAML, and the history of every single run behind each row."""

    folder: Path
    results: Results
    settings: str
    histories: tuple[tuple[History, ...], ...]

    @property
    def rows(self) -> tuple[tuple[Row, tuple[History, ...]], ...]:
        """Each row of the comparison with the histories of its seeds."""
        return tuple(zip(self.results.rows, self.histories, strict=True))

    @property
    def axis(self) -> Axis:
        """``epoch`` if an epoch has as many steps in every run; otherwise only steps can be compared."""
        lengths = [history.steps_per_epoch for histories in self.histories for history in histories]
        known = [length for length in lengths if length is not None]
        return "epoch" if known and max(known) - min(known) < 1e-6 else "step"


def read_run(folder: Path) -> Run:
    """Read a run folder; where several rows are of the same single runs, the first of them has their histories.

    Raises:
        InputError: no ``results.json`` there, or one that is damaged.
    """
    results = read_results(folder)
    histories, read = [], set[str]()
    for row in results.rows:
        fresh = {run.folder for run in row.runs if run.folder is not None} - read
        histories.append(tuple(_history(folder, run.folder, fresh) for run in row.runs))
        read |= fresh
    return Run(folder, results, _settings(folder, results), tuple(histories))


def _history(folder: Path, run: str | None, fresh: Collection[str]) -> History:
    return read_history(folder / run) if run is not None and run in fresh else History()


def _settings(folder: Path, results: Results) -> str:
    try:
        return (folder / "config.yaml").read_text(encoding="utf-8")
    except OSError:
        return yaml.safe_dump(results.settings, sort_keys=False, allow_unicode=True) if results.settings else ""
