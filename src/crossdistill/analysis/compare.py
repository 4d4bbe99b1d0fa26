"""Did distillation help? Mean and spread over seeds, the paired difference, and the verdict in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.special import stdtrit

_LEVEL = 0.95
_NO_SPREAD = 1e-12  # differences of equal accuracies differ by rounding only

Outcome = Literal["helped", "hurt", "unclear"]


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean and sample standard deviation (``None`` for a single value) of ``num`` values."""

    mean: float
    sd: float | None
    num: int


def summarise(values: Sequence[float]) -> Summary:
    """Summary of at least one value.

    >>> summarise([0.25, 0.75])
    Summary(mean=0.5, sd=0.3535533905932738, num=2)
    """
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), sd, len(values))


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of (distilled - baseline) over common seeds, with its standard error and 95 % interval.

    The interval is Student's t with ``num_seeds - 1`` degrees of freedom. It is ``None`` for one seed, and where
    all seeds differ by the same amount: no spread was seen, which does not mean that there is none.
    """

    mean: float
    num_seeds: int
    standard_error: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def outcome(self) -> Outcome:
        """``helped`` or ``hurt`` only where the interval excludes zero."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "unclear"
        return "helped" if self.mean > 0 else "hurt"


def difference(baseline: Mapping[int, float], distilled: Mapping[int, float]) -> Difference | None:
    """Paired difference of two mappings seed -> accuracy; ``None`` when they share no seed.

    Pairing is fair because a seed fixes the labelled subset and the initial weights of both, and with all labels the
    order of the images too.
    """
    seeds = sorted(baseline.keys() & distilled.keys())
    if not seeds:
        return None
    differences = [distilled[seed] - baseline[seed] for seed in seeds]
    mean = statistics.fmean(differences)
    if len(seeds) == 1:
        return Difference(mean, 1)
    error = statistics.stdev(differences) / math.sqrt(len(seeds))
    if error < _NO_SPREAD:
        return Difference(mean, len(seeds), standard_error=0.0)
    reach = error * float(stdtrit(len(seeds) - 1, (1 + _LEVEL) / 2))
    return Difference(mean, len(seeds), error, (mean - reach, mean + reach))


def verdict(baseline: Mapping[int, float], distilled: Mapping[int, float], *, subject: str = "Distillation") -> str:
    """One honest sentence on two mappings seed -> top-1 accuracy (shares 0 to 1).

    >>> verdict({0: 0.90, 1: 0.91, 2: 0.92}, {0: 0.95, 1: 0.97, 2: 0.96})
    'Distillation helped: +5.0 points of top-1 accuracy (95 % interval +2.5 to +7.5, 3 paired seeds).'
    """
    measured = difference(baseline, distilled)
    if measured is None:
        return f"{subject}: no seed in common with the student alone, so no difference can be measured."
    gain = f"{points(measured.mean)} points of top-1 accuracy"
    seeds = f"{measured.num_seeds} paired seeds"
    if measured.num_seeds == 1:
        return f"{subject}: {gain} with one seed: no spread is known, so this may be chance."
    if measured.interval is None:
        if abs(measured.mean) < _NO_SPREAD:
            return f"{subject}: no difference measured; the accuracies are equal on each of {seeds}."
        return f"{subject}: {gain} on each of {seeds}: no spread was seen, so no interval can be given."
    spread = f"(95 % interval {points(measured.interval[0])} to {points(measured.interval[1])}, {seeds})"
    if measured.outcome == "unclear":
        return f"{subject}: no difference measured; {gain} {spread} is within the noise."
    return f"{subject} {measured.outcome}: {gain} {spread}."


def points(share: float) -> str:
    """A difference of shares as signed percentage points; a second decimal where one would round to zero.

    >>> points(0.0525), points(-0.0004), points(0.0)
    ('+5.2', '−0.04', '0.0')
    """
    value = 100 * share
    rounded = f"{abs(value):.1f}" if abs(value) >= 0.05 else f"{abs(value):.2f}"
    if float(rounded) == 0:
        return "0.0"
    return ("+" if value > 0 else "−") + rounded
