"""Fusion against the specification's fixtures, plain loops, and what its weights must and must not depend on."""

import doctest
import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from crossdistill.federated import fusion
from crossdistill.federated.fusion import (
    cut_neighbours,
    divergences,
    effective_neighbours,
    estimated_distribution,
    fuse,
    fusion_weights,
    relative,
    sample_blocks,
    sharpen,
    smooth,
)
from oracles import knfu as oracle

ROUNDING = {"rtol": 1e-10, "atol": 1e-14}

SPECIFIED = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]])
"""Section 2.3, with beta = 10 and no smoothing."""


def answers(seed, num_clients=4, num_samples=7, num_classes=3, spread=0.5):
    """Random knowledge (N, M, C) of clients that each prefer some classes; a small spread makes them sure."""
    generator = np.random.default_rng(seed)
    priors = generator.dirichlet(np.full(num_classes, spread), num_clients)
    rows = generator.dirichlet(np.full(num_classes, spread), (num_clients, num_samples))
    mixed = rows * (priors[:, None] + 1e-3)
    return mixed / mixed.sum(axis=2, keepdims=True)


def weights_of(knowledge, beta=10.0, threshold=0.0):
    """The chain from answers to weights."""
    distributions = smooth(np.stack([estimated_distribution(one) for one in knowledge]))
    return cut_neighbours(fusion_weights(divergences(distributions), beta), threshold)


random_answers = st.builds(
    answers,
    st.integers(0, 10_000),
    num_clients=st.integers(2, 6),
    num_samples=st.integers(1, 9),
    num_classes=st.integers(2, 12),
    spread=st.sampled_from([0.05, 0.5, 5.0]),
)
betas = st.floats(0, 200)


def test_examples_in_docstrings():
    result = doctest.testmod(fusion)
    assert result.attempted >= 2
    assert result.failed == 0


def test_specified_divergences_and_weights():
    between = divergences(SPECIFIED)
    found = between[0, 1], between[1, 0], between[0, 2]
    assert found == pytest.approx((0.036690, 0.044403, 1.757780), abs=5e-7)  # six digits are printed
    weights = fusion_weights(between, beta=10.0)
    assert weights[0, :2] == pytest.approx((0.590710, 0.409290), abs=5e-7)
    assert weights[1, :2] == pytest.approx((0.390781, 0.609218), abs=1e-6)  # the specification cuts the second off
    assert weights[0, 2] == pytest.approx(1.3723e-8, rel=5e-5)
    assert weights[1, 2] == pytest.approx(7.353e-7, rel=1e-4)


def test_clients_of_one_class_each_stay_finite():
    distributions = smooth(np.eye(3))
    between = divergences(distributions)
    apart = ~np.eye(3, dtype=bool)
    assert between[apart] == pytest.approx(np.full(6, 13.81547), abs=5e-6)
    weights = fusion_weights(between, beta=10.0)
    assert weights[apart] == pytest.approx(np.full(6, 1.0e-60), rel=0.05, abs=0)
    assert weights.diagonal().tolist() == [1, 1, 1]
    assert (weights[apart].astype(np.float32) == 0).all()  # which is why all of it is float64


def test_smoothing_adds_the_same_to_each_class():
    assert smooth(np.array([[1.0, 0, 0]]), smoothing=0.1)[0] == pytest.approx((1.1 / 1.3, 0.1 / 1.3, 0.1 / 1.3))
    assert smooth(np.eye(4)).sum(axis=1) == pytest.approx(np.ones(4), rel=1e-14)
    assert smooth(SPECIFIED, smoothing=0).tolist() == SPECIFIED.tolist()


