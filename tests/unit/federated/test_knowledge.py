"""What travels: as many bytes as promised, as near as its precision, and nothing accepted that is no knowledge."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdistill.errors import InputError
from crossdistill.federated.knowledge import (
    ROWS,
    SOFT,
    SUM_TOLERANCE,
    TOP_CLASSES,
    TOP_VALUES,
    Knowledge,
    Refused,
    check_transport,
    num_bytes,
    pack,
    unpack,
)

SINGLE, HALF, HALF_STEP = 2.0**-24, 2.0**-11, 2.0**-25
"""Largest relative rounding of single and half precision, and half of half precision's least step."""


def answers(seed, num_samples=6, num_classes=5, spread=0.3):
    """Probabilities (M, C) in double precision; a small spread makes most of them tiny."""
    generator = np.random.default_rng(seed)
    # Not the generator's own Dirichlet, which knows no value between 0 and the least double for tiny spreads.
    raised = generator.gamma(spread, size=(num_samples, num_classes)) + 1e-12
    return raised / raised.sum(axis=1, keepdims=True)


def sent(soft, transport, *, top_k=2, rows=None):
    """Knowledge after its way through the network."""
    arrays = pack(Knowledge.of(soft, rows), transport, top_k=top_k)
    num_samples, num_classes = soft.shape
    return unpack(arrays, num_samples=num_samples, num_classes=num_classes)


random_answers = st.builds(
    answers,
    st.integers(0, 10_000),
    num_samples=st.integers(1, 20),
    num_classes=st.integers(2, 300),
    spread=st.sampled_from([0.03, 0.3, 3.0]),
)


@given(random_answers)
def test_single_precision_comes_back_to_its_last_digits(soft):
    back = sent(soft, "fp32")
    # Rounded when sent, divided by a sum that is off by as much, and rounded again.
    assert (np.abs(back.soft - soft) <= 3.01 * SINGLE * soft).all()
    assert back.rows.all()


@given(random_answers)
def test_half_precision_comes_back_within_its_rounding(soft):
    num_classes = soft.shape[1]
    back = sent(soft, "fp16").soft.astype(np.float64)
    off = HALF * (1 + SINGLE) + num_classes * HALF_STEP  # of a row's sum
    bound = (HALF * soft + HALF_STEP + soft * off) / (1 - off) + 3 * SINGLE * soft
    assert (np.abs(back - soft) <= bound).all()
    np.testing.assert_allclose(back.sum(axis=1), np.ones(len(soft)), rtol=(num_classes + 1) * SINGLE)


@given(random_answers, st.integers(1, 20))
def test_the_largest_come_back_and_the_rest_is_spread(soft, top_k):
    num_samples, num_classes = soft.shape
    top_k = min(top_k, num_classes - 1)
    arrays = pack(Knowledge.of(soft), "top_k", top_k=top_k)
    back = unpack(arrays, num_samples=num_samples, num_classes=num_classes).soft.astype(np.float64)
    np.testing.assert_allclose(back.sum(axis=1), np.ones(num_samples), rtol=(num_classes + 1) * SINGLE)
    off = HALF * (1 + SINGLE) + top_k * HALF_STEP  # of the sum of those that were sent
    for row, found, largest in zip(soft, back, arrays[TOP_CLASSES], strict=True):
        others = np.setdiff1d(np.arange(num_classes), largest)
        assert row[largest].min() >= row[others].max() * (1 - 2 * SINGLE)
        bound = (HALF * row + HALF_STEP + row * off) / (1 - off) + 3 * SINGLE * row
        assert (np.abs(found - row) <= bound)[largest].all()
        assert (found[others] == found[others][0]).all()
        assert found[others].sum() == pytest.approx(row[others].sum(), abs=2 * off + 3 * SINGLE)


def test_of_equals_any_may_be_sent():
    back = sent(np.full((3, 4), 0.25), "top_k", top_k=2)
    np.testing.assert_allclose(back.soft, np.full((3, 4), 0.25))


