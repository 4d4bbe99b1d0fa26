"""Which cuts become stages, on rows of cuts written out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from crossdistill.contracts import StageSpec
from crossdistill.models.points import Point, choose, isotropic_ends, kind_of


def cut(key, stride, channels=8, *, depth=0, kind="block", grid=None):
    side = 256 // stride
    shape = (2, channels, side, side)
    return Point(key, shape, depth, kind, StageSpec(channels, stride, "NCHW", 0, grid or (side, side)))


def pooled(key="pool"):
    return Point(key, (2, 512), 0, "pool", None)


def keys(points):
    return [point.key for point in choose(points)]


def test_hierarchical_takes_the_last_cut_at_4_8_16_and_the_one_before_the_pool():
    row = [cut("conv", 2, kind="primitive"), cut("maxpool", 4, kind="pool")]
    row += [cut(f"layer{n}.{b}", 2 ** (n + 1), 8 * n, depth=1 - b) for n in (1, 2, 3, 4) for b in (0, 1)]
    assert keys([*row, pooled()]) == ["layer1.1", "layer2.1", "layer3.1", "layer4.1"]


def test_a_final_norm_is_left_to_the_head_but_one_after_a_convolution_is_not():
    row = [cut(f"s{n}", 2 ** (n + 1), 8 * n) for n in (1, 2, 3, 4)]
    norm = cut("norm", 32, 32, kind="norm")
    assert keys([*row, norm, cut("drop", 32, 32, kind="pass"), pooled()])[-1] == "s4"
    assert (
        keys([*row, cut("conv_head", 32, 64, kind="primitive"), cut("bn2", 32, 64, kind="norm"), pooled()])[-1] == "bn2"
    )


def test_nothing_after_the_pool_counts_even_if_it_is_four_dimensional():
    row = [cut(f"s{n}", 2 ** (n + 1), 8 * n) for n in (1, 2, 3, 4)]
    small = Point("avg", (2, 32, 1, 1), 0, "pool", StageSpec(32, 256, "NCHW", 0, (1, 1)))
    after = Point("conv_head", (2, 64, 1, 1), 0, "primitive", StageSpec(64, 256, "NCHW", 0, (1, 1)))
    assert keys([*row, small, after]) == ["s1", "s2", "s3", "s4"]


def test_a_transition_belongs_to_the_next_stage():
    row = [cut("stem", 4), cut("dense1", 4, 16, depth=1)]
    row += [cut("t1.norm", 4, 16, depth=2, kind="norm"), cut("t1.conv", 4, 8, depth=2, kind="primitive")]
    row += [cut("t1.pool", 8, 8, depth=1, kind="pool"), cut("dense2", 8, 24, depth=1), cut("t2", 16, 12, depth=1)]
    row += [cut("dense3", 16, 36, depth=1), cut("t3", 32, 18, depth=1), cut("dense4", 32, 48)]
    assert keys([*row, pooled()]) == ["dense1", "dense2", "dense3", "dense4"]


def test_other_strides_give_the_stages_that_there_are():
    cifar = [cut("conv1", 1, kind="primitive"), *(cut(f"layer{n}", 2 ** (n - 1), 16 * n) for n in (1, 2, 3))]
    assert keys([*cifar, pooled()]) == ["layer1", "layer2", "layer3"]
    five = [cut(f"s{n}", 2**n, 16 * n) for n in range(5)]
    assert keys([*five[:4], pooled()]) == ["s0", "s1", "s2", "s3"]
    assert keys([cut("only", 4), pooled()]) == ["only"]
    assert keys([pooled()]) == []


@pytest.mark.parametrize(
    ("num_blocks", "ends"),
    [
        (12, [2, 4, 10, 12]), (24, [4, 8, 20, 24]), (8, [2, 3, 7, 8]), (6, [1, 2, 5, 6]), (5, [1, 2, 4, 5]),
        (4, [1, 2, 3, 4]), (3, [1, 2, 3]), (2, [1, 2]), (1, [1]),
    ],
)  # fmt: skip
def test_isotropic_ends(num_blocks, ends):
    assert isotropic_ends(num_blocks) == ends


@given(st.integers(1, 200))
def test_isotropic_ends_are_distinct_and_never_later_than_the_formula(num_blocks):
    ends = isotropic_ends(num_blocks)
    formula = [math.ceil(num_blocks * twelfths / 12) for twelfths in (2, 4, 10, 12)]
    assert ends == sorted(set(ends))
    assert ends[0] >= 1
    assert ends[-1] == num_blocks
    assert len(ends) == min(num_blocks, 4)
    assert all(end <= wanted for end, wanted in zip(reversed(ends), reversed(formula), strict=False))
    if len(set(formula)) == 4:
        assert ends == formula


def test_isotropic_networks_end_at_blocks():
    row = [cut("patches", 16), *(cut(f"b{n}", 16, depth=1) for n in range(1, 13)), cut("norm", 16, kind="norm")]
    assert keys([*row, pooled()]) == ["b2", "b4", "b10", "b12"]


def test_one_long_stage_does_not_make_a_network_isotropic():
    row = [cut("stem", 4), cut("a1", 4), cut("a2", 4), cut("b", 8, 16), *(cut(f"c{n}", 16, 32) for n in range(20))]
    assert keys([*row, cut("d", 32, 64), pooled()]) == ["a2", "b", "c19", "d"]


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.Identity(), "pass"), (nn.Dropout(), "pass"), (nn.BatchNorm2d(4), "norm"), (nn.LayerNorm(4), "norm"),
        (nn.AdaptiveAvgPool2d(1), "pool"), (nn.Conv2d(1, 1, 1), "primitive"), (nn.Sequential(nn.ReLU()), "block"),
    ],
)  # fmt: skip
def test_kinds(module, kind):
    assert kind_of(module) == kind
