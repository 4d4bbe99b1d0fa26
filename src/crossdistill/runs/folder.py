"""A run folder on disk: made once, never overwritten by accident, resumed only with the same settings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from crossdistill.differences import leaves
from crossdistill.engine.checkpoint import check_same
from crossdistill.engine.keeper import FOLDER as CHECKPOINTS
from crossdistill.errors import InputError
from crossdistill.files import write_text, writing
from crossdistill.settings import Strict

CHOSEN = frozenset(
    {
        *("student.image_size", "data.augment.crop", "data.augment.flip", "train.epochs"),
        *("views.crop_size", "views.patch_size", "views.patch_base", "views.flip"),
    }
)
"""Settings that are recorded as chosen when the run began, and that may then be left open."""


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

    def check(self, settings: Strict, *, resume: bool, several: bool = False) -> dict[str, Any] | None:
        """The figures of the run that is here, if it is finished; ``None`` where there is something left to do.

        Args:
            settings: those that are given now.
            resume: whether to go on with what is here.
            several: whether several runs are to lie below this folder.

        Raises:
            InputError: there is a run that is not to be resumed, one with other settings, or one where there should be
                several or the other way round.
        """
        if not self.config.exists():
            return None
        if not resume:
            raise InputError(
                f"output folder {self.root}, which holds a run already",
                "a folder without a run",
                "add --resume to go on with that run, or give another --out",
            )
        self._check_number(several)
        self._check_same(settings)
        return self.read_results() if self.finished else None

    def _check_number(self, several: bool) -> None:
        holds_several = any(self.root.glob("*/seed-*/config.yaml"))
        holds_one = not holds_several and ((self.root / CHECKPOINTS).exists() or self.finished)
        if holds_one if several else holds_several:
            held, given = ("one run", "several") if several else ("several runs", "one")
            raise InputError(
                f"output folder {self.root}, which holds {held}, to go on with as {given}",
                "the seeds and the baseline that it was started with",
                "give the same --seeds and --baseline again, or another --out",
            )

    def make(self) -> None:
        """Make the folder: whether that is possible is worth knowing before any work is done."""
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)

    def begin(self, settings: Strict) -> None:
        """Record the settings, unless they are recorded already; from now on the folder holds a run."""
        if self.config.exists():
            return
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            write_text(self.config, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))

    def _check_same(self, settings: Strict) -> None:
        recorded = leaves(yaml.safe_load(self.config.read_text(encoding="utf-8")))
        given = leaves(settings.model_dump(mode="json"))
        for key in recorded.keys() | given.keys():
            if not key.startswith("method."):  # a method's options are all recorded; of the rest a new one may be unset
                recorded.setdefault(key, None)
                given.setdefault(key, None)
            if key in CHOSEN and given[key] is None:
                given[key] = recorded[key]
        check_same(self.root, recorded, given)

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
