"""One feature in three layouts is one map and one list of tokens."""

import pytest
import torch

from crossdistill.bridges.layout import as_map, as_tokens, map_to_tokens, split_prefix, tokens_to_map
from crossdistill.contracts import StageSpec
from crossdistill.errors import InputError

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