def test_top_k_of_all_classes_is_half_precision():
    soft = answers(0)
    arrays = pack(Knowledge.of(soft), "top_k", top_k=5)
    assert list(arrays) == [SOFT]
    np.testing.assert_array_equal(sent(soft, "top_k", top_k=5).soft, sent(soft, "fp16").soft)


@given(random_answers, st.sampled_from(["fp32", "fp16", "top_k"]), st.integers(0, 10_000))
def test_rows_that_are_no_answer_do_not_travel(soft, transport, seed):
    rows = np.random.default_rng(seed).random(len(soft)) < 0.5
    rows[seed % len(soft)] = True
    arrays = pack(Knowledge.of(soft, rows), transport, top_k=1)
    assert all(len(array) == rows.sum() for name, array in arrays.items() if name != ROWS)
    back = sent(soft, transport, top_k=1, rows=rows)
    assert back.rows.tolist() == rows.tolist()
    np.testing.assert_array_equal(back.soft[rows], sent(soft, transport, top_k=1).soft[rows])
    np.testing.assert_array_equal(back.soft[~rows], np.float32(1 / soft.shape[1]))


@pytest.mark.parametrize("transport", ["fp32", "fp16", "top_k"])
def test_what_came_back_may_be_sent_again(transport):
    once = sent(answers(1, num_samples=50), transport)
    assert once.soft.dtype == np.float32
    again = sent(once.soft, transport)
    np.testing.assert_allclose(again.soft, once.soft, rtol=2.1 * HALF, atol=2 * HALF_STEP)


@pytest.mark.parametrize(
    ("transport", "num_samples", "num_classes", "top_k", "expected"),
    [
        ("fp16", 5000, 10, 0, 100_000),  # the specification's figure
        ("fp16", 64, 5, 0, 640),
        ("fp16", 2000, 10, 0, 40_000),
        ("fp32", 5000, 10, 0, 200_000),
        ("top_k", 5000, 10, 3, 5000 * 3 * (2 + 1)),
        ("top_k", 50, 256, 3, 50 * 3 * (2 + 1)),  # classes 0 to 255 fit in a byte
        ("top_k", 50, 257, 3, 50 * 3 * (2 + 2)),
    ],
)
def test_bytes_that_travel(transport, num_samples, num_classes, top_k, expected):
    soft = answers(0, num_samples, num_classes)
    assert num_bytes(pack(Knowledge.of(soft), transport, top_k=top_k)) == expected


def test_bytes_of_some_rows():
    rows = np.arange(5000) % 2 == 0
    arrays = pack(Knowledge.of(answers(0, 5000, 10), rows), "fp16", top_k=0)
    assert num_bytes(arrays) == 2500 * 10 * 2 + 5000 // 8


def soft_of(change, dtype=np.float16):
    """Packed answers to six samples of five classes, with something changed."""
    soft = answers(0).astype(dtype)
    change(soft)
    return {SOFT: soft}


def with_value(value, dtype=np.float16):
    def change(soft):
        soft[2, 1] = value

    return soft_of(change, dtype)


def scaled(factor):
    def change(soft):
        soft[3] *= factor

    return soft_of(change, np.float32)


def top(values, classes, dtype=np.uint8):
    """Packed top 2 of six samples, all of them the same."""
    return {
        TOP_VALUES: np.tile(np.array(values, np.float16), (6, 1)),
        TOP_CLASSES: np.tile(np.array(classes, dtype), (6, 1)),
    }


def of_rows(rows, number=6):
    return {SOFT: answers(0).astype(np.float16)[:number], ROWS: rows}


ALL_ROWS = np.packbits(np.ones(6, dtype=bool))


