"""What a strategy is: from the answers of all clients to what each is told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crossdistill.federated.knowledge import Knowledge
from crossdistill.federated.settings import FederateSettings
from crossdistill.registry import Registry

Want = Literal["knowledge", "selection", "weights", "histogram"]
"""What a client can be asked for: answers to the transfer set, only familiar ones, its network, its label counts."""

Weights = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client sent in a round; ``model`` names its architecture, ``num_train`` counts its images."""

    client: int
    model: str
    num_train: int
    knowledge: Knowledge | None = None
    weights: Weights | None = None
    histogram: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """What one client is told: a teacher at a temperature, and weights to go on with."""

    teacher: Knowledge | None = None
    weights: Weights | None = None
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class Fused:
    """What all clients are told, and how it came about.

    ``matrix`` ``(R, N)`` is how much each receiver learns from each of ``members``, where that is a weighted mean.
    """

    told: Mapping[int, Told]
    members: tuple[int, ...] = ()
    matrix: NDArray[np.float64] | None = None
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Report:
    """How clients fared with what they were told in a round: change of validation accuracy, by client."""

    round: int
    gains: dict[int, float] = field(default_factory=dict)


class Strategy(ABC):
    """Makes teachers of answers; one object serves a whole run.

    Attributes, of the class:
        wants: what clients must answer.
        one_architecture: it needs the same network everywhere.
        common: it tells all clients of one architecture the same, also those that missed a round.
        pools: it takes all data to one place, which only a simulation can.
    """

    wants: frozenset[Want] = frozenset({"knowledge"})
    one_architecture: bool = False
    common: bool = False
    pools: bool = False

    def __init__(self, settings: FederateSettings) -> None:
        self.settings = settings

    @abstractmethod
    def fuse(self, answers: Sequence[Answer], round_: int) -> Fused:
        """What every client that answered is told, at least two of them, ordered by client."""

    def hear(self, report: Report) -> None:
        """Take note of how clients fared; comes before the next :meth:`fuse`."""
        return None

    def chosen(self) -> dict[str, Any] | None:
        """What the strategy found out about its own settings, as plain data."""
        return None

    def state(self) -> Any:
        """All that :meth:`restore` needs after the server was killed, as plain data."""
        return None

    def restore(self, state: Any) -> None:
        """Take it up."""
        return None


STRATEGIES: Registry[type[Strategy]] = Registry(
    "strategy",
    package="crossdistill.federated.strategies",
    group="crossdistill.strategies",
    listing="crossdistill federate --help",
)
