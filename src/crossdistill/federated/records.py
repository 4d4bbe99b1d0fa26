"""What ``results.json`` holds of a federated run, checked on reading: one entry for each strategy and seed.

Names, reasons and notes come from other owners' machines: signs that cannot be printed are taken out on reading.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from crossdistill.errors import InputError
from crossdistill.federated.fusion import effective_neighbours
from crossdistill.federated.strategy import STRATEGIES
from crossdistill.report.run import Run
from crossdistill.settings import validate

KIND = "federate"
Status = Literal["ok", "absent", "failed", "refused"]

LONGEST_NAME = 32
"""Longer names of clients, networks and classes are cut off where they are shown."""

_ROW_SUM_TOLERANCE = 1e-3
_MEND = "restore the file, or run again"


def printable(text: str) -> str:
    """The text on one line, without signs that cannot be printed, such as those that turn the writing direction.

    >>> printable(" ward\\n7\\u202e ")
    'ward 7'
    """
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def shortened(text: str, longest: int) -> str:
    """The text, cut off where it is longer.

    >>> shortened("Saint Elsewhere Hospital", 14)
    'Saint Elsewhe…'
    """
    return text if len(text) <= longest else f"{text[: longest - 1].rstrip()}…"


Text = Annotated[str, AfterValidator(printable)]
Count = Annotated[int, Field(strict=True, ge=0)]
Number = Annotated[float, Field(strict=True)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]


class _Record(BaseModel):
    """Keys that a later version adds are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class TransferFacts(_Record):
    """The images that all clients answered."""

    source: Text
    num_samples: Count


class ClientFacts(_Record):
    """One owner of data. ``histogram`` counts its labels by class, where they may be known."""

    id: Count
    name: Text = ""
    model: Text | None = None
    num_train: Count | None = None
    num_val: Count | None = None
    histogram: tuple[Count, ...] | None = None

    @property
    def shown_name(self) -> str:
        """Its name, cut off where it is long, or its number where it has none."""
        return shortened(self.name, LONGEST_NAME) or f"client {self.id}"

    @property
    def network(self) -> str:
        """Its network without the name of its library; empty where it is not known."""
        return shortened((self.model or "").rpartition("/")[2], LONGEST_NAME)


class ClientRound(_Record):
    """What a client did in a round: accuracies are shares, traffic is in bytes; no status where it was not asked."""

    status: Status | None = None
    reason: Text | None = None
    own_accuracy: Share | None = None
    balanced_accuracy: Share | None = None
    val_before: Share | None = None
    val_after: Share | None = None
    rejected: Annotated[bool, Field(strict=True)] | None = None
    bytes_up: Count | None = None
    bytes_down: Count | None = None
    seconds: Annotated[float, Field(strict=True, ge=0)] | None = None

    @property
    def change(self) -> float | None:
        """What learning from its teacher did to the accuracy on its validation split, before it chose to keep it."""
        known = self.val_before is not None and self.val_after is not None
        return self.val_after - self.val_before if known else None  # type: ignore[operator]  # both are numbers

    @property
    def offered(self) -> bool:
        """Whether it had a teacher to learn from."""
        return self.change is not None or self.rejected is True


class RoundRecord(_Record):
    """One round; ``weights`` has a row for each of ``members`` that receives, a column for each that teaches."""

    round: Count
    members: tuple[Count, ...] = ()
    weights: tuple[tuple[Share, ...], ...] | None = None
    clients: dict[int, ClientRound] = {}
    alma: Share | None = None
    alma_balanced: Share | None = None
    worst: Share | None = None
    sd: Annotated[float, Field(strict=True, ge=0)] | None = None
    notes: tuple[Text, ...] = ()

    @cached_property
    def matrix(self) -> NDArray[np.float64]:
        """The weights, float64 ``(N, N)``; only where there are any."""
        return np.array(self.weights, dtype=np.float64)

    @model_validator(mode="after")
    def _square(self) -> Self:
        size = len(self.members)
        if len(set(self.members)) != size:
            raise InputError(f"a member of round {self.round} that is named twice", "each member once", _MEND)
        if self.weights is None:
            return self
        if size == 0 or len(self.weights) != size or any(len(row) != size for row in self.weights):
            widths = sorted({len(row) for row in self.weights})
            given = f"weights of {len(self.weights)} rows of {widths} for {size} members in round {self.round}"
            raise InputError(given, "a row and a column for each member", _MEND)
        totals = [sum(row) for row in self.weights]
        if any(abs(total - 1) > _ROW_SUM_TOLERANCE for total in totals):
            wrong = next(total for total in totals if abs(total - 1) > _ROW_SUM_TOLERANCE)
            raise InputError(f"weights of round {self.round} in a row of sum {wrong:.4g}", "rows of sum 1", _MEND)
        return self


class FinalFigures(_Record):
    """Where a run ended; clients did not keep ``rejected`` of the ``offered`` teachers."""

    alma: Share | None = None
    alma_balanced: Share | None = None
    worst: Share | None = None
    sd: Annotated[float, Field(strict=True, ge=0)] | None = None
    offered: Count = 0
    rejected: Count = 0


class Setting(_Record):
    """What ``auto`` may choose: the steepness of the weights, the temperature, and the neighbour cut."""

    beta: Number | None = None
    temperature: Number | None = None
    threshold: Number | None = None

    @property
    def choice(self) -> tuple[float | None, float | None, float | None]:
        """The three, to be compared."""
        return self.beta, self.temperature, self.threshold


class Tried(Setting):
    """A setting on probation: the mean gain of validation accuracy, as a share, that ``reports`` clients told."""

    gain: Number | None = None
    reports: Count = 0


