"""Where the time of training steps went, from a profiler's trace: the parts of a step, which add up to it.

Source of the trace: ``torch.profiler.profile.export_chrome_trace``. Ranges are ``record_function`` blocks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

OTHER = "other"
"""The part of whatever lies in no range."""

_RANGE, _WORK = "user_annotation", ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCH = ("cuda_runtime", "cuda_driver")

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a step, in milliseconds a step.

    Args:
        host_ms: the host was in this part's range, and in none within it.
        busy_ms: the device worked on what was launched there; 0 without a device.
        idle_ms: the device had nothing to do while the host was there; 0 without a device.
        ms: what the part adds to the step: ``busy_ms + idle_ms`` with a device, else ``host_ms``.
        share: the same as a share of the step.
    """

    name: str
    host_ms: float
    busy_ms: float
    idle_ms: float
    ms: float
    share: float


@dataclass(frozen=True, slots=True)
class Breakdown:
    """The parts of the mean step of a profile, in the order asked for; their ``ms`` add up to ``ms``."""

    ms: float
    num_steps: int
    on_device: bool
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time, in the trace's microseconds, and the part it belongs to."""

    start: float
    end: float
    part: str


def breakdown(
    events: Iterable[Event], *, window: str, part_of: Mapping[str, str], order: Sequence[str], num_steps: int
) -> Breakdown:
    """Split the range ``window``, which holds ``num_steps`` steps and ends when the device has nothing left to do.

    Without a device's work in the trace, the host's time is what is split. With it, every moment goes to the part whose
    launch the device was working on, or, where it had nothing to do, to the part in which the host was. Work of
    several streams at once counts for the one that began first, so that nothing is counted twice.

    Args:
        events: ``traceEvents`` of the trace.
        window: name of the range around all steps.
        part_of: name of a range -> its part; a range within another one counts for its own part only.
        order: the parts; :data:`OTHER` is added at the end.
        num_steps: steps in the window.
    """
    events = [event for event in events if event.get("ph") == "X"]
    around = next(event for event in events if event.get("cat") == _RANGE and event["name"] == window)
    whole, thread = _span(around, OTHER), _thread(around)
    ranges = [
        _span(event, part_of[event["name"]])
        for event in events
        if event.get("cat") == _RANGE and event["name"] in part_of and _thread(event) == thread
    ]
    host = timeline(whole, ranges)
    work = _device_work(events, host)
    host_us, idle_us = _sums(host), _sums(_idle(whole, host, work))
    busy_us = _sums(_in_turn(work, whole))
    counted = _added(busy_us, idle_us) if work else host_us
    total = whole.end - whole.start
    each = 1000.0 * num_steps
    parts = (
        Part(
            name=name,
            host_ms=host_us[name] / each,
            busy_ms=busy_us[name] / each if work else 0.0,
            idle_ms=idle_us[name] / each if work else 0.0,
            ms=counted[name] / each,
            share=counted[name] / total,
        )
        for name in (*order, OTHER)
    )
    return Breakdown(total / each, num_steps, bool(work), tuple(parts))


def timeline(whole: Span, ranges: Iterable[Span]) -> list[Span]:
    """The host's time without gaps or overlaps: each moment belongs to the innermost range it lies in.

    >>> timeline(Span(0, 9, "other"), [Span(1, 6, "a"), Span(2, 3, "b")])[1:4]
    [Span(start=1, end=2, part='a'), Span(start=2, end=3, part='b'), Span(start=3, end=6, part='a')]
    """
    spans: list[Span] = []
    open_, at = [whole], whole.start

    def go_on(until: float) -> None:
        nonlocal at
        if until > at:
            spans.append(Span(at, until, open_[-1].part))
            at = until

    inside = (span for span in ranges if span.end > whole.start and span.start < whole.end)
    for span in sorted(inside, key=lambda one: (one.start, -one.end)):
        while open_[-1].end <= span.start:
            go_on(open_[-1].end)
            open_.pop()
        go_on(span.start)
        # Clocks of few digits may let a range end a little after the one around it.
        open_.append(Span(span.start, min(span.end, open_[-1].end), span.part))
    while open_:
        go_on(open_[-1].end)
        open_.pop()
    return spans


def _device_work(events: Sequence[Event], host: Sequence[Span]) -> list[Span]:
    """What the device did, in the part in which the host was when it launched it, on whatever thread.

    Gradients are computed by a thread of PyTorch's own while the main one waits in its range, so the moment of the
    launch tells the part, and the thread does not.
    """
    launches = {
        event["args"]["correlation"]: float(event["ts"])
        for event in events
        if event.get("cat") in _LAUNCH and "correlation" in event.get("args", {})
    }
    starts = [span.start for span in host]
    work = []
    for event in events:
        launched = launches.get(event.get("args", {}).get("correlation")) if event.get("cat") in _WORK else None
        if launched is not None and host[0].start <= launched <= host[-1].end:
            work.append(_span(event, host[bisect_right(starts, launched) - 1].part))
    return sorted(work, key=attrgetter("start"))


def _in_turn(work: Iterable[Span], whole: Span) -> list[Span]:
    """The device's work, by start, without what overlaps earlier work."""
    spans, covered = [], whole.start
    for span in work:
        start = max(span.start, covered)
        if span.end > start:
            spans.append(Span(start, span.end, span.part))
            covered = span.end
    return spans


def _idle(whole: Span, host: Sequence[Span], work: Iterable[Span]) -> list[Span]:
    """Where the device had nothing to do, and the part in which the host was then."""
    gaps, at = [], whole.start
    for span in _in_turn(work, whole):
        gaps.append((at, span.start))
        at = span.end
    gaps.append((at, whole.end))
    starts = [span.start for span in host]
    spans = []
    for start, end in gaps:
        index = max(0, bisect_right(starts, start) - 1)
        while index < len(host) and host[index].start < end:
            overlap = Span(max(start, host[index].start), min(end, host[index].end), host[index].part)
            if overlap.end > overlap.start:
                spans.append(overlap)
            index += 1
    return spans


def _sums(spans: Iterable[Span]) -> defaultdict[str, float]:
    sums: defaultdict[str, float] = defaultdict(float)
    for span in spans:
        sums[span.part] += span.end - span.start
    return sums


def _added(one: Mapping[str, float], other: Mapping[str, float]) -> defaultdict[str, float]:
    return defaultdict(float, {name: one.get(name, 0.0) + other.get(name, 0.0) for name in {*one, *other}})


def _span(event: Event, part: str) -> Span:
    start = float(event["ts"])
    return Span(start, start + float(event["dur"]), part)


def _thread(event: Event) -> tuple[Any, Any]:
    return event["pid"], event["tid"]
