"""The fused network of any two: what it computes, what it leaves alone, and which pairs it cannot serve."""

import functools
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from crossdistill.bridges import fused
from crossdistill.bridges.fused import fusion_of, level_bridge, statistics_kept, student_is_first
from crossdistill.contracts import Modules
from crossdistill.errors import UnsuitablePair
from crossdistill.models import build
from oracles import fbt as oracle
from oracles import model_specs as specs

SIZES = {"hiera_tiny_224": 64}
SMALL_SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "window_size": 2}
ARGS = {
    "swin_pico": SMALL_SWIN,
    "hiera_tiny_224": {"embed_dim": 16, "num_heads": 1},
    "mixer_tiny": {"num_blocks": 4, "embed_dim": 16, "patch_size": 8},
}


@functools.cache
def cached(name, image_size):
    torch.manual_seed(0)
    return build(name, num_classes=5, image_size=image_size, **ARGS.get(name, {}))


def network(name, image_size=None):
    return deepcopy(cached(name, image_size or SIZES.get(name, 32)))


def images(size=32, batch_size=3):
    return torch.randn(batch_size, 3, size, size, generator=torch.Generator().manual_seed(3))


def fuse(student, teacher, order="rule", mlp_ratio=4.0):
    fusion = fusion_of(student.spec, teacher.spec, Modules(student, teacher, "teacher1"), order)
    return fusion, level_bridge(fusion, mlp_ratio=mlp_ratio)


# student, teacher, whether the student comes first
PAIRS = [
    ("test_resnet", "test_vit", True),
    ("test_convnext", "swin_pico", True),
    ("test_efficientnet", "mixer_tiny", True),
    ("test_resnet", "hiera_tiny_224", True),
    ("test_vit", "test_resnet", False),
    ("swin_pico", "test_convnext", False),
    ("mixer_tiny", "test_efficientnet", False),
    ("hiera_tiny_224", "test_resnet", False),
    ("test_resnet", "test_convnext", True),
    ("test_vit", "swin_pico", True),
    ("swin_pico", "mixer_tiny", True),
    ("mixer_tiny", "test_vit", True),
    ("hiera_tiny_224", "test_vit", True),
    ("mixer_tiny", "hiera_tiny_224", True),
]


@pytest.mark.parametrize(("student", "teacher", "student_first"), PAIRS, ids=lambda one: str(one))
def test_every_pair_of_families_gives_what_its_parts_give_one_after_the_other(student, teacher, student_first):
    student, teacher = network(student), network(teacher)
    fusion, bridge = fuse(student, teacher)
    assert fusion.student_first is student_first
    first, last = (student, teacher) if student_first else (teacher, student)
    batch = images(first.spec.input.image_size[0])
    student.eval()
    with torch.no_grad():
        middle = bridge(first.forward_until(batch, len(first.spec.stages) - 1))
        expected = last.forward_from(middle, len(last.spec.stages) - 1)
        whole = fusion.network(bridge)
        answers = {"student": student, "teacher": teacher}
        own = {who: net(images(net.spec.input.image_size[0])) for who, net in answers.items()}
        reused = fusion.outputs(bridge, own["student"], own["teacher"])
        found = whole(batch)
    assert whole.view == ("student" if student_first else "teacher1")
    assert torch.equal(found.logits, expected.logits)
    assert found.logits.shape == (3, 5)
    for outputs in (found, reused):
        torch.testing.assert_close(outputs.logits, expected.logits)
        torch.testing.assert_close(outputs.embedding, expected.embedding)
    assert found.embedding.shape == (3, last.spec.embedding_dim)


@pytest.mark.parametrize(
    ("student", "teacher", "order", "student_first"),
    [
        (specs.resnet18(), specs.deit_tiny(), "rule", True),
        (specs.resnet18(), oracle.mixer_b16(), "rule", True),
        (specs.deit_tiny(), oracle.resnet50(), "rule", False),
        (specs.resmlp_s12(), oracle.resnet50(), "rule", False),
        (specs.resnet18(), oracle.resnet50(), "rule", True),
        (specs.deit_tiny(), oracle.vit_small(), "rule", True),
        (specs.deit_tiny(), oracle.mixer_b16(), "rule", True),
        (specs.resmlp_s12(), specs.swin(96), "rule", True),
        (specs.swin(48), oracle.mixer_b16(), "teacher_first", False),
        (specs.deit_tiny(), oracle.resnet50(), "student_first", True),
    ],
    ids=lambda one: getattr(one, "name", str(one)),
)
def test_the_rule_puts_a_cnn_first_where_only_one_is_and_else_the_student(student, teacher, order, student_first):
    assert student_is_first(student, teacher, order) is student_first


def test_the_grid_of_the_first_network_need_not_be_that_which_token_mixing_was_built_for():
    """Trap 16: 5 x 5 positions come in, and a Mixer for 4 x 4 goes on."""
    student, teacher = network("test_resnet", 80), network("mixer_tiny")
    assert student.spec.stages[-2].grid == (5, 5)
    assert teacher.spec.stages[-2].grid == (4, 4)
    fusion, bridge = fuse(student, teacher)
    assert fusion.network(bridge).eval()(images(80)).logits.shape == (3, 5)


@pytest.mark.parametrize("num_stages", [2, 3, 6])
def test_the_cut_is_before_the_last_stage_however_many_there_are(num_stages):
    names = ["blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4", "blocks.5"][-num_stages:]
    size = {"image_size": 32, "embed_dim": 16, "depth": 6, "num_heads": 2, "patch_size": 8}
    teacher = build("vit_tiny_patch16_224", num_classes=5, stages=names, **size)
    fusion, bridge = fuse(network("test_resnet"), teacher)
    assert len(teacher.spec.stages) == num_stages
    resumed = []
    teacher.net.blocks[5].register_forward_hook(lambda *_: resumed.append(5))
    teacher.net.blocks[4].register_forward_hook(lambda *_: resumed.append(4))
    fusion.network(bridge)(images())
    assert resumed == [5]