def test_what_the_refusals_start_from_is_accepted():
    for arrays in (
        soft_of(lambda soft: None),
        scaled(1.0),
        top((0.6, 0.3), (1, 3)),
        top((0.6, 0.3), (1, 3), np.uint16),
        of_rows(ALL_ROWS),
    ):
        back = unpack(arrays, num_samples=6, num_classes=5)
        assert back.soft.shape == (6, 5)
        assert back.rows.all()
    np.testing.assert_allclose(
        unpack(top((0.6, 0.3), (1, 3)), num_samples=6, num_classes=5).soft[0],
        [0.1 / 3, 0.6, 0.1 / 3, 0.3, 0.1 / 3],
        atol=2 * HALF,
    )


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        (with_value(np.nan), "not finite"),
        (with_value(np.inf), "not finite"),
        (with_value(-np.inf), "not finite"),
        (with_value(-0.5), "outside 0 and 1"),
        (with_value(1.5), "outside 0 and 1"),
        (with_value(1e300, np.float64), "outside 0 and 1"),
        (with_value(1.0), "do not add up"),
        (scaled(0.0), "do not add up"),
        (scaled(1 + 1.5 * SUM_TOLERANCE), "do not add up"),
        (scaled(1 - 1.5 * SUM_TOLERANCE), "do not add up"),
        ({SOFT: answers(0, num_samples=5).astype(np.float16)}, r"soft of float16 \(5, 5\)"),
        ({SOFT: answers(0, num_samples=7).astype(np.float16)}, r"soft of float16 \(7, 5\)"),
        ({SOFT: answers(0, num_classes=4).astype(np.float16)}, r"soft of float16 \(6, 4\)"),
        ({SOFT: answers(0, num_classes=6).astype(np.float16)}, r"soft of float16 \(6, 6\)"),
        ({SOFT: answers(0).astype(np.float16).T}, r"soft of float16 \(5, 6\)"),
        ({SOFT: answers(0).astype(np.float16).ravel()}, r"soft of float16 \(30,\)"),
        ({SOFT: np.float16(1.0).reshape(())}, r"soft of float16 \(\)"),
        ({SOFT: np.zeros((0, 5), np.float16)}, r"soft of float16 \(0, 5\)"),
        ({SOFT: np.eye(6, 5, dtype=np.int64)}, "soft of int64"),
        ({SOFT: np.eye(6, 5, dtype=np.uint8)}, "soft of uint8"),
        ({SOFT: np.eye(6, 5, dtype=bool)}, "soft of bool"),
        ({SOFT: answers(0).astype(np.complex64)}, "soft of complex64"),
        ({SOFT: answers(0).astype(object)}, "soft of object"),
        ({SOFT: answers(0).astype("U8")}, "soft of <U8"),
        ({}, "no array soft"),
        ({"logits": answers(0).astype(np.float16)}, "no array soft"),
        ({TOP_VALUES: top((0.6, 0.3), (1, 3))[TOP_VALUES]}, "no array top_classes"),
        ({TOP_CLASSES: top((0.6, 0.3), (1, 3))[TOP_CLASSES]}, "no array soft"),
        (top((0.6, 0.3), (3, 3)), "out of range or named twice"),
        (top((0.6, 0.3), (3, 1)), "out of range or named twice"),
        (top((0.6, 0.3), (1, 5)), "out of range or named twice"),
        (top((0.6, 0.3), (1, 255)), "out of range or named twice"),
        (top((0.6, 0.3), (1, 3), np.int64), "top_classes of int64"),
        (top((0.6, 0.3), (1, 3), np.float32), "top_classes of float32"),
        (top((0.6, 0.3), (1, 2, 3)), r"top_classes of uint8 \(6, 3\)"),
        (top((0.6, np.nan), (1, 3)), "no probabilities"),
        (top((0.6, np.inf), (1, 3)), "no probabilities"),
        (top((0.6, -0.25), (1, 3)), "no probabilities"),
        (top((0.6, 0.5), (1, 3)), "no probabilities"),
        (top((), ()), r"top_values of shape \(6, 0\)"),
        (top((0.2,) * 5, range(5)), r"top_values of shape \(6, 5\)"),
        (top((0.2,) * 6, range(6)), r"top_values of shape \(6, 6\)"),
        ({name: array[:5] for name, array in top((0.6, 0.3), (1, 3)).items()}, r"top_values of shape \(5, 2\)"),
        ({name: array[0] for name, array in top((0.6, 0.3), (1, 3)).items()}, r"top_values of shape \(2,\)"),
        (top((0.6, 0.3), (1, 3)) | {TOP_VALUES: np.ones((6, 2), np.int32)}, "top_values of int32"),
        (of_rows(np.packbits(np.ones(9, dtype=bool))), r"rows of uint8 \(2,\)"),
        (of_rows(np.zeros(0, np.uint8)), r"rows of uint8 \(0,\)"),
        (of_rows(np.ones(6, dtype=bool)), "rows of bool"),
        (of_rows(np.array([252], np.uint16)), "rows of uint16"),
        (of_rows(np.array([-4], np.int8)), "rows of int8"),
        (of_rows(np.packbits([1, 1, 0, 1, 1, 1])), r"soft of float16 \(6, 5\)"),
        (of_rows(ALL_ROWS, number=5), r"soft of float16 \(5, 5\)"),
    ],
)
def test_refusals(arrays, reason):
    with pytest.raises(Refused, match=reason):
        unpack(arrays, num_samples=6, num_classes=5)


