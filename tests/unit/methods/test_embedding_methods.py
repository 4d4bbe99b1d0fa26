"""RSD, CC and RKD: which tensors go into the loss, with which options, and where its gradient arrives."""

import pytest
import torch

from crossdistill import losses
from crossdistill.contracts import Batch, Outputs
from crossdistill.errors import InputError
from crossdistill.registry import METHODS
from crossdistill.settings import resolve_options
from oracles import model_specs as specs

RANDOM = torch.Generator().manual_seed(0)
STUDENT = Outputs(logits=torch.randn(6, 4, generator=RANDOM), embedding=torch.randn(6, 512, generator=RANDOM))
TEACHER = Outputs(logits=torch.randn(6, 4, generator=RANDOM), embedding=torch.randn(6, 24, generator=RANDOM))
BATCH = Batch(images={}, target=torch.tensor([3, -1, 0, -1, 2, 2]), sample_id=torch.arange(6))
NAMES = ("rsd", "cc", "rkd")
WEIGHTS = {"rsd": ["weight", "kappa"], "cc": ["weight"], "rkd": ["distance_weight", "angle_weight"]}


def build(name, *, teacher=None, **options):
    torch.manual_seed(0)
    method = METHODS.get(name).value
    teacher = teacher or specs.teacher(24, 4)
    return method.build(specs.resnet18(4), teacher, num_classes=4, **resolve_options(name, method.build, options))


def test_rsd_compares_the_decoupled_student_with_the_teacher_as_it_is():
    method = build("rsd", kappa=0.3, weight=0.5, expansion=1)
    (loss,) = method(STUDENT, TEACHER, BATCH).values()
    decoupled = method.decoupler(STUDENT.embedding)
    assert decoupled.shape == (6, 24)
    assert method.decoupler.norm.num_features == 512
    torch.testing.assert_close(loss, 0.5 * losses.rsd(decoupled, TEACHER.embedding, kappa=0.3))


def test_rsd_on_logits_has_no_bridge_and_asks_for_the_same_classes():
    method = build("rsd", compare="logits")
    assert method.needs == {"logits"}
    assert not list(method.parameters())
    loss = method(STUDENT, Outputs(logits=TEACHER.logits), BATCH)["rsd"]
    assert torch.equal(loss, 0.1 * losses.rsd(STUDENT.logits, TEACHER.logits, kappa=0.01))
    with pytest.raises(InputError, match="one number of classes"):
        build("rsd", compare="logits", teacher=specs.teacher(24, 5))


def test_rsd_defaults_are_the_released_ones():
    method = build("rsd")
    assert (method.needs, method.kappa, method.weight) == ({"embedding"}, 0.01, 0.1)
    assert method.decoupler.norm.num_features == 2 * 512


def test_cc_projects_both_embeddings():
    method = build("cc")
    mine, theirs = method.student_projection(STUDENT.embedding), method.teacher_projection(TEACHER.embedding)
    assert mine.shape == theirs.shape == (6, 128)
    assert torch.equal(method(STUDENT, TEACHER, BATCH)["cc"], 0.02 * losses.correlation(mine, theirs))
    assert build("cc", embedding_dim=7).teacher_projection.weight.shape == (7, 24)


@pytest.mark.parametrize("squared", [False, True])
def test_rkd_compares_the_embeddings_themselves(squared):
    terms = build("rkd", squared=squared)(STUDENT, TEACHER, BATCH)
    distance = losses.rkd_distance(STUDENT.embedding, TEACHER.embedding, squared=squared)
    assert torch.equal(terms["rkd_distance"], 25 * distance)
    assert torch.equal(terms["rkd_angle"], 50 * losses.rkd_angle(STUDENT.embedding, TEACHER.embedding))


def test_a_part_of_rkd_without_weight_is_not_computed(monkeypatch):
    monkeypatch.delattr(losses, "rkd_angle")
    assert set(build("rkd", angle_weight=0)(STUDENT, TEACHER, BATCH)) == {"rkd_distance"}
    monkeypatch.delattr(losses, "rkd_distance")
    assert build("rkd", angle_weight=0, distance_weight=0)(STUDENT, TEACHER, BATCH) == {}


@pytest.mark.parametrize("name", NAMES)
def test_asks_for_embeddings_of_all_processes_only(name):
    method = build(name)
    assert method.needs == {"embedding"}
    assert method.relates_samples
    assert not method.reads_stages
    assert not method.gathers_itself
    assert not method.includes_cross_entropy


@pytest.mark.parametrize("name", NAMES)
def test_heads_may_differ(name):
    assert build(name, teacher=specs.teacher(24, 1000))(STUDENT, TEACHER, BATCH)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_reaches_the_student_and_every_parameter(name):
    method = build(name)
    embedding = STUDENT.embedding.clone().requires_grad_()
    sum(method(Outputs(logits=STUDENT.logits, embedding=embedding), TEACHER, BATCH).values()).backward()
    assert (embedding.grad.abs().sum(dim=1) > 0).all()
    for key, parameter in method.named_parameters():
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("kind", ["one image", "equal images", "zeros"])
@pytest.mark.parametrize("name", NAMES)
def test_batches_with_nothing_to_relate_are_finite(name, kind):
    mine, theirs = STUDENT.embedding.clone(), TEACHER.embedding.clone()
    if kind == "one image":
        mine, theirs = mine[:1], theirs[:1]
    elif kind == "equal images":
        mine[:], theirs[:] = mine[0].clone(), theirs[0].clone()
    else:
        mine, theirs = torch.zeros_like(mine), torch.zeros_like(theirs)
    method, mine = build(name), mine.requires_grad_()
    total = sum(method(Outputs(embedding=mine), Outputs(embedding=theirs), BATCH).values())
    total.backward()
    assert total.isfinite()
    assert mine.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())


@pytest.mark.parametrize("name", ["rsd", "cc"])
def test_bridges_are_state_that_a_checkpoint_carries(name):
    first, second = build(name), build(name)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.1)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(STUDENT, TEACHER, BATCH)[name], second(STUDENT, TEACHER, BATCH)[name])


@pytest.mark.parametrize(("name", "option"), [(name, option) for name in NAMES for option in WEIGHTS[name]])
@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_weights_are_checked(name, option, value):
    with pytest.raises(InputError, match=rf"{option}={value}"):
        METHODS.get(name).value.build(specs.resnet18(4), specs.teacher(24, 4), num_classes=4, **{option: value})


@pytest.mark.parametrize(
    ("name", "options"),
    [("rsd", {"expansion": 0}), ("rsd", {"compare": "stages"}), ("cc", {"embedding_dim": 0}), ("rkd", {"squared": 3})],
)
def test_other_options_are_checked(name, options):
    with pytest.raises(InputError, match=next(iter(options))):
        build(name, **options)


def test_a_method_built_without_settings_refuses_another_comparison():
    with pytest.raises(InputError, match="compare='stages'"):
        METHODS.get("rsd").value.build(specs.resnet18(4), specs.teacher(24, 4), num_classes=4, compare="stages")
