"""What every registered method owes the engine, for each kind of student."""

import ast
import importlib
import inspect
import shutil
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

import crossdistill.methods
from crossdistill import registry
from crossdistill.contracts import Batch, Method, Outputs
from crossdistill.errors import InputError
from crossdistill.models import build as build_network
from crossdistill.registry import METHODS, Registry
from crossdistill.runs.objective import build_method, resolve_method
from crossdistill.settings import options_of
from crossdistill.teachers import FrozenTeacher

NUM_CLASSES = 6
DISTILLING = [record.name for record in METHODS if record.value.needs]
METHOD_FILES = sorted(path for path in Path(crossdistill.methods.__path__[0]).glob("*.py") if path.stem != "__init__")

NETWORKS = {
    "maps": ("test_resnet", {}),
    "tokens with a class token": ("deit_tiny_patch16_224", {"embed_dim": 24, "depth": 4, "num_heads": 3}),
    "tokens": ("mixer_tiny", {"embed_dim": 16, "num_blocks": 4}),
    "maps with channels last": ("swin_pico", {"embed_dim": 8, "num_heads": (1, 2, 4, 8), "depths": (1, 1, 1, 1)}),
}
STUDENT_SIZE, TEACHER_SIZE = 32, 48
# Each meets a teacher of another layout, and over all of them every layout teaches.
TAUGHT_BY = dict(zip(NETWORKS, [*list(NETWORKS)[1:], "maps"], strict=True))


@cache
def network(kind, size, num_classes=NUM_CLASSES):
    name, arguments = NETWORKS[kind]
    patches = {} if "maps" in kind else {"patch_size": 8}
    torch.manual_seed(0)
    return build_network(f"timm/{name}", num_classes=num_classes, image_size=size, **arguments, **patches)


def student_of(kind):
    return network(kind, STUDENT_SIZE)


def teacher_of(kind):
    return network(TAUGHT_BY[kind], TEACHER_SIZE)


@cache
def shapes_of(net):
    """Of an image's logits, embedding and stages."""
    side = net.spec.input.image_size[0]
    with torch.no_grad():
        found = net.eval()(torch.zeros(2, 3, side, side))
    return [tensor.shape[1:] for tensor in (found.logits, found.embedding, *found.stages)]


def outputs_of(net, size=5, seed=0, value=None):
    """Random outputs of the shapes that the network gives, or all of one value, that require gradients."""
    random = torch.Generator().manual_seed(seed)
    shapes = [(size, *shape) for shape in shapes_of(net)]
    made = [torch.randn(one, generator=random) if value is None else torch.full(one, value) for one in shapes]
    logits, embedding, *stages = (tensor.requires_grad_() for tensor in made)
    return Outputs(logits, embedding, tuple(stages))


def leaves(outputs):
    return [outputs.logits, outputs.embedding, *outputs.stages]


def teacher_outputs(kind, size=5, value=None):
    given = outputs_of(teacher_of(kind), size, seed=9, value=value)
    return Outputs(given.logits.detach(), given.embedding.detach(), tuple(stage.detach() for stage in given.stages))


def batch_of(target):
    return Batch(images={}, target=target, sample_id=torch.arange(len(target)))


TARGETS = {
    "labels": torch.tensor([0, 5, 2, 2, 1]),
    "some unlabelled": torch.tensor([0, -1, 2, -1, 1]),
    "none labelled": torch.full((5,), -1),
    "soft": torch.softmax(torch.randn(5, NUM_CLASSES, generator=torch.Generator().manual_seed(3)), dim=1),
    "one class": torch.full((5,), 2),
    "one image": torch.tensor([3]),
    "one unlabelled image": torch.tensor([-1]),
}


def build(name, kind="maps", teacher=None, num_classes=NUM_CLASSES, **options):
    """As a run builds it."""
    torch.manual_seed(4)
    frozen = FrozenTeacher(teacher or teacher_of(kind))
    return build_method(*resolve_method(name, options), student_of(kind), frozen, num_classes=num_classes)


def losses_of(method, student, teacher, batch):
    torch.manual_seed(5)
    return method(student, teacher, batch)


def options_named(name, *endings):
    """The names of a method's options that end so, with their defaults."""
    options = options_of(METHODS.get(name).value.build)
    return {key: default for key, (_, default) in options.items() if key.endswith(endings)}


def check_sound(method, student, teacher, batch):
    """Losses are finite scalars; so are all gradients, of which there are some."""
    terms = losses_of(method, student, teacher, batch)
    assert terms
    for name, term in terms.items():
        assert term.shape == (), name
        assert term.isfinite(), name
    sum(terms.values()).backward()
    grads = [leaf.grad for leaf in leaves(student) if leaf.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)
    assert all(tensor.isfinite().all() for tensor in method.state_dict().values())
    return terms


@pytest.mark.parametrize("name", [record.name for record in METHODS])
def test_is_registered_with_its_facts(name):
    record = METHODS.get(name)
    assert issubclass(record.value, Method)
    assert set(record.facts) == {"title", "paper", "summary", "pick_when"}
    assert all(record.facts.values()) or name == "none"
    assert record.value.needs <= {"logits", "embedding", "stages", "modules"}
    assert inspect.Parameter.empty not in options_named(name, "").values()