def test_a_stage_that_ends_after_its_downsampling_gives_a_bridge_with_stride():
    """Section 6's variant: the merging of the last stage is skipped, and the bridge does it."""
    names = ["layers.0", "layers.1", "layers.3.downsample", "layers.3.blocks"]
    teacher = build("swin_pico", num_classes=5, image_size=64, stages=names, **SMALL_SWIN)
    _, bridge = fuse(network("test_resnet", 64), teacher)
    assert bridge.patch_embedding.stride == (2, 2)
    assert bridge.patch_embedding.out_channels == teacher.spec.stages[-1].channels


def test_the_teacher_is_frozen_and_in_eval_mode_whoever_switches_it():
    """Traps 1 and 2."""
    student, teacher = network("test_convnext").train(), network("test_resnet").train()
    fusion, bridge = fuse(student, teacher)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    teacher.train()
    before = deepcopy(teacher.state_dict())
    with torch.no_grad():
        answer = deepcopy(teacher).eval()(images())
    outputs = fusion.outputs(bridge, student(images()), answer)
    assert outputs.logits.requires_grad
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_statistics_of_the_students_last_stage_are_those_of_its_own_pass():
    """Trap 3, and the second run of the last stage: one pass, one update."""
    student, teacher = network("test_resnet").train(), network("test_convnext")
    fusion, bridge = fuse(student, teacher, order="teacher_first")
    alone = deepcopy(student)
    alone(images())
    with torch.no_grad():
        answer = teacher(images())
    fusion.outputs(bridge, student(images()), answer)
    assert any(name.endswith("running_mean") for name in student.state_dict())
    for name, tensor in alone.state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor), name


@pytest.mark.parametrize("make", [nn.BatchNorm2d, BatchNormAct2d])
def test_norms_go_on_normalising_by_the_batch_while_statistics_are_kept(make):
    norm, feature = make(3), 5 + 2 * torch.randn(4, 3, 6, 6)
    expected = deepcopy(norm)(feature)
    with statistics_kept(norm):
        assert torch.equal(norm(feature), expected)
    assert norm.track_running_stats
    assert not norm.running_mean.any()
    assert norm.num_batches_tracked == 0


def test_statistics_of_a_norm_in_eval_mode_go_on_being_used():
    norm, feature = nn.BatchNorm2d(3).eval(), torch.randn(4, 3, 6, 6)
    norm.running_mean.fill_(2.0)
    with statistics_kept(norm):
        torch.testing.assert_close(norm(feature), (feature - 2.0) / (1 + norm.eps) ** 0.5)


def test_the_trial_leaves_weights_statistics_modes_and_generators_alone():
    student, teacher = network("test_resnet").train(), network("test_vit")
    before = deepcopy(student.state_dict()), deepcopy(teacher.state_dict())
    fusion = fusion_of(student.spec, teacher.spec, Modules(student, teacher), "rule")
    bridge = level_bridge(fusion, mlp_ratio=4.0)
    generator = torch.get_rng_state()
    fused.try_out(fusion.network(bridge))
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(module.training for module in student.modules())
    for saved, net in zip(before, (student, teacher), strict=True):
        assert all(torch.equal(saved[name], tensor) for name, tensor in net.state_dict().items())


def test_the_students_network_may_be_in_half_precision():
    student, teacher = network("test_convnext").bfloat16(), network("test_vit").bfloat16()
    _, bridge = fuse(student, teacher)
    assert {parameter.dtype for parameter in bridge.parameters()} == {torch.float32}


class OneStage(nn.Module):
    """Where there is nothing to cut."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, stride=16, padding=1), nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_network_of_one_stage_is_refused(role):
    short = build(OneStage(), num_classes=5, image_size=32)
    assert len(short.spec.stages) < 2
    pair = {"student": network("test_vit"), "teacher": network("test_vit"), role: short}
    with pytest.raises(UnsuitablePair, match="two stages or more") as error:
        fuse(**pair)
    count = {0: "0 stages", 1: "1 stage"}[len(short.spec.stages)]
    assert error.value.given == f"{role} 'OneStage' with {count}"
    assert f"{role}.stages" in error.value.action


@pytest.mark.parametrize("modules", [None, Modules(nn.Identity(), nn.Identity())])
def test_a_teacher_without_a_live_network_is_refused(modules):
    with pytest.raises(UnsuitablePair, match="without a live network"):
        fusion_of(specs.resnet18(), specs.deit_tiny(), modules, "rule")


def test_a_fused_network_that_fails_is_refused_with_its_stages_and_grids():
    student, teacher = network("test_resnet"), network("test_vit")

    def breaks(feature, stage):
        raise RuntimeError("shapes do not go together")

    teacher.forward_from = breaks
    with pytest.raises(UnsuitablePair, match="which fails: shapes do not go together") as error:
        fuse(student, teacher)
    for words in ("first 3 stages of 'test_resnet'", "2x2 grid", "stage 4 of 'test_vit'", "NLC+1"):
        assert words in error.value.given
    assert "method.order" in error.value.action


def test_a_fused_network_that_answers_in_another_shape_is_refused():
    student, teacher = network("test_resnet"), network("test_vit")
    teacher.spec = replace(teacher.spec, embedding_dim=teacher.spec.embedding_dim + 1)
    with pytest.raises(UnsuitablePair, match="gives logits and embeddings of shapes"):
        fuse(student, teacher)
