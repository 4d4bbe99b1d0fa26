"""Bags of words against the golden file, the specification's worked example, plain loops, and invariances."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossdistill import losses
from crossdistill.errors import InputError
from crossdistill.losses import bow
from crossdistill.losses.bow import entropy, inner, perplexities, squared_distances
from oracles import obow as oracle

EXACT = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture(scope="module")
def golden(shared):
    with np.load(shared("golden/obow.npz"), allow_pickle=False) as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}


@pytest.mark.parametrize("case", ["targets0", "targets1", "targets2"])
def test_golden_targets_and_perplexities(golden, case):
    given = {key.removeprefix(f"{case}/"): value for key, value in golden.items() if key.startswith(case)}
    bags = losses.bow_targets(
        given["features_nchw"],
        given["vocabulary"],
        inverse_delta=float(given["inv_delta"]) or None,
        mean_min_distance=float(given["mean_min_sq_distance"][0]),
        pool="max" if given["pool_is_max"] else "mean",
    )
    torch.testing.assert_close(bags, given["bow_target"], **EXACT)
    image, batch = perplexities(bags, offset=1e-5)
    torch.testing.assert_close(image, given["perplexity_image"][0], **EXACT)
    torch.testing.assert_close(batch, given["perplexity_batch"][0], **EXACT)


def test_golden_losses(golden):
    for name, num_levels, num_groups in (("head0", 2, 2), ("head1", 1, 2)):
        for group in range(num_groups):
            terms = []
            for level in range(num_levels):
                logits = golden[f"{name}/logits_features{group}_level{level}"]
                target = golden[f"{name}/target_level{level}"]
                assert len(logits) % len(target) == 0
                terms.append(losses.bow_cross_entropy(logits, target) - entropy(target).mean())
            torch.testing.assert_close(torch.stack(terms).mean(), golden[f"{name}/loss_features{group}"], **EXACT)


def worked_example():
    """Section 2.10: a 5 x 5 map whose border must not matter."""
    features = torch.zeros(1, 2, 5, 5, dtype=torch.float64)
    features[0, :, 0], features[0, :, :, 0] = 9, 9
    features[0, 0, 1:4, 1:4] = torch.tensor([[1.0, 0, 1], [0, 2, 0], [1, 0, 1]])
    features[0, 1, 1:4, 1:4] = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 2]])
    return features, torch.tensor([[1.0, 0], [0, 1], [1, 1]], dtype=torch.float64)


def test_worked_example_distances():
    features, vocabulary = worked_example()
    nearest = squared_distances(inner(features, 1), vocabulary).amin(dim=2)
    assert nearest.tolist() == [[0, 0, 0, 0, 1, 0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("inverse_delta", "pool", "expected"),
    [
        (1.0, "max", (0.335244, 0.330124, 0.334632)),
        (1.0, "mean", (0.394531, 0.404191, 0.201278)),
        (15.0, "max", (1 / 3, 1 / 3, 1 / 3)),
        (15.0, "mean", (4 / 9, 4 / 9, 1 / 9)),
        (None, "max", (1 / 3, 1 / 3, 1 / 3)),
        (None, "mean", (4 / 9, 4 / 9, 1 / 9)),
    ],
)
def test_worked_example_bags(inverse_delta, pool, expected):
    features, vocabulary = worked_example()
    mean = 0.99 * 0.5 + 0.01 * 2 / 9
    assert mean == pytest.approx(0.4972222, abs=5e-8)
    bags = losses.bow_targets(features, vocabulary, inverse_delta=inverse_delta, mean_min_distance=mean, pool=pool)
    # The specification prints six digits; at 15 the far words keep a share of about exp(-15 / 0.497).
    assert bags[0].tolist() == pytest.approx(expected, abs=5e-7)


def test_worked_example_loss():
    logits, target = torch.tensor([[1.0, 2, 3]], dtype=torch.float64), torch.tensor([[0.5, 0.5, 0]]).double()
    loss = losses.bow_cross_entropy(logits, target)
    # The specification cuts off after seven digits.
    assert loss.item() == pytest.approx(1.9076059, abs=1e-7)
    assert (loss - entropy(target).mean()).item() == pytest.approx(1.2144587, abs=1e-7)


@pytest.mark.parametrize("pool", ["max", "mean"])
@pytest.mark.parametrize("inverse_delta", [None, 0.5, 15.0])
@pytest.mark.parametrize("border", [0, 1])
def test_bags_equal_plain_loops(pool, inverse_delta, border):
    torch.manual_seed(3)
    features, vocabulary = torch.randn(2, 3, 5, 4).double(), torch.randn(6, 3).double()
    ours = losses.bow_targets(
        features, vocabulary, inverse_delta=inverse_delta, mean_min_distance=0.7, pool=pool, border=border
    )
    scale = None if inverse_delta is None else inverse_delta / 0.7
    expected = oracle.bags(features.numpy(), vocabulary.numpy(), scale, pool, border)
    torch.testing.assert_close(ours, torch.from_numpy(expected), **EXACT)


def test_pieces_give_what_the_whole_gives(monkeypatch):
    features, vocabulary = torch.randn(7, 4, 6, 6), torch.randn(32, 4)
    options = {"inverse_delta": 10.0, "mean_min_distance": 1.5}
    whole = losses.bow_targets(features, vocabulary, **options)
    monkeypatch.setitem(bow.CHUNK_BYTES, "cpu", 2 * 16 * 32 * 4)  # two images of 4 x 4 locations at once
    assert [len(part) for part in bow.chunks(inner(features, 1), num_words=32, itemsize=4)] == [2, 2, 2, 1]
    torch.testing.assert_close(losses.bow_targets(features, vocabulary, **options), whole, rtol=1e-5, atol=1e-7)


@given(st.integers(0, 10_000), st.floats(0.1, 50), st.sampled_from(["max", "mean"]))
def test_what_bags_do_not_depend_on(seed, inverse_delta, pool):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 3, 5, 5, generator=generator, dtype=torch.float64)
    vocabulary = torch.randn(5, 3, generator=generator, dtype=torch.float64)

    def made(features, vocabulary, distance=1.3):
        return losses.bow_targets(
            features, vocabulary, inverse_delta=inverse_delta, mean_min_distance=distance, pool=pool
        )

    bags = made(features, vocabulary)
    torch.testing.assert_close(bags.sum(dim=1), torch.ones(2).double())
    assert (bags >= 0).all()
    order = torch.randperm(5, generator=generator)
    torch.testing.assert_close(made(features, vocabulary[order]), bags[:, order])  # words have no order
    torch.testing.assert_close(made(features.flip(-1), vocabulary), bags)  # nor have places
    moved = torch.randn(3, generator=generator, dtype=torch.float64)  # only differences count, relative to the mean
    shifted = 2 * features + moved[:, None, None], 2 * vocabulary + moved
    torch.testing.assert_close(made(*shifted, distance=4 * 1.3), bags, rtol=1e-6, atol=1e-9)
    border = features.clone()
    border[..., 0, :] += 100
    torch.testing.assert_close(made(border, vocabulary), bags)


def test_distances_are_those_of_pairs_and_stay_in_float32_within_autocast():
    torch.manual_seed(0)
    locations, words = torch.randn(2, 9, 64) + 5, torch.randn(40, 64) + 5
    exact = torch.cdist(locations.double(), words.double()).square()
    torch.testing.assert_close(squared_distances(locations, words).double(), exact, rtol=1e-4, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        within = squared_distances(locations.bfloat16(), words)
    assert within.dtype == torch.float32
    rounded = torch.cdist(locations.bfloat16().double(), words.double()).square()
    torch.testing.assert_close(within.double(), rounded, rtol=1e-4, atol=1e-3)
    assert (squared_distances(words[None], words).diagonal(dim1=1, dim2=2) >= 0).all()


def test_views_of_an_image_share_its_bag_one_after_the_other():
    logits, target = torch.randn(6, 5).double(), torch.rand(2, 5).double()
    each = losses.bow_cross_entropy(logits, target, reduction="none")
    expected = losses.bow_cross_entropy(logits, target.repeat_interleave(3, dim=0), reduction="none")
    torch.testing.assert_close(each, expected)
    assert losses.bow_cross_entropy(logits, target).item() == pytest.approx(
        oracle.cross_entropy(logits.numpy(), target.numpy())
    )


def test_gradient_of_the_loss():
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    target = torch.rand(2, 5).double()
    assert torch.autograd.gradcheck(lambda z: losses.bow_cross_entropy(z, target / target.sum(1, keepdim=True)), logits)


def test_perplexities_of_known_bags():
    same = torch.tensor([[0.25, 0.25, 0.25, 0.25]] * 3)
    assert [value.item() for value in perplexities(same)] == pytest.approx([4, 4])
    apart = torch.eye(4)
    assert [value.item() for value in perplexities(apart)] == pytest.approx([1, 4])
    assert entropy(torch.tensor([1.0, 0.0])).item() == 0
    assert math.isfinite(entropy(torch.zeros(2)).item())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": torch.zeros(1, 3, 2, 2)}, "2x2 locations with border=1"),
        ({"vocabulary": torch.zeros(4, 2)}, "one width"),
        ({"vocabulary": torch.zeros(0, 3)}, "at least one word"),
        ({"pool": "median"}, "'max' or 'mean'"),
        ({"inverse_delta": -1.0}, "inverse_delta above 0"),
        ({"mean_min_distance": 0.0}, "above 0"),
        ({"border": -1}, "border of 0 or more"),
    ],
)
def test_refusals(changes, words):
    options = {
        "features": torch.zeros(1, 3, 5, 5),
        "vocabulary": torch.zeros(4, 3),
        "inverse_delta": 1.0,
        "mean_min_distance": 1.0,
    } | changes
    with pytest.raises(InputError, match=words):
        losses.bow_targets(options.pop("features"), options.pop("vocabulary"), **options)


@pytest.mark.parametrize("shapes", [((3, 4), (2, 4)), ((2, 4), (2, 5)), ((0, 4), (2, 4)), ((2, 4), (0, 4))])
def test_uneven_views_are_refused(shapes):
    with pytest.raises(InputError, match="whole numbers of views"):
        losses.bow_cross_entropy(torch.zeros(shapes[0]), torch.zeros(shapes[1]))
