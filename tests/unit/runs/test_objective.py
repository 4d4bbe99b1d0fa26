"""One method for one teacher, for several of different families and sizes, for a sum; and who else serves a pair."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from crossdistill.contracts import Batch
from crossdistill.errors import InputError, UnsuitablePair
from crossdistill.models import build
from crossdistill.registry import METHODS
from crossdistill.runs.objective import PerTeacher, build_method, resolve_method
from crossdistill.store import Keep, Manifest, Store, StoreWriter
from crossdistill.teachers import (
    EnsembleTeacher,
    FrozenTeacher,
    MappedTeacher,
    facts_of,
    make_class_map,
    stored_teacher,
)

NUM_CLASSES = 10
TEACHING = [record.name for record in METHODS if record.value.needs]
ON_LOGITS = {"kd", "dkd", "dist", "ofa"}
TEACHERS = {
    "teacher0": ("test_vit", 48, {}),
    "teacher1": ("mixer_tiny", 32, {"patch_size": 8, "embed_dim": 32, "num_blocks": 4}),
    "teacher2": ("test_resnet", 40, {}),
}


class Plain(nn.Module):
    """Two paths side by side from end to end: no single tensor ever carries everything."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.head, self.other_head = nn.Linear(4, NUM_CLASSES), nn.Linear(4, NUM_CLASSES)

    def forward(self, images):
        first, second = self.first(images).relu().mean((2, 3)), self.second(images).relu().mean((2, 3))
        return self.head(first) + self.other_head(second)


@pytest.fixture(scope="module")
def student():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return build("timm/test_resnet", num_classes=NUM_CLASSES, image_size=32)


@pytest.fixture(scope="module")
def teachers():
    """Of three families, with images of three sizes."""
    torch.manual_seed(1)
    return {
        view: FrozenTeacher(build(f"timm/{name}", num_classes=NUM_CLASSES, image_size=size, **arguments), view=view)
        for view, (name, size, arguments) in TEACHERS.items()
    }


@pytest.fixture(scope="module")
def batch():
    random = torch.Generator().manual_seed(2)
    images = {view: torch.randn(6, 3, size, size, generator=random) for view, (_, size, _) in TEACHERS.items()}
    return Batch({"student": torch.randn(6, 3, 32, 32, generator=random), **images}, torch.arange(6), torch.arange(6))


def method_of(name, student, teacher, **options):
    torch.manual_seed(7)
    return build_method(*resolve_method(name, options), student, teacher, num_classes=NUM_CLASSES)


def losses_of(method, student, teacher, batch):
    """Random masks are the same every time."""
    torch.manual_seed(3)
    return method(student.eval()(batch.images["student"]), teacher.signals(batch), batch)


def adapted(method, part):
    """A method for one teacher with the weights of that part."""
    method.load_state_dict(part.state_dict())
    return method


@pytest.mark.parametrize("name", TEACHING)
def test_teachers_of_every_family_and_size_are_heard_as_one_or_one_by_one(name, student, teachers, batch):
    everyone = EnsembleTeacher(list(teachers.values()), [1, 2, 5])
    method = method_of(name, student, everyone)
    found = losses_of(method, student, everyone, batch)
    assert all(loss.isfinite() for loss in found.values())
    sum(found.values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in method.parameters())
    if name in ON_LOGITS:
        assert type(method) is METHODS.get(name).value
        assert everyone.passes_on == frozenset()
    elif name != "hybrid":
        assert isinstance(method, PerTeacher)
        assert list(method.parts) == list(TEACHERS)
        assert everyone.passes_on == method.needs
        assert {loss.rpartition("_")[2] for loss in found} == set(TEACHERS)
        assert set(method.measured()) == ({f"fused_{view}" for view in TEACHERS} if name == "fbt" else set())


@pytest.mark.parametrize("name", sorted(set(TEACHING) - ON_LOGITS - {"hybrid"}))
def test_each_teacher_counts_by_its_weight_and_is_asked_as_it_would_be_alone(name, student, teachers, batch):
    members = list(teachers.values())[:2]
    pair = EnsembleTeacher(members, [1, 3])
    method = method_of(name, student, pair)
    alone = [adapted(method_of(name, student, one), method.parts[one.view]) for one in members]
    found = losses_of(method, student, pair, batch)
    torch.manual_seed(3)
    answer = student.eval()(batch.images["student"])
    for one, member, weight in zip(alone, members, (0.25, 0.75), strict=True):
        for loss, value in one(answer, member.signals(batch), batch).items():
            torch.testing.assert_close(found[f"{loss}_{member.view}"], weight * value)


