from dataclasses import replace

import numpy as np
import pytest
import torch

from crossdistill.data import open_source, resolve_augment
from crossdistill.data.augmentation import transform as augment
from crossdistill.data.augmentation.transform import EvalTransform, TrainTransform, draw_boxes
from crossdistill.data.philox import uniform
from crossdistill.data.pixels import cut
from crossdistill.settings import AugmentSettings, DataSettings
from oracles.crops import cut_with_zeros

CROPS = ["none", "pad", "resized"]


def noise(*shape):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def settings(crop, flip=0.5, **changes):
    return AugmentSettings(crop=crop, flip=flip, **changes)


@pytest.mark.parametrize("crop", CROPS)
def test_views_of_a_sample_do_not_depend_on_its_batch(spec, crop):
    transform = TrainTransform({"student": spec(10)}, settings(crop), seed=3)
    images, ids = noise(6, 3, 12, 12), np.array([4, 8, 15, 16, 23, 42])
    whole = transform(images, ids, 2)["student"]
    order = [5, 0, 3]
    part = transform([images[i] for i in order], ids[order], 2)["student"]
    assert torch.equal(whole[order], part)
    assert torch.equal(transform(list(images), ids, 2)["student"], whole)


@pytest.mark.parametrize("crop", ["pad", "resized"])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (1, 0)])
def test_other_seeds_and_epochs_give_other_views(spec, crop, seed, epoch):
    images, ids = noise(8, 3, 24, 24), np.arange(8)
    first = TrainTransform({"student": spec(10)}, settings(crop), seed=0)(images, ids, 0)["student"]
    other = TrainTransform({"student": spec(10)}, settings(crop), seed=seed)(images, ids, epoch)["student"]
    assert not torch.equal(first, other)


def test_pad_and_flip_equal_the_slow_reference(spec):
    images, ids = noise(8, 1, 8, 8), np.arange(100, 108)
    chosen = settings("pad", padding=0.25)
    view = TrainTransform({"student": spec(8, 1, mean=0.0, std=1 / 255)}, chosen, seed=5)(images, ids, 1)["student"]
    draws = uniform(5, 1, ids, 0, 64)
    boxes = draw_boxes(chosen, np.array([[8, 8]] * 8), (8, 8), draws)
    assert len(np.unique(boxes, axis=0)) > 4
    for image, box, draw, found in zip(images, boxes.tolist(), draws[:, 0], view, strict=True):
        expected = cut_with_zeros(image, box)
        assert torch.equal(found.round().byte(), expected.flip(-1) if draw < 0.5 else expected)


def test_all_views_show_the_same_part_mirrored_alike(spec):
    ramp = torch.arange(48, dtype=torch.uint8).mul(5).expand(16, 1, 48, 48).contiguous()
    views = {"student": spec(16, 1), "teacher0": spec(32, 1)}
    rendered = TrainTransform(views, settings("resized", scale=(0.2, 0.6)), seed=0)(ramp, np.arange(16), 0)
    student, teacher = rendered["student"], rendered["teacher0"]
    # A horizontal ramp keeps its mean under any resizing, so equal means are equal crops; its slope tells the mirror.
    torch.testing.assert_close(student.mean((1, 2, 3)), teacher.mean((1, 2, 3)), atol=0.02, rtol=0)
    slopes = (student[..., -1] - student[..., 0]).mean((1, 2)).sign()
    assert torch.equal(slopes, (teacher[..., -1] - teacher[..., 0]).mean((1, 2)).sign())
    assert set(slopes.tolist()) == {-1.0, 1.0}
    assert student.mean((1, 2, 3)).std() > 0.05


@pytest.mark.parametrize(("flip", "share"), [(0.0, 0.0), (1.0, 1.0), (0.3, 0.3)])
def test_flip_probability(spec, flip, share):
    count = 2000
    images = torch.tensor([0, 255], dtype=torch.uint8).expand(count, 1, 2, 2)
    view = TrainTransform({"student": spec(2, 1)}, settings("none", flip), 0)(images, np.arange(count), 0)["student"]
    mirrored = (view[:, 0, 0, 0] > view[:, 0, 0, 1]).float().mean().item()
    assert abs(mirrored - share) <= 5 * (share * (1 - share) / count) ** 0.5


def test_equal_views_share_a_tensor_and_the_rest_is_normalised_apart(spec):
    same, other = spec(16), spec(16, mean=0.1)
    views = {"student": same, "teacher0": replace(same), "teacher1": other}
    for transform in (TrainTransform(views, settings("resized"), 0), EvalTransform(views)):
        rendered = transform(noise(4, 3, 20, 20), np.arange(4), 0)
        assert rendered["student"] is rendered["teacher0"]
        torch.testing.assert_close(rendered["teacher1"], rendered["student"] + 0.4 / 0.25)


def test_pixels_are_worked_on_once_for_each_geometry(spec, monkeypatch):
    cuts = []
    monkeypatch.setattr(augment, "cut", lambda *args: cuts.append(args) or cut(*args))
    views = {"a": spec(16), "b": spec(16, mean=0.1), "c": spec(16, crop_pct=0.5), "d": spec(12), "e": spec(16, 1)}
    TrainTransform(views, settings("pad"), 0)(noise(4, 1, 20, 20), np.arange(4), 0)
    assert [size for _, _, size, _ in cuts] == [(16, 16), (12, 12)]


def test_evaluation_is_not_random(spec):
    transform = EvalTransform({"student": spec(16)})
    images = noise(4, 3, 20, 20)
    first, second = (
        transform(images, ids, epoch)["student"] for ids, epoch in [(np.arange(4), 0), (np.arange(9, 13), 7)]
    )
    assert torch.equal(first, second)


def test_the_source_decides_what_is_left_open(tmp_path, write_tree):
    digits = open_source(DataSettings(source="digits")).train
    assert resolve_augment(AugmentSettings(), digits) == AugmentSettings(crop="pad", flip=0.0)
    write_tree(tmp_path / "large", {"a": 4, "b": 4}, size=(70, 70))
    photos = open_source(DataSettings(source=f"folder:{tmp_path / 'large'}")).train
    assert resolve_augment(AugmentSettings(), photos) == AugmentSettings(crop="resized", flip=0.5)
    chosen = AugmentSettings(crop="none", flip=0.25, padding=0.3)
    assert resolve_augment(chosen, photos) == chosen
