import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from crossdistill.errors import InputError
from crossdistill.store import Answers, Keep
from crossdistill.store.codec import encode
from oracles import store as oracle

ordinary = st.floats(-60, 60, width=32)
any_finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


def logits_of(elements, *, min_classes=1):
    shapes = st.tuples(st.integers(1, 4), st.integers(min_classes, 12))
    return shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=elements)).map(torch.from_numpy)


def stored(logits, top_k=None, embeddings=()):
    keep = Keep(top_k, embeddings=bool(embeddings))
    return Answers(encode(logits, embeddings, keep), logits.shape[1])


def error_bound(logits):
    """As the codec's docstring has it."""
    logits = logits.double()
    below = logits.amax(1, keepdim=True) - logits
    return below * 2**-11 + 2**-25 + 2**-23 * (below + logits.abs())


@settings(deadline=None)
@given(logits_of(any_finite))
def test_full_logits_come_back_within_the_stated_bound(logits):
    back = stored(logits).logits()
    below = logits.double().amax(1, keepdim=True) - logits.double()
    near = below <= 65_504
    assert back.dtype == torch.float32
    assert ((back.double() - logits.double()).abs() <= error_bound(logits))[near].all()
    lowest = logits.amax(1, keepdim=True).expand_as(logits) - 65_504
    torch.testing.assert_close(back[~near], lowest[~near], rtol=0, atol=0)


@settings(deadline=None)
@given(logits_of(ordinary))
def test_full_logits_are_those_of_the_oracle(logits):
    expected = torch.tensor([oracle.full(row) for row in logits.tolist()])
    torch.testing.assert_close(stored(logits).logits(), expected, rtol=2**-11, atol=2**-24)


@settings(deadline=None)
@given(logits_of(ordinary), st.floats(-1e6, 1e6, width=32))
def test_the_likeliest_class_is_exact_whatever_the_offset(logits, offset):
    logits = logits + offset
    back = stored(logits).logits()
    assert (back.amax(1) == logits.amax(1)).all()
    assert (back.gather(1, logits.argmax(1, keepdim=True)) == logits.amax(1, keepdim=True)).all()


@settings(deadline=None)
@given(logits_of(ordinary, min_classes=2), st.data())
def test_the_k_largest_are_kept_to_fp16_and_the_rest_shares_its_mass(logits, data):
    top_k = data.draw(st.integers(1, logits.shape[1] - 1))
    answers = stored(logits, top_k)
    back, kept = answers.logits(), answers.rows["classes"].long()
    largest = logits.topk(top_k, dim=1).values
    # Ties may be resolved either way, so values are compared, and classes where they are.
    assert (logits.gather(1, kept) == largest).all()
    error = (back.gather(1, kept) - largest).double().abs()
    assert (error <= error_bound(logits).gather(1, kept)).all()

    others = torch.ones_like(logits, dtype=torch.bool).scatter(1, kept, False)
    shared = back[others].view(len(logits), -1)
    assert (shared == shared[:, :1]).all()
    mass = logits.double()[others].view(len(logits), -1).logsumexp(1)
    depth = (logits.double().amax(1) - mass).abs()
    slack = depth * 2**-11 + 2**-24 + 2**-22 * (depth + logits.abs().amax(1) + math.log(shared.shape[1]))
    assert ((shared.double().logsumexp(1) - mass).abs() <= slack).all()


@settings(deadline=None)
@given(logits_of(st.floats(-60, 60, width=16), min_classes=2), st.data())
def test_top_k_logits_are_those_of_the_oracle(logits, data):
    top_k = data.draw(st.integers(1, logits.shape[1] - 1))
    answers = stored(logits, top_k)
    for row, classes, back in zip(logits.tolist(), answers.rows["classes"].tolist(), answers.logits(), strict=True):
        kept, expected = oracle.top_k(row, top_k)
        if len(set(row)) == len(row):  # without ties
            assert set(classes) == kept
            torch.testing.assert_close(back, torch.tensor(expected), rtol=2**-10, atol=2**-10 * 120)


@settings(deadline=None)
@given(logits_of(any_finite, min_classes=2), st.data())
def test_probabilities_sum_to_one_for_any_finite_logits(logits, data):
    top_k = data.draw(st.one_of(st.none(), st.integers(1, logits.shape[1] - 1)))
    probabilities = stored(logits, top_k).logits().softmax(1)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(logits)))


