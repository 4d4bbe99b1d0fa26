"""No step waits for the device: all that the host must know is read every ``log_every`` steps."""

import copy
import math

import pytest
import torch

from crossdistill.engine.loop import Trainer
from crossdistill.engine.progress import Quiet
from crossdistill.models import build
from crossdistill.registry import METHODS
from crossdistill.runs.objective import build_method, resolve_method
from crossdistill.teachers import EnsembleTeacher, FrozenTeacher, MappedTeacher
from crossdistill.teachers.class_map import ClassMap
from samples.training import NUM_CLASSES, Pictures, SmallNet, TensorLoader, settings
from samples.waiting import Waits, nothing_waits

TEACHING = [record.name for record in METHODS if record.value.needs]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return [build(name, num_classes=NUM_CLASSES, image_size=32) for name in ("test_vit", "test_resnet")]


def trainer_of(method, student, teacher, loader, **changes):
    """One that has taken a step: some things are only made then."""
    given = settings(**{"optimizer": "adamw", "clip_grad": 1.0, "ema_decay": 0.5, **changes})
    trainer = Trainer(student, method, teacher, loader, None, given, 0, "cpu", None)
    trainer.reporter, trainer.log = Quiet(), None
    steps = loader.epoch(0)
    trainer.train_step(next(steps))
    return trainer, steps


def step_without_waiting(trainer, steps):
    batches = next(steps)
    before = trainer.student.state_dict()["net.head.weight"].clone()
    with nothing_waits():
        trainer.train_step(batches)
    assert not torch.equal(before, trainer.student.state_dict()["net.head.weight"])
    losses, _ = trainer.ledger.read(stop=False)
    assert all(math.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("name", TEACHING)
def test_no_method_waits_in_a_step(networks, name, labels):
    student, teacher = copy.deepcopy(networks[0]), FrozenTeacher(copy.deepcopy(networks[1]))
    method = build_method(*resolve_method(name, {}), student, teacher, num_classes=NUM_CLASSES)
    loader = Pictures(unlabelled=3, soft=labels == "soft", micro_batch=5)
    step_without_waiting(*trainer_of(method, student, teacher, loader, class_weights="balanced"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_teachers_of_other_classes_and_several_teachers_wait_no_more(networks, precision):
    torch.manual_seed(1)
    wide = build("test_resnet", num_classes=6, image_size=32)
    class_map = ClassMap(tuple("abcd"), ((0, 4), (1,), (2,), (3, 5)))
    both = [FrozenTeacher(copy.deepcopy(networks[1])), MappedTeacher(wide, class_map, view="teacher1")]
    student, teacher = copy.deepcopy(networks[0]), EnsembleTeacher(both, [1, 3])
    options = {"methods": {"kd": {}, "fitnet": {}, "rkd": {}}}
    method = build_method(*resolve_method("hybrid", options), student, teacher, num_classes=NUM_CLASSES)
    step_without_waiting(*trainer_of(method, student, teacher, Pictures(), precision=precision))


@pytest.mark.parametrize(
    "waiting",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: float(x.sum()),
        lambda x: int(x.argmax()),
        lambda x: x.tolist(),
        lambda x: x.detach().numpy(),
        lambda x: x[x > 0],
        lambda x: x.clone().detach().index_put_((x > 0,), torch.zeros(())),
        lambda x: torch.where(x > 0),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: torch.allclose(x, x),
        lambda x: x.to(torch.int64).bincount(),
        lambda x: x.repeat_interleave(torch.ones_like(x).long()),
        lambda x: torch.tensor([1.0, 2.0]),
        lambda x: x[[0, 1]],
        lambda x: x.detach().clone().__setitem__(([0, 1],), 1.0),
        lambda x: x.new_tensor([1.0]),
        lambda x: x.detach().cpu(),
        lambda x: Reads.apply(x).sum().backward(),
    ],
)
def test_what_waits_is_found(waiting):
    """Or the tests above would prove nothing."""
    x = torch.rand(4, requires_grad=True)
    with pytest.raises(Waits), nothing_waits():
        waiting(x)


class Reads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * gradient.sum().item()


def test_what_does_not_wait_is_let_through():
    x = torch.rand(4, 3, requires_grad=True)
    with nothing_waits():
        rows = x[torch.arange(2)]
        chosen = torch.where(x > 0.5, x, 0.0).masked_fill(x > 0.7, 1.0)
        (rows.sum() + chosen.sum() + x.repeat_interleave(2, dim=0).sum()).backward()


def test_the_losses_are_read_where_the_log_is_due(monkeypatch):
    """Of eight steps with ``log_every`` 4, two read."""
    read = []
    monkeypatch.setattr(Trainer, "read_losses", lambda self: read.append(self.record.step))
    loader = TensorLoader(num_samples=128)
    method = METHODS.get("none").value.build(None, None, num_classes=NUM_CLASSES)
    trainer = Trainer(SmallNet(), method, None, loader, None, settings(epochs=1, log_every=4), 0, "cpu", None)
    trainer.resume(None, {})
    trainer.run(Quiet())
    assert read == [4, 8]