@given(random_answers, betas, st.floats(0, 3))
def test_every_step_equals_plain_loops(knowledge, beta, threshold):
    lists = knowledge.tolist()
    estimated = np.stack([estimated_distribution(one) for one in knowledge])
    np.testing.assert_allclose(estimated, [oracle.estimated_distribution(one) for one in lists], **ROUNDING)
    np.testing.assert_allclose(relative(estimated), oracle.relative(estimated.tolist()), **ROUNDING)
    smoothed = smooth(estimated)
    np.testing.assert_allclose(smoothed, [oracle.smooth(one) for one in estimated.tolist()], **ROUNDING)
    between = divergences(smoothed)
    np.testing.assert_allclose(between, oracle.divergences(smoothed.tolist()), rtol=1e-10, atol=1e-13)
    weights = fusion_weights(between, beta)
    np.testing.assert_allclose(weights, oracle.fusion_weights(between.tolist(), beta), rtol=1e-10, atol=1e-300)
    cut = cut_neighbours(weights, threshold)
    np.testing.assert_allclose(cut, oracle.cut(weights.tolist(), threshold), rtol=1e-10, atol=1e-300)
    np.testing.assert_allclose(fuse(knowledge, cut), oracle.fuse(lists, cut.tolist()), **ROUNDING)


@given(random_answers, betas, st.floats(0, 3))
def test_rows_add_up_and_nobody_counts_more_than_oneself(knowledge, beta, threshold):
    for weights in (weights_of(knowledge, beta), weights_of(knowledge, beta, threshold)):
        np.testing.assert_allclose(weights.sum(axis=1), np.ones(len(knowledge)), rtol=1e-13)
        assert (weights >= 0).all()
        assert (weights.diagonal() == weights.max(axis=1)).all()
    fused = fuse(knowledge, weights)
    assert fused.shape == knowledge.shape
    np.testing.assert_allclose(fused.sum(axis=2), np.ones(knowledge.shape[:2]), rtol=1e-12)
    assert (fused >= knowledge.min(axis=0) - 1e-15).all()
    assert (fused <= knowledge.max(axis=0) + 1e-15).all()


@given(random_answers)
def test_divergences_are_of_the_receiver_and_never_negative(knowledge):
    distributions = smooth(knowledge.mean(axis=1))
    nearly = np.concatenate([distributions, distributions * (1 + 1e-15)])
    between = divergences(nearly)
    assert (between >= 0).all()
    assert (between.diagonal() == 0).all()


def test_a_teacher_that_lacks_classes_is_worse_than_one_that_knows_more():
    knows_two, knows_four = smooth(np.array([[0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]]))
    between = divergences(np.stack([knows_two, knows_four]))
    assert between[0, 1] == pytest.approx(np.log(2), abs=1e-4)
    assert between[1, 0] > 5


@given(random_answers)
def test_beta_of_zero_is_the_mean_of_all(knowledge):
    weights = weights_of(knowledge, beta=0.0)
    np.testing.assert_allclose(weights, np.full_like(weights, 1 / len(knowledge)), rtol=1e-15)
    for teacher in fuse(knowledge, weights):
        np.testing.assert_allclose(teacher, knowledge.mean(axis=0), rtol=1e-12)


@given(random_answers)
def test_a_large_beta_leaves_each_client_to_itself(knowledge):
    between = divergences(smooth(knowledge.mean(axis=1)))
    nearest = between[~np.eye(len(between), dtype=bool)].min()
    assume(nearest > 1e-9)  # clients that are distinct at all
    with np.errstate(all="raise", under="ignore"):
        weights = fusion_weights(between, beta=100 / nearest)
    np.testing.assert_allclose(weights, np.eye(len(knowledge)), atol=1e-40)
    np.testing.assert_allclose(fuse(knowledge, weights), knowledge, rtol=1e-12, atol=1e-40)


@given(random_answers, betas)
def test_a_larger_beta_listens_more_to_oneself(knowledge, beta):
    assert (weights_of(knowledge, beta + 1).diagonal() >= weights_of(knowledge, beta).diagonal() - 1e-15).all()


def test_only_differences_of_divergences_count_however_large():
    near = np.array([[0.0, 0.1], [0.3, 0.0]])
    weights = fusion_weights(near + 1e3, beta=10.0)  # of teachers that are all far away
    np.testing.assert_allclose(weights, fusion_weights(near, beta=10.0), rtol=1e-10)