@settings(deadline=None)
@given(logits_of(ordinary, min_classes=2), st.data())
def test_probabilities_of_the_kept_classes_are_the_teachers(logits, data):
    """Since the mass of the others is kept, and not dropped or shared among the kept."""
    top_k = data.draw(st.integers(1, logits.shape[1] - 1))
    answers = stored(logits, top_k)
    kept = answers.rows["classes"].long()
    ours = answers.logits().double().softmax(1).gather(1, kept)
    theirs = logits.double().softmax(1).gather(1, kept)
    # Every log-probability is off by at most 2^-11 of its depth (here up to 120 and a log of 12) on either side.
    torch.testing.assert_close(ours, theirs, rtol=2 * 2**-11 * (120 + math.log(12)), atol=1e-6)


@pytest.mark.parametrize("num_classes", [256, 257, 21_000, 65_536, 65_537])
def test_every_class_keeps_its_number(num_classes):
    for last in (0, 255, 256, 32_768, 65_535, 65_536, num_classes - 1):
        if last < num_classes:
            logits = torch.zeros(1, num_classes)
            logits[0, last] = 9
            assert stored(logits, 1).logits().argmax().item() == last
            assert stored(logits, 3).logits().argmax().item() == last


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_logits_of_other_precisions_are_taken(dtype):
    logits = (4 * torch.randn(5, 7, generator=torch.Generator().manual_seed(0))).to(dtype)
    for top_k in (None, 3):
        rows = encode(logits, [], Keep(top_k))
        expected = encode(logits.float(), [], Keep(top_k))
        assert all(torch.equal(rows[name], expected[name]) for name in expected)


def test_log_probabilities_of_an_ensemble_may_be_far_down():
    logits = torch.tensor([[0.0, -3e4, -1e30, -3.4e38]])
    assert stored(logits).logits().tolist() == [[0, -30_000, -65_504, -65_504]]
    assert stored(logits, 2).logits().softmax(1).tolist() == [[1, 0, 0, 0]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("top_k", [None, 1])
def test_logits_that_are_not_finite_are_refused(value, top_k):
    with pytest.raises(InputError, match="logits, of which 1 of 6 are not finite"):
        encode(torch.tensor([[0.0, 1, 2], [0, value, 2]]), [], Keep(top_k))


@settings(deadline=None)
@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2), elements=st.floats(-65_504, 65_504, width=32)))
def test_embeddings_come_back_to_fp16(embedding):
    embedding = torch.from_numpy(embedding)
    answers = stored(torch.zeros(len(embedding), 2), embeddings=[embedding, -embedding])
    for back, given_ in zip(answers.embeddings(), (embedding, -embedding), strict=True):
        assert back.dtype == torch.float32
        assert ((back - given_).abs() <= given_.abs() * 2**-11 + 2**-25).all()


def test_embeddings_that_fp16_cannot_hold_are_refused():
    with pytest.raises(InputError, match=r"embeddings of teacher 1 up to 7e\+04") as error:
        encode(torch.zeros(2, 3), [torch.zeros(2, 1), torch.tensor([[1.0], [-70_000.0]])], Keep(embeddings=True))
    assert "65,504" in error.value.expected
    with pytest.raises(InputError, match="embeddings of teacher 0, of which 1 of 2 are not finite"):
        encode(torch.zeros(2, 3), [torch.tensor([[1.0], [math.nan]])], Keep(embeddings=True))


def test_no_rows_at_all_are_rows_like_others():
    for top_k in (None, 2):
        answers = stored(torch.zeros(0, 5), top_k, [torch.zeros(0, 3)])
        assert len(answers) == 0
        assert answers.logits().shape == (0, 5)
        assert answers.embeddings()[0].shape == (0, 3)


def test_answers_of_inference_mode_are_taken():
    with torch.inference_mode():
        logits = torch.randn(4, 6)
    assert not stored(logits).logits().is_inference()


def test_moving_keeps_the_rows():
    answers = stored(torch.randn(4, 6), 2, [torch.randn(4, 3)])
    moved = answers.to("cpu")
    assert torch.equal(moved.logits(), answers.logits())
    assert {row.device.type for row in answers.to("meta").rows.values()} == {"meta"}


@settings(deadline=None)
@given(logits_of(ordinary, min_classes=3))
def test_what_is_decoded_is_not_changed_by_autocast(logits):
    for top_k in (None, 2):
        answers = stored(logits, top_k)
        with torch.autocast("cpu", torch.bfloat16):
            inside = answers.logits()
        assert torch.equal(inside, answers.logits())


def test_a_thousand_classes_as_teachers_have_them():
    """Figures that the field's reader may hold against others: fp16 below the largest against plain fp16."""
    logits = 3 * torch.randn(64, 1000, generator=torch.Generator().manual_seed(0)) + 20
    theirs = logits.double().log_softmax(1)
    ours = stored(logits).logits().double().log_softmax(1)
    plain = logits.half().double().log_softmax(1)
    kl = (theirs.exp() * (theirs - ours)).sum(1).abs().mean()
    assert kl < (theirs.exp() * (theirs - plain)).sum(1).abs().mean() / 4
