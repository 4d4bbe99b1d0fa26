"""Which stages face each other, for any two numbers of stages, and maps on one grid."""

import doctest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossdistill.bridges import stage_pairs as module
from crossdistill.bridges.stage_pairs import common_grid, facing_stage, stage_numbers, stage_pairs
from crossdistill.contracts import Outputs, StageSpec
from crossdistill.errors import InputError, UnsuitablePair
from oracles import layouts
from oracles import model_specs as specs

counts = st.integers(1, 12)


def network(num_stages, name="net"):
    return specs.model(name, "cnn", 8, [StageSpec(4 + i, 4, "NCHW", 0, (4, 4)) for i in range(num_stages)])


def faced(num_stages, num_teacher_stages):
    numbers = range(1, num_stages + 1)
    return [facing_stage(i, num_stages=num_stages, num_teacher_stages=num_teacher_stages) for i in numbers]


def test_documented_examples():
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@given(counts)
def test_equal_numbers_pair_each_with_its_own(num_stages):
    assert faced(num_stages, num_stages) == list(range(1, num_stages + 1))


@given(counts, counts)
def test_pairing_is_monotone_and_ends_with_the_last(num_stages, num_teacher_stages):
    pairing = faced(num_stages, num_teacher_stages)
    assert pairing == sorted(pairing)
    assert pairing[-1] == num_teacher_stages
    assert pairing[0] >= 1


@given(counts, counts)
def test_as_many_teacher_stages_are_met_as_can_be(num_stages, num_teacher_stages):
    assert len(set(faced(num_stages, num_teacher_stages))) == min(num_stages, num_teacher_stages)


@given(counts, counts)
def test_the_faced_stage_is_the_first_that_is_no_shallower(num_stages, num_teacher_stages):
    for number, other in enumerate(faced(num_stages, num_teacher_stages), start=1):
        ends = [j for j in range(1, num_teacher_stages + 1) if j * num_stages >= number * num_teacher_stages]
        assert other == ends[0]


def test_pairs_come_from_shallow_to_deep_with_their_stages():
    pairs = stage_pairs(network(4), network(3), [4, 2])
    assert [(pair.number, pair.teacher_number) for pair in pairs] == [(2, 2), (4, 3)]
    assert [(pair.student.channels, pair.teacher.channels) for pair in pairs] == [(5, 5), (7, 6)]
    assert [pair.number for pair in stage_pairs(network(3), network(1))] == [1, 2, 3]


@pytest.mark.parametrize(("student", "teacher", "role"), [(0, 3, "student"), (3, 0, "teacher")])
def test_a_network_without_stages_is_unsuitable(student, teacher, role):
    with pytest.raises(UnsuitablePair, match=f"{role} 'bare', which has no stages"):
        stage_pairs(network(student, "net" if student else "bare"), network(teacher, "net" if teacher else "bare"))


@pytest.mark.parametrize("stages", [[4], [0, 1], [-1], [2, 2]])
def test_a_stage_that_does_not_exist_is_refused(stages):
    with pytest.raises(InputError, match="student 'net' has 3 stages") as error:
        stage_pairs(network(3), network(5), stages)
    assert str(stages) in error.value.given


def test_choosing_no_stage_is_refused_where_nothing_else_would_learn():
    assert stage_numbers([], network(3)) == []
    with pytest.raises(InputError, match="at least one stage"):
        stage_pairs(network(3), network(3), [])


@given(*[st.tuples(st.integers(1, 12), st.integers(1, 12))] * 2)
def test_the_common_grid_is_the_smaller_one_by_axis(first, second):
    one, two = common_grid(torch.randn(1, 2, *first), torch.randn(1, 3, *second))
    smaller = tuple(min(pair) for pair in zip(first, second, strict=True))
    assert one.shape == (1, 2, *smaller)
    assert two.shape == (1, 3, *smaller)


STAGES = {
    "NCHW": StageSpec(5, 4, "NCHW", 0, (4, 8)),
    "NHWC": StageSpec(5, 4, "NHWC", 0, (4, 8)),
    "tokens": StageSpec(5, 4, "NLC", 0, (4, 8)),
    "tokens with prefix": StageSpec(5, 4, "NLC", 2, (4, 8)),
    "unrolled": StageSpec(5, 4, "NLC", 0, (4, 8), 2),
    "unrolled with prefix": StageSpec(5, 4, "NLC", 1, (4, 8), 1),
}


def raw(spec, dtype=torch.float32):
    shape = {
        "NCHW": (2, 5, 4, 8),
        "NHWC": (2, 4, 8, 5),
        "NLC": (2, spec.num_prefix_tokens + 32, 5),
    }[spec.layout]
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("layout", STAGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_are_those_of_the_stages_in_float32(layout, dtype):
    spec = STAGES[layout]
    teacher = specs.model("teacher", "cnn", 8, [StageSpec(3, 8, "NCHW", 0, (2, 3))])
    (pair,) = stage_pairs(specs.model("net", "cnn", 8, [spec]), teacher)
    feature, other = raw(spec, dtype), torch.randn(2, 3, 2, 3).to(dtype)
    outputs = Outputs(stages=(feature,)), Outputs(stages=(other,))
    own, others = pair.maps(*outputs)
    assert own.dtype == others.dtype == torch.float32
    assert torch.equal(own, layouts.as_map(feature, spec).float())
    assert [one.shape for one in pair.maps_on_one_grid(*outputs)] == [(2, 5, 2, 3), (2, 3, 2, 3)]
