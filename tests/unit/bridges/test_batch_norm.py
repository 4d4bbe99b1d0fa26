"""Batch normalisation of bridges: PyTorch's wherever that is defined, and defined everywhere."""

import pytest
import torch
from torch import nn

from crossdistill.bridges.batch_norm import BatchNorm


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("norm", "shapes"),
    [(nn.BatchNorm2d, [(2, 3, 1, 1), (1, 3, 2, 1), (4, 3, 2, 2)]), (nn.BatchNorm1d, [(2, 3), (5, 3)])],
)
def test_it_is_pytorchs_wherever_that_is_defined(norm, shapes):
    own, usual = BatchNorm(3).double(), norm(3).double()
    for shape in shapes:
        assert torch.equal(own(random(*shape)), usual(random(*shape)))
    assert torch.equal(own.running_var, usual.running_var)
    own.eval()
    usual.eval()
    assert torch.equal(own(random(*shapes[0])), usual(random(*shapes[0])))


def test_one_value_a_channel_takes_the_running_statistics_and_leaves_them():
    norm = BatchNorm(3).double()
    norm(random(8, 3, 2, 2))
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    single = random(1, 3, 1, 1, seed=5).requires_grad_()
    expected = (single - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
    torch.testing.assert_close(norm(single), expected)
    assert torch.equal(norm.running_mean, mean)
    assert torch.equal(norm.running_var, variance)
    norm(single).sum().backward()
    assert single.grad.abs().min() > 0
