"""What every registered method owes the engine, for each kind of student."""

import ast
import importlib
import shutil
import sys
from pathlib import Path

import pytest
import torch

import crossdistill.methods
from crossdistill import registry
from crossdistill.contracts import Batch, Method, Outputs, StageSpec
from crossdistill.errors import InputError
from crossdistill.registry import METHODS, Registry
from crossdistill.settings import resolve_options
from oracles import model_specs as specs

NUM_CLASSES = 6
DISTILLING = ("kd", "dkd", "dist", "ofa")
ALL = ("none", *DISTILLING)
METHOD_FILES = sorted(path for path in Path(crossdistill.methods.__path__[0]).glob("*.py") if path.stem != "__init__")


def student_spec(kind):
    stages = {
        "cnn": [StageSpec(8 * 2**i, 4 * 2**i, "NCHW", 0, (8 >> i, 8 >> i)) for i in range(4)],
        "token with class token": [StageSpec(16, 8, "NLC", 1, (4, 4))] * 3,
        "token without": [StageSpec(16, 8, "NLC", 0, (4, 4))] * 3,
        "token pyramid": [StageSpec(8 * 2**i, 4 * 2**i, "NHWC", 0, (14 >> i, 14 >> i)) for i in range(3)],
    }[kind]
    family = {"cnn": "cnn", "token without": "mlp"}.get(kind, "transformer")
    return specs.model(kind, family, stages[-1].channels, stages, NUM_CLASSES)


KINDS = ("cnn", "token with class token", "token without", "token pyramid")
TEACHER = specs.teacher(24, NUM_CLASSES)


def outputs_of(spec, size=5, seed=0):
    """Random outputs of the right shapes that require gradients."""
    random = torch.Generator().manual_seed(seed)

    def tensor(*shape):
        return torch.randn(shape, generator=random).requires_grad_()

    stages = []
    for stage in spec.stages:
        height, width = stage.grid
        shape = {
            "NCHW": (stage.channels, height, width),
            "NHWC": (height, width, stage.channels),
            "NLC": (stage.num_prefix_tokens + height * width, stage.channels),
        }[stage.layout]
        stages.append(tensor(size, *shape))
    return Outputs(tensor(size, spec.num_classes), tensor(size, spec.embedding_dim), tuple(stages))


def teacher_outputs(size=5):
    """What a logits-only teacher holds: no embedding, no stages."""
    return Outputs(logits=torch.randn(size, NUM_CLASSES, generator=torch.Generator().manual_seed(9)))


def batch_of(target):
    return Batch(images={}, target=target, sample_id=torch.arange(len(target)))


TARGETS = {
    "labels": torch.tensor([0, 5, 2, 2, 1]),
    "some unlabelled": torch.tensor([0, -1, 2, -1, 1]),
    "none labelled": torch.full((5,), -1),
    "soft": torch.softmax(torch.randn(5, NUM_CLASSES, generator=torch.Generator().manual_seed(3)), dim=1),
}


def build(name, student=None, **options):
    method = METHODS.get(name).value
    return method.build(
        student or student_spec("cnn"), TEACHER, num_classes=NUM_CLASSES, **resolve_options(name, method.build, options)
    )


@pytest.mark.parametrize("name", ALL)
def test_is_registered_with_its_facts(name):
    record = METHODS.get(name)
    assert issubclass(record.value, Method)
    assert set(record.facts) == {"title", "paper", "summary", "pick_when"}
    assert all(record.facts.values()) or name == "none"
    assert record.value.needs == (frozenset() if name == "none" else frozenset({"logits"}))
    assert record.value.relates_samples is (name == "dist")


@pytest.mark.parametrize("name", DISTILLING)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", TARGETS)
def test_losses_are_finite_scalars_that_reach_student_and_bridges(name, kind, target):
    spec = student_spec(kind)
    method = build(name, spec)
    student = outputs_of(spec)
    terms = method(student, teacher_outputs(), batch_of(TARGETS[target]))
    assert terms
    for term in terms.values():
        assert term.shape == ()
        assert term.isfinite()
    sum(terms.values()).backward()
    assert student.logits.grad.abs().sum() > 0
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())


@pytest.mark.parametrize("name", DISTILLING)
def test_weights_scale_the_losses(name):
    spec = student_spec("cnn")
    weights = ("kd_weight", "branch_weight") if name == "ofa" else ("weight",)
    torch.manual_seed(0)
    once = build(name, spec)
    torch.manual_seed(0)
    thrice = build(name, spec, **dict.fromkeys(weights, 3.0))
    arguments = outputs_of(spec), teacher_outputs(), batch_of(TARGETS["labels"])
    single, triple = once(*arguments), thrice(*arguments)
    for key, value in single.items():
        torch.testing.assert_close(triple[key], 3 * value)


def test_none_adds_nothing_and_needs_no_teacher():
    method = METHODS.get("none").value.build(student_spec("cnn"), None, num_classes=NUM_CLASSES)
    assert method(outputs_of(student_spec("cnn")), None, batch_of(TARGETS["labels"])) == {}
    assert not list(method.parameters())
    assert not method.includes_cross_entropy


@pytest.mark.parametrize("name", DISTILLING)
@pytest.mark.parametrize("num_classes", [NUM_CLASSES, NUM_CLASSES + 1])
def test_heads_that_differ_are_refused(name, num_classes):
    teacher = specs.teacher(24, NUM_CLASSES + 1)
    with pytest.raises(InputError, match=r"with 6 classes, teacher 'teacher' with 7 classes") as error:
        METHODS.get(name).value.build(student_spec("cnn"), teacher, num_classes=num_classes)
    assert f"data with {num_classes}" in error.value.given


@pytest.mark.parametrize("name", DISTILLING)
def test_options_are_checked(name):
    with pytest.raises(InputError, match=r"method\.temprature.*\n.*\n.*temperature"):
        build(name, temprature=2.0)
    with pytest.raises(InputError, match=r"method\.temperature = 'hot'"):
        build(name, temperature="hot")
    with pytest.raises(InputError, match=r"temperature=-1\.0"):
        build(name, temperature=-1.0)


@pytest.mark.parametrize("path", METHOD_FILES, ids=lambda path: path.stem)
def test_a_method_file_imports_no_other_method(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert not any(name.startswith("crossdistill.methods") for name in names)


@pytest.mark.parametrize("deleted", METHOD_FILES, ids=lambda path: path.stem)
def test_deleting_a_methods_file_leaves_the_others(deleted, tmp_path, monkeypatch):
    package = f"methods_without_{deleted.stem}"
    (tmp_path / package).mkdir()
    for path in (*METHOD_FILES, METHOD_FILES[0].with_name("__init__.py")):
        if path != deleted:
            shutil.copy(path, tmp_path / package)
    remaining = Registry("method", package=package, group="nobody's")
    monkeypatch.setattr(registry, "METHODS", remaining)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    try:
        assert {record.name for record in remaining} == {path.stem for path in METHOD_FILES} - {deleted.stem}
    finally:
        for name in [name for name in sys.modules if name.startswith(package)]:
            del sys.modules[name]
