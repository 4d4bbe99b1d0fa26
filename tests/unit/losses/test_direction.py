"""Vectors without their lengths."""

import torch

from crossdistill.losses.direction import unit


def test_unit_vectors_have_length_one_and_zeros_no_gradient():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-4, 0.0]], requires_grad=True)
    lengths = unit(rows).norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([1.0, 0.0, 1.0]))
    (unit(rows) * torch.randn(3, 2, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert rows.grad.isfinite().all()
    assert (rows.grad[1] == 0).all()
    assert (rows.grad[2] != 0).any()


def test_the_last_dimension_is_the_vector():
    vectors = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(unit(vectors)[1], unit(vectors[1]))


def test_half_precision_becomes_float32_and_float64_stays():
    assert unit(torch.ones(1, 2, dtype=torch.bfloat16)).dtype == torch.float32
    assert unit(torch.ones(1, 2, dtype=torch.float64)).dtype == torch.float64
