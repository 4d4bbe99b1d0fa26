"""RSD's loss against a slow reference, invariances, finite differences, and batches with nothing to correlate."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdistill import losses
from crossdistill.errors import InputError
from oracles import embedding_losses as oracle

quick = settings(max_examples=20, deadline=None)


def features(seed, size=6, width=4, dtype=torch.float64):
    return torch.randn(size, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@quick
@given(seed=st.integers(0, 10**6), size=st.integers(1, 7), width=st.integers(1, 5), kappa=st.floats(0, 2))
def test_agrees_with_the_slow_reference(seed, size, width, kappa):
    student, teacher = features(seed, size, width), features(seed + 1, size, width)
    expected = oracle.rsd(student.tolist(), teacher.tolist(), kappa=kappa)
    assert losses.rsd(student, teacher, kappa=kappa).item() == pytest.approx(expected, rel=1e-9)


def test_gradient_agrees_with_finite_differences():
    pair = features(1).requires_grad_(), features(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda student, teacher: losses.rsd(student, teacher, kappa=0.3), pair)


@quick
@given(seed=st.integers(0, 10**6), shift=st.floats(-20, 20))
def test_scale_and_place_of_a_feature_and_the_order_of_samples_are_immaterial(seed, shift):
    student, teacher = features(seed), features(seed + 1)
    scales = torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 9 + 1
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    moved = losses.rsd((scales * student + shift)[order], (scales * teacher - shift)[order], kappa=0.1)
    # The small constant beside each deviation is what is left of the scale.
    torch.testing.assert_close(moved, losses.rsd(student, teacher, kappa=0.1), rtol=1e-3, atol=1e-4)
    exchanged = losses.rsd(student[:, [1, 0, 2, 3]], teacher[:, [1, 0, 2, 3]], kappa=0.1)
    torch.testing.assert_close(exchanged, losses.rsd(student, teacher, kappa=0.1), rtol=1e-10, atol=0)


def test_rotated_features_are_another_answer():
    student = features(3)
    turned, _ = torch.linalg.qr(features(4, 4, 4))
    assert losses.rsd(student @ turned, student, kappa=0.0) > losses.rsd(student, student, kappa=0.0) + 0.1


def test_uncorrelated_features_that_agree_give_zero():
    signs = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1]], dtype=torch.float64).T[:, 1:]
    assert losses.rsd(2 * signs, signs + 5, kappa=1.0).item() == pytest.approx(0.0, abs=1e-8)
    assert losses.rsd(signs, -signs, kappa=1.0).item() == pytest.approx(8.0, rel=1e-4)


@pytest.mark.parametrize("kind", ["one image", "equal images", "zeros", "a constant feature", "far away"])
def test_nothing_to_correlate_is_finite(kind):
    size = 1 if kind == "one image" else 5
    student, teacher = features(5, size, 3, torch.float32), features(6, size, 3, torch.float32)
    if kind == "equal images":
        student[:] = student[0]
    elif kind == "zeros":
        student, teacher = torch.zeros(5, 3), torch.zeros(5, 3)
    elif kind == "a constant feature":
        student[:, 1] = 1000.0
    elif kind == "far away":
        student, teacher = 1e15 * student, 1e-15 * teacher
    student.requires_grad_()
    loss = losses.rsd(student, teacher, kappa=0.01)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    if kind in ("one image", "zeros"):
        assert loss.item() == 3.0  # no correlation is 0 where 1 is asked for
        assert (student.grad == 0).all()


def test_computes_in_float32_or_wider_also_inside_autocast():
    student, teacher = features(7, dtype=torch.bfloat16), features(8, dtype=torch.bfloat16)
    outside = losses.rsd(student, teacher, kappa=0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = losses.rsd(student, teacher, kappa=0.01)
        assert losses.rsd(student.double(), teacher, kappa=0.01).dtype == torch.float64
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


def test_other_shapes_and_a_negative_kappa_are_refused():
    with pytest.raises(InputError, match=r"\(3, 4\) and teacher embedding \(3, 5\)"):
        losses.rsd(torch.zeros(3, 4), torch.zeros(3, 5), kappa=0.01)
    with pytest.raises(InputError, match=r"kappa=-0\.1"):
        losses.rsd(torch.zeros(3, 4), torch.zeros(3, 4), kappa=-0.1)
