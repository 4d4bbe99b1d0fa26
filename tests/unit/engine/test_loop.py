"""What training does: it learns, equals its own arithmetic, and stops where it must."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from crossdistill.engine import fit
from crossdistill.errors import InputError
from crossdistill.teachers import FrozenTeacher
from samples.training import NUM_CLASSES, Alone, Match, SmallNet, TensorLoader, settings


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def run(student=None, method=None, loader=None, teacher=True, **changes):
    student = student or SmallNet(seed=1)
    loader = loader or TensorLoader()
    keywords = {key: changes.pop(key) for key in ("out", "reporter", "max_steps", "seed") if key in changes}
    result = fit(
        student,
        method or Match(),
        FrozenTeacher(SmallNet(seed=2)) if teacher else None,
        loader,
        loader.evaluation(),
        settings=settings(**changes),
        device="cpu",
        **keywords,
    )
    return student, result


def weights(student):
    return {name: tensor.clone() for name, tensor in student.state_dict().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_the_student_learns_and_the_result_describes_it():
    student, result = run(method=Alone(), teacher=False, epochs=30)
    losses = [line["loss"] for line in result.history]
    assert losses[-1] < 0.5 * losses[0]
    assert result.metrics["top1"] > 0.9 > 1 / NUM_CLASSES + 0.3
    assert result.steps == 120
    assert len(result.history) == 30
    assert not student.training
    loader = TensorLoader()
    correct = (student(loader.images).logits.argmax(1) == loader.target).float().mean().item()
    assert result.metrics["top1"] == pytest.approx(correct)
    assert result.best_epoch is None
    assert result.seconds > 0
    assert result.images_per_second == pytest.approx(120 * 16 / result.seconds)
    assert 0 <= result.data_wait_share <= 1


def test_steps_equal_a_loop_written_out_by_hand():
    """Cosine, AdamW with weight decay on matrices only, clipping: as plain PyTorch does it."""
    student, _ = run(lr=0.05, steps=6, clip_grad=0.5, weight_decay=0.1, min_lr=0.001)
    mine, method, teacher, loader = SmallNet(seed=1), Match(), SmallNet(seed=2).eval(), TensorLoader()
    parameters = [*mine.parameters(), *method.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ]
    )
    batches = [step[0] for epoch in (0, 1) for step in loader.epoch(epoch)][:6]
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = 0.001 + 0.5 * (0.05 - 0.001) * (1 + math.cos(math.pi * step / 6))
        with torch.no_grad():
            answer = teacher(batch.images["teacher0"])
        outputs = mine(batch.images["student"])
        loss = F.cross_entropy(outputs.logits, batch.target) + sum(method(outputs, answer, batch).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
    for name, tensor in mine.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


def test_the_methods_own_parameters_are_trained_and_the_teacher_is_not():
    method, teacher = Match(), FrozenTeacher(SmallNet(seed=2, batch_norm=True))
    before, taught = copy.deepcopy(method.state_dict()), teacher.fingerprint()
    loader = TensorLoader()
    fit(SmallNet(), method, teacher, loader, None, settings=settings(epochs=1), device="cpu")
    assert not torch.equal(before["projector.weight"], method.state_dict()["projector.weight"])
    assert teacher.fingerprint() == taught


@pytest.mark.parametrize("unlabelled", [None, 3])
def test_micro_batches_add_up_to_the_large_batch(unlabelled):
    """Also of unequal sizes, and with labels missing unequally."""
    whole, _ = run(loader=TensorLoader(unlabelled=unlabelled))
    parts, _ = run(loader=TensorLoader(unlabelled=unlabelled, micro_batch=5))
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


def test_clipping_limits_the_step_of_plain_sgd():
    student, changes = SmallNet(seed=1), {"optimizer": "momentum", "momentum": 0.0, "weight_decay": 0.0}
    before = weights(student)
    run(student, Alone(), teacher=False, steps=1, lr=1.0, schedule="constant", clip_grad=0.01, **changes)
    moved = torch.cat([(student.state_dict()[name] - before[name]).flatten() for name in before]).norm()
    assert moved.item() == pytest.approx(0.01, rel=1e-3)


def test_label_smoothing_and_weight_of_hard_labels_reach_the_loss(tmp_path):
    from crossdistill.engine.log import read

    run(method=Alone(), teacher=False, out=tmp_path, steps=1, label_smoothing=0.2, cross_entropy_weight=3.0)
    batch = next(TensorLoader().epoch(0))[0]
    expected = 3 * F.cross_entropy(SmallNet(seed=1)(batch.images["student"]).logits, batch.target, label_smoothing=0.2)
    line = read(tmp_path / "metrics.jsonl")[0]
    assert line["losses"] == {"cross_entropy": pytest.approx(expected.item())}


def test_a_method_that_holds_the_hard_label_term_gets_no_second_one(tmp_path):
    from crossdistill.engine.log import read

    method = Match()
    method.includes_cross_entropy = True
    run(method=method, out=tmp_path, steps=1)
    assert set(read(tmp_path / "metrics.jsonl")[0]["losses"]) == {"soft", "hint"}


def test_the_moving_average_is_what_is_measured_and_kept():
    """Against the weights of every step, averaged by hand: decay min(0.8, t / (t + 10)), first update a copy."""
    snapshots = []
    student = SmallNet(seed=1, batch_norm=True)

    class Watch(Alone):
        def forward(self, outputs, teacher, batch):
            snapshots.append(weights(student))
            return {}

    loader = TensorLoader()
    result = fit(
        student,
        Watch(),
        None,
        loader,
        loader.evaluation(),
        settings=settings(steps=9, ema_decay=0.4),
        device="cpu",
    )
    raw, _ = run(SmallNet(seed=1, batch_norm=True), Alone(), teacher=False, steps=9)
    steps = [*snapshots[1:], weights(raw)]
    # A forward pass sees the batch statistics of its own step, all other weights of the step before.
    average = {name: steps[0][name] for name in ("hidden.weight", "head.bias")}
    for t, current in enumerate(steps[1:], start=1):
        decay = min(0.4, t / (t + 10))
        average = {name: decay * average[name] + (1 - decay) * current[name] for name in average}
    for name in average:
        torch.testing.assert_close(student.state_dict()[name], average[name])
        assert not torch.equal(student.state_dict()[name], raw.state_dict()[name])
    correct = (student(loader.images).logits.argmax(1) == loader.target).float().mean().item()
    assert result.metrics["top1"] == pytest.approx(correct)


def test_the_best_epoch_is_kept_when_asked_for():
    """A learning rate that ruins the student late: the best epoch is an earlier one, and its weights come back."""
    student, result = run(method=Alone(), teacher=False, epochs=8, lr=1.0, select="best", weight_decay=0.0)
    accuracies = [line["top1"] for line in result.history]
    assert result.best_epoch == accuracies.index(max(accuracies)) + 1
    assert result.metrics["top1"] == max(accuracies)
    loader = TensorLoader()
    correct = (student(loader.images).logits.argmax(1) == loader.target).float().mean().item()
    assert correct == pytest.approx(max(accuracies))


def test_evaluations_come_when_due_and_always_at_the_end():
    _, result = run(method=Alone(), teacher=False, steps=18, eval_every=2)
    assert [(line["epoch"], line["step"]) for line in result.history] == [(2, 8), (4, 16), (5, 18)]


def test_a_loss_that_is_not_finite_is_named_with_its_step(tmp_path):
    calls = []

    class Breaks(Alone):
        def forward(self, student, teacher, batch):
            calls.append(0)
            sound = student.logits.square().mean()
            return {"sound": sound, "broken": sound / 0 if len(calls) == 5 else sound}

    with pytest.raises(InputError, match=r"loss 'broken' is inf at step 5") as error:
        run(method=Breaks(), out=tmp_path, epochs=5, log_every=100)
    assert "lower train.lr (now 0.02)" in str(error.value)
    assert "set train.clip_grad" in str(error.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """The square root of 0 has a sound value and a broken gradient."""

    class Breaks(Alone):
        def forward(self, student, teacher, batch):
            return {"root": (student.logits * 0).sum().sqrt()}

    with pytest.raises(InputError, match="holds values that are not finite after step 1"):
        run(method=Breaks(), out=tmp_path, steps=1, cross_entropy_weight=0.0)
    assert not (tmp_path / "checkpoints").exists()


def test_generators_are_seeded_per_step_whatever_happened_before():
    torch.manual_seed(123)
    one, _ = run(SmallNet(seed=1, dropout=0.5))
    torch.manual_seed(456)
    other, _ = run(SmallNet(seed=1, dropout=0.5))
    assert_equal(weights(one), weights(other))
    third, _ = run(SmallNet(seed=1, dropout=0.5), seed=1)
    assert not torch.equal(one.hidden.weight, third.hidden.weight)


def test_a_trial_stops_early_writes_nothing_and_keeps_the_schedule(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, result = run(max_steps=2, epochs=50)
    assert result.steps == 2
    assert result.metrics["num_samples"] == 40
    assert list(tmp_path.iterdir()) == []


def test_several_runs_with_different_precisions_in_one_process():
    full, _ = run()
    half, _ = run(precision="bf16")
    again, _ = run()
    assert_equal(weights(full), weights(again))
    assert half.hidden.weight.dtype == torch.float32
    assert not torch.equal(full.hidden.weight, half.hidden.weight)
    torch.testing.assert_close(half.hidden.weight, full.hidden.weight, atol=0.1, rtol=0)


def test_bfloat16_reaches_student_and_teacher():
    seen = []

    class Watch(Match):
        def forward(self, student, teacher, batch):
            seen.append((student.logits.dtype, teacher.logits.dtype))
            return {}

    run(method=Watch(), steps=1, precision="bf16")
    assert seen == [(torch.bfloat16, torch.bfloat16)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": False}, "without a teacher"),
        ({"method": Alone(), "cross_entropy_weight": 0.0}, "leaves no loss"),
        ({"precision": "fp16"}, "precision fp16 on CPU"),
        ({"optimizer": "adammw"}, "did you mean .*'adamw'"),
        ({"optimizer": "adahessian"}, "second order"),
    ],
)
def test_bad_input_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        run(**changes)


@pytest.mark.parametrize("loader", [{"batch_size": 1}, {"micro_batch": 5}])  # 16 = 3 * 5 + 1
def test_one_value_a_channel_for_batch_normalisation_is_refused_with_what_to_do(loader):
    with pytest.raises(InputError, match=r"a batch of 1 image of 6 x 6 px [\s\S]*raise train\.batch_size"):
        run(SmallNet(batch_norm=True), loader=TensorLoader(**loader))


def test_another_error_of_a_network_stays_what_it_is():
    student = SmallNet()
    student.norm = torch.nn.BatchNorm2d(8)
    with pytest.raises(ValueError, match="expected 4D input") as error:
        run(student)
    assert not isinstance(error.value, InputError)


def test_the_teacher_is_not_asked_by_a_method_that_needs_nothing():
    class Silent(FrozenTeacher):
        def signals(self, batch):
            raise AssertionError("asked")

    loader = TensorLoader()
    fit(SmallNet(), Alone(), Silent(SmallNet()), loader, None, settings=settings(steps=1), device="cpu")
