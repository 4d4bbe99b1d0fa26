"""Few-shot episodes: known answers, what is drawn, and classes by name."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossdistill.errors import InputError
from crossdistill.selfsup.features import Features
from crossdistill.selfsup.few_shot import Episodes, _drawn, _members, few_shot_accuracy, novel_classes
from oracles import few_shot as oracle

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")


def features(num_each=6, noise=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(len(NAMES)).repeat_interleave(num_each)
    points = torch.eye(len(NAMES))[targets] + noise * torch.randn(len(targets), len(NAMES), generator=generator)
    return Features(points, targets, torch.arange(len(targets)))


def test_classes_apart_are_told_apart_and_noise_is_not():
    episodes = Episodes(ways=5, shots=2, queries=3, count=20)
    assert few_shot_accuracy(features(), range(6), episodes)["accuracy"] == 1.0
    random = Features(torch.randn(360, 8), features(60).targets, torch.arange(360))
    measured = few_shot_accuracy(random, range(6), Episodes(ways=5, shots=1, queries=5, count=200))
    # 5,000 answers at chance: three standard errors are 0.017, and answers of an episode depend on each other.
    assert measured["accuracy"] == pytest.approx(0.2, abs=0.04)
    assert 0 < measured["interval"] < 0.04


@pytest.mark.parametrize("shots", [1, 3])
def test_episodes_equal_plain_loops(shots):
    """Embeddings of very different lengths, so that a mean of embeddings is not one of directions."""
    lengths = torch.logspace(-1, 1, 36)[torch.randperm(36, generator=torch.Generator().manual_seed(1))]
    noisy = features(noise=0.7)
    points = (noisy.embeddings * lengths[:, None]).double()
    episodes = Episodes(ways=4, shots=shots, queries=2, count=12)
    right = []
    for number in range(12):
        _, pictures = _drawn(_members(noisy, range(6), episodes), episodes, number)
        shown = points[torch.from_numpy(pictures)]
        found = oracle.answers(shown[:, :shots].tolist(), shown[:, shots:].flatten(0, 1).tolist())
        right.append(sum(one == place // 2 for place, one in enumerate(found)) / len(found))
    measured = few_shot_accuracy(Features(points, noisy.targets, noisy.sample_ids), range(6), episodes)
    assert 0.2 < measured["accuracy"] < 0.95
    assert measured["accuracy"] == pytest.approx(sum(right) / 12)
    # 2.201 is the 97.5 % quantile of Student's t with 11 degrees of freedom.
    assert measured["interval"] == pytest.approx(2.201 * statistics.stdev(right) / math.sqrt(12), rel=1e-3)


@given(st.integers(0, 100), st.floats(0.1, 10))
def test_scale_does_not_matter_and_a_seed_decides(seed, scale):
    one = features(noise=0.5)
    scaled = Features(scale * one.embeddings, one.targets, one.sample_ids)
    episodes = Episodes(ways=4, shots=1, queries=2, count=5, seed=seed)
    assert few_shot_accuracy(one, range(6), episodes) == few_shot_accuracy(scaled, range(6), episodes)


def test_examples_and_questions_are_different_images_of_the_chosen_classes():
    episodes = Episodes(ways=3, shots=2, queries=3, count=10)
    members = _members(features(), [1, 2, 4, 5], episodes)
    for number in range(10):
        chosen, pictures = _drawn(members, episodes, number)
        assert pictures.shape == (3, 5)
        assert len(set(pictures.flatten().tolist())) == 15
        targets = features().targets[torch.from_numpy(pictures)]
        assert (targets == targets[:, :1]).all()
        assert set(targets[:, 0].tolist()) <= {1, 2, 4, 5}
        assert len(set(chosen.tolist())) == 3


def test_classes_with_too_few_images_are_left_out_and_counted():
    """One image of the first class is taken away, which then has five."""
    fewer = features()[torch.arange(1, 36)]
    found = few_shot_accuracy(fewer, range(6), Episodes(ways=5, shots=3, queries=3, count=4))
    assert (found["num_classes"], found["accuracy"]) == (5, 1.0)
    with pytest.raises(InputError, match="5 of 6 classes with 6 images or more, for 6 ways"):
        few_shot_accuracy(fewer, range(6), Episodes(ways=6, shots=3, queries=3))


@given(st.integers(0, 100))
def test_turning_all_embeddings_does_not_matter(seed):
    """Nor does another order of the images of other classes, which are never drawn."""
    one = features(noise=0.5)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(seed)).double()).Q
    turned = Features(one.embeddings.double() @ turn, one.targets, one.sample_ids)
    double = Features(one.embeddings.double(), one.targets, one.sample_ids)
    episodes = Episodes(ways=4, shots=1, queries=2, count=5, seed=seed)
    assert few_shot_accuracy(turned, range(5), episodes) == few_shot_accuracy(double, range(5), episodes)


def test_classes_by_name_are_found_whatever_their_order(tmp_path):
    path = tmp_path / "novel.txt"
    path.write_text("fox\nbee\n\nfox\n")
    assert novel_classes(NAMES, number=None, names=path, seed=0) == [5, 1]
    assert novel_classes(NAMES, number=None, names=None, seed=0) == list(range(6))
    drawn = novel_classes(NAMES, number=3, names=None, seed=0)
    assert len(drawn) == 3
    assert drawn == novel_classes(NAMES, number=3, names=None, seed=0)


def test_refusals(tmp_path):
    path = tmp_path / "novel.txt"
    path.write_text("foxx\n")
    with pytest.raises(InputError, match="'fox'"):
        novel_classes(NAMES, number=None, names=path, seed=0)
    with pytest.raises(InputError, match="one of them"):
        novel_classes(NAMES, number=2, names=path, seed=0)
    with pytest.raises(InputError, match="from 2 to 6"):
        novel_classes(NAMES, number=7, names=None, seed=0)
    with pytest.raises(InputError, match="text file"):
        novel_classes(NAMES, number=None, names=tmp_path / "missing", seed=0)
    with pytest.raises(InputError, match="0 of 6 classes with 7 images or more"):
        few_shot_accuracy(features(), range(6), Episodes(ways=2, shots=6))
    with pytest.raises(InputError, match="ways of 2 or more"):
        Episodes(ways=1)
