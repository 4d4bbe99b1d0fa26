"""What happened in each round: the record that the report shows, and where a killed server goes on."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.errors import InputError
from crossdistill.federated.knowledge import Knowledge
from crossdistill.federated.members import Member
from crossdistill.federated.strategy import Fused, Told
from crossdistill.files import write_text, writing

STATE, METRICS = "server/state.json", "metrics.jsonl"
"""Below the run's folder: all that was recorded, written anew after each round; a line a round, for other programs."""

FIGURES = ("own_accuracy", "balanced_accuracy", "val_before", "val_after", "seconds")

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a server stands after a round: what clients are told next, and what the strategy knows."""

    round: int
    told: dict[int, Told]
    strategy: Any


@dataclass(slots=True)
class RoundLog:
    """The record of a run in its folder.

    Args:
        folder: of the run.
    """

    folder: Path
    rounds: list[Record] = field(default_factory=list)
    clients: dict[int, Record] = field(default_factory=dict)
    chosen: Record | None = None
    closed: bool = False
    class_names: tuple[str, ...] = ()
    num_transfer: int = 0
    run: str = field(default_factory=lambda: secrets.token_hex(16))

    def standing(self) -> Standing | None:
        """Where the run that is recorded here stands, which is taken up; ``None`` where there is none.

        Raises:
            InputError: records that cannot be read.
        """
        path = self.folder / STATE
        if not path.exists():
            return None
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            self.rounds, self.closed, self.chosen = state["rounds"], state["closed"], state["chosen"]
            self.run = str(state["run"])
            self.clients = {int(client): facts for client, facts in state["clients"].items()}
            self.class_names, self.num_transfer = tuple(state["class_names"]), int(state["num_transfer"])
            told = _read_told(self._told_path(int(state["round"])), state["told"])
            return Standing(int(state["round"]), told, state["strategy"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"records of the server in {path}, which cannot be read ({error})",
                "what a run wrote",
                "restore them, or begin anew with another --out",
            ) from error

    def met(self, round_: int, members: Sequence[Member], notes: Sequence[str]) -> None:
        """Note who is there, and who was turned away."""
        for one in members:
            facts = {"id": one.client, "name": one.name, "model": one.model}
            counts = {"num_train": one.num_train, "num_val": one.num_val, "num_test": one.num_test}
            counts["own_test"] = one.own_test
            self.clients[one.client] = {"histogram": None, **self.clients.get(one.client, {}), **facts, **counts}
            self.class_names, self.num_transfer = one.class_names, one.num_transfer
        if notes:
            self._round(round_)["notes"].extend(notes)

    def answered(
        self,
        round_: int,
        member: Member,
        figures: Mapping[str, float],
        *,
        notes: Sequence[str],
        bytes_up: int,
        bytes_down: int,
    ) -> None:
        """Note a client's answer in an exchange; its figures are about the round before."""
        if round_ > 1:
            own = self._client(round_ - 1, member.client)
            own |= {name: figures.get(name) for name in FIGURES if name != "seconds"}
            own["rejected"] = bool(figures.get("rejected", 0.0))
            own["bytes_down"] = bytes_down  # what was fused in the round before comes with this exchange
        own = self._client(round_, member.client)
        own |= {"status": "ok", "bytes_up": bytes_up, "seconds": figures.get("seconds")}
        own["epsilon"] = figures.get("epsilon")  # of all training until then, this round's included
        self._round(round_)["notes"].extend(f"client {member.client}: {note}" for note in notes)

    def missing(self, round_: int, client: int, *, status: str, why: str) -> None:
        """Note that the answer of a client, which joined before, is missing or not usable."""
        own = self._client(round_, client)
        own |= {"status": status, "reason": why}
        self._round(round_)["notes"].append(f"client {client} ({self.clients[client]['name']}) {status}: {why}")

    def reasons(self, round_: int) -> list[str]:
        """Why answers of a round are missing."""
        return [str(one["reason"]) for one in self._round(round_)["clients"].values() if one.get("reason")]

    def fused(self, round_: int, fused: Fused) -> None:
        """Note what was made of the answers."""
        own = self._round(round_)
        own["members"] = list(fused.members)
        own["weights"] = None if fused.matrix is None else _six_digits(fused.matrix)
        for other in [one for one in self.rounds if one["weights"] is not None][1:-1]:
            other["weights"] = None  # the first and the last are shown; all would grow with the square of the clients
        own["notes"].extend(fused.notes)

    def gains(self, round_: int) -> dict[int, float]:
        """By client, how fine-tuning on what was fused in a round changed its validation accuracy."""
        if round_ < 1:
            return {}
        clients = self._round(round_)["clients"].items()
        return {
            int(client): one["val_after"] - one["val_before"]
            for client, one in clients
            if one.get("val_after") is not None and one.get("val_before") is not None
        }

    def keep(self, standing: Standing, *, chosen: Record | None) -> None:
        """Write everything; a server that is killed after this goes on with the next round."""
        self.chosen = chosen
        self._summarise()
        path = self._told_path(standing.round)
        with writing(self.folder):
            (self.folder / STATE).parent.mkdir(parents=True, exist_ok=True)
            told = _write_told(path, standing.told)
            state = {"round": standing.round, "strategy": standing.strategy, "told": told}
            self._write(state)
            for other in path.parent.glob("told-*.npz"):
                if other != path:
                    other.unlink(missing_ok=True)

    def close(self, last: int, *, chosen: Record | None) -> None:
        """Write everything; the run is complete, and needs no teachers any more.

        What was noted of the exchange after the ``last`` round belongs to that round.
        """
        self.chosen, self.closed = chosen, True
        closing = self._round(last + 1)
        self._round(last)["notes"].extend(closing["notes"])
        for client, own in closing["clients"].items():
            if own["status"] not in ("ok", None):  # it has no figures of the last round
                self._client(last, int(client)).update(status=own["status"], reason=own["reason"])
        self.rounds = [one for one in self.rounds if one["round"] <= last]
        self._summarise()
        with writing(self.folder):
            self._write({"round": last, "strategy": None, "told": {}})

    def line(self, round_: int) -> str | None:
        """A round in a line; ``None`` where it was not tested."""
        own = next((one for one in self.rounds if one["round"] == round_), None)
        if own is None or own["alma"] is None:
            return None
        offered = [one for one in own["clients"].values() if one.get("val_after") is not None]
        rejected = sum(bool(one.get("rejected")) for one in offered)
        missing = sum(one.get("status") not in ("ok", None) for one in own["clients"].values())
        shown = (
            f"round {round_}: ALMA {own['alma']:.1%} (worst {own['worst']:.1%}, all classes {own['alma_balanced']:.1%})"
        )
        shown += f", {rejected} of {len(offered)} went back" if offered else ""
        return f"{shown}, {missing} without a usable answer" if missing else shown

    def _write(self, rest: Mapping[str, Any]) -> None:
        state = {
            "clients": self.clients,
            "rounds": self.rounds,
            "chosen": self.chosen,
            "closed": self.closed,
            "class_names": self.class_names,
            "num_transfer": self.num_transfer,
            "run": self.run,
            **rest,
        }
        (self.folder / STATE).parent.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / METRICS, "".join(json.dumps({"kind": "round", **one}) + "\n" for one in self.rounds))
        write_text(self.folder / STATE, json.dumps(state))

    def _summarise(self) -> None:
        """Means over clients of each round; those that were not tested have none."""
        for one in self.rounds:
            own, balanced = (_values(one, name) for name in ("own_accuracy", "balanced_accuracy"))
            one["alma"] = float(np.mean(own)) if own else None
            one["worst"] = min(own) if own else None
            one["sd"] = float(np.std(own, ddof=1)) if len(own) > 1 else None
            one["alma_balanced"] = float(np.mean(balanced)) if balanced else None

    def _round(self, round_: int) -> Record:
        for one in self.rounds:
            if one["round"] == round_:
                return one
        empty: Record = {"members": [], "weights": None, "clients": {}, "notes": []}
        new: Record = {"round": round_, **empty, "alma": None, "alma_balanced": None, "worst": None, "sd": None}
        self.rounds.append(new)
        return new

    def _client(self, round_: int, client: int) -> Record:
        clients: dict[str, Record] = self._round(round_)["clients"]
        return clients.setdefault(str(client), {"status": None, "reason": None})

    def _told_path(self, round_: int) -> Path:
        return (self.folder / STATE).parent / f"told-{round_:05d}.npz"


