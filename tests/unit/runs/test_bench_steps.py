"""Steps on request are those of the loop; a method's modules are told from the rest of it, and nothing stays behind."""

import itertools
import json
import os
import resource
import signal
from collections import Counter

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from crossdistill import build
from crossdistill.analysis.turns import order_of
from crossdistill.contracts import Batch, Outputs
from crossdistill.engine import fit
from crossdistill.errors import InputError, Interrupted
from crossdistill.runs import bench_steps
from crossdistill.runs.bench_steps import (
    NUM_HELD,
    Stepper,
    at_hand,
    bridges_told_apart,
    in_turn,
    profiled,
    timed,
)
from crossdistill.runs.objective import build_method, resolve_method
from crossdistill.teachers import FrozenTeacher
from samples.training import Alone, Match, SmallNet, TensorLoader, settings

CPU = torch.device("cpu")


def stepper(method=None, **changes):
    student, teacher = SmallNet(), FrozenTeacher(SmallNet(seed=1))
    return Stepper(student, method or Match(), teacher, TensorLoader(), None, settings(**changes), 0, "cpu", None)


def measured(trainer, what):
    """What is found while the trainer's loop is set up."""
    found = []
    trainer.measure(lambda: found.append(what()))
    return found[0]


@pytest.fixture(scope="module")
def pair():
    """A CNN taught by a transformer, and a batch for both."""
    student = build("timm/test_resnet", num_classes=10, image_size=32)
    teacher = FrozenTeacher(build("timm/test_vit", num_classes=10, image_size=32))
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = Batch({"student": images, "teacher0": images}, torch.arange(4), torch.arange(4))
    return student, teacher, batch


def ranges(pair, name, **options):
    """How often each range is opened in one pass of the method, and by which modules it could be."""
    student, teacher, batch = pair
    name, options = resolve_method(name, options)
    method = build_method(name, options, student, teacher, num_classes=10)
    outputs, signals = student(batch.images["student"]), teacher.signals(batch)
    live = [student, *teacher.modules()]
    with bridges_told_apart(method, live), profile(activities=[ProfilerActivity.CPU]) as profiler:
        method(outputs, signals, batch)
    hooked = [m for m in [*method.modules(), *student.modules(), *teacher.modules()] if m._forward_hooks]
    assert not hooked
    assert not any("forward_from" in vars(m) for m in live)
    return Counter(one.name for one in profiler.events() if one.name.startswith("crossdistill/"))[
        "crossdistill/bridges"
    ]


def test_steps_on_request_train_as_the_loop_does():
    trainer = stepper(epochs=3)
    steps = trainer.steps()
    measured(trainer, lambda: [next(steps) for _ in range(12)])
    student = SmallNet()
    result = fit(student, Match(), FrozenTeacher(SmallNet(seed=1)), TensorLoader(), None, settings=settings(epochs=3))
    assert result.steps == trainer.record.step == 12
    for name, value in student.state_dict().items():
        assert torch.equal(value, trainer.student.state_dict()[name]), name


def test_after_the_last_epoch_comes_the_first_again():
    """A store holds the epochs of the run and no others."""
    trainer, epochs = stepper(epochs=2), []
    trainer.train_loader.epoch = lambda epoch, **more: epochs.append(epoch) or TensorLoader().epoch(epoch, **more)
    steps = trainer.steps()
    measured(trainer, lambda: [next(steps) for _ in range(4 * 5)])
    assert epochs == [0, 1, 0, 1, 0]


def test_times_are_of_each_step():
    trainer = stepper()
    steps = trainer.steps()
    found = measured(trainer, lambda: timed(trainer, steps, 5))
    assert len(found.ms) == 5
    assert min(found.ms) > 0
    assert found.images_per_second <= 5 * 16 / (sum(found.ms) / 1000)
    assert 0 <= found.data_wait_share <= 1


def test_the_peak_of_memory_is_that_of_the_timed_steps():
    trainer, large = stepper(), 128 * 2**20
    steps = trainer.steps()

    def with_more():
        for _ in steps:
            held = torch.ones(large, dtype=torch.uint8)
            del held
            yield

    before, more, after = measured(trainer, lambda: [timed(trainer, way, 2) for way in (steps, with_more(), steps)])
    assert 0.9 * large < more.peak_bytes - before.peak_bytes < 1.5 * large
    if bench_steps._RESET.exists() and os.access(bench_steps._RESET, os.W_OK):
        assert after.peak_bytes < more.peak_bytes - large / 2


def test_a_system_that_keeps_the_peak_is_no_trouble(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_steps, "_RESET", tmp_path)  # writing to a folder is an OSError
    bench_steps.reset_peak(CPU)
    assert bench_steps.peak_bytes(CPU) > 0


def test_no_batch_is_kept_while_steps_are_timed():
    trainer, kept = stepper(), []
    steps = trainer.steps()

    def watched():
        for _ in steps:
            kept.append(len(trainer.held))
            yield

    def measure():
        for _ in range(NUM_HELD):
            next(steps)
        timed(trainer, watched(), 5)
        for _ in range(2):
            next(steps)
        return len(trainer.held)

    assert measured(trainer, measure) == 2
    assert kept == [0] * 5


