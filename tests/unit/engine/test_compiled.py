"""``torch.compile`` of student, teacher and method: the same run but for rounding, and nothing of it stays.

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
from crossdistill.registry import METHODS
from crossdistill.runs.objective import build_method, resolve_method
from crossdistill.teachers import EnsembleTeacher, FrozenTeacher
from samples.training import Alone, Match, Pictures, SmallNet, Stop, TensorLoader, settings

BOTH = {"compile_student": True, "compile_teacher": True}
ALL = {**BOTH, "compile_method": True}
TEACHING = [record.name for record in METHODS if record.value.needs]


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


def train_with(name, options=None, teacher_names=("test_resnet",), student_name="test_vit", **changes):
    """As :func:`train` with any method and several teachers; all weights."""
    torch.manual_seed(0)
    student = build(student_name, num_classes=4, image_size=32)
    networks = [build(name, num_classes=4, image_size=32) for name in teacher_names]
    teachers = [FrozenTeacher(net, view=f"teacher{index}") for index, net in enumerate(networks)]
    teacher = teachers[0] if len(teachers) == 1 else EnsembleTeacher(teachers)
    torch.manual_seed(1)
    method = build_method(*resolve_method(name, options or {}), student, teacher, num_classes=4)
    given = settings(**{"steps": 4, "lr": 0.01, "optimizer": "sgd", "log_every": 2, **changes})
    fit(student, method, teacher, Pictures(), None, settings=given, device="cpu")
    return {**student.state_dict(), **{f"method.{name}": value for name, value in method.state_dict().items()}}


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=() if one in ("kd", "ofa", "crd", "fbt") else pytest.mark.slow) for one in TEACHING],
)
def test_every_method_compiles_whole_and_once(aot_eager, name):
    """Bridges, losses and the engine's hard labels in one piece, which serves every step."""
    found = train_with(name, compile_method=True)
    assert counters["stats"]["unique_graphs"] == 2  # the compiler's trial, and the method
    assert sum(counters["graph_break"].values()) == 0
    assert_close(found, train_with(name))


def test_composites_compile_whole_for_several_teachers(aot_eager):
    options = {"methods": {"kd": {}, "fitnet": {}}, "weights": {"kd": 0.5}}
    teachers = ("test_resnet", "test_efficientnet")
    found = train_with("hybrid", options, teachers, compile_method=True)
    assert counters["stats"]["unique_graphs"] == 2
    assert sum(counters["graph_break"].values()) == 0
    assert_close(found, train_with("hybrid", options, teachers))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kd", "ofa", "fbt", "hybrid"])
def test_the_default_compiler_trains_methods_as_eager_code_does(name):
    found = train_with(name, **ALL)
    assert counters["inductor"]
    assert_close(found, train_with(name))


def test_the_teacher_is_compiled_also_in_inference_mode(aot_eager):
    """A method of logits: one piece of code, no more for its second step."""
    found = train_with("kd", compile_teacher=True, precision="bf16")
    assert counters["stats"]["unique_graphs"] == 2
    expected = train_with("kd", precision="bf16")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0.02, atol=2e-3)


def train_small(out=None, reporter=None, **changes):
    """One layer with dropout and batch statistics; its weights, and the result."""
    student, loader = SmallNet(seed=1, dropout=0.3, batch_norm=True), TensorLoader(micro_batch=6)
    run = {"settings": settings(**changes), "device": "cpu", "out": out, "reporter": reporter}
    result = fit(student, Match(), FrozenTeacher(SmallNet(seed=2)), loader, loader.evaluation(), **run)
    return student.state_dict(), result


def test_a_resume_is_exact_also_with_micro_batches_of_several_sizes(aot_eager, tmp_path):
    whole, result = train_small(**ALL)
    with pytest.raises(Interrupted):
        train_small(tmp_path, Stop(5), **ALL)
    resumed, again = train_small(tmp_path, **ALL)
    assert again.history == result.history
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


def test_an_eager_checkpoint_goes_on_compiled_with_a_warning(aot_eager, tmp_path):
    with pytest.raises(Interrupted):
        train_small(tmp_path, Stop(5))
    with pytest.warns(UserWarning, match=r"compile_student False -> True.*compile_method False -> True"):
        resumed, _ = train_small(tmp_path, compile_student=True, compile_method=True)
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
    for changes in ({}, ALL):
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


