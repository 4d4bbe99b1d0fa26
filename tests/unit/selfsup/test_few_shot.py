"""Few-shot episodes: known answers, what is drawn, and classes by name."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossdistill.errors import InputError
from crossdistill.selfsup.features import Features
from crossdistill.selfsup.few_shot import Episodes, few_shot_accuracy, novel_classes

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


def test_one_episode_by_hand():
    """Two examples of each class whose mean direction decides, not any one of them."""
    points = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.2, 1.0], [0.0, 5.0], [9.0, 0.1]])
    given_features = Features(points, torch.tensor([0, 0, 1, 1, 1, 0]), torch.arange(6))
    measured = few_shot_accuracy(given_features, [0, 1], Episodes(ways=2, shots=2, queries=1, count=30))
    directions = torch.nn.functional.normalize(points, dim=1)
    assert measured["accuracy"] == 1.0
    assert (directions[0] @ directions[1]) > 0.7


@given(st.integers(0, 100), st.floats(0.1, 10))
def test_scale_does_not_matter_and_a_seed_decides(seed, scale):
    one = features(noise=0.5)
    scaled = Features(scale * one.embeddings, one.targets, one.sample_ids)
    episodes = Episodes(ways=4, shots=1, queries=2, count=5, seed=seed)
    assert few_shot_accuracy(one, range(6), episodes) == few_shot_accuracy(scaled, range(6), episodes)


def test_examples_and_questions_are_different_images_of_the_chosen_classes():
    from crossdistill.selfsup.few_shot import _drawn, _members

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
