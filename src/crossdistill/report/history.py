"""What one training run logged: ``metrics.jsonl`` as curves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from crossdistill.engine.log import METRICS

Axis = Literal["epoch", "step"]
Curve = tuple[tuple[float, float], ...]
"""Points (x, y) of one run, by growing x."""


@dataclass(frozen=True, slots=True)
class History:
    """The events of one run, in the order of their steps; a step that was run again after a resume counts once."""

    train: tuple[dict[str, Any], ...] = ()
    evaluate: tuple[dict[str, Any], ...] = ()

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the loss terms that were logged."""
        return tuple(dict.fromkeys(name for event in self.train for name in event.get("losses", {})))

    @property
    def steps_per_epoch(self) -> float | None:
        """Steps that make an epoch, from the first evaluation: the last may come in the middle of one."""
        first = self.evaluate[0] if self.evaluate else None
        return first["step"] / first["epoch"] if first and first["epoch"] else None

    @property
    def measured(self) -> tuple[str, ...]:
        """Names of the networks that the method made of its own and had measured."""
        keys = dict.fromkeys(key for event in self.evaluate for key in event if key.endswith("_top1"))
        return tuple(key.removesuffix("_top1") for key in keys)

    def accuracy(self, axis: Axis, network: str | None = None) -> Curve:
        """Top-1 accuracy of each evaluation, of the student or of such a network."""
        key = "top1" if network is None else f"{network}_top1"
        return _curve((event[axis], event.get(key)) for event in self.evaluate)

    def loss(self, axis: Axis, term: str | None = None) -> Curve:
        """The training loss, or one of its terms; by epoch, the mean of what was logged in it."""
        if term is None:
            return _means(_curve((event[axis], _total(event)) for event in self.train))
        return _means(_curve((event[axis], event.get("losses", {}).get(term)) for event in self.train))

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of what the method showed of itself."""
        return tuple(dict.fromkeys(name for event in self.train for name in event.get("figures", {})))

    def figure(self, axis: Axis, name: str) -> Curve:
        """One of these figures; by epoch, the mean of what was logged in it."""
        return _means(_curve((event[axis], event.get("figures", {}).get(name)) for event in self.train))

    def median(self, key: str) -> float | None:
        """Median over the training events of a number such as ``images_per_second``."""
        values = sorted(float(event[key]) for event in self.train if event.get(key) is not None)
        return values[len(values) // 2] if values else None


def read_history(folder: Path) -> History:
    """The events of a run folder; none where it logged none. Lines cut short by a crash are passed over."""
    try:
        lines = (folder / METRICS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return History()
    events = [event for line in lines if (event := _parse(line)) is not None]
    return History(train=_by_step(events, "train"), evaluate=_by_step(events, "eval"))


def _parse(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(event, dict) and isinstance(event.get("step"), int) and "epoch" in event
    return event if whole else None


def _by_step(events: Iterable[dict[str, Any]], kind: str) -> tuple[dict[str, Any], ...]:
    last = {event["step"]: event for event in events if event.get("kind") == kind}
    return tuple(last[step] for step in sorted(last))


def _total(event: dict[str, Any]) -> float | None:
    return sum(event["losses"].values()) if event.get("losses") else None


def _curve(points: Iterable[tuple[Any, Any]]) -> Curve:
    return tuple((float(x), float(y)) for x, y in points if y is not None and math.isfinite(y))


def _means(curve: Curve) -> Curve:
    groups: dict[float, list[float]] = {}
    for x, y in curve:
        groups.setdefault(x, []).append(y)
    return tuple((x, sum(values) / len(values)) for x, values in groups.items())