def test_a_method_that_cannot_be_compiled_says_so_by_the_name_of_its_setting():
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "/nonexistent/compiler"), "force_disable_caches": True}),
        pytest.raises(InputError, match=r"train\.compile_method on a machine where torch\.compile fails"),
    ):
        compiled.check_compiler(settings(compile_method=True), torch.device("cpu"))


GRAPHS = {
    "without anything compiled": ({}, "cuda", False),
    "on cpu": ({"compile_student": True}, "cpu", False),
    "with sharded weights": ({"compile_method": True}, "cuda", True),
}


@pytest.mark.parametrize("words", GRAPHS)
def test_cuda_graphs_are_refused_where_there_is_nothing_to_replay(words):
    changes, device, sharded = GRAPHS[words]
    with pytest.raises(InputError, match=f"train.cuda_graphs {words}") as refused:
        compiled.check_compiler(settings(cuda_graphs=True, **changes), torch.device(device), sharded=sharded)
    assert "train.cuda_graphs=false" in refused.value.action


def test_a_run_with_cuda_graphs_on_a_cpu_is_refused_before_it_begins():
    run = {"settings": settings(compile_student=True, cuda_graphs=True), "device": "cpu"}
    with pytest.raises(InputError, match=r"train\.cuda_graphs on cpu"):
        fit(SmallNet(), Alone(), None, TensorLoader(), None, **run)


def test_cuda_graphs_are_asked_of_the_compiler_for_every_part(monkeypatch):
    """And each micro-batch begins a new replay; gradients of the first are moved before the second."""
    asked, begun = [], []
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, *, mode, **_: asked.append(mode) or real(f, backend="eager"))
    monkeypatch.setattr(compiled, "_check_graphs", lambda *_, **__: None)
    monkeypatch.setattr(compiled.torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(None))
    student, loader = SmallNet(seed=1), TensorLoader(micro_batch=6)
    changes = {**ALL, "cuda_graphs": True, "steps": 2}
    fit(student, Match(), FrozenTeacher(SmallNet(seed=2)), loader, None, settings=settings(**changes), device="cpu")
    assert asked == [None, *["reduce-overhead"] * 3]  # the compiler's trial, then student, method and teacher
    assert len(begun) == 2 * 3
    plain = SmallNet(seed=1)
    fit(plain, Match(), FrozenTeacher(SmallNet(seed=2)), loader, None, settings=settings(steps=2), device="cpu")
    assert_close(student.state_dict(), plain.state_dict())


def test_gradients_leave_the_memory_of_graphs_before_the_second_micro_batch():
    net = SmallNet()
    sum(parameter.sum() for parameter in net.parameters()).backward()
    written_by_graphs = {name: parameter.grad for name, parameter in net.named_parameters()}
    compiled.begin_replay(net, is_second=False)
    assert all(parameter.grad is written_by_graphs[name] for name, parameter in net.named_parameters())
    compiled.begin_replay(net, is_second=True)
    for name, parameter in net.named_parameters():
        assert parameter.grad.data_ptr() != written_by_graphs[name].data_ptr()
        assert torch.equal(parameter.grad, written_by_graphs[name])


def test_all_that_makes_a_step_fast_trains_together(aot_eager):
    """bf16, channel-last memory, compilation, a fused optimiser, inference mode: the same way, as 8 bits tell it."""
    run = {"student_name": "test_resnet", "teacher_names": ("test_vit",), "lr": 0.1, "clip_grad": 1.0}
    fast = {"precision": "bf16", "channels_last": True, "fused_optimizer": True, "ema_decay": 0.5}
    found, expected = train_with("kd", **run, **ALL, **fast), train_with("kd", **run, ema_decay=0.5)
    start = train_with("kd", **{**run, "lr": 1e-12, "min_lr": 0.0, "warmup_lr": 0.0, "steps": 1})
    learnt = [name for name in start if name.endswith(("weight", "bias"))]
    way, other_way = (torch.cat([(ends[n] - start[n]).flatten() for n in learnt]) for ends in (found, expected))
    assert other_way.norm() > 0.1
    assert (way - other_way).norm() < 0.1 * other_way.norm()
