"""InfoNCE against the formula written out, finite differences, and what must not break it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdistill.errors import InputError
from crossdistill.losses import info_nce
from oracles import fbt as oracle


def rows(seed, size=5, width=4, dtype=torch.float64):
    return torch.randn(size, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 6),
    others=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    temperature=st.floats(0.05, 1.0),
)
@settings(max_examples=30, deadline=None)
def test_agrees_with_the_formula_written_out(seed, size, others, temperature):
    offset, after = others
    learner, source = rows(seed, size), rows(seed + 1, offset + size + after)
    found = info_nce(learner, source, temperature=temperature, offset=offset, reduction="none")
    expected = oracle.info_nce(learner.tolist(), source.tolist(), temperature=temperature, offset=offset)
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    mean = info_nce(learner, source, temperature=temperature, offset=offset)
    assert mean.item() == pytest.approx(sum(expected) / size, rel=1e-9, abs=1e-12)


@given(seed=st.integers(0, 10**6), size=st.integers(1, 6), offset=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_rows_that_are_excluded_do_not_count_but_for_the_positive(seed, size, offset):
    learner, source = rows(seed, size), rows(seed + 1, offset + size)
    excluded = torch.rand(size, len(source), generator=torch.Generator().manual_seed(seed)) < 0.5
    options = {"temperature": 0.2, "offset": offset}
    found = info_nce(learner, source, excluded=excluded, reduction="none", **options)
    expected = oracle.info_nce(learner.tolist(), source.tolist(), excluded=excluded.tolist(), **options)
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_excluding_nothing_changes_nothing_and_excluding_all_leaves_no_loss():
    learner, source = rows(1).requires_grad_(), rows(2, 7).requires_grad_()
    nothing = torch.zeros(5, 7, dtype=torch.bool)
    plain = info_nce(learner, source, temperature=0.1)
    assert torch.equal(info_nce(learner, source, temperature=0.1, excluded=nothing), plain)
    alone = info_nce(learner, source, temperature=0.1, excluded=~nothing)
    alone.backward()
    assert alone.item() == 0.0
    assert not learner.grad.any()
    assert not source.grad.any()


def test_an_excluded_row_gets_no_gradient():
    source, excluded = rows(2).requires_grad_(), torch.zeros(5, 5, dtype=torch.bool)
    excluded[:4, 4] = True
    info_nce(rows(1), source, temperature=0.1, excluded=excluded, reduction="none")[:4].sum().backward()
    assert not source.grad[4].any()
    assert source.grad[:4].any(dim=1).all()


@pytest.mark.parametrize("excluded", [torch.zeros(4, 5).bool(), torch.zeros(4).bool(), torch.zeros(4, 6)])
def test_exclusions_of_another_shape_or_type_are_refused(excluded):
    with pytest.raises(InputError, match=r"\(4, 6\) bool"):
        info_nce(rows(1, 4), rows(2, 6), temperature=0.1, excluded=excluded)


def test_gradients_of_both_sides_and_of_the_temperature_agree_with_finite_differences():
    def loss(learner, source, temperature):
        return info_nce(learner, source, temperature=temperature, offset=1)

    temperature = torch.tensor(0.3, dtype=torch.float64)
    arguments = [rows(1).requires_grad_(), rows(2, 7).requires_grad_(), temperature.requires_grad_()]
    assert torch.autograd.gradcheck(loss, arguments)


def test_a_learnt_temperature_may_have_a_dimension():
    expected = info_nce(rows(1), rows(2), temperature=0.07)
    assert torch.equal(info_nce(rows(1), rows(2), temperature=torch.tensor([0.07], dtype=torch.float64)), expected)


@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10))
@settings(max_examples=20, deadline=None)
def test_lengths_of_features_and_order_of_samples_do_not_matter(seed, scale):
    learner, source = rows(seed), rows(seed + 1)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    moved = info_nce((scale * learner)[order], source[order] / scale, temperature=0.2)
    torch.testing.assert_close(moved, info_nce(learner, source, temperature=0.2), rtol=1e-8, atol=1e-12)


def test_parts_of_a_batch_with_all_sources_average_to_the_whole():
    learner, source = rows(1, 7), rows(2, 7)
    whole = info_nce(learner, source, temperature=0.1)
    parts = [info_nce(learner[a:b], source, temperature=0.1, offset=a) * (b - a) for a, b in ((0, 3), (3, 7))]
    torch.testing.assert_close(sum(parts) / 7, whole)


def test_one_image_has_nothing_to_be_told_from():
    learner = rows(1, 1).requires_grad_()
    loss = info_nce(learner, rows(2, 1), temperature=0.07)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(learner.grad, torch.zeros(1, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("silent", ["learner", "source", "both"])
def test_features_of_length_zero_give_finite_losses_and_gradients(silent, dtype):
    learner, source = rows(1, dtype=dtype), rows(2, dtype=dtype)
    if silent != "source":
        learner[1] = 0.0
    if silent != "learner":
        source[2:4] = 0.0
    learner.requires_grad_(), source.requires_grad_()
    loss = info_nce(learner, source, temperature=0.01)
    loss.backward()
    assert loss.isfinite()
    for side in (learner, source):
        assert side.grad.isfinite().all()
        assert side.grad.abs().max() < 1e3
    if silent == "learner":
        assert torch.equal(learner.grad[1], torch.zeros(4, dtype=dtype))


def test_equal_features_of_all_images_cost_the_logarithm_of_their_number():
    same = torch.ones(6, 3)
    assert info_nce(same, same, temperature=0.07).item() == pytest.approx(math.log(6))


def test_computes_in_float32_or_wider_also_inside_autocast():
    learner, source = rows(5, dtype=torch.bfloat16), rows(6, dtype=torch.bfloat16)
    outside = info_nce(learner, source, temperature=0.07)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = info_nce(learner, source, temperature=0.07)
    assert outside.dtype == inside.dtype == torch.float32
    assert torch.equal(outside, inside)


@pytest.mark.parametrize(
    ("learner", "source", "offset"),
    [((4, 3), (4, 2), 0), ((4, 3), (3, 3), 0), ((4, 3), (6, 3), 3), ((4, 3), (6, 3), -1), ((4,), (4,), 0)],
)
def test_rows_that_do_not_fit_are_refused(learner, source, offset):
    with pytest.raises(InputError, match="positives among the N rows") as error:
        info_nce(torch.zeros(learner), torch.zeros(source), temperature=0.1, offset=offset)
    assert str(learner) in error.value.given


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature):
    with pytest.raises(InputError, match="temperature above 0"):
        info_nce(torch.zeros(2, 2), torch.zeros(2, 2), temperature=temperature)


def test_another_reduction_is_refused():
    with pytest.raises(InputError, match="reduction='sum'"):
        info_nce(torch.ones(2, 2), torch.ones(2, 2), temperature=0.1, reduction="sum")
