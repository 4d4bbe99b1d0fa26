"""The guard against plain loops, and that it catches what the weights alone cannot see."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdistill.federated.fusion import divergences, estimated_distribution, fusion_weights, smooth
from crossdistill.federated.guard import LEAST_AGREEMENT, agreement, heard
from oracles import knfu as oracle


def of_the_same_images(seed, num_clients=5, num_samples=400, num_classes=4, strength=3.0):
    """Knowledge (N, M, C) of honest clients: each sees the class of an image, through noise of its own.

    Shuffled rows agree by chance with a spread of about (M (C - 1)) ** -0.5, here a seventh of the least agreement.
    """
    generator = np.random.default_rng(seed)
    truth = np.eye(num_classes)[generator.integers(num_classes, size=num_samples)]
    logits = strength * truth + generator.normal(size=(num_clients, num_samples, num_classes))
    raised = np.exp(logits)
    return raised / raised.sum(axis=2, keepdims=True)


def independent(seed, num_clients=3, num_samples=6, num_classes=4):
    return np.random.default_rng(seed).dirichlet(np.ones(num_classes), (num_clients, num_samples))


def weights_of(knowledge, beta=10.0):
    return fusion_weights(divergences(smooth(np.stack([estimated_distribution(one) for one in knowledge]))), beta)


@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(2, 8), st.integers(2, 5))
def test_agreement_and_what_is_heard_equal_plain_loops(seed, num_clients, num_samples, num_classes):
    knowledge = independent(seed, num_clients, num_samples, num_classes)
    lists = knowledge.tolist()
    expected = np.array([[oracle.agreement(one, other) for other in lists] for one in lists])
    np.testing.assert_allclose(agreement(knowledge), expected, rtol=1e-9, atol=1e-12)
    weights = weights_of(knowledge)
    np.testing.assert_allclose(
        heard(weights, expected, least=0.3), oracle.heard(weights.tolist(), expected.tolist(), 0.3), rtol=1e-12
    )


def test_agreement_of_known_answers():
    one, turned = [[1.0, 0], [0, 1]], [[0.0, 1], [1, 0]]
    same = [[0.5, 0.5], [0.5, 0.5]]
    found = agreement(np.array([one, one, turned, same]))
    # Equal rows: 1, where a random pair gives 1/2. Opposite rows are worse than a random pair, and no less than 0.
    assert found == pytest.approx(np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), abs=1e-12)


@given(st.integers(0, 10_000))
def test_agreement_is_mutual_and_between_none_and_full(seed):
    found = agreement(independent(seed))
    np.testing.assert_allclose(found, found.T, rtol=1e-12, atol=1e-15)
    assert (found.diagonal() == 1).all()
    assert (found >= 0).all()
    assert (found <= 1).all()


@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_agreement_depends_on_neither_the_order_of_samples_nor_of_classes_nor_scale(seed, scale):
    knowledge, generator = independent(seed), np.random.default_rng(seed + 1)
    found = agreement(knowledge)
    samples, classes = generator.permutation(knowledge.shape[1]), generator.permutation(knowledge.shape[2])
    for other in (knowledge[:, samples], knowledge[:, :, classes], scale * knowledge):
        np.testing.assert_allclose(agreement(other), found, rtol=1e-9, atol=1e-12)


@given(st.integers(0, 10_000), st.integers(1, 3))
def test_shuffled_rows_are_caught_that_the_weights_do_not_see(seed, num_shufflers):
    knowledge, generator = of_the_same_images(seed), np.random.default_rng(seed + 1)
    attacked = knowledge.copy()
    for client in range(num_shufflers):
        attacked[client] = generator.permutation(knowledge[client])
    weights = weights_of(attacked)
    np.testing.assert_allclose(weights, weights_of(knowledge), rtol=1e-9)
    assert (weights[num_shufflers:, :num_shufflers] > 0.01).all()

    found = agreement(attacked)
    honest = found[num_shufflers:, num_shufflers:]
    assert (honest > 0.5).all()
    shuffled = np.where(np.eye(len(found), dtype=bool), 0, found)[:num_shufflers]
    assert shuffled.max() < 0.2 < honest.min()

    guarded = heard(weights, found, least=0.2)
    assert (guarded[num_shufflers:, :num_shufflers] == 0).all()
    np.testing.assert_allclose(guarded[:num_shufflers], np.eye(len(found))[:num_shufflers])
    rest = weights[num_shufflers:, num_shufflers:]
    np.testing.assert_allclose(
        guarded[num_shufflers:, num_shufflers:], rest / rest.sum(axis=1, keepdims=True), rtol=1e-12
    )


@given(st.integers(0, 10_000))
def test_among_honest_clients_the_guard_changes_nothing(seed):
    knowledge = of_the_same_images(seed)
    weights = weights_of(knowledge)
    np.testing.assert_allclose(heard(weights, agreement(knowledge)), weights, rtol=1e-12)


def test_clients_that_answer_all_samples_alike_agree_with_nobody():
    knowledge = of_the_same_images(0, num_clients=4)
    knowledge[0] = [0.4, 0.3, 0.2, 0.1]
    knowledge[1] = [0.4, 0.3, 0.2, 0.1]  # nor with each other: their means explain it all
    found = agreement(knowledge)
    apart = ~np.eye(4, dtype=bool)
    assert np.abs(found[:2][apart[:2]]).max() < 1e-9
    assert found[2, 3] > 0.5


def test_one_class_clients_do_not_divide_by_zero():
    knowledge = np.zeros((3, 5, 2))
    knowledge[:2, :, 0] = 1
    knowledge[2, :, 1] = 1
    with np.errstate(all="raise"):
        assert agreement(knowledge).tolist() == np.eye(3).tolist()


def test_what_reaches_the_least_agreement_is_heard_and_oneself_always():
    weights = np.array([[0.5, 0.3, 0.2], [0.25, 0.5, 0.25], [0.1, 0.1, 0.8]])
    agreed = np.array([[0.0, 0.3, 0.1], [0.3, 0.0, 0.3], [0.1, 0.29, 0.0]])
    guarded = heard(weights, agreed, least=0.3)
    np.testing.assert_allclose(guarded, [[0.625, 0.375, 0], [0.25, 0.5, 0.25], [0, 0, 1]], rtol=1e-14)
    assert weights[0].tolist() == [0.5, 0.3, 0.2]  # nothing was written to
    np.testing.assert_allclose(heard(weights, np.ones((3, 3)), least=1.0), weights, rtol=1e-14)
    np.testing.assert_allclose(heard(weights, np.full((3, 3), LEAST_AGREEMENT - 1e-9)), np.eye(3))
    np.testing.assert_allclose(heard(weights, np.full((3, 3), LEAST_AGREEMENT)), weights, rtol=1e-14)


def test_a_client_without_weight_that_agrees_with_nobody_is_left_with_itself():
    nobody = heard(np.array([[0.0, 1.0], [0.5, 0.5]]), np.eye(2))
    assert nobody.tolist() == [[1, 0], [0, 1]]


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_guarded_rows_add_up_and_nobody_counts_more_than_oneself(seed, least):
    knowledge = independent(seed, num_clients=5)
    guarded = heard(weights_of(knowledge), agreement(knowledge), least=least)
    np.testing.assert_allclose(guarded.sum(axis=1), np.ones(5), rtol=1e-13)
    assert (guarded.diagonal() == guarded.max(axis=1)).all()


@pytest.mark.parametrize("block_bytes", [1, 4000, 2**30])
def test_agreement_does_not_depend_on_blocks(block_bytes):
    knowledge = np.random.default_rng(1).dirichlet(np.full(5, 0.3), size=(4, 31))
    np.testing.assert_allclose(agreement(list(knowledge), block_bytes=block_bytes), agreement(knowledge), atol=1e-12)
