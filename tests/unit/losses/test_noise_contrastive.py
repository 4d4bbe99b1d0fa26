"""Noise-contrastive estimation against the released formula, and where its exponentials would overflow."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdistill import losses
from crossdistill.errors import InputError
from crossdistill.losses.noise_contrastive import log_mean_exp
from oracles import embedding_losses as oracle

quick = settings(max_examples=20, deadline=None)


def scores(seed, size=4, num_negatives=5, scale=3.0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    positive = scale * torch.randn(size, generator=random, dtype=torch.float64)
    negatives = scale * torch.randn(size, num_negatives, generator=random, dtype=torch.float64)
    return positive.to(dtype), negatives.to(dtype), torch.rand(size, num_negatives, generator=random) < 0.6


@quick
@given(seed=st.integers(0, 10**6), size=st.integers(1, 5), count=st.integers(1, 6), num_samples=st.integers(10, 10**6))
def test_agrees_with_the_released_formula_whatever_the_size_of_the_data_set(seed, size, count, num_samples):
    positive, negatives, allowed = scores(seed, size, count)
    lists = positive.tolist(), negatives.tolist(), allowed.tolist()
    normalizer = oracle.normalizer(*lists, num_samples=num_samples)
    log_mean = log_mean_exp(positive, negatives, allowed)
    assert log_mean.exp().item() == pytest.approx(normalizer / num_samples, rel=1e-9)
    expected = oracle.noise_contrastive(*lists, normalizer=normalizer, num_samples=num_samples)
    actual = losses.noise_contrastive(positive, negatives, allowed, log_mean=log_mean)
    assert actual.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_gradient_agrees_with_finite_differences():
    positive, negatives, allowed = scores(1)
    allowed[2] = False

    def loss(positive, negatives):
        return losses.noise_contrastive(positive, negatives, allowed, log_mean=0.3)

    assert torch.autograd.gradcheck(loss, (positive.requires_grad_(), negatives.requires_grad_()))


def test_what_may_not_count_does_not():
    positive, negatives, allowed = scores(2)
    negatives.requires_grad_()
    loss = losses.noise_contrastive(positive, negatives, allowed, log_mean=0.0)
    loss.backward()
    assert ((negatives.grad != 0) == allowed).all()
    changed = torch.where(allowed, negatives.detach(), 77.0)
    assert losses.noise_contrastive(positive, changed, allowed, log_mean=0.0) == loss


def test_an_anchor_without_negatives_has_no_loss_and_no_gradient():
    positive, negatives, allowed = scores(3)
    allowed[1] = False
    positive.requires_grad_()
    losses.noise_contrastive(positive, negatives, allowed, log_mean=0.0).backward()
    assert positive.grad[1] == 0
    assert (positive.grad[[0, 2, 3]] < 0).all()
    nothing = torch.zeros_like(allowed)
    assert losses.noise_contrastive(positive, negatives, nothing, log_mean=0.0).item() == 0.0
    assert log_mean_exp(positive.detach(), negatives, nothing).isfinite()


@pytest.mark.parametrize("scale", [1e3, 1e30])
def test_finite_where_exponentials_overflow(scale):
    positive, negatives, allowed = scores(4, scale=scale, dtype=torch.float32)
    positive.requires_grad_()
    log_mean = log_mean_exp(positive.detach(), negatives, allowed)
    loss = losses.noise_contrastive(positive, negatives, allowed, log_mean=log_mean)
    loss.backward()
    assert loss.isfinite()
    assert positive.grad.isfinite().all()
    assert log_mean.isfinite()


def test_computes_in_float32_also_for_half_precision():
    positive, negatives, allowed = scores(5, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = losses.noise_contrastive(positive, negatives, allowed, log_mean=0.1)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, losses.noise_contrastive(positive.float(), negatives.float(), allowed, log_mean=0.1))


@pytest.mark.parametrize("shapes", [((3,), (4, 2), (4, 2)), ((3,), (3, 2), (3, 1)), ((3, 1), (3, 2), (3, 2))])
def test_shapes_that_do_not_fit_are_refused(shapes):
    positive, negatives, allowed = (torch.zeros(shape) for shape in shapes)
    for function in (log_mean_exp, lambda *inputs: losses.noise_contrastive(*inputs, log_mean=0.0)):
        with pytest.raises(InputError, match="of true pairs"):
            function(positive, negatives, allowed.bool())