CASES = [(kind, "labels") for kind in NETWORKS] + [("maps", target) for target in TARGETS if target != "labels"]
CASES += [("tokens with a class token", "one image"), ("tokens", "some unlabelled")]


@pytest.mark.parametrize("name", DISTILLING)
@pytest.mark.parametrize(("kind", "target"), CASES)
def test_losses_and_gradients_are_finite(name, kind, target):
    method, student, labels = build(name, kind), outputs_of(student_of(kind), len(TARGETS[target])), TARGETS[target]
    check_sound(method, student, teacher_outputs(kind, len(labels)), batch_of(labels))
    if target == "labels":
        assert any(leaf.grad is not None and leaf.grad.any() for leaf in leaves(student))
        assert all(p.grad is not None and p.grad.any() for p in method.parameters())


@pytest.mark.parametrize("name", DISTILLING)
@pytest.mark.parametrize("kind", ["maps", "tokens with a class token"])
@pytest.mark.parametrize("zero", ["student", "teacher", "both"])
@pytest.mark.parametrize("size", [5, 1])
def test_features_without_length_have_finite_losses_and_gradients(name, kind, zero, size):
    student = outputs_of(student_of(kind), size, value=None if zero == "teacher" else 0.0)
    teacher = teacher_outputs(kind, size, value=None if zero == "student" else 0.0)
    check_sound(build(name, kind), student, teacher, batch_of(TARGETS["labels"][:size]))


@pytest.mark.parametrize("name", DISTILLING)
def test_each_weight_scales_its_losses_and_no_other(name):
    arguments = outputs_of(student_of("maps")), teacher_outputs("maps"), batch_of(TARGETS["labels"])
    for option, default in options_named(name, "weight").items():
        weight = default or 1.0
        once = losses_of(build(name, **{option: weight}), *arguments)
        thrice = losses_of(build(name, **{option: 3 * weight}), *arguments)
        scaled = {key for key, value in once.items() if torch.allclose(thrice[key], 3 * value) and value}
        assert scaled, option
        for key in once.keys() - scaled:
            torch.testing.assert_close(thrice[key], once[key])


@pytest.mark.parametrize("name", DISTILLING)
def test_numbers_out_of_range_are_refused(name):
    for option in options_named(name, "weight"):
        for value in (-1.0, -1e-9):
            with pytest.raises(InputError, match=f"{option}={value}"):
                build(name, **{option: value})
    for option in options_named(name, "temperature"):
        for value in (0.0, -1.0):
            with pytest.raises(InputError, match=f"{option}={value}"):
                build(name, **{option: value})
    for option in options_named(name, "stages"):
        for value in ([0], [-1], [5], [1, 1]):
            with pytest.raises(InputError, match="stages="):
                build(name, **{option: value})


@pytest.mark.parametrize("name", DISTILLING)
def test_options_are_checked(name):
    for option, (hint, _) in options_of(METHODS.get(name).value.build).items():
        with pytest.raises(InputError, match=f"method\\.{option}s.*\n.*\n.*{option}"):
            build(name, **{f"{option}s": 1})
        if hint is float:
            with pytest.raises(InputError, match=f"method\\.{option} = 'hot'"):
                build(name, **{option: "hot"})
            for value in ("inf", "nan"):
                with pytest.raises(InputError, match=f"method\\.{option} = {value}"):
                    build(name, **{option: float(value)})


def test_none_adds_nothing_and_needs_no_teacher():
    student = student_of("maps")
    method = METHODS.get("none").value.build(student.spec, None, num_classes=NUM_CLASSES)
    assert method(outputs_of(student), None, batch_of(TARGETS["labels"])) == {}
    assert not list(method.parameters())
    assert not method.includes_cross_entropy


@pytest.mark.parametrize("name", DISTILLING)
@pytest.mark.parametrize("num_classes", [NUM_CLASSES, NUM_CLASSES + 1])
def test_heads_that_differ_are_refused_where_logits_are_compared(name, num_classes):
    teacher = network("tokens", TEACHER_SIZE, NUM_CLASSES + 1)
    if "logits" not in build(name).needs:
        build(name, teacher=teacher, num_classes=num_classes)
        return
    with pytest.raises(InputError, match=r"with 6 classes, teacher 'mixer_tiny' with 7 classes") as error:
        build(name, teacher=teacher, num_classes=num_classes)
    assert f"data with {num_classes}" in error.value.given


@pytest.mark.parametrize("name", DISTILLING)
def test_the_networks_are_no_part_of_a_method(name):
    """Its state is what a checkpoint and the optimiser take up beside the student."""
    method, networks = build(name), [network for kind in NETWORKS for network in (student_of(kind), teacher_of(kind))]
    for parts in (torch.nn.Module.modules, torch.nn.Module.parameters, torch.nn.Module.buffers):
        assert not {id(part) for part in parts(method)} & {id(part) for net in networks for part in parts(net)}
    for net in method.measured().values():
        assert net.view in ("student", "teacher0")


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
