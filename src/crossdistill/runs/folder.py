"""A run folder on disk: made once, never overwritten by accident, resumed only with the same settings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from crossdistill.engine.checkpoint import check_same
from crossdistill.errors import InputError
from crossdistill.files import write_text, writing
from crossdistill.settings import Settings


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths of one run, and the few files the runs room itself writes."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved settings."""
        return self.root / "config.yaml"

    @property
    def results(self) -> Path:
        """The figures of the finished run; its existence says that the run is finished."""
        return self.root / "results.json"

    @property
    def student(self) -> Path:
        """The trained model in timm's folder layout."""
        return self.root / "student"

    @property
    def finished(self) -> bool:
        """Whether everything of this run is on disk."""
        return self.results.exists()

    def begin(self, settings: Settings, *, resume: bool) -> None:
        """Make the folder and record the settings, or check that they are the ones already recorded."""
        if self.config.exists():
            if not resume:
                raise InputError(
                    f"output folder {self.root}, which holds a run already",
                    "a folder without a run",
                    "add --resume to go on with that run, or give another --out",
                )
            self._check_same(settings)
            return
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            write_text(self.config, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))

    def _check_same(self, settings: Settings) -> None:
        recorded = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        check_same(self.root, recorded, settings.model_dump(mode="json"))

    def write_results(self, results: dict[str, Any]) -> None:
        """Record the figures; written last and in one piece."""
        with writing(self.root):
            write_text(self.results, json.dumps(results, indent=2, allow_nan=False) + "\n")

    def read_results(self) -> dict[str, Any]:
        """The figures of a finished run."""
        try:
            results: dict[str, Any] = json.loads(self.results.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"run folder {self.root}: results.json cannot be read ({error})",
                "the folder of a finished run",
                "check the path, or finish the run with --resume",
            ) from error
        return results
