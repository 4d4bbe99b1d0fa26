"""``torch.compile`` of student and teacher: the same run but for rounding, and nothing of it stays.

PyTorch's default compiler is slow, so most runs here take ``aot_eager``: it traces, splits and differentiates alike,
and leaves out only the kernels.
"""

import pytest
import timm
import torch
import torch._dynamo
import torch._inductor.config
from torch._dynamo.utils import counters

from crossdistill.engine import compiled, fit
from crossdistill.errors import InputError, Interrupted
from crossdistill.export import export_student
from crossdistill.methods.kd import KD
from crossdistill.models import build
from crossdistill.teachers import EnsembleTeacher, FrozenTeacher
from samples.training import Alone, Match, Pictures, SmallNet, Stop, TensorLoader, settings

BOTH = {"compile_student": True, "compile_teacher": True}


@pytest.fixture(autouse=True)
def _fresh():
    torch.set_num_threads(1)
    counters.clear()
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def aot_eager(monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")


def train(out=None, reporter=None, **changes):
    """A small vision transformer taught by a residual network; the student, teacher and result."""
    torch.manual_seed(0)
    student = build("test_vit", num_classes=4, image_size=32)
    teacher = FrozenTeacher(build("test_resnet", num_classes=4, image_size=32))
    method, loader = KD.build(student.spec, teacher.spec, num_classes=4), Pictures()
    changes = {"steps": 5, "lr": 0.01, "optimizer": "sgd", "ema_decay": 0.5, **changes}
    run = {"settings": settings(**changes), "device": "cpu", "out": out, "reporter": reporter}
    result = fit(student, method, teacher, loader, loader.evaluation(), **run)
    return student, teacher, result


def assert_close(one, other):
    assert one.keys() == other.keys()
    for name, tensor in other.items():
        torch.testing.assert_close(one[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_a_compiled_run_equals_the_eager_one_and_leaves_plain_networks(aot_eager, tmp_path):
    student, teacher, result = train(**BOTH)
    assert counters["stats"]["unique_graphs"] == 3  # the compiler's trial, the student, the teacher
    assert sum(counters["graph_break"].values()) == 0
    eager, _, expected = train()
    assert_close(student.state_dict(), eager.state_dict())
    assert [line["loss"] for line in result.history] == pytest.approx([line["loss"] for line in expected.history])
    assert "forward" not in vars(teacher.model)
    assert not teacher.model.training
    counters.clear()
    images = Pictures().images[:2]
    with torch.no_grad():
        logits = student(images).logits
    assert not counters["stats"]
    folder = export_student(student, tmp_path / "student", class_names=list("abcd"), metrics={})
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), logits)


def train_small(out=None, reporter=None, **changes):
    """One layer with dropout and batch statistics; its weights, and the result."""
    student, loader = SmallNet(seed=1, dropout=0.3, batch_norm=True), TensorLoader(micro_batch=6)
    run = {"settings": settings(**changes), "device": "cpu", "out": out, "reporter": reporter}
    result = fit(student, Match(), FrozenTeacher(SmallNet(seed=2)), loader, loader.evaluation(), **run)
    return student.state_dict(), result


def test_a_resume_is_exact_also_with_micro_batches_of_several_sizes(aot_eager, tmp_path):
    whole, result = train_small(**BOTH)
    with pytest.raises(Interrupted):
        train_small(tmp_path, Stop(5), **BOTH)
    resumed, again = train_small(tmp_path, **BOTH)
    assert again.history == result.history
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


def test_an_eager_checkpoint_goes_on_compiled_with_a_warning(aot_eager, tmp_path):
    with pytest.raises(Interrupted):
        train_small(tmp_path, Stop(5))
    with pytest.warns(UserWarning, match=r"compile_student False -> True"):
        resumed, _ = train_small(tmp_path, compile_student=True)
    assert_close(resumed, train_small()[0])


def test_every_member_of_an_ensemble_is_compiled_and_let_go_also_after_an_error(aot_eager):
    teacher = EnsembleTeacher([FrozenTeacher(SmallNet(seed=seed)) for seed in (2, 3)])
    method = KD.build(SmallNet().spec, teacher.spec, num_classes=4)
    seen = []

    class Breaks(KD):
        def forward(self, student, answer, batch):
            seen.append(["forward" in vars(one.model) for one in teacher.teachers])
            raise RuntimeError("broken")

    method.__class__ = Breaks
    with pytest.raises(RuntimeError, match="broken"):
        fit(SmallNet(), method, teacher, TensorLoader(), None, settings=settings(compile_teacher=True), device="cpu")
    assert seen == [[True, True]]
    assert not any("forward" in vars(one.model) for one in teacher.teachers)


def test_a_student_alone_ignores_the_teachers_setting(aot_eager):
    fit(SmallNet(), Alone(), None, TensorLoader(), None, settings=settings(steps=1, compile_teacher=True), device="cpu")


def test_a_teacher_without_a_network_cannot_be_compiled(aot_eager):
    class Stored:
        spec, holds = SmallNet().spec, frozenset({"logits", "embedding"})
        signals = fingerprint = lambda self, batch=None: None

    with pytest.raises(InputError, match="which runs no network"):
        fit(SmallNet(), Match(), Stored(), TensorLoader(), None, settings=settings(compile_teacher=True), device="cpu")


def test_the_default_compiler_trains_what_eager_code_does():
    """Once, with a small network: fresh, it takes the better part of a minute to get ready."""
    runs = []
    for changes in ({}, BOTH):
        student, method = SmallNet(seed=1, batch_norm=True), Match()
        run = settings(steps=4, optimizer="sgd", **changes)
        fit(student, method, FrozenTeacher(SmallNet(seed=2)), TensorLoader(), None, settings=run, device="cpu")
        runs.append({**student.state_dict(), **method.state_dict()})
    assert counters["inductor"]
    assert_close(runs[1], runs[0])


def test_a_machine_without_a_compiler_is_told_so():
    """Another name for the compiler, under which there is none."""
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "/nonexistent/compiler"), "force_disable_caches": True}),
        pytest.raises(InputError) as refused,
    ):
        compiled.check_compiler(settings(compile_teacher=True), torch.device("cpu"))
    assert "train.compile_teacher on a machine where torch.compile fails" in refused.value.given
    assert refused.value.expected == "a C++ compiler, found by PyTorch"
    assert "train.compile_teacher=false" in refused.value.action
