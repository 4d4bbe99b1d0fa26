"""Auto: KnFu that finds beta, temperature and neighbour cut while it runs, from the clients' validation reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from crossdistill.federated.fusion import estimated_distribution, fuse, sharpen
from crossdistill.federated.knowledge import Knowledge
from crossdistill.federated.settings import FederateSettings
from crossdistill.federated.strategies.knfu import Array, Clients, guarded, knowledge_of, weights_of
from crossdistill.federated.strategy import STRATEGIES, Answer, Fused, Report, Strategy, Told


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to fuse."""

    beta: float
    temperature: float
    threshold: float


CANDIDATES = (
    Candidate(10.0, 3.0, 0.0),
    Candidate(10.0, 1.0, 0.0),
    Candidate(0.0, 3.0, 0.0),
    Candidate(30.0, 3.0, 0.0),
    Candidate(3.0, 3.0, 0.5),
    Candidate(100.0, 1.0, 0.0),
)
"""From one teacher for all to nearly self-distillation; the first is KnFu's own."""

_EXPLORED_SHARE = 0.4
"""Rounds that may be spent on trying."""


@STRATEGIES.register(
    "auto",
    title="KnFu (auto)",
    paper="ours",
    summary="KnFu that tries settings on some clients each round and keeps what validates best.",
)
class Auto(Strategy):
    """In the first rounds each client is taught by another candidate in turn; then all by the one that helped most.

    A candidate's score is the mean change of its clients' validation accuracy by fine-tuning. Each client meets each
    candidate as often as any other, so that hard and easy clients weigh alike. Nothing more is sent than KnFu sends:
    answers of one temperature are brought to another by the server.
    """

    def __init__(self, settings: FederateSettings) -> None:
        super().__init__(settings)
        fixed = settings.fusion
        own = Candidate(fixed.beta, fixed.temperature, fixed.threshold)
        every = (own, *(one for one in CANDIDATES if one != own))
        self.candidates = every[: max(1, min(len(every), int(settings.rounds * _EXPLORED_SHARE)))]
        self.gains: list[list[float]] = [[] for _ in self.candidates]
        self.assigned: dict[int, dict[int, int]] = {}

    def fuse(self, answers: Sequence[Answer], round_: int) -> Fused:
        """A teacher for each client, by the candidate that is its turn, or by the best one."""
        given = knowledge_of(answers)
        tried = {one.client: self._candidate(index, round_) for index, one in enumerate(answers)}
        self.assigned = {round_: tried}
        made = {index: self._fused(self.candidates[index], given, answers) for index in sorted(set(tried.values()))}
        told, rows = {}, []
        notes: list[str] = []
        for place, one in enumerate(answers):
            fused, matrix, remarks = made[tried[one.client]]
            candidate = self.candidates[tried[one.client]]
            told[one.client] = Told(Knowledge.of(fused[place]), temperature=candidate.temperature)
            rows.append(matrix[place])
            notes.extend(remarks)
        return Fused(told, tuple(one.client for one in answers), np.stack(rows), tuple(dict.fromkeys(notes)))

    def hear(self, report: Report) -> None:
        """Credit each candidate with the changes that it brought."""
        for client, gain in report.gains.items():
            index = self.assigned.get(report.round, {}).get(client)
            if index is not None:
                self.gains[index].append(gain)

    def best(self) -> int:
        """The candidate with the highest mean; the first of equals, and of none tried."""
        means = [float(np.mean(one)) if one else -np.inf for one in self.gains]
        return int(np.argmax(means))

    def chosen(self) -> dict[str, Any] | None:
        """The candidate that is used now, and how all of them fared."""
        tried = [
            {**asdict(one), "gain": float(np.mean(gains)) if gains else None, "reports": len(gains)}
            for one, gains in zip(self.candidates, self.gains, strict=True)
        ]
        return {**asdict(self.candidates[self.best()]), "tried": tried}

    def state(self) -> Any:
        """Gains and assignments."""
        return {"gains": self.gains, "assigned": {str(key): value for key, value in self.assigned.items()}}

    def restore(self, state: Any) -> None:
        """Take them up."""
        self.gains = state["gains"]
        self.assigned = {
            int(key): {int(client): index for client, index in value.items()}
            for key, value in state["assigned"].items()
        }

    def _candidate(self, place: int, round_: int) -> int:
        """Each in turn while there are candidates left to try, then the best."""
        exploring = len(self.candidates) > 1 and round_ <= len(self.candidates)
        return (place + round_ - 1) % len(self.candidates) if exploring else self.best()

    def _fused(
        self, candidate: Candidate, given: Clients, answers: Sequence[Answer]
    ) -> tuple[Array, Array, tuple[str, ...]]:
        """Teachers of all clients by one candidate, the weights, and notes."""
        how = self.settings.fusion.model_copy(update=asdict(candidate))
        power = self.settings.fusion.temperature / candidate.temperature
        knowledge = [sharpen(one.astype(np.float64), power) for one in given]
        weights = weights_of(how, np.stack([estimated_distribution(one) for one in knowledge]))
        weights, notes = guarded(how, knowledge, weights, answers)
        return fuse(knowledge, weights), weights, notes
