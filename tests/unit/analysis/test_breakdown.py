"""Where the time of a step went: every moment belongs to one part, and the parts add up to the step."""

import json
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile, record_function

from crossdistill.analysis.breakdown import OTHER, Span, breakdown, timeline

HOST, AUTOGRAD, DEVICE = 7, 8, 100
PARTS = ("a", "b", "c")
LENGTH = 60


def event(cat, name, start, end, *, thread=HOST, correlation=None):
    args = {} if correlation is None else {"correlation": correlation}
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": thread, "ts": start, "dur": end - start, "args": args}


def part(name, start, end, thread=HOST):
    return event("user_annotation", f"part/{name}", start, end, thread=thread)


def kernel(number, launched, start, end, *, thread=HOST, kind="kernel"):
    return [
        event("cuda_runtime", "cudaLaunchKernel", launched, launched, thread=thread, correlation=number),
        event(kind, "some_kernel", start, end, thread=DEVICE, correlation=number),
    ]


def split(events, *, end=LENGTH, steps=1):
    whole = event("user_annotation", "steps", 0, end)
    part_of = {f"part/{name}": name for name in PARTS}
    return breakdown([*events, whole], window="steps", part_of=part_of, order=PARTS, num_steps=steps)


def table(found, column="ms"):
    """Microseconds by part."""
    return {one.name: pytest.approx(1000 * getattr(one, column)) for one in found.parts}


def test_a_range_within_another_counts_for_itself_alone():
    found = split([part("a", 10, 50), part("b", 20, 30), part("a", 22, 25), part("b", 55, 60)])
    assert not found.on_device
    assert table(found) == {"a": 33, "b": 12, "c": 0, OTHER: 15}
    assert table(found, "host_ms") == table(found)
    assert table(found, "busy_ms") == dict.fromkeys((*PARTS, OTHER), 0)


def test_parts_are_of_the_mean_step():
    found = split([part("a", 0, 30), part("a", 40, 60)], steps=5)
    assert 1000 * found.ms == pytest.approx(12)
    assert table(found) == {"a": 10, "b": 0, "c": 0, OTHER: 2}
    assert found.parts[0].share == pytest.approx(50 / 60)
    assert found.num_steps == 5


def test_what_other_threads_and_other_times_hold_is_left_out():
    events = [part("a", -50, -10), part("a", 70, 90), part("b", 10, 20, thread=AUTOGRAD), part("c", -5, 5)]
    events += [event("cpu_op", "part/a", 0, 60), {"ph": "M", "name": "process_name"}]
    assert table(split(events)) == {"a": 0, "b": 0, "c": 5, OTHER: 55}


def test_a_kernel_belongs_to_the_part_that_launched_it_from_whatever_thread():
    events = [part("a", 0, 10), part("b", 10, 20)]
    events += kernel(1, 5, 12, 30) + kernel(2, 15, 30, 42, thread=AUTOGRAD) + kernel(3, 16, 45, 60, kind="gpu_memcpy")
    found = split(events)
    assert found.on_device
    assert table(found, "busy_ms") == {"a": 18, "b": 27, "c": 0, OTHER: 0}
    assert table(found, "idle_ms") == {"a": 10, "b": 2, "c": 0, OTHER: 3}
    assert table(found, "host_ms") == {"a": 10, "b": 10, "c": 0, OTHER: 40}
    assert table(found) == {"a": 28, "b": 29, "c": 0, OTHER: 3}


def test_streams_that_work_at_once_are_counted_once():
    events = [part("a", 0, 5), part("b", 5, 10), *kernel(1, 1, 10, 40), *kernel(2, 6, 20, 50), *kernel(3, 7, 22, 30)]
    assert table(split(events), "busy_ms") == {"a": 30, "b": 10, "c": 0, OTHER: 0}


def test_work_of_an_earlier_time_is_left_out():
    events = [*kernel(1, -9, -5, -1), *kernel(2, 3, 4, 10), event("kernel", "of nobody", 20, 30, thread=DEVICE)]
    assert table(split(events), "busy_ms") == {"a": 0, "b": 0, "c": 0, OTHER: 6}


@st.composite
def nested(draw, start=0, end=LENGTH, depth=3):
    """Ranges that lie in each other or apart, as blocks of code do."""
    if end - start < 2 or not depth:
        return []
    begin = draw(st.integers(start, end - 1))
    stop = draw(st.integers(begin + 1, end))
    inner = draw(nested(begin, stop, depth - 1))
    return [(draw(st.sampled_from(PARTS)), begin, stop), *inner, *draw(nested(stop, end, depth - 1))]


KERNELS = st.lists(
    st.tuples(st.integers(0, LENGTH - 1), st.integers(0, 10), st.integers(1, 20)).map(
        lambda one: (one[0], min(one[0] + one[1], LENGTH - 1), min(one[0] + one[1] + one[2], LENGTH))
    ),
    max_size=6,
)


@given(nested(), KERNELS)
def test_every_moment_belongs_to_one_part(ranges, kernels):
    """Against a count of every single microsecond."""
    order = sorted(range(len(ranges)), key=lambda index: ranges[index][1] - ranges[index][2])
    host = [OTHER] * LENGTH
    for name, start, end in (ranges[index] for index in order):  # the innermost is written last
        host[start:end] = [name] * (end - start)
    device = [None] * LENGTH
    for launched, start, end in sorted(kernels, key=lambda one: one[1]):
        for at in range(start, end):
            device[at] = device[at] or host[launched]
    events = [part(*one) for one in ranges]
    events += [one for number, times in enumerate(kernels) for one in kernel(number, *times)]
    found = split(events)
    expected = [busy or at for busy, at in zip(device, host, strict=True)] if kernels else host
    assert table(found) == {name: expected.count(name) for name in (*PARTS, OTHER)}
    assert sum(one.ms for one in found.parts) == pytest.approx(found.ms)
    assert sum(one.share for one in found.parts) == pytest.approx(1)


def test_a_range_that_ends_after_the_one_around_it_is_cut_off():
    spans = timeline(Span(0, 10, "x"), [Span(2, 6, "a"), Span(4, 6.5, "b")])
    assert spans == [Span(0, 2, "x"), Span(2, 4, "a"), Span(4, 6, "b"), Span(6, 10, "x")]


def test_a_real_profile_agrees_with_the_clock(tmp_path, monkeypatch):
    """Ranges lie between a clock within them and one around them."""
    monkeypatch.setenv("KINETO_LOG_LEVEL", "6")
    within, around = {}, {}

    def work(name, range_, inner=None):
        begin = time.perf_counter()
        with record_function(range_):
            started = time.perf_counter()
            torch.randn(100, 100) @ torch.randn(100, 100)
            time.sleep(0.01)
            if inner:
                inner()
            within[name] = 1000 * (time.perf_counter() - started)
        around[name] = 1000 * (time.perf_counter() - begin)

    def both():
        work("a and b", "part/a", lambda: work("b", "part/b"))
        work("c", "part/c")

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work("all", "steps", both)
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    part_of = {f"part/{name}": name for name in PARTS}
    split = breakdown(events, window="steps", part_of=part_of, order=PARTS, num_steps=1)
    ms = {one.name: one.ms for one in split.parts}
    found = {"a and b": ms["a"] + ms["b"], "b": ms["b"], "c": ms["c"], "all": split.ms}
    for name, value in found.items():
        assert within[name] - 0.1 <= value <= around[name] + 0.1, name
    assert sum(ms.values()) == pytest.approx(split.ms)