@given(random_answers, st.integers(2, 7), betas)
def test_clients_that_are_alike_count_alike(knowledge, number, beta):
    alike = np.stack([knowledge[0]] * number)
    np.testing.assert_allclose(weights_of(alike, beta), np.full((number, number), 1 / number), rtol=1e-11)
    np.testing.assert_allclose(fuse(alike, weights_of(alike, beta)), alike, rtol=1e-11)


@given(random_answers, betas, st.floats(0, 3), st.randoms(use_true_random=False))
def test_the_order_of_clients_does_not_matter(knowledge, beta, threshold, random):
    order = list(range(len(knowledge)))
    random.shuffle(order)
    whole, permuted = weights_of(knowledge, beta), weights_of(knowledge[order], beta)
    np.testing.assert_allclose(permuted, whole[np.ix_(order, order)], rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(fuse(knowledge[order], permuted), fuse(knowledge, whole)[order], rtol=1e-9)
    cut = cut_neighbours(whole, threshold)
    np.testing.assert_allclose(
        cut_neighbours(whole[np.ix_(order, order)], threshold), cut[np.ix_(order, order)], rtol=1e-12
    )


@given(random_answers, betas, st.integers(0, 5))
def test_without_a_client_the_others_keep_their_ratios(knowledge, beta, which):
    gone = which % len(knowledge)
    rest = np.delete(np.delete(weights_of(knowledge, beta), gone, axis=0), gone, axis=1)
    expected = rest / rest.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weights_of(np.delete(knowledge, gone, axis=0), beta), expected, rtol=1e-9, atol=1e-300)