def _six_digits(matrix: NDArray[np.float64]) -> list[list[float]]:
    """A matrix as plain data, with as many digits as anybody reads; rows add up to 1 but for their roundings."""
    return [[float(f"{one:.6g}") for one in row] for row in matrix]


def _values(one: Record, name: str) -> list[float]:
    return [client[name] for client in one["clients"].values() if client.get(name) is not None]


def _write_told(path: Path, told: Mapping[int, Told]) -> dict[str, Any]:
    """Write the arrays; what goes beside them, as plain data. Weights that several clients share are written once."""
    arrays: dict[str, NDArray[Any]] = {}
    facts: dict[str, Any] = {}
    places: dict[int, str] = {}
    for client, one in told.items():
        facts[str(client)] = {"temperature": one.temperature, "teacher": one.teacher is not None, "weights": None}
        if one.teacher is not None:
            arrays[f"soft.{client}"], arrays[f"rows.{client}"] = one.teacher.soft, one.teacher.rows
        if one.weights is not None:
            place = places.setdefault(id(one.weights), str(len(places)))
            facts[str(client)]["weights"] = place
            arrays |= {f"weights.{place}.{name}": value for name, value in one.weights.items()}
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, allow_pickle=False, **arrays)
    partial.replace(path)
    return facts


def _read_told(path: Path, facts: Mapping[str, Any]) -> dict[int, Told]:
    if not facts:
        return {}
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    networks: dict[str, dict[str, NDArray[Any]]] = {}
    for name, value in arrays.items():
        if name.startswith("weights."):
            _, place, inner = name.split(".", 2)
            networks.setdefault(place, {})[inner] = value
    return {
        int(client): Told(
            Knowledge(arrays[f"soft.{client}"], arrays[f"rows.{client}"]) if one["teacher"] else None,
            None if one["weights"] is None else networks[one["weights"]],
            one["temperature"],
        )
        for client, one in facts.items()
    }