def test_a_live_teacher_passes_on_what_its_method_needs(student, teachers, batch):
    one = teachers["teacher0"]
    for name in ("fitnet", "crd", "kd"):
        method = method_of(name, student, one)
        answer = one.signals(batch)
        assert one.passes_on == method.needs
        assert answer.logits is not None  # whoever measures the teacher reads them
        assert (answer.stages is not None, answer.embedding is not None) == (name == "fitnet", name == "crd")


@pytest.mark.parametrize("embeddings", [False, True])
def test_a_stored_teacher_passes_on_what_its_method_needs(student, teachers, tmp_path, embeddings):
    one = teachers["teacher0"]
    dims = (one.spec.embedding_dim,) if embeddings else ()
    facts = {"teacher": facts_of(one)}
    StoreWriter.open(tmp_path, Manifest({}, facts, one.spec.num_classes, 2, 2, Keep(embeddings=embeddings), dims))
    stored = stored_teacher(Store.open(tmp_path))
    assert ("embedding" in stored.passes_on) == embeddings
    method_of("kd", student, stored)
    assert stored.passes_on == {"logits"}
    if embeddings:
        assert "embedding" in method_of("crd", student, stored).needs & stored.passes_on


def test_only_the_ratios_of_weights_matter(student, teachers, batch):
    members = list(teachers.values())[:2]
    small, large = (EnsembleTeacher(members, weights) for weights in ([1, 3], [10, 30]))
    method = method_of("fitnet", student, small)
    assert method.weights == method_of("fitnet", student, large).weights == (0.25, 0.75)


@pytest.mark.parametrize("name", ["fitnet", "cc", "rsd"])
def test_the_same_teacher_twice_teaches_as_much_as_once(name, student, teachers, batch):
    one = teachers["teacher0"]
    twice = EnsembleTeacher([one, FrozenTeacher(one.model, view="again")])
    both = replace(batch, images={**batch.images, "again": batch.images["teacher0"]})
    method, single = method_of(name, student, twice), method_of(name, student, one)
    for part in method.parts.values():
        part.load_state_dict(single.state_dict())
    total = sum(losses_of(method, student, twice, both).values())
    torch.testing.assert_close(total, sum(losses_of(single, student, one, batch).values()))


def test_what_a_method_needs_may_be_decided_by_its_options(student, teachers):
    pair = EnsembleTeacher(list(teachers.values())[:2])
    assert isinstance(method_of("rsd", student, pair), PerTeacher)
    assert type(method_of("rsd", student, pair, compare="logits")) is METHODS.get("rsd").value
    assert pair.passes_on == frozenset()


def test_each_part_of_a_sum_follows_its_own_rule(student, teachers, batch):
    pair = EnsembleTeacher(list(teachers.values())[:2], [1, 3])
    method = method_of("hybrid", student, pair, methods={"kd": {"temperature": 2}, "fitnet": {}}, weights={"kd": 0.5})
    assert type(method.parts["kd"]) is METHODS.get("kd").value
    assert isinstance(method.parts["fitnet"], PerTeacher)
    assert pair.passes_on == {"stages"}
    found = losses_of(method, student, pair, batch)
    kd = method_of("kd", student, pair, temperature=2)
    torch.testing.assert_close(found["kd"], 0.5 * losses_of(kd, student, pair, batch)["kd"])
    assert {name for name in found if name != "kd"} == {
        f"fitnet_stage{number}_teacher{index}" for number in (1, 2, 3, 4) for index in (0, 1)
    }


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        # More than the address space of a process, however generous the system is with memory.
        ("fbt", {"mlp_ratio": 1e11}, "method fbt with mlp_ratio=100000000000.0 for"),
        ("crd", {"num_negatives": 10**12}, "method crd with num_negatives=1000000000000 for"),
        ("rsd", {"expansion": 10**10, "weight": 2}, r"method rsd with weight=2\.0, expansion=10000000000 for"),
        ("rsd", {"expansion": 10**16}, "method rsd with expansion=10000000000000000 for"),  # an int64 has no room
        ("crd", {"embedding_dim": 10**30}, "method crd with embedding_dim=1"),  # nor one size alone
        ("hybrid", {"methods": {"kd": {}, "crd": {"num_negatives": 10**12}}}, "method crd with num_negatives="),
    ],
)
def test_sizes_that_no_memory_holds_are_refused_by_name(student, teachers, name, options, words):
    with pytest.raises(InputError, match=f"{words}[\\s\\S]*lower the option"):
        method_of(name, student, teachers["teacher0"], **options)