@given(random_answers, betas, st.integers(0, 10_000))
def test_the_known_weakness_shuffled_rows_keep_their_weight(knowledge, beta, seed):
    shuffled = knowledge.copy()
    shuffled[0] = np.random.default_rng(seed).permutation(knowledge[0])
    np.testing.assert_allclose(weights_of(shuffled, beta), weights_of(knowledge, beta), rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_means_are_taken_in_double_precision(dtype):
    row = np.array([0.1, 0.9], dtype=dtype)
    mean = estimated_distribution(np.tile(row, (30_000, 1)))
    assert mean.dtype == np.float64
    np.testing.assert_allclose(mean, row.astype(np.float64), rtol=1e-11)


@given(random_answers, st.integers(0, 10_000))
def test_what_the_transfer_set_holds_much_of_says_nothing_of_a_client(knowledge, seed):
    estimated = knowledge.mean(axis=1) + 1e-3
    held = np.random.default_rng(seed).uniform(0.1, 10, estimated.shape[1])
    np.testing.assert_allclose(relative(estimated * held), relative(estimated), rtol=1e-10)
    np.testing.assert_allclose(relative(estimated).sum(axis=1), np.ones(len(estimated)), rtol=1e-13)


def test_clients_that_predict_only_what_the_transfer_set_holds_are_uniform():
    same = np.tile([0.7, 0.2, 0.1], (5, 1))
    np.testing.assert_allclose(relative(same), np.full((5, 3), 1 / 3))
    absent = np.array([[0.75, 0.25, 0], [0.25, 0.75, 0]])  # a class that nobody predicts
    np.testing.assert_allclose(relative(absent), absent)


def test_relative_distributions_bring_back_neighbours_that_an_unbalanced_transfer_set_drowns():
    own = np.array([[0.8, 0.1, 0.1], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
    drowned = own * [0.98, 0.01, 0.01]
    drowned /= drowned.sum(axis=1, keepdims=True)
    raw, mended = (fusion_weights(divergences(smooth(one)), 10.0) for one in (drowned, relative(drowned)))
    # The first two are of a kind, and the third is not: that is plain only without the transfer set's own mix.
    assert raw[0, 2] / raw[0, 1] > 0.3
    assert mended[0, 2] / mended[0, 1] < 1e-3


def test_neighbours_below_the_threshold_are_cut():
    weights = np.array([[0.6, 0.3, 0.1], [0.25, 0.5, 0.25], [0.02, 0.08, 0.9]])
    np.testing.assert_allclose(cut_neighbours(weights, 0.0), weights, rtol=1e-15)
    cut = cut_neighbours(weights, 0.75)  # below 0.25: what equals it stays
    np.testing.assert_allclose(cut, [[2 / 3, 1 / 3, 0], [0.25, 0.5, 0.25], [0, 0, 1]])
    assert cut_neighbours(weights, 100.0).tolist() == np.eye(3).tolist()  # never the client itself
    uniform = np.full((4, 4), 0.25)
    assert cut_neighbours(uniform, 1.0).tolist() == uniform.tolist()
    assert weights[0].tolist() == [0.6, 0.3, 0.1]  # nothing was written to


def test_only_some_receivers_may_be_asked_for():
    knowledge = answers(0)
    weights = weights_of(knowledge)
    np.testing.assert_allclose(fuse(knowledge, weights[[2]]), fuse(knowledge, weights)[[2]], rtol=1e-14)


def test_effective_neighbours_of_known_weights():
    weights = np.array([[1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0, 0.5, 0]])
    assert effective_neighbours(weights).tolist() == [1, 4, 2]


@given(random_answers, betas)
def test_effective_neighbours_are_between_one_and_all(knowledge, beta):
    number = effective_neighbours(weights_of(knowledge, beta))
    assert (number >= 1 - 1e-12).all()
    assert (number <= len(knowledge) * (1 + 1e-12)).all()


def softmax(logits, temperature):
    raised = np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
    return raised / raised.sum(axis=-1, keepdims=True)


@given(st.integers(0, 10_000), st.floats(0.5, 10), st.floats(0.5, 10))
def test_sharpening_turns_one_temperature_into_another(seed, before, after):
    logits = np.random.default_rng(seed).normal(0, 3, (2, 5, 4))
    sharpened = sharpen(softmax(logits, before), before / after)
    np.testing.assert_allclose(sharpened, softmax(logits, after), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(sharpen(sharpened, after / before), softmax(logits, before), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(sharpened.sum(axis=-1), np.ones((2, 5)), rtol=1e-13)


def test_sharpening_by_one_changes_nothing():
    knowledge = answers(3)
    np.testing.assert_allclose(sharpen(knowledge, 1.0), knowledge, rtol=1e-14)


@pytest.mark.parametrize("block_bytes", [1, 5000, 2**30])
def test_blocks_of_samples_change_nothing_but_the_last_bits(block_bytes):
    random = np.random.default_rng(0)
    knowledge = random.dirichlet(np.ones(7), size=(6, 53)).astype(np.float32)
    weights = random.dirichlet(np.ones(6), size=4)
    expected = np.einsum("rn,nmc->rmc", weights, knowledge.astype(np.float64))
    fused = fuse(list(knowledge), weights, block_bytes=block_bytes)
    np.testing.assert_allclose(fused, expected, rtol=1e-13)
    single = fuse(list(knowledge), weights, dtype=np.float32, block_bytes=block_bytes)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, rtol=2**-23)


def test_blocks_cover_all_samples_once():
    taken = [list(range(100))[rows] for rows in sample_blocks(100, 8, 56)]
    assert [one for part in taken for one in part] == list(range(100))
    assert max(map(len, taken)) == 7


def test_what_is_held_does_not_grow_with_the_samples():
    knowledge = np.full((40, 3000, 10), 0.1, dtype=np.float32)
    tracemalloc.start()
    fuse(list(knowledge), np.full((1, 40), 1 / 40), dtype=np.float32, block_bytes=2**17)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3000 * 10 * 4 + 4 * 2**17  # the result, and a few blocks; all of the knowledge would be 4.8 MB