@pytest.mark.parametrize("transport", ["fp32", "fp16", "top_k"])
def test_knowledge_may_have_no_answer_at_all(transport):
    """As of a teacher that is sure of nothing."""
    back = sent(answers(0), transport, rows=np.zeros(6, dtype=bool))
    assert not back.rows.any()
    np.testing.assert_array_equal(back.soft, np.float32(1 / 5))


@pytest.mark.parametrize("value", [2**63, 2**64 - 1, 2**64 - 100])
def test_classes_beyond_signed_integers_are_refused(value):
    with pytest.raises(Refused, match="out of range or named twice"):
        unpack(top((0.6, 0.3), (value, 3), np.uint64), num_samples=6, num_classes=5)


def test_a_reason_tells_nothing_of_the_values():
    with pytest.raises(Refused) as caught:
        unpack(with_value(0.8125), num_samples=6, num_classes=5)
    assert not any(digit.isdigit() for digit in str(caught.value).replace("0 and 1", "").replace("to 1", ""))


@given(random_answers, st.data())
def test_whatever_arrives_is_refused_or_made_of_distributions(soft, data):
    """One value of a packed array replaced by any other: no error but the refusal, and never a row that is none."""
    arrays = pack(Knowledge.of(soft), data.draw(st.sampled_from(["fp32", "fp16", "top_k"])), top_k=1)
    name = data.draw(st.sampled_from(sorted(arrays)))
    array = arrays[name] = arrays[name].copy()
    at = data.draw(st.integers(0, array.size - 1))
    array.view(np.dtype(f"u{array.itemsize}")).flat[at] = data.draw(st.integers(0, 2 ** (8 * array.itemsize) - 1))
    try:
        found = unpack(arrays, num_samples=soft.shape[0], num_classes=soft.shape[1]).soft
    except Refused:
        return
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1, dtype=np.float64), np.ones(len(soft)), rtol=300 * SINGLE)


@pytest.mark.parametrize("top_k", [0, -1, 6])
def test_more_classes_than_there_are_cannot_be_sent(top_k):
    with pytest.raises(InputError, match=f"top_k={top_k} for 5 classes"):
        check_transport("top_k", top_k, 5)


def test_numbers_of_classes_that_can_be_sent():
    check_transport("top_k", 1, 5)
    check_transport("top_k", 5, 5)
    check_transport("fp16", 0, 5)  # says nothing there
