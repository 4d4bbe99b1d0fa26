"""The bridge from one network's stage to another's: sizes, layouts and published numbers of parameters."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from crossdistill.bridges import fused
from crossdistill.bridges.layout import as_map
from crossdistill.bridges.level_bridge import LevelBridge, window_side
from crossdistill.contracts import StageSpec
from crossdistill.errors import InputError
from crossdistill.models.sizes import construct
from crossdistill.models.stage import stage
from oracles import fbt as oracle
from oracles import model_specs as specs

MAP = StageSpec(8, 16, "NCHW", 0, (4, 4))


def feature_of(spec, seed=0):
    rows, columns = spec.grid
    shape = {
        "NCHW": (spec.channels, rows, columns),
        "NHWC": (rows, columns, spec.channels),
        "NLC": (spec.num_prefix_tokens + rows * columns, spec.channels),
    }[spec.layout]
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))


TARGETS = {
    "NCHW": StageSpec(12, 16, "NCHW", 0, (4, 4)),
    "NHWC": StageSpec(12, 16, "NHWC", 0, (4, 4)),
    "NLC": StageSpec(12, 16, "NLC", 0, (4, 4)),
    "class token": StageSpec(12, 16, "NLC", 1, (4, 4)),
    "class token and four registers": StageSpec(12, 16, "NLC", 5, (4, 4)),
    "dealt out": StageSpec(12, 16, "NLC", 0, (4, 4), 1),
    "coarser": StageSpec(12, 32, "NHWC", 0, (2, 2)),
    "coarser by no whole number": StageSpec(12, 32, "NLC", 1, (3, 3)),
    "finer": StageSpec(12, 8, "NCHW", 0, (7, 7)),
    "one position": StageSpec(12, 64, "NCHW", 0, (1, 1)),
    "oblong": StageSpec(12, 16, "NHWC", 0, (2, 4)),
}


@pytest.mark.parametrize("source", [MAP, StageSpec(8, 16, "NHWC", 0, (4, 4)), StageSpec(8, 16, "NLC", 2, (4, 4))])
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_any_stage_becomes_any_other_and_trains_every_part(source, target):
    bridge = LevelBridge(source, target)
    feature = feature_of(source).requires_grad_()
    result = bridge(feature)
    assert result.shape == feature_of(target).shape
    assert result.is_contiguous()
    (result * feature_of(target, seed=1)).sum().backward()
    assert feature.grad.isfinite().all()
    assert as_map(feature.grad, source).abs().sum() > 0
    still = {name for name, parameter in bridge.named_parameters() if not parameter.grad.abs().sum() > 0}
    # one token needs no attention, so which it attends to does not matter
    assert still <= ({"block.attn.relative_position_bias_table"} if target.grid == (1, 1) else set())


def test_prefix_tokens_are_learnt_vectors_plus_the_mean_token():
    bridge = LevelBridge(MAP, TARGETS["class token and four registers"])
    result = bridge(feature_of(MAP))
    patches = result[:, 5:]
    torch.testing.assert_close(result[:, :5], patches.mean(dim=1, keepdim=True) + bridge.prefix)
    assert 0 < bridge.prefix.abs().max() < 0.1


def test_class_tokens_of_the_source_are_left_out():
    """Trap 8."""
    source = StageSpec(8, 16, "NLC", 1, (4, 4))
    bridge, feature = LevelBridge(source, TARGETS["NCHW"]), feature_of(source)
    changed = feature.clone()
    changed[:, 0] += 10
    assert torch.equal(bridge(feature), bridge(changed))


def test_tokens_dealt_out_lie_where_the_map_has_them():
    dealt = TARGETS["dealt out"]
    bridge, feature = LevelBridge(MAP, dealt), feature_of(MAP)
    expected = LevelBridge(MAP, replace(dealt, layout="NCHW", num_unrolls=0))
    expected.load_state_dict(bridge.state_dict())
    assert torch.equal(as_map(bridge(feature), dealt), expected(feature))


def test_a_whole_ratio_of_grids_becomes_kernel_and_stride():
    bridge = LevelBridge(replace(MAP, grid=(8, 4)), TARGETS["oblong"])
    assert bridge.patch_embedding.kernel_size == bridge.patch_embedding.stride == (4, 1)


def test_grids_without_a_whole_ratio_are_resized():
    bridge = LevelBridge(MAP, TARGETS["finer"])
    assert bridge.patch_embedding.kernel_size == (1, 1)
    embedded = F.interpolate(bridge.patch_embedding(feature_of(MAP)), (7, 7), mode="bilinear")
    expected = bridge.block(bridge.norm(embedded.movedim(1, 3))).movedim(3, 1)
    torch.testing.assert_close(bridge(feature_of(MAP)), expected)


def test_weights_start_small_and_biases_at_zero():
    torch.manual_seed(0)
    bridge = LevelBridge(MAP, replace(TARGETS["class token"], channels=96))
    for name, parameter in bridge.named_parameters():
        if "norm" in name:
            continue
        if name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.25), name


@pytest.mark.parametrize(("mlp_ratio", "hidden"), [(2.0, 24), (4.0, 48)])
def test_the_mlp_ratio_is_an_option(mlp_ratio, hidden):
    assert LevelBridge(MAP, TARGETS["NHWC"], mlp_ratio=mlp_ratio).block.mlp.fc1.out_features == hidden


@pytest.mark.parametrize("mlp_ratio", [0.001, 1 / 13])
def test_an_mlp_without_a_channel_is_refused(mlp_ratio):
    with pytest.raises(InputError, match=r"mlp_ratio=.* for 12 channels"):
        LevelBridge(MAP, TARGETS["NHWC"], mlp_ratio=mlp_ratio)
    assert LevelBridge(MAP, TARGETS["NHWC"], mlp_ratio=1 / 12).block.mlp.fc1.out_features == 1


@pytest.mark.parametrize("side", range(4, 21))
def test_every_position_of_a_grid_knows_others(side):
    """Where attention is even, a position is moved by the mean of its window: none may be alone with zeros around."""
    bridge = LevelBridge(MAP, StageSpec(12, 16, "NCHW", 0, (side, 4)))
    torch.manual_seed(side)
    tokens = torch.randn(1, side, 1, 12).expand(1, side, 4, 12).double().requires_grad_()
    attended = bridge.double().block._attn(tokens)
    for place in range(side):
        (gradient,) = torch.autograd.grad(attended[0, place].square().sum(), tokens, retain_graph=True)
        moved = gradient[0].abs().sum(dim=(1, 2)) > 0
        assert moved.sum() >= 3, place


def test_windows_fill_the_grid_or_nearly():
    sides = [window_side(side) for side in range(1, 57)]
    assert sides[:7] == list(range(1, 8))
    assert [sides[grid - 1] for grid in (14, 21, 28, 56)] == [7, 7, 7, 7]
    for grid, side in enumerate(sides[7:], start=8):
        filled = (grid - 1) % side + 1
        assert 4 <= side <= 7
        assert filled >= (3 if grid != 37 else 2), grid
        assert filled == side or all(grid % other for other in (4, 5, 6, 7)), grid


def test_no_path_is_dropped_and_no_window_is_shifted():
    bridge = LevelBridge(MAP, TARGETS["NHWC"]).train()
    assert torch.equal(bridge(feature_of(MAP)), bridge(feature_of(MAP)))
    assert tuple(bridge.block.shift_size) == (0, 0)
    assert tuple(LevelBridge(MAP, replace(MAP, grid=(14, 14))).block.window_size) == (7, 7)
    assert tuple(bridge.block.window_size) == (4, 4)
    assert tuple(LevelBridge(MAP, replace(MAP, grid=(8, 12))).block.window_size) == (4, 6)


@pytest.mark.parametrize(
    ("teacher", "student", "student_first", "millions"),
    oracle.PUBLISHED,
    ids=[f"{teacher.name} to {student.name}" for teacher, student, *_ in oracle.PUBLISHED],
)
def test_bridges_of_the_published_pairs_have_the_parameters_they_should(teacher, student, student_first, millions):
    assert fused.student_is_first(student, teacher, "rule") is student_first
    first, last = (student, teacher) if student_first else (teacher, student)
    with torch.device("meta"):
        bridge = LevelBridge(first.stages[-2], last.stages[-2])
    assert round(sum(parameter.numel() for parameter in bridge.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mobilenetv2_100", specs.mobilenetv2()),  # trap 7: the last stage ends after conv_head and bn2, at 1280
        ("deit_tiny_patch16_224", specs.deit_tiny()),
    ],
)
def test_specs_written_by_hand_are_those_of_the_networks(name, expected):
    with torch.device("meta"):
        net = construct(name, {"num_classes": 100}, None)
    found = stage(net, name, 100, None, None).spec
    for fact in ("stages", "family", "embedding_dim"):
        assert getattr(found, fact) == getattr(expected, fact)
