"""The relational losses against slow references, invariances and finite differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from crossdistill import losses
from crossdistill.errors import InputError
from crossdistill.losses import relational
from oracles import relational_losses as oracle

LOSSES = {
    "distance": (losses.rkd_distance, oracle.rkd_distance),
    "squared distance": (
        lambda student, teacher: losses.rkd_distance(student, teacher, squared=True),
        lambda student, teacher: oracle.rkd_distance(student, teacher, squared=True),
    ),
    "angle": (losses.rkd_angle, oracle.rkd_angle),
    "correlation": (losses.correlation, oracle.correlation),
}
every_loss = pytest.mark.parametrize("name", LOSSES)
rkd_only = pytest.mark.parametrize("name", ["distance", "squared distance", "angle"])
quick = settings(max_examples=20, deadline=None)


def points(seed, size=5, width=4, dtype=torch.float64):
    return torch.randn(size, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@every_loss
@quick
@given(seed=st.integers(0, 10**6), size=st.integers(2, 6))
def test_agrees_with_the_slow_reference(name, seed, size):
    student, teacher = points(seed, size), points(seed + 1, size)
    function, reference = LOSSES[name]
    assert function(student, teacher).item() == pytest.approx(reference(student.tolist(), teacher.tolist()), rel=1e-9)


@every_loss
def test_gradient_agrees_with_finite_differences(name):
    teacher = points(1)
    assert torch.autograd.gradcheck(lambda student: LOSSES[name][0](student, teacher), (points(2).requires_grad_(),))


@rkd_only
@quick
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10))
def test_relations_are_blind_to_scale_place_rotation_and_order(name, seed, scale):
    student, teacher = points(seed), points(seed + 1, width=6)
    rotation, _ = torch.linalg.qr(points(seed + 2, 4))
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    moved = LOSSES[name][0]((scale * student @ rotation + 3.0)[order], teacher[order])
    torch.testing.assert_close(moved, LOSSES[name][0](student, teacher), rtol=1e-8, atol=1e-12)


@every_loss
def test_equal_embeddings_give_zero(name):
    student = points(3)
    assert LOSSES[name][0](student, student.clone()).item() == 0.0


@every_loss
@pytest.mark.parametrize(("size", "num_equal"), [(1, 1), (4, 4), (4, 2)])
def test_coinciding_samples_keep_the_gradient_small(name, size, num_equal):
    student = points(3, size, 3, torch.float32)
    student[:num_equal] = 1.0
    student.requires_grad_()
    loss = LOSSES[name][0](student, points(4, size, 3, torch.float32))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 10.0


@every_loss
def test_computes_in_float32_or_wider_also_inside_autocast(name):
    student, teacher = points(5, dtype=torch.bfloat16), points(6, dtype=torch.bfloat16)
    outside = LOSSES[name][0](student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = LOSSES[name][0](student, teacher)
        assert LOSSES[name][0](student.double(), teacher).dtype == torch.float64
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


@every_loss
def test_other_numbers_of_rows_are_refused(name):
    with pytest.raises(InputError, match=r"\(3, 4\) and teacher embedding \(2, 4\)"):
        LOSSES[name][0](torch.zeros(3, 4), torch.zeros(2, 4))


def test_correlation_asks_for_one_width():
    with pytest.raises(InputError, match="project both"):
        losses.correlation(torch.zeros(3, 4), torch.zeros(3, 5))


@rkd_only
@pytest.mark.parametrize("elements", [1, 5 * 6 * 2, 5 * 6 * 4])
def test_chunks_of_anchors_give_the_same_value_and_gradient(name, elements, monkeypatch):
    """One, two and four of the five anchors at a time; the last chunk is not full."""
    function, reference = LOSSES[name]
    student, teacher = points(7).requires_grad_(), points(8, width=6)
    whole = function(student, teacher)
    (expected,) = torch.autograd.grad(whole, student)
    monkeypatch.setattr(relational, "CHUNK_ELEMENTS", elements)
    chunked = function(student, teacher)
    torch.testing.assert_close(chunked, whole, rtol=1e-13, atol=0)
    assert chunked.item() == pytest.approx(reference(student.tolist(), teacher.tolist()), rel=1e-9)
    torch.testing.assert_close(torch.autograd.grad(chunked, student)[0], expected, rtol=1e-11, atol=1e-15)
    assert torch.autograd.gradcheck(lambda points: function(points, teacher), (student,), fast_mode=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = function(student.detach().bfloat16().requires_grad_(), teacher.bfloat16())
        half.backward()
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), whole, rtol=0.1, atol=0)


class LargestTensor(TorchDispatchMode):
    """Counts the elements of the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        if func is torch.ops.aten._cdist_backward.default:  # on GPUs it holds the differences of all its pairs
            gradient, points = args[:2]
            sizes.append(gradient.numel() * points.shape[1])
        self.largest = max(self.largest, *sizes, 0)
        return made


@rkd_only
def test_no_tensor_of_a_large_batch_is_larger_than_the_budget(name):
    """Shapes only, forward and backward: 512 images have 134 million angles."""
    size, width = 512, 768
    with FakeTensorMode(), LargestTensor() as made:
        student, teacher = torch.empty(size, width, requires_grad=True), torch.empty(size, 1024)
        LOSSES[name][0](student, teacher).backward()
        assert student.grad.shape == (size, width)
    assert size**2 < made.largest <= relational.CHUNK_ELEMENTS < math.prod((size, size, width))


@rkd_only
def test_where_one_anchor_alone_is_more_than_the_budget_its_tensors_are_the_largest(name, monkeypatch):
    monkeypatch.setattr(relational, "CHUNK_ELEMENTS", 1)
    for size, widths in ((8, (5, 20)), (20, (5, 7))):
        with FakeTensorMode(), LargestTensor() as made:
            student, teacher = (torch.empty(size, width, requires_grad=True) for width in widths)
            LOSSES[name][0](student, teacher.detach()).backward()
        assert made.largest == size * max(size, *widths)


def test_a_batch_that_fits_is_not_computed_twice():
    student = torch.randn(64, 128, requires_grad=True)
    with LargestTensor() as made:
        losses.rkd_angle(student, torch.randn(64, 128)).backward()
    assert made.largest == 64 * 64 * 128
