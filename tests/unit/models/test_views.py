"""Reading layout, grid, prefix tokens and stride from a shape."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdistill.contracts import StageSpec
from crossdistill.models.views import at_size, reads_channels_last, view, views_of


@pytest.mark.parametrize(
    ("shape", "image_size", "expected"),
    [
        ((2, 64, 56, 56), (224, 224), StageSpec(64, 4, "NCHW", 0, (56, 56))),
        ((2, 56, 56, 96), (224, 224), StageSpec(96, 4, "NHWC", 0, (56, 56))),
        ((2, 64, 64, 48), (256, 192), StageSpec(64, 4, "NCHW", 0, (64, 48))),
        ((2, 64, 48, 64), (256, 192), StageSpec(64, 4, "NHWC", 0, (64, 48))),
        ((2, 197, 192), (224, 224), StageSpec(192, 16, "NLC", 1, (14, 14))),
        ((2, 201, 192), (224, 224), StageSpec(192, 16, "NLC", 5, (14, 14))),
        ((2, 12, 8), (256, 192), StageSpec(8, 64, "NLC", 0, (4, 3))),
        ((2, 512, 1, 1), (32, 32), StageSpec(512, 32, "NCHW", 0, (1, 1))),
        ((2, 192, 35, 35), (299, 299), StageSpec(192, 8, "NCHW", 0, (35, 35))),
        ((2, 16, 16, 384), (224, 224), StageSpec(384, 14, "NHWC", 0, (16, 16))),
    ],
)
def test_shapes_are_read(shape, image_size, expected):
    assert view(shape, image_size) == expected


def test_the_networks_own_number_of_prefix_tokens_comes_first():
    # 1 + 16 tokens are also 8 + 9 and 13 + 4: what the network says decides
    assert view((2, 17, 8), (64, 64), num_prefix_tokens=8).grid == (3, 3)
    assert view((2, 17, 8), (64, 64), num_prefix_tokens=1).grid == (4, 4)


@pytest.mark.parametrize("shape", [(2, 512), (2,), (2, 3, 4, 5, 6)])
def test_tensors_without_positions_have_no_view(shape):
    assert view(shape, (32, 32)) is None


def test_ambiguous_maps_follow_the_others():
    shapes = [(2, 16, 16, 16), (2, 8, 8, 32), (2, 4, 4, 64)]
    assert reads_channels_last(shapes, (64, 64))
    assert view(shapes[0], (64, 64), channels_last=True).layout == "NHWC"
    assert view(shapes[0], (64, 64), channels_last=False).layout == "NCHW"


@given(
    rows=st.integers(2, 12),
    columns=st.integers(2, 12),
    stride=st.sampled_from([4, 8, 14, 16]),
    channels=st.integers(200, 300),
    prefix=st.integers(0, 5),
)
def test_a_shape_gives_back_what_it_was_made_from(rows, columns, stride, channels, prefix):
    size = (rows * stride, columns * stride)
    assert view((2, channels, rows, columns), size) == StageSpec(channels, stride, "NCHW", 0, (rows, columns))
    assert view((2, rows, columns, channels), size) == StageSpec(channels, stride, "NHWC", 0, (rows, columns))
    tokens = StageSpec(channels, stride, "NLC", prefix, (rows, columns))
    assert view((2, prefix + rows * columns, channels), size, num_prefix_tokens=prefix) == tokens


def test_another_size_changes_the_grid_only():
    large = StageSpec(512, 32, "NCHW", 0, (8, 6))
    assert at_size(large, (2, 512, 1, 1), (16, 16)) == StageSpec(512, 32, "NCHW", 0, (1, 1))
    tokens = StageSpec(64, 16, "NLC", 1, (16, 12))
    assert at_size(tokens, (2, 5, 64), (32, 32)) == StageSpec(64, 16, "NLC", 1, (2, 2))


def test_strides_where_borders_are_cut_or_padded():
    assert view((2, 768, 36, 27), (256, 192)).stride == 7  # patches of 7
    assert view((2, 288, 29, 21), (256, 192)).stride == 8  # unpadded 3x3 convolutions on the way
    assert view((2, 512, 9, 7), (288, 224)).stride == 32


def test_tokens_are_read_on_the_grid_of_the_map_before_them():
    patches, tokens = views_of([(2, 64, 14, 12), (2, 1 + 14 * 12, 64)], (224, 200), num_prefix_tokens=1)
    assert (tokens.grid, tokens.num_prefix_tokens, tokens.stride) == ((14, 12), 1, patches.stride)
    *_, tokens = views_of([(2, 64, 2, 2), (2, 4 + 5, 64), (2, 4 + 5, 64)], (32, 32), num_prefix_tokens=5)
    assert (tokens.grid, tokens.num_prefix_tokens) == ((2, 2), 5)


def test_oblong_images_keep_their_tokens_where_a_border_is_left_out():
    tokens = StageSpec(64, 16, "NLC", 1, (16, 12))
    assert at_size(tokens, (2, 1 + 14 * 12, 64), (224, 200)).grid == (14, 12)
