"""What ``results.json`` holds, checked on reading: rows of the comparison, with one entry per seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from crossdistill.errors import InputError
from crossdistill.settings import validate

Role = Literal["student_alone", "distilled", "teacher", "pretrained", "federated"]


class _Record(BaseModel):
    """Keys that a later version adds are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class SeedRun(_Record):
    """One training run: its accuracy as a share, and its folder relative to the results, if it was kept."""

    seed: int
    top1: float = Field(ge=0, le=1)
    folder: str | None = None


class Row(_Record):
    """One network of the comparison; costs are those of one image, latency is the median on the CPU."""

    role: Role
    name: str
    method: str | None = None
    runs: tuple[SeedRun, ...] = ()
    top1_mean: float = Field(ge=0, le=1)
    top1_sd: float | None = None
    num_parameters: int | None = None
    gmacs: float | None = None
    latency_ms: float | None = None
    num_labels: int | None = None
    compared: bool = Field(True, exclude=True, description="whether a distilled student stands beside it")

    @property
    def label(self) -> str:
        """How tables and figures call it."""
        alone = "Student alone" if self.compared else "Trained on labels"
        return {
            "student_alone": alone,
            "teacher": "Teacher",
            "distilled": f"Distilled ({self.method})",
            "pretrained": f"Pretrained, {self.method}",
            "federated": str(self.method),
        }[self.role]

    @property
    def training(self) -> str:
        """How figures call what it logged; several rows may be measured on one pretrained network."""
        return "Pretrained" if self.role == "pretrained" else self.label

    @property
    def by_seed(self) -> dict[int, float]:
        """Seed -> accuracy."""
        return {run.seed: run.top1 for run in self.runs}


class DataFacts(_Record):
    """Where the images came from and how many there were."""

    source: str
    num_classes: int
    num_train: int
    num_labelled: int
    evaluation_split: str
    num_evaluation: int


class StoreFacts(_Record):
    """The stored answers that were the teacher: where they lie, what is kept of each, and to which images."""

    path: str
    num_classes: int
    top_k: int | None = None
    embeddings: bool = False
    precision: str
    seed: int
    num_epochs: int


class Results(_Record):
    """A finished run, or several runs in one table."""

    version: Literal[1] = Field(alias="schema")
    kind: str
    headline: str | None = None
    warnings: tuple[str, ...] = ()
    data: DataFacts
    store: StoreFacts | None = None
    rows: tuple[Row, ...]
    settings: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    seconds: float = 0.0
    command: str = ""

    @field_validator("rows")
    @classmethod
    def _mark_uncompared(cls, rows: tuple[Row, ...]) -> tuple[Row, ...]:
        compared = any(row.role == "distilled" for row in rows)
        return tuple(row.model_copy(update={"compared": compared}) for row in rows)

    @property
    def student(self) -> str:
        """The student by the name that the settings give it; of images without labels no row says so."""
        return str((self.settings.get("student") or {}).get("name", "")).rpartition("/")[2]

    @property
    def words_of(self) -> str:
        """Whose visual words pretraining predicted, where that was not the student's own average."""
        teacher = self.settings.get("teacher") or {}
        return f" by predicting the words of {teacher['name']}" if teacher.get("name") else ""

    @property
    def baseline(self) -> Row | None:
        """The student trained without a teacher."""
        return next((row for row in self.rows if row.role == "student_alone"), None)

    @property
    def distilled(self) -> tuple[Row, ...]:
        """The students trained with a teacher, one row per method."""
        return tuple(row for row in self.rows if row.role == "distilled")


def as_results(results: Results | Mapping[str, Any]) -> Results:
    """Results from the mapping that ``results.json`` holds; checked ones are passed through."""
    return results if isinstance(results, Results) else validate(Results, dict(results), prefix="results.")


def read_results(run: Path) -> Results:
    """The results of a finished run folder.

    Raises:
        InputError: no ``results.json`` there, or one that is damaged.
    """
    path = run / "results.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"run folder {run}, whose results.json cannot be read ({error.strerror})",
            "the folder of a finished run",
            "check the path, or finish the run with --resume",
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: {error}", "valid JSON", "restore the file, or run again") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path} holds {type(tree).__name__}", "a mapping of keys", "restore the file, or run again")
    return as_results(tree)
