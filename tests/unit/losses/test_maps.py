"""The losses on maps against slow references, invariances and finite differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdistill import losses
from crossdistill.errors import InputError
from crossdistill.losses.maps import average_to
from oracles import stage_losses as oracle


def attention_loss(student, teacher, power=2.0):
    own, other = (losses.attention_map(one, power=power) for one in (student, teacher))
    return losses.attention_transfer(own, other)


LOSSES = {
    "map error": (losses.map_error, oracle.map_error),
    "generation error": (losses.generation_error, oracle.generation_error),
    "attention": (attention_loss, oracle.attention_transfer),
    "attention of power 1": (
        lambda student, teacher: attention_loss(student, teacher, 1.0),
        lambda student, teacher: oracle.attention_transfer(student, teacher, 1),
    ),
    "attention of power 3": (
        lambda student, teacher: attention_loss(student, teacher, 3.0),
        lambda student, teacher: oracle.attention_transfer(student, teacher, 3),
    ),
    "context": (losses.hierarchical_context, oracle.hierarchical_context),
}
every_loss = pytest.mark.parametrize("name", LOSSES)
quick = settings(max_examples=15, deadline=None)


def maps(seed, shape=(2, 3, 5, 6), dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@every_loss
@quick
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
)
def test_agrees_with_the_slow_reference(name, seed, shape):
    student, teacher = maps(seed, shape), maps(seed + 1, shape)
    function, reference = LOSSES[name]
    expected = reference(student.tolist(), teacher.tolist())
    assert function(student, teacher).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@every_loss
def test_gradient_agrees_with_finite_differences(name):
    teacher = maps(1)
    assert torch.autograd.gradcheck(lambda student: LOSSES[name][0](student, teacher), (maps(2).requires_grad_(),))


@every_loss
def test_equal_maps_give_zero(name):
    assert LOSSES[name][0](maps(3), maps(3)).item() == 0.0


@every_loss
@quick
@given(seed=st.integers(0, 10**6))
def test_the_order_of_images_and_of_channels_does_not_matter(name, seed):
    shape = (4, 3, 2, 3)
    student, teacher = maps(seed, shape), maps(seed + 1, shape)
    images, channels = (torch.randperm(n, generator=torch.Generator().manual_seed(seed)) for n in (4, 3))
    moved = LOSSES[name][0](student[images][:, channels], teacher[images][:, channels])
    torch.testing.assert_close(moved, LOSSES[name][0](student, teacher), rtol=1e-10, atol=1e-12)


@quick
@given(seed=st.integers(0, 10**6), exponent=st.floats(-6, 6), power=st.floats(1, 16))
def test_attention_is_blind_to_scale_sign_and_order_of_channels(seed, exponent, power):
    student, teacher = maps(seed), maps(seed + 1, (2, 7, 5, 6))
    channels = torch.randperm(3, generator=torch.Generator().manual_seed(seed))
    signs = maps(seed + 2).sign()
    moved = attention_loss(10**exponent * (signs * student)[:, channels], teacher, power)
    torch.testing.assert_close(moved, attention_loss(student, teacher, power), rtol=1e-8, atol=1e-12)


def test_attention_is_blind_to_the_scale_of_single_images():
    scales = torch.tensor([1e-6, 1e6], dtype=torch.float64)[:, None, None, None]
    torch.testing.assert_close(attention_loss(scales * maps(1), maps(2)), attention_loss(maps(1), maps(2)))


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0, 16.0])
@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1.0, 1e2, 1e6])
def test_attention_in_float32_is_right_at_every_scale_of_either_network(scale, power):
    plain, teacher = maps(1, dtype=torch.float32), maps(2, dtype=torch.float32)
    expected = oracle.attention_transfer(plain.tolist(), teacher.tolist(), power)
    reference = plain.double().requires_grad_()
    attention_loss(reference, teacher.double(), power).backward()
    student = (scale * plain).requires_grad_()
    loss = attention_loss(student, teacher / scale, power)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(scale * student.grad.double(), reference.grad, rtol=1e-3, atol=1e-7)


def test_attention_maps_of_any_scale_are_compared_as_they_are():
    own, other = maps(1, (2, 5, 6), torch.float32).square(), maps(2, (2, 5, 6), torch.float32).square()
    expected = losses.attention_transfer(own, other)
    for scale in (1e-25, 1e25):
        torch.testing.assert_close(losses.attention_transfer(scale * own, other / scale), expected)


def test_an_attention_map_of_zeros_has_no_gradient():
    attention = torch.zeros(1, 5, 6, requires_grad=True)
    losses.attention_transfer(attention, maps(2, (1, 5, 6), torch.float32)).backward()
    assert not attention.grad.any()


@pytest.mark.parametrize("power", [1.0, 2.0, 16.0])
def test_the_attention_of_zeros_is_zero_and_has_no_gradient(power):
    student = maps(1, dtype=torch.float32)
    student[0] = 0.0
    student.requires_grad_()
    attention_loss(student, maps(2, dtype=torch.float32), power).backward()
    assert not losses.attention_map(student, power=power)[0].any()
    assert not student.grad[0].any()
    assert student.grad[1].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_activation_that_is_no_number_shows(value):
    student = maps(1, dtype=torch.float32)
    student[0, 0, 0, 0] = value
    assert not attention_loss(student, maps(2, dtype=torch.float32)).isfinite()


@pytest.mark.parametrize("power", [1.0, 2.0, 16.0])
def test_attention_is_the_mean_over_channels_of_powers_of_shares_of_the_largest_activation(power):
    largest = maps(1).abs().amax(dim=(1, 2, 3))[:, None, None]
    expected = torch.tensor(oracle.attention_map(maps(1).tolist(), power), dtype=torch.float64).reshape(2, 5, 6)
    torch.testing.assert_close(3 * losses.attention_map(maps(1), power=power), expected / largest**power)


def test_gradient_of_the_attention_itself_agrees_with_finite_differences():
    assert torch.autograd.gradcheck(losses.attention_map, (maps(2).requires_grad_(),))


@pytest.mark.parametrize("power", [0.0, 0.5, -1.0, 16.5, float("inf"), float("nan")])
def test_a_power_outside_its_range_is_refused(power):
    with pytest.raises(InputError, match="power from 1 to 16"):
        losses.attention_map(maps(1), power=power)


def test_context_leaves_out_scales_that_are_no_coarser():
    """On one position only the full map remains, on 2x2 one further scale: (1 e + 1/2 e1) / (3/2)."""
    point, square = maps(1, (2, 3, 1, 1)), maps(2, (2, 3, 2, 2))
    torch.testing.assert_close(losses.hierarchical_context(point, 0 * point), point.square().mean())
    expected = (square.square().mean() + square.mean(dim=(2, 3)).square().mean() / 2) / 1.5
    torch.testing.assert_close(losses.hierarchical_context(square, 0 * square), expected)


def test_context_of_a_constant_difference_is_its_square():
    teacher = maps(1, (2, 3, 8, 8))
    assert losses.hierarchical_context(teacher + 3.0, teacher).item() == pytest.approx(9.0)


@every_loss
@pytest.mark.parametrize("of_zeros", ["student", "teacher", "both", "one image"])
@pytest.mark.parametrize("size", [1, 3])
def test_maps_of_zeros_keep_the_gradient_finite(name, of_zeros, size):
    student, teacher = maps(3, (size, 2, 3, 3), torch.float32), maps(4, (size, 2, 3, 3), torch.float32)
    student[0] *= of_zeros == "teacher"
    student[1:] *= of_zeros in ("teacher", "one image")
    teacher *= of_zeros in ("student", "one image")
    student.requires_grad_()
    loss = LOSSES[name][0](student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 100.0


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_computes_in_float32_or_wider_also_inside_autocast(name, dtype):
    student, teacher = maps(5, dtype=dtype), maps(6, dtype=dtype)
    outside = LOSSES[name][0](student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = LOSSES[name][0](student, teacher)
        assert LOSSES[name][0](student.double(), teacher).dtype == torch.float64
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)
    assert torch.equal(inside, LOSSES[name][0](student.float(), teacher.float()))


@pytest.mark.parametrize(
    "loss", [losses.map_error, losses.generation_error, losses.attention_transfer, losses.hierarchical_context]
)
def test_maps_of_other_shapes_are_refused(loss):
    with pytest.raises(InputError, match=r"\(2, 3, 5, 6\) and teacher map \(2, 3, 5, 5\)"):
        loss(maps(1), maps(1, (2, 3, 5, 5)))


def test_no_value_is_read():
    student = torch.randn(2, 3, 8, 8, device="meta", requires_grad=True)
    teacher = torch.randn(2, 3, 8, 8, device="meta")
    sum(function(student, teacher) for function, _ in LOSSES.values()).backward()
    assert student.grad.shape == student.shape


@quick
@given(seed=st.integers(0, 10**6), data=st.data())
def test_averaging_agrees_with_the_slow_reference(seed, data):
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    grid = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    feature = maps(seed, (2, 2, height, width))
    expected = torch.tensor(oracle.average(feature.tolist(), *grid), dtype=torch.float64)
    torch.testing.assert_close(average_to(feature, grid), expected)


@quick
@given(seed=st.integers(0, 10**6), cells=st.tuples(*[st.integers(1, 4)] * 2), sides=st.tuples(*[st.integers(1, 4)] * 2))
def test_averaging_over_equal_cells_keeps_the_mean(seed, cells, sides):
    feature = maps(seed, (2, 3, cells[0] * sides[0], cells[1] * sides[1]))
    torch.testing.assert_close(average_to(feature, cells).mean(dim=(2, 3)), feature.mean(dim=(2, 3)))


def test_averaging_to_its_own_grid_is_the_map_itself():
    feature = maps(1)
    assert average_to(feature, (5, 6)) is feature
