import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from timm.data.mixup import Mixup

from crossdistill.data.augmentation import mix
from crossdistill.data.augmentation.mix import (
    cut_boxes,
    draw_mixing,
    kept_shares,
    mix_images,
    mix_targets,
    mix_views,
    mixes,
)
from crossdistill.settings import AugmentSettings
from oracles.augment import mixed

BOTH = AugmentSettings(mixup=0.8, cutmix=1.0)


def samples(count, start=0):
    return np.stack([np.arange(start, start + count), np.zeros(count, dtype=np.int64)], axis=1)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 9),
    st.sampled_from([(0.8, 1.0), (0.4, 0.0), (0.0, 1.0)]),
    st.lists(st.integers(-1, 3), min_size=9, max_size=9),
    st.integers(0, 2**30),
)
def test_images_and_targets_equal_the_slow_reference(count, alphas, targets, seed):
    chosen = AugmentSettings(mixup=alphas[0], cutmix=alphas[1], mix_probability=0.8)
    images, target = torch.rand(count, 2, 12, 9), torch.tensor(targets[:count])
    mixing = draw_mixing(chosen, seed, 1, samples(count), np.arange(count)).alike((target >= 0).numpy())
    expected_images, expected_targets = mixed(
        images, target.tolist(), mixing.places.tolist(), mixing.cut, mixing.share, mixing.centre, 4
    )
    torch.testing.assert_close(mix_targets(target, mixing, (12, 9), 4), expected_targets)
    torch.testing.assert_close(mix_images(images.clone(), mixing), expected_images)


def test_shares_modes_and_boxes_are_distributed_as_timms():
    count, side = 16_000, 32
    mixing = draw_mixing(BOTH, 0, 0, samples(count), np.arange(count))
    np.random.seed(0)
    theirs = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=2, mode="pair")
    shares, cuts = theirs._params_per_elem(count // 2)
    assert stats.binomtest(int(mixing.cut.sum()), count // 2, 0.5).pvalue > 1e-4
    for cut in (False, True):
        assert stats.ks_2samp(mixing.share[mixing.cut == cut], shares[cuts == cut]).pvalue > 1e-4
    _, corrected = zip(*(theirs_box((1, 3, side, side), share) for share in shares[cuts]), strict=True)
    assert stats.ks_2samp(kept_shares(mixing, (side, side))[mixing.cut], corrected).pvalue > 1e-4


def theirs_box(shape, share):
    from timm.data.mixup import cutmix_bbox_and_lam

    return cutmix_bbox_and_lam(shape, share)


def test_a_pair_is_mixed_alike_whatever_its_batch():
    whole = draw_mixing(BOTH, 3, 5, samples(12), np.arange(12))
    part = draw_mixing(BOTH, 3, 5, samples(4, start=6), np.arange(4))
    np.testing.assert_array_equal(whole.share[3:5], part.share)
    np.testing.assert_array_equal(whole.centre[3:5], part.centre)
    other = draw_mixing(BOTH, 3, 6, samples(12), np.arange(12))
    assert not np.array_equal(whole.share, other.share)


def test_a_single_image_and_one_whose_partner_is_unreadable_stay_as_they_are():
    mixing = draw_mixing(BOTH, 0, 0, samples(7), np.array([0, 1, 3, 4, 5, 6]))
    assert mixing.places.tolist() == [[0, 1], [3, 4]]
    images = torch.rand(6, 3, 8, 8)
    after = mix_images(images.clone(), mixing)
    assert torch.equal(after[[2, 5]], images[[2, 5]])
    target = mix_targets(torch.tensor([0, 1, 2, 0, 1, 2]), mixing, (8, 8), 3)
    assert target[[2, 5]].tolist() == [[0, 0, 1], [0, 0, 1]]


def test_labelled_images_are_mixed_with_labelled_ones_only():
    labelled = np.array([True, True, False, False, True, False, False, True])
    mixing = draw_mixing(BOTH, 0, 0, samples(8), np.arange(8)).alike(labelled)
    assert mixing.places.tolist() == [[0, 1], [2, 3]]
    target = mix_targets(torch.where(torch.from_numpy(labelled), 1, -1), mixing, (8, 8), 3)
    assert torch.equal(target.sum(1) > 0, torch.from_numpy(labelled))


def test_views_of_other_sizes_are_mixed_alike():
    mixing = draw_mixing(AugmentSettings(cutmix=1.0), 0, 0, samples(40), np.arange(40))
    ramp = torch.arange(40.0)[:, None, None, None]
    views = {"student": ramp.expand(40, 1, 64, 64).clone(), "teacher0": ramp.expand(40, 1, 32, 32).clone()}
    views["teacher1"] = views["teacher0"]
    mix_views(views, mixing)
    small, large = views["teacher0"].mean((1, 2, 3)), views["student"].mean((1, 2, 3))
    torch.testing.assert_close(small, large, atol=0.1, rtol=0)
    expected = torch.arange(40.0).view(-1, 2)
    share = torch.from_numpy(kept_shares(mixing, (64, 64))).float()
    torch.testing.assert_close(large[::2], share * expected[:, 0] + (1 - share) * expected[:, 1])


@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_mix_probability(probability):
    chosen = AugmentSettings(mixup=1.0, mix_probability=probability)
    mixing = draw_mixing(chosen, 0, 0, samples(4000), np.arange(4000))
    assert abs(len(mixing.places) / 2000 - probability) < 0.05
    assert mixes(chosen) == (probability > 0)


def test_a_box_covers_nothing_or_everything_at_the_ends():
    mixing = draw_mixing(AugmentSettings(cutmix=1.0), 0, 0, samples(4), np.arange(4))
    for share, area in ((1.0, 0), (0.0, 64)):
        boxes = cut_boxes(type(mixing)(mixing.places, mixing.cut, np.full(2, share), np.full((2, 2), 0.5)), (8, 8))
        assert (boxes[:, 2] * boxes[:, 3] == area).all()


@pytest.mark.parametrize("chosen", [BOTH, AugmentSettings(mixup=0.4), AugmentSettings(cutmix=1.0)])
@pytest.mark.parametrize("size", [(8, 8), (17, 5), (1, 1)])
def test_pairs_are_mixed_on_an_accelerator_as_one_by_one(chosen, size):
    images = torch.randn(41, 3, *size)
    mixing = draw_mixing(chosen, 0, 0, samples(41), np.arange(41))
    boxes = cut_boxes(mixing, size)
    together = mix._mix_together(images.clone(), mixing, boxes)
    assert torch.equal(together, mix._mix_in_turn(images.clone(), mixing, boxes))
    assert not torch.equal(together, images) or size == (1, 1)


def test_pairs_of_several_micro_batches_are_those_of_each():
    whole = draw_mixing(BOTH, 2, 1, samples(17), np.arange(17), [4, 3, 1, 2, 7])
    assert whole.places.tolist() == [[0, 1], [2, 3], [4, 5], [8, 9], [10, 11], [12, 13], [14, 15]]
    parts = [(0, 4), (4, 3), (7, 1), (8, 2), (10, 7)]
    each = [draw_mixing(BOTH, 2, 1, samples(count, start), np.arange(count)) for start, count in parts]
    for name in ("cut", "share", "centre"):
        np.testing.assert_array_equal(getattr(whole, name), np.concatenate([getattr(one, name) for one in each]))
