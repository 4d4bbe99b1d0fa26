"""One feature in three layouts is one map and one list of tokens."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.hiera import Unroll

from crossdistill.bridges.exit_branch import exit_branch
from crossdistill.bridges.layout import as_map, as_tokens, from_map, map_to_tokens, split_prefix, tokens_to_map
from crossdistill.contracts import StageSpec
from crossdistill.errors import InputError
from oracles import layouts as oracle
from oracles import model_specs as specs

MAP = torch.arange(2 * 5 * 3 * 4.0).reshape(2, 5, 3, 4)
PREFIX = -torch.ones(2, 2, 5)


def stage(layout, num_prefix_tokens=0):
    return StageSpec(channels=5, stride=16, layout=layout, num_prefix_tokens=num_prefix_tokens, grid=(3, 4))


def tokens_by_hand():
    return torch.stack([MAP[:, :, row, column] for row in range(3) for column in range(4)], dim=1)


FEATURES = {
    "NCHW": (MAP, stage("NCHW")),
    "NHWC": (MAP.movedim(1, 3), stage("NHWC")),
    "NLC": (tokens_by_hand(), stage("NLC")),
    "NLC with prefix": (torch.cat([PREFIX, tokens_by_hand()], dim=1), stage("NLC", 2)),
}


@pytest.mark.parametrize("layout", FEATURES)
def test_as_map(layout):
    assert torch.equal(as_map(*FEATURES[layout]), MAP)


@pytest.mark.parametrize("layout", FEATURES)
def test_as_tokens(layout):
    feature, spec = FEATURES[layout]
    assert torch.equal(as_tokens(feature, spec, keep_prefix=False), tokens_by_hand())
    kept = as_tokens(feature, spec, keep_prefix=True)
    prefix, patches = split_prefix(feature, spec)
    assert torch.equal(kept, torch.cat([prefix, patches], dim=1))
    assert torch.equal(prefix, PREFIX[:, : spec.num_prefix_tokens])
    assert torch.equal(patches, tokens_by_hand())


def test_tokens_and_maps_are_inverse():
    assert torch.equal(tokens_to_map(map_to_tokens(MAP), (3, 4)), MAP)


def test_maps_may_come_at_another_resolution():
    larger = torch.zeros(2, 5, 6, 8)
    assert as_map(larger, stage("NCHW")).shape == (2, 5, 6, 8)
    assert as_tokens(larger.movedim(1, 3), stage("NHWC"), keep_prefix=False).shape == (2, 48, 5)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((2, 3, 4, 5), "NCHW"), ((2, 5, 3, 4), "NHWC"), ((2, 5, 3, 4), "NLC"), ((2, 12, 5), "NCHW"), ((2, 13, 5), "NLC")],
)
@pytest.mark.parametrize("view", [as_map, split_prefix])
def test_another_layout_is_refused(shape, layout, view):
    with pytest.raises(InputError, match=f"{layout} with 5 channels on a 3x4 grid") as error:
        view(torch.zeros(shape), stage(layout))
    assert str(shape) in error.value.given


def test_the_message_counts_prefix_tokens():
    with pytest.raises(InputError, match="2 prefix tokens"):
        as_map(torch.zeros(2, 12, 5), stage("NLC", 2))


@st.composite
def stages(draw):
    """Any stage: odd and narrow grids, one position, several prefix tokens, tokens dealt out as in Hiera."""
    layout = draw(st.sampled_from(["NCHW", "NHWC", "NLC"]))
    num_unrolls = draw(st.integers(0, 2)) if layout == "NLC" else 0
    grid = tuple(draw(st.integers(1, 9 if num_unrolls == 0 else 2)) * 2**num_unrolls for _ in range(2))
    num_prefix_tokens = draw(st.sampled_from([0, 1, 2, 4, 5])) if layout == "NLC" else 0
    return StageSpec(draw(st.integers(1, 12)), 8, layout, num_prefix_tokens, grid, num_unrolls)


def feature_of(spec):
    """Two samples of such a stage; all numbers differ."""
    rows, columns = spec.grid
    shapes = {
        "NCHW": (2, spec.channels, rows, columns),
        "NHWC": (2, rows, columns, spec.channels),
        "NLC": (2, spec.num_prefix_tokens + rows * columns, spec.channels),
    }
    shape = torch.Size(shapes[spec.layout])
    return torch.arange(float(shape.numel())).reshape(shape)


@given(stages())
@settings(deadline=None)
def test_any_stage_agrees_with_looking_positions_up(spec):
    feature = feature_of(spec)
    assert torch.equal(as_map(feature, spec), oracle.as_map(feature, spec))
    for keep_prefix in (False, True):
        expected = oracle.as_tokens(feature, spec, keep_prefix=keep_prefix)
        assert torch.equal(as_tokens(feature, spec, keep_prefix=keep_prefix), expected)
    prefix, patches = split_prefix(feature, spec)
    assert torch.equal(tokens_to_map(patches, spec.grid), as_map(feature, spec))
    assert torch.equal(map_to_tokens(as_map(feature, spec)), patches)
    assert prefix.shape == (2, spec.num_prefix_tokens, spec.channels)


@given(stages())
@settings(deadline=None)
def test_any_stage_comes_back_from_its_map(spec):
    feature = feature_of(spec)
    prefix, _ = split_prefix(feature, spec)
    back = from_map(as_map(feature, spec), spec, prefix if spec.num_prefix_tokens else None)
    assert torch.equal(back, feature)
    assert back.is_contiguous()


@pytest.mark.parametrize("prefix", [None, PREFIX[:, :1]])
def test_a_map_without_the_prefix_tokens_of_the_stage_is_refused(prefix):
    with pytest.raises(InputError, match="2 prefix tokens"):
        from_map(MAP, stage("NLC", 2), prefix)


@given(stages(), st.integers(1, 3), st.integers(1, 24), st.data())
@settings(deadline=None, max_examples=50)
def test_exit_branches_of_any_stage_give_logits_and_gradients(spec, num_stages, embedding_dim, data):
    """Two channels at least: a layer norm makes zeros of one, whatever it is given."""
    torch.manual_seed(0)
    number = data.draw(st.integers(1, num_stages))
    model = specs.model("student", "cnn", embedding_dim + 1, [replace(spec, channels=spec.channels + 1)] * num_stages)
    branch = exit_branch(model, specs.teacher(8), number, num_classes=7).double()
    feature = torch.randn_like(feature_of(model.stages[0]), dtype=torch.float64).requires_grad_()
    logits = branch(feature)
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    logits.square().sum().backward()
    assert feature.grad.isfinite().all()
    assert feature.grad.flatten(1).abs().amax(1).gt(0).all(), "every sample is reached"
    assert all(one.grad is not None and one.grad.isfinite().all() for one in branch.parameters())


@pytest.mark.parametrize("times", [1, 2, 3])
def test_tokens_dealt_out_by_hiera_come_back(times):
    grid = (2**times, 3 * 2**times)
    rows = torch.arange(2.0 * 5 * grid[0] * grid[1]).reshape(2, -1, 5)
    dealt = Unroll(grid, (1, 1), [(2, 2)] * times)(rows)
    spec = StageSpec(5, 4, "NLC", 0, grid, times)
    assert not torch.equal(dealt, rows)
    assert torch.equal(as_tokens(dealt, spec, keep_prefix=True), rows)
    assert torch.equal(as_map(dealt, spec), tokens_to_map(rows, grid))
