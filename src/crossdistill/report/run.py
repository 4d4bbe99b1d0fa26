"""A run folder as the report's panels see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from crossdistill.engine.log import METRICS
from crossdistill.report.history import Axis, History, read_history
from crossdistill.report.results import Results, Row, read_results


@dataclass(frozen=True, slots=True)
class Run:
    """Results, settings as YAML, and the history of every single run behind each row.

    ``unmeasured`` has those of the folders below that no row names: images without labels give no accuracy.
    """

    folder: Path
    results: Results
    settings: str
    histories: tuple[tuple[History, ...], ...]
    unmeasured: tuple[History, ...] = ()

    @property
    def rows(self) -> tuple[tuple[Row, tuple[History, ...]], ...]:
        """Each row of the comparison with the histories of its seeds."""
        return tuple(zip(self.results.rows, self.histories, strict=True))

    @property
    def axis(self) -> Axis:
        """``epoch`` if an epoch has as many steps in every run; otherwise only steps can be compared."""
        lengths = [one.steps_per_epoch for histories in (*self.histories, self.unmeasured) for one in histories]
        known = [length for length in lengths if length is not None]
        return "epoch" if known and max(known) - min(known) < 1e-6 else "step"


def run_folders(folder: Path, results: Results) -> tuple[Path, ...]:
    """Folders of the single runs, each once; without rows, which would name them, those that logged something."""
    if not results.rows:
        return tuple(sorted(log.parent for log in folder.rglob(METRICS)))
    named = dict.fromkeys(run.folder for row in results.rows for run in row.runs if run.folder is not None)
    return tuple(folder / one for one in named)


def read_run(folder: Path) -> Run:
    """Read a run folder; where several rows are of the same single runs, the first of them has their histories.

    Raises:
        InputError: no ``results.json`` there, or one that is damaged.
    """
    results = read_results(folder)
    unread = {one: read_history(one) for one in run_folders(folder, results)}
    histories = tuple(
        tuple(History() if run.folder is None else unread.pop(folder / run.folder, History()) for run in row.runs)
        for row in results.rows
    )
    return Run(folder, results, _settings(folder, results), histories, tuple(unread.values()))


def _settings(folder: Path, results: Results) -> str:
    try:
        return (folder / "config.yaml").read_text(encoding="utf-8")
    except OSError:
        return yaml.safe_dump(results.settings, sort_keys=False, allow_unicode=True) if results.settings else ""