def test_the_profile_holds_every_phase_of_the_steps_asked_for():
    trainer = stepper()
    steps = trainer.steps()
    ms, trace = measured(trainer, lambda: profiled(trainer, steps, 3, split_method=True))
    names = Counter(one["name"] for one in trace["traceEvents"] if one.get("cat") == "user_annotation")
    phases = ("data", "teacher", "student", "method", "bridges", "backward", "optimizer")
    assert {name: names[f"crossdistill/{name}"] for name in phases} == dict.fromkeys(phases, 3)
    whole = next(one for one in trace["traceEvents"] if one["name"] == "crossdistill/steps")
    assert whole["dur"] / 1000 / 3 <= ms


def test_a_range_a_bridge_but_none_for_the_modules_in_it(pair):
    num_branches = len(pair[0].spec.stages)
    assert ranges(pair, "ofa") == num_branches
    assert ranges(pair, "kd") == 0
    assert ranges(pair, "fitnet") >= 1


def test_methods_made_of_methods_are_looked_into(pair):
    alone = ranges(pair, "ofa")
    assert ranges(pair, "hybrid", methods={"ofa": {}, "kd": {}}) == alone


def test_the_borrowed_part_of_a_fused_network_is_a_bridge(pair):
    """The bridge, the last stage that goes on from it, and what each of the three pairs projects."""
    only_logits = ranges(pair, "fbt", nce_weight=0.0)
    assert only_logits == 2
    assert ranges(pair, "fbt") == 2 + 3


def test_networks_as_children_of_a_method_count_only_within_it():
    class Holds(Match):
        def __init__(self, student):
            super().__init__()
            self.live = student

        def forward(self, student, teacher, batch):
            self.live(batch.images["student"])
            return super().forward(student, teacher, batch)

    student = SmallNet()
    method, batch = Holds(student), TensorLoader()._batch(torch.arange(4), 0)

    def opened(run):
        with bridges_told_apart(method, [student]), profile(activities=[ProfilerActivity.CPU]) as profiler:
            run()
        return sum(one.name == "crossdistill/bridges" for one in profiler.events())

    outputs = student(batch.images["student"])
    assert opened(lambda: student(batch.images["student"])) == 0
    assert opened(lambda: method(outputs, outputs, batch)) == 2


def test_a_method_that_fails_leaves_no_range_open():
    class Fails(Alone):
        def __init__(self):
            super().__init__()
            self.bridge = nn.Linear(3, 3)

        def forward(self, student, teacher, batch):
            self.bridge(torch.ones(1, 2))

    method = Fails()
    with bridges_told_apart(method, []), profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="shapes"):
                method(Outputs(), Outputs(), None)
    assert sum(one.name == "crossdistill/bridges" for one in profiler.events()) == 2


def test_answers_at_hand_are_those_of_the_teacher():
    """A step with them changes the weights as a step with the teacher does."""

    def trained(way):
        trainer = stepper()
        steps = trainer.steps()

        def measure():
            for _ in range(NUM_HELD + 1):
                next(steps)
            assert len(trainer.held) == NUM_HELD
            if way == "at hand":
                known = at_hand(trainer)
                known.serve(2)
                trainer.teacher = known
            trainer.train_step(trainer.held[2])

        trainer.measure(measure)
        return trainer.student.state_dict()

    for one, other in zip(trained("at hand").values(), trained("live").values(), strict=True):
        assert torch.equal(one, other)


def test_ways_take_turns():
    order = []
    ways = {name: lambda index, name=name: order.append((name, index)) for name in "xyz"}
    taken = in_turn(ways, 6, CPU, num_held=4)
    assert {name: len(ms) for name, ms in taken.items()} == dict.fromkeys("xyz", 6)
    rounds = [order[start : start + 3] for start in range(0, len(order), 3)]
    assert [{index for _, index in one} for one in rounds] == [{number % 4} for number in range(7)]
    names = ["".join(name for name, _ in one) for one in rounds]
    assert names == ["".join("xyz"[at] for at in order_of(number, 3)) for number in range(7)]


def test_nothing_always_follows_the_same_other_one():
    """What one leaves in a cache must not always serve the same next one."""
    orders = [order_of(number, 3) for number in range(20)]
    assert {tuple(sorted(order)) for order in orders} == {(0, 1, 2)}
    assert all(one == other[::-1] for one, other in zip(orders[::2], orders[1::2], strict=True))
    followed = Counter(pair for order in orders for pair in itertools.pairwise(order))
    assert len(followed) == 6
    assert max(followed.values()) < 20


def test_an_interruption_ends_it():
    trainer = stepper()
    steps = trainer.steps()

    def measure():
        next(steps)
        signal.raise_signal(signal.SIGTERM)
        next(steps)

    with pytest.raises(Interrupted):
        trainer.measure(measure)


def test_a_profile_that_finds_no_room_says_so():
    trainer = stepper()
    steps = trainer.steps()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def measure():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        try:
            profiled(trainer, steps, 1, split_method=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    with pytest.raises(InputError, match="TMPDIR"):
        trainer.measure(measure)


def test_a_trace_is_plain_json():
    trainer = stepper()
    steps = trainer.steps()
    _, trace = measured(trainer, lambda: profiled(trainer, steps, 1, split_method=False))
    assert json.loads(json.dumps(trace))["traceEvents"]
    assert not any(one["name"] == "crossdistill/bridges" for one in trace["traceEvents"])
