"""Networks that a method makes of its own are evaluated with the student, and logged beside it."""

import json
from dataclasses import replace

import pytest

from crossdistill.engine import fit
from crossdistill.engine.devices import connect
from crossdistill.engine.evaluate import evaluate
from crossdistill.engine.measured import below_student
from crossdistill.engine.progress import Quiet, evaluation_text
from crossdistill.engine.record import FitResult
from crossdistill.teachers import FrozenTeacher
from samples.training import Measured, SmallNet, TensorLoader, settings


class Watch(Quiet):
    """Keeps the lines of evaluations."""

    def __init__(self):
        self.lines = []

    def evaluated(self, line):
        self.lines.append(line)


def run(out=None, reporter=None, **changes):
    student = SmallNet(seed=1, dropout=0.3, batch_norm=True)
    method, loader = Measured(student), TensorLoader(unlabelled=5)
    teacher = FrozenTeacher(SmallNet(seed=2))
    result = fit(
        student,
        method,
        teacher,
        loader,
        loader.evaluation(),
        settings=settings(**changes),
        device="cpu",
        out=out,
        reporter=reporter,
    )
    return method, loader, result


def test_they_are_evaluated_with_the_student_and_logged_wherever_it_is(tmp_path):
    watch = Watch()
    method, loader, result = run(tmp_path, watch)
    network = method.measured()["fused"]
    found = evaluate(network, loader.evaluation(), accelerator=connect("cpu"))["top1"]
    assert result.history[-1]["fused_top1"] == result.metrics["fused_top1"] == found
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in logged if line["kind"] == "eval"]
    assert [line["fused_top1"] for line in evaluations] == [line["fused_top1"] for line in result.history]
    assert len(evaluations) == len(watch.lines) == 3
    assert evaluation_text(watch.lines[-1]).endswith(f", fused {found:.1%}")
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"eval/fused_top1" in events.read_bytes()


def test_they_are_measured_as_they_are_trained_also_where_the_student_is_an_average():
    raw, averaged = (run(ema_decay=decay)[2].history for decay in (None, 0.9))
    assert [line["fused_top1"] for line in averaged] == [line["fused_top1"] for line in raw]
    assert [line["loss"] for line in averaged] != [line["loss"] for line in raw]


def test_measuring_changes_nothing_else():
    class Unmeasured(Measured):
        def measured(self):
            return {}

    student = SmallNet(seed=1, dropout=0.3, batch_norm=True)
    loader, teacher = TensorLoader(unlabelled=5), FrozenTeacher(SmallNet(seed=2))
    plain = fit(
        student, Unmeasured(student), teacher, loader, loader.evaluation(), settings=settings(), device="cpu"
    ).history
    measured = run()[2].history
    assert [{k: v for k, v in line.items() if k != "fused_top1"} for line in measured] == plain


def result_of(metrics, *others):
    history = [{**line, "epoch": epoch} for epoch, line in enumerate((metrics, *others), start=1)]
    return FitResult(metrics, 1 if others else None, history, 1.0, 1.0, 0.0, 1)


def shares(fused, num_samples, top1=0.5):
    return {"top1": top1, "top5": 0.9, "fused_top1": fused, "loss": 1.0, "num_samples": num_samples}


# Three standard errors of the difference of 50 % and 40 % are 10 points at 441 images.
@pytest.mark.parametrize(("fused", "num_samples", "warned"), [(0.4, 442, True), (0.4, 440, False), (0.6, 10000, False)])
def test_one_that_is_clearly_below_the_student_is_warned_of(fused, num_samples, warned):
    warnings = below_student(result_of(shares(fused, num_samples)), settings())
    assert len(warnings) == warned
    assert all(text.startswith("the fused network") and "40.0%" in text and "50.0%" in text for text in warnings)


@pytest.mark.parametrize(("best", "last", "warned"), [(0.1, 0.5, True), (0.5, 0.1, False)])
def test_what_is_compared_is_the_epoch_that_is_reported(best, last, warned):
    result = result_of(shares(best, 1000), shares(last, 1000, top1=0.45))
    assert len(below_student(result, settings(select="best"))) == warned


def test_an_average_is_not_compared_with_networks_that_are_none():
    assert below_student(result_of(shares(0.1, 1000)), settings())
    assert not below_student(result_of(shares(0.1, 1000)), settings(ema_decay=0.9))


def test_a_run_s_result_holds_what_is_compared():
    _, _, result = run(epochs=1)
    assert below_student(replace(result, metrics={**result.metrics, "top1": 1.0, "fused_top1": 0.0}), settings())