class Chosen(Setting):
    """The setting that ``auto`` settled on, and all that it tried."""

    tried: tuple[Tried, ...] = ()


class StrategyRun(_Record):
    """One strategy on one seed."""

    strategy: Text
    seed: Annotated[int, Field(strict=True)]
    folder: str | None = None
    partition: dict[str, Any] | None = None
    class_names: tuple[Text, ...] | None = None
    transfer: TransferFacts | None = None
    clients: tuple[ClientFacts, ...]
    rounds: tuple[RoundRecord, ...] = ()
    final: FinalFigures = FinalFigures()
    chosen: Chosen | None = None

    @cached_property
    def by_id(self) -> dict[int, ClientFacts]:
        """Clients by their number."""
        return {client.id: client for client in self.clients}

    def name_of(self, number: int) -> str:
        """A client's name as it is shown."""
        return self.by_id[number].shown_name

    @property
    def fused(self) -> tuple[RoundRecord, ...]:
        """The rounds in which clients were weighted."""
        return tuple(one for one in self.rounds if one.weights is not None)

    def of_client(self, number: int) -> list[tuple[int, ClientRound]]:
        """What a client did, with the number of each round in which it is named."""
        return [(one.round, one.clients[number]) for one in self.rounds if number in one.clients]

    @model_validator(mode="after")
    def _known(self) -> Self:
        where = f"strategy {self.strategy!r}, seed {self.seed}"
        known = self.by_id
        if len(known) != len(self.clients):
            raise InputError(f"{where}: clients of the same id", "an id of its own for each client", _MEND)
        for one in self.rounds:
            unknown = sorted({*one.members, *one.clients} - known.keys())
            if unknown:
                given = f"{where}: client {unknown[0]} in round {one.round}"
                raise InputError(given, "clients that the list of clients names", _MEND)
        num_classes = {len(client.histogram) for client in self.clients if client.histogram is not None}
        expected = num_classes if self.class_names is None else {len(self.class_names)}
        if len(expected) > 1 or not num_classes <= expected:
            given = f"{where}: label histograms of {sorted(num_classes)} classes"
            raise InputError(given, f"a count for each of the {sorted(expected)[-1]} classes", _MEND)
        return self


class _Block(_Record):
    federation: tuple[StrategyRun, ...] = ()


def as_federation(tree: Mapping[str, Any]) -> tuple[StrategyRun, ...]:
    """The federated runs of the mapping that ``results.json`` holds; none where it holds none.

    Raises:
        InputError: entries that are not what a federated run writes.
    """
    return validate(_Block, dict(tree), prefix="results.").federation


def read_federation(folder: Path) -> tuple[StrategyRun, ...]:
    """The federated runs of a run folder; none where its results are of another kind.

    Raises:
        InputError: no ``results.json`` there, or one that is damaged.
    """
    path = folder / "results.json"
    try:
        facts = path.stat()
        return _read(path, facts.st_mtime_ns, facts.st_size)
    except OSError as error:
        given = f"run folder {folder}, whose results.json cannot be read ({error.strerror})"
        raise InputError(given, "the folder of a finished run", "check the path") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: {error}", "valid JSON", _MEND) from error


def runs_of(run: Run) -> tuple[StrategyRun, ...]:
    """The federated runs of what a report is made of; nothing is read where it is of another kind."""
    return read_federation(run.folder) if run.results.kind == KIND else ()


@lru_cache(maxsize=1)
def _read(path: Path, changed: int, size: int) -> tuple[StrategyRun, ...]:
    """Read once for all panels of a page: with a hundred clients the file has millions of weights."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(tree, dict):
        raise InputError(f"{path} holds {type(tree).__name__}", "a mapping of keys", _MEND)
    return as_federation(tree) if tree.get("kind") == KIND else ()


Read = Callable[[ClientRound], float | int | None]
"""A figure of a client in a round."""

MEASURES: Mapping[str, Read] = {
    "on each client's own mix of classes": lambda done: done.own_accuracy,
    "on all classes equally": lambda done: done.balanced_accuracy,
}
"""What accuracy is measured on."""


def by_strategy(runs: Iterable[StrategyRun]) -> dict[str, list[StrategyRun]]:
    """Strategy -> its runs, one a seed, in the order in which they are told."""
    found: dict[str, list[StrategyRun]] = {}
    for one in runs:
        found.setdefault(one.strategy, []).append(one)
    return found


def title(strategy: str) -> str:
    """What a strategy is called; its own word where nobody here knows it."""
    return next((one.facts["title"] for one in STRATEGIES if one.name == strategy), shortened(strategy, LONGEST_NAME))


def titled(strategy: str, runs: Sequence[StrategyRun]) -> str:
    """The strategy, and the seed of which it is told where there are several."""
    return f"{title(strategy)}, seed {runs[0].seed}" if len(runs) > 1 else title(strategy)


def neighbours(record: RoundRecord) -> dict[int, float]:
    """Client -> how many clients it learnt from in that round, itself included; see ``fusion.effective_neighbours``."""
    numbers = effective_neighbours(record.matrix)
    return {member: float(number) for member, number in zip(record.members, numbers, strict=True)}


def teachers(record: RoundRecord, receiver: int, *, most: int) -> list[tuple[int, float]]:
    """The other clients that this one learnt most from, with their weights, the strongest first; never those of 0."""
    row = record.matrix[record.members.index(receiver)]
    pairs = [(member, float(weight)) for member, weight in zip(record.members, row, strict=True)]
    others = [pair for pair in pairs if pair[0] != receiver and pair[1] > 0]
    return sorted(others, key=lambda pair: (-pair[1], pair[0]))[:most]
