"""A step on a GPU: nothing in it waits for the device, and what is replayed or fused trains as the plain one."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters

from crossdistill.engine import fit
from crossdistill.engine.loop import Trainer
from crossdistill.errors import InputError
from crossdistill.models import build
from crossdistill.registry import METHODS
from crossdistill.runs.objective import build_method, resolve_method
from crossdistill.teachers import EnsembleTeacher, FrozenTeacher
from samples.training import NUM_CLASSES, Alone, Pictures, SmallNet, TensorLoader, settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TEACHING = [record.name for record in METHODS if record.value.needs]
ALL = {"compile_student": True, "compile_teacher": True, "compile_method": True}
RUN = {"steps": 6, "lr": 0.01, "optimizer": "sgd", "ema_decay": 0.5, "log_every": 100}


@pytest.fixture(autouse=True)
def _fresh():
    yield
    torch.cuda.set_sync_debug_mode("default")
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return [build(name, num_classes=NUM_CLASSES, image_size=32) for name in ("test_vit", "test_resnet")]


def parts(networks, name):
    student, teacher = copy.deepcopy(networks[0]), FrozenTeacher(copy.deepcopy(networks[1]))
    torch.manual_seed(1)
    return student, build_method(*resolve_method(name, {}), student, teacher, num_classes=NUM_CLASSES), teacher


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("name", TEACHING)
def test_no_method_waits_for_the_device_in_a_step(networks, name, soft, precision):
    """In fp16 whoever scales losses reads whether gradients overflowed, once a step; else nobody reads anything."""
    loader = Pictures(unlabelled=3, soft=soft, micro_batch=5)
    run = settings(**RUN, precision=precision, clip_grad=1.0, class_weights="balanced")
    trainer = Trainer(*parts(networks, name), loader, None, run, 0, "cuda", None)
    steps = loader.epoch(0)
    trainer.train_step(next(steps))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    for batches in steps:
        trainer.train_step(batches)
    torch.cuda.set_sync_debug_mode("default")
    trainer.ledger.read(stop=False)


def test_several_teachers_and_a_large_batch_wait_no_more(networks):
    views = ("teacher0", "teacher1")
    teacher = EnsembleTeacher([FrozenTeacher(copy.deepcopy(networks[1]), view=view) for view in views])
    student, loader = copy.deepcopy(networks[0]), Pictures(num_samples=64, batch_size=32)
    options = {"methods": {"kd": {}, "fitnet": {}, "crd": {}}}
    method = build_method(*resolve_method("hybrid", options), student, teacher, num_classes=NUM_CLASSES)
    trainer = Trainer(student, method, teacher, loader, None, settings(**RUN), 0, "cuda", None)
    first, second = loader.epoch(0)
    trainer.train_step(first)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    trainer.train_step(second)


@pytest.fixture
def replayed():
    """Nothing that was to be recorded as a graph ran without one."""
    counters.clear()
    yield
    assert counters["inductor"]["cudagraph_skips"] == 0


def train(networks, name, loader=None, **changes):
    student, method, teacher = parts(networks, name)
    fit(student, method, teacher, loader or Pictures(), None, settings=settings(**{**RUN, **changes}), device="cuda")
    return {**student.state_dict(), **{f"method.{key}": value for key, value in method.state_dict().items()}}


def assert_close(found, expected, rtol=2e-3, atol=2e-4):
    for name, tensor in expected.items():
        message = lambda text, name=name: f"{name}: {text}"  # noqa: E731
        torch.testing.assert_close(found[name], tensor, rtol=rtol, atol=atol, msg=message)


@pytest.mark.usefixtures("replayed")
@pytest.mark.parametrize("micro_batch", [None, 4], ids=["whole", "accumulated"])
@pytest.mark.parametrize("name", ["kd", "ofa", "fbt", "hybrid"])
def test_replayed_graphs_train_as_eager_code_does(networks, name, micro_batch):
    """Also where gradients are added up over micro-batches, which write to the same memory."""
    found = train(networks, name, Pictures(micro_batch=micro_batch), **ALL, cuda_graphs=True)
    assert_close(found, train(networks, name, Pictures(micro_batch=micro_batch)))


@pytest.mark.usefixtures("replayed")
@pytest.mark.parametrize("name", TEACHING)
def test_every_method_trains_replayed(networks, name):
    found = train(networks, name, **ALL, cuda_graphs=True, precision="bf16", channels_last=True, clip_grad=5.0)
    assert all(tensor.isfinite().all() for tensor in found.values())


@pytest.mark.usefixtures("replayed")
@pytest.mark.parametrize("part", sorted(ALL))
def test_each_part_may_be_replayed_alone(networks, part):
    assert_close(train(networks, "ofa", **{part: True}, cuda_graphs=True), train(networks, "ofa"))


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("clip_grad", [None, 1.0])
def test_a_fused_optimizer_trains_as_the_plain_one(networks, optimizer, clip_grad):
    changes = {"optimizer": optimizer, "clip_grad": clip_grad, "lr": 1e-3}
    ends = [train(networks, "kd", fused_optimizer=fused, **changes) for fused in (True, False)]
    assert_close(*ends)


@pytest.mark.parametrize("fused", [True, False])
def test_fp16_trains_and_skips_what_overflows_fused_or_not(networks, fused):
    found = train(networks, "kd", optimizer="adamw", precision="fp16", fused_optimizer=fused, clip_grad=1.0)
    assert all(tensor.isfinite().all() for tensor in found.values())


def test_graphs_without_anything_compiled_are_refused():
    with pytest.raises(InputError, match="cuda_graphs without anything compiled"):
        fit(SmallNet(), Alone(), None, TensorLoader(), None, settings=settings(cuda_graphs=True), device="cuda")