def test_another_failure_of_a_build_stays_what_it_is(student, teachers, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr(METHODS.get("kd").value, "__init__", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        method_of("kd", student, teachers["teacher0"])


def test_a_part_of_weight_zero_is_not_built(student, teachers, batch):
    pair = EnsembleTeacher(list(teachers.values())[:2])
    options = {"methods": {"dist": {}, "crd": {"num_negatives": 10**12}}, "weights": {"crd": 0.0}}
    for teacher in (teachers["teacher0"], pair):
        method = method_of("hybrid", student, teacher, **options)
        assert list(method.parts) == ["dist"]
        assert set(losses_of(method, student, teacher, batch)) == {"dist"}
        assert method.needs == {"logits"}
    assert pair.passes_on == frozenset()


def test_options_of_a_sum_s_parts_are_filled_in_and_checked():
    _, options = resolve_method("hybrid", {"methods": {"kd": {"temperature": 2}, "dist": {}}})
    assert options["methods"]["kd"] == {"temperature": 2.0, "weight": 1.0, "standardize": False}
    assert set(options["methods"]["dist"]) == {"beta", "gamma", "temperature", "weight"}
    for methods, words in (
        ({"kd": {"temprature": 2}}, r"method\.methods\.kd\.temprature.*\n.*\n.*temperature"),
        ({"kd": {"temperature": "hot"}}, r"method\.methods\.kd\.temperature = 'hot'"),
        ({"kdd": {}}, r"method 'kdd'(.*\n)*.*did you mean 'kd'"),
        ({"kd": 3}, r"method\.methods\.kd"),
        ({"kd": {}, "hybrid": {}}, "'hybrid', which is a sum itself"),
        ({"none": {}}, "'none', which has no loss"),
        ({}, "a sum of nothing"),
    ):
        with pytest.raises(InputError, match=words):
            resolve_method("hybrid", {"methods": methods})


def stageless():
    return build(Plain(), num_classes=NUM_CLASSES, image_size=32)


def mapped(teachers, view="teacher1"):
    model = build("timm/test_vit", num_classes=20, image_size=32)
    class_map = make_class_map({str(k): k for k in range(10)}, tuple("0123456789"), model.spec)
    return MappedTeacher(model, class_map, view=view)


def test_a_network_without_stages_is_refused_with_the_methods_that_serve_it(teachers):
    plain = stageless()
    assert plain.spec.stages == ()
    before = torch.random.get_rng_state()
    with pytest.raises(UnsuitablePair, match="stages") as refused:
        build_method(*resolve_method("fitnet", {}), plain, teachers["teacher0"], num_classes=NUM_CLASSES)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert serving(refused) >= {"kd", "dkd", "dist", "ofa", "cc", "rkd", "crd", "rsd", "hybrid"}
    assert not serving(refused) & {"fitnet", "at", "mgd", "fbt"}


def serving(refused):
    return set(refused.value.action.partition("methods that serve this pair: ")[2].split(", "))


def test_a_member_that_answers_in_other_classes_lends_no_parts(student, teachers):
    everyone = EnsembleTeacher([teachers["teacher0"], mapped(teachers)])
    with pytest.raises(UnsuitablePair, match=r"which needs .*modules.*, and teacher test_vit") as refused:
        build_method(*resolve_method("fbt", {}), student, everyone, num_classes=NUM_CLASSES)
    assert serving(refused) == set(TEACHING) - {"fbt"}
    assert isinstance(method_of("fitnet", student, everyone), PerTeacher)


def test_a_part_that_cannot_serve_a_pair_names_the_others(teachers):
    name, options = resolve_method("hybrid", {"methods": {"kd": {}, "fitnet": {}}})
    plain = stageless()
    with pytest.raises(UnsuitablePair, match="stages") as refused:
        build_method(name, options, plain, teachers["teacher0"], num_classes=NUM_CLASSES)
    assert {"kd", "crd"} <= serving(refused)


def test_a_token_mixer_goes_on_from_a_student_of_another_size(batch):
    """Its token mixing has weights for 16 positions only."""
    name, size, arguments = TEACHERS["teacher1"]
    mixer = FrozenTeacher(build(f"timm/{name}", num_classes=NUM_CLASSES, image_size=size, **arguments))
    student = build("timm/test_resnet", num_classes=NUM_CLASSES, image_size=72)
    images = {"student": torch.rand(6, 3, 72, 72), "teacher0": batch.images["teacher1"]}
    losses = losses_of(method_of("fbt", student, mixer), student, mixer, replace(batch, images=images))
    assert all(loss.isfinite() for loss in losses.values())


def test_a_token_mixer_without_a_stage_to_go_on_from_is_refused_with_the_methods_that_serve_it(student):
    name, size, arguments = TEACHERS["teacher1"]
    last = {"stages": ("blocks.3",), **arguments}
    mixer = FrozenTeacher(build(f"timm/{name}", num_classes=NUM_CLASSES, image_size=size, **last))
    with pytest.raises(UnsuitablePair, match="teacher 'mixer_tiny' with 1 stage\n") as refused:
        build_method(*resolve_method("fbt", {}), student, mixer, num_classes=NUM_CLASSES)
    assert serving(refused) == set(TEACHING) - {"fbt"}
