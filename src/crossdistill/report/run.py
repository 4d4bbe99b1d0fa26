"""A run folder as the report's panels see it."""

from __future__ import annotations

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
    """Read a run folder.

    Raises:
        InputError: no ``results.json`` there, or one that is damaged.
    """
    results = read_results(folder)
    histories = tuple(
        tuple(read_history(folder / run.folder) if run.folder is not None else History() for run in row.runs)
        for row in results.rows
    )
    return Run(folder, results, _settings(folder, results), histories)


def _settings(folder: Path, results: Results) -> str:
    try:
        return (folder / "config.yaml").read_text(encoding="utf-8")
    except OSError:
        return yaml.safe_dump(results.settings, sort_keys=False, allow_unicode=True) if results.settings else ""
