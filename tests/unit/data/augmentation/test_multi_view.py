from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdistill.contracts import InputSpec
from crossdistill.data import EvalTransform, MultiViewTransform, TrainLoader, open_source, resolve_views
from crossdistill.data.resident import Resident
from crossdistill.settings import AugmentSettings, DataSettings, ViewSettings
from oracles import views as oracle

HERE = torch.device("cpu")
STILL = {"jitter_probability": 0.0, "grey_probability": 0.0, "blur_probability": 0.0, "flip": 0.0}
WHOLE = {"crop_scale": (1.0, 1.0), "patch_scale": (1.0, 1.0)}


def noise(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def plain(size, channels=3, **changes):
    """A model that sees values from 0 to 255 as they are."""
    return InputSpec((size, size), channels, (0.0,) * channels, (1 / 255,) * channels, **changes)


def transform(size=32, *, teacher=None, student=None, seed=0, mirror_safe=True, **looks):
    source = SimpleNamespace(name="photos", image_size=None, mirror_safe=mirror_safe)
    resolved = resolve_views(ViewSettings(**looks), image_size=size, source=source)
    return MultiViewTransform(teacher or plain(size), student or plain(size), resolved, seed)


def pixels(views):
    return {view: images.round().byte() for view, images in views.items()}


def shapes(views):
    return {view: tuple(images.shape) for view, images in views.items()}


def assert_share(mask, share):
    """As often as a probability says, up to five standard deviations."""
    mask = np.asarray(mask, dtype=float)
    assert abs(mask.mean() - share) <= 5 * (share * (1 - share) / mask.size) ** 0.5


def test_every_view_has_its_shape_and_normalisation():
    teacher = InputSpec((40, 40), 3, (0.5,) * 3, (0.25,) * 3)
    student = InputSpec((32, 32), 3, (0.2,) * 3, (0.1,) * 3)
    made = transform(teacher=teacher, student=student)
    views = made(torch.full((4, 3, 48, 48), 255, dtype=torch.uint8), np.arange(4), 0)
    assert shapes(views) == {"teacher0": (4, 3, 40, 40), "student": (4, 2, 3, 23, 23), "student1": (4, 5, 3, 14, 14)}
    assert all(images.dtype == torch.float32 and images.is_contiguous() for images in views.values())
    torch.testing.assert_close(views["teacher0"], torch.full((4, 3, 40, 40), 2.0))
    white = transform(teacher=teacher, student=student, **STILL)(
        torch.full((4, 3, 48, 48), 255, dtype=torch.uint8), np.arange(4), 0
    )
    for view in ("student", "student1"):
        torch.testing.assert_close(white[view], torch.full_like(white[view], 8.0))
    assert {view: spec.image_size for view, spec in made.views.items()} == {
        "teacher0": (40, 40),
        "student": (23, 23),
        "student1": (14, 14),
    }


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        ({"crops": 1, "patches": 0}, {"student": (3, 1, 3, 23, 23)}),
        ({"crops": 3, "patches": 9}, {"student": (3, 3, 3, 23, 23), "student1": (3, 9, 3, 14, 14)}),
        ({"crops": 0, "patches": 4}, {"student": (3, 4, 3, 14, 14)}),
        ({"crops": 16, "patches": 1}, {"student": (3, 16, 3, 23, 23), "student1": (3, 1, 3, 14, 14)}),
    ],
)
def test_the_student_always_has_a_view_of_its_name(looks, expected):
    made = transform(**looks)
    views = made(noise(3, 3, 32, 32), np.arange(3), 0)
    assert shapes(views) == {"teacher0": (3, 3, 32, 32)} | expected
    assert list(made.views) == list(views)


def test_the_number_of_crops_and_patches_decides_nothing_of_the_others():
    images, ids = noise(6, 3, 32, 32), np.arange(6)
    both = transform(crops=3, patches=5)(images, ids, 1)
    crops, patches = (transform(**looks)(images, ids, 1) for looks in ({"crops": 2, "patches": 0}, {"crops": 0}))
    assert torch.equal(crops["student"], both["student"][:, :2])
    assert torch.equal(patches["student"], both["student1"])
    assert torch.equal(crops["teacher0"], both["teacher0"])
    assert torch.equal(patches["teacher0"], both["teacher0"])


def test_views_of_a_sample_do_not_depend_on_its_batch():
    images, ids, made = noise(8, 3, 40, 33), np.array([4, 8, 15, 16, 23, 42, 2**40, 7]), transform(seed=3)
    whole = made(images, ids, 2)
    order = [5, 0, 6]
    for given_images in (images[order], [images[index] for index in order]):
        part = made(given_images, ids[order], 2)
        assert all(torch.equal(part[view], whole[view][order]) for view in whole)
    alone = made(images[3:4], ids[3:4], 2)
    assert all(torch.equal(alone[view], whole[view][3:4]) for view in whole)


def test_other_seeds_epochs_and_occurrences_give_other_views():
    images, ids = noise(8, 3, 32, 32), np.arange(8)
    first = transform()(images, ids, 0)
    again = transform()(images, ids, 0, np.zeros(8, dtype=np.int64))
    assert all(torch.equal(first[view], again[view]) for view in first)
    others = [
        transform(seed=1)(images, ids, 0),
        transform()(images, ids, 1),
        transform()(images, ids, 0, np.ones(8, dtype=np.int64)),
        transform()(images, ids + 8, 0),
    ]
    for other in others:
        assert not any(torch.equal(first[view], other[view]) for view in first)
        assert not any(torch.equal(*rows) for rows in zip(first["student"], other["student"], strict=True))


def test_images_of_different_sizes_and_channels():
    made = transform()
    images = [noise(3, 30, 50), noise(3, 64, 41), noise(3, 33, 33)]
    together = made(images, np.arange(3), 0)
    for index, image in enumerate(images):
        alone = made(image[None], np.array([index]), 0)
        assert all(torch.equal(alone[view][0], together[view][index]) for view in alone)
    grey = made(noise(2, 1, 32, 32), np.arange(2), 0)
    assert shapes(grey) == {"teacher0": (2, 3, 32, 32), "student": (2, 2, 3, 23, 23), "student1": (2, 5, 3, 14, 14)}
    assert torch.equal(grey["student"][:, :, 0], grey["student"][:, :, 2])


@pytest.mark.parametrize(("size", "side"), [(32, 32), (32, 64), (56, 100), (56, 300)])
def test_the_teacher_sees_the_centre_flipped_or_not(size, side):
    images, ids = noise(12, 3, side, side), np.arange(12)
    found = transform(size, teacher=plain(size, crop_pct=0.6))(images, ids, 0)["teacher0"]
    expected = EvalTransform({"teacher0": plain(size, crop_pct=0.875)})(images, ids, 0)["teacher0"]
    flipped = [torch.equal(one, other.flip(-1)) for one, other in zip(found, expected, strict=True)]
    straight = [torch.equal(one, other) for one, other in zip(found, expected, strict=True)]
    assert [one != other for one, other in zip(flipped, straight, strict=True)] == [True] * 12
    assert 0 < sum(flipped) < 12


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_student_sees_what_the_slow_reference_shows(interpolation):
    images, ids = noise(10, 3, 18, 21, seed=5) // 8 * 4 + 40, np.arange(50, 60)
    looks = {"crop_size": 16, "patch_size": 6, "patch_base": 18, "grey_probability": 0.3, "blur_sigma": (4.0, 12.0)}
    made = transform(student=plain(32, interpolation=interpolation), **looks)
    draws, found = made.draw(ids, 4), pixels(made(images, ids, 4))
    for index, image in enumerate(images):
        crops, patches = oracle.student_views(image, made.looks, draws[index], interpolation)
        for expected, own in ((crops, found["student"][index]), (patches, found["student1"][index])):
            difference = (expected.int() - own.int()).abs()
            # A hue that is rounded to the other neighbour is one step, which 1.4 * 1.4 * 1.4 at most makes of it later.
            assert difference.max() <= 3
            assert difference.float().mean() < 0.05


def halves(count):
    """Images that are black on the left and white on the right."""
    return torch.tensor([0, 255], dtype=torch.uint8).repeat_interleave(16).expand(count, 3, 32, 32)


def is_flipped(views):
    """Of each single image, whether the left is brighter than the right."""
    return (views[..., 0, :, :4].mean((-1, -2)) > views[..., 0, :, -4:].mean((-1, -2))).numpy()


@pytest.mark.parametrize("flip", [0.0, 0.3, 1.0])
def test_flips_are_as_frequent_as_asked_and_independent(flip):
    count = 1500
    looks = STILL | WHOLE | {"flip": flip, "patches": 1, "patch_size": 35, "patch_base": 36, "crop_size": 16}
    made = transform(**looks)(halves(count), np.arange(count), 0)
    flips = np.stack([is_flipped(made["teacher0"]), *is_flipped(made["student"]).T, *is_flipped(made["student1"]).T])
    assert flips.shape == (4, count)
    for own in flips:
        assert_share(own, flip)
    if 0 < flip < 1:
        between = np.corrcoef(flips) - np.eye(4)
        assert abs(between).max() < 5 / count**0.5


def test_a_set_whose_mirror_images_are_others_is_not_flipped():
    made = transform(mirror_safe=False, **WHOLE)(halves(50), np.arange(50), 0)
    assert not is_flipped(made["teacher0"]).any()
    assert not is_flipped(made["student"]).any()


def test_flips_change_nothing_else():
    images, ids = noise(10, 3, 32, 32), np.arange(10)
    straight, flipped = (transform(flip=flip, crops=4, patches=0)(images, ids, 0) for flip in (0.0, 1.0))
    for view, expected in straight.items():
        assert torch.equal(flipped[view], expected.flip(-1))


def one_of_each(views):
    """The two crops and the first patch, ``(B, C, s, s)`` each."""
    return *views["student"].unbind(1), views["student1"][:, 0]


def test_colours_are_changed_as_often_as_asked_and_apart():
    count, colour = 1500, torch.tensor([200, 90, 60], dtype=torch.uint8)
    images, still = colour[None, :, None, None].expand(count, 3, 32, 32), STILL | {"patches": 2}
    made = pixels(transform(**still | {"jitter_probability": 0.8})(images, np.arange(count), 0))
    jittered = [(one != colour[:, None, None]).flatten(1).any(1).numpy() for one in one_of_each(made)]
    made = transform(**still | {"grey_probability": 0.2})(images, np.arange(count), 0)
    grey = [(one[:, 0] == one[:, 2]).flatten(1).all(1).numpy() for one in one_of_each(made)]
    for own in jittered:
        assert_share(own, 0.8)
    for own in grey:
        assert_share(own, 0.2)
    assert abs(np.corrcoef([*jittered, *grey]) - np.eye(6)).max() < 5 / count**0.5
    teacher = pixels(transform(**still | {"jitter_probability": 1.0})(images, np.arange(count), 0))["teacher0"]
    assert (teacher == colour[:, None, None]).all()


def test_patches_of_an_image_share_their_colours_and_crops_do_not():
    count = 60
    images = torch.tensor([200, 90, 60], dtype=torch.uint8)[None, :, None, None].expand(count, 3, 32, 32)
    made = transform(jitter_probability=1.0)(images, np.arange(count), 0)
    assert all((one == one[:1, :, :1, :1]).all() for one in made["student1"])
    assert len({tuple(one[0, :, 0, 0].tolist()) for one in made["student1"]}) > count / 2
    means = made["student"].mean((-1, -2))
    assert ((means[:, 0] - means[:, 1]).abs().amax(1) > 1).float().mean() > 0.7  # equal if both are grey alike


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_patches_are_windows_of_one_image_flipped_as_a_whole(flip):
    """Each place has a colour of its own, so pixels tell where they are from."""
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    image = torch.stack([rows, columns, torch.full_like(rows, 7)]).byte()
    looks = STILL | WHOLE | {"patch_base": 64, "patch_size": 24, "flip": flip, "patches": 5}
    count = 400
    made = transform(**looks)
    assert (made.grid.shift, made.grid.stride) == (6, 17)
    patches = pixels(made(image.expand(count, 3, 64, 64), np.arange(count), 0))["student1"].int()
    down, across = patches[:, :, 0], patches[:, :, 1]
    step = -1 if flip else 1
    assert (down[..., 1:, :] - down[..., :-1, :] == 1).all()
    assert (across[..., :, 1:] - across[..., :, :-1] == step).all()
    tops = down[..., 0, 0]
    lefts = across[..., 0, 0] if flip == 0.0 else 63 - across[..., 0, 0]
    places = 3 * (tops // 17) + lefts // 17  # the shift is less than the stride
    assert all(len(set(own)) == 5 for own in places.tolist())
    for corner in (tops, lefts):
        assert set((corner - corner // 17 * 17).flatten().tolist()) == set(range(7))
    assert (tops.max() + 24, lefts.max() + 24) == (64, 64)


def test_crops_are_blurred_as_often_as_asked_in_the_scale_of_their_size_and_patches_never():
    count, ids = 600, np.arange(600)
    images = noise(count, 3, 32, 32)
    sharp = transform(**STILL)(images, ids, 0)
    half = transform(**STILL | {"blur_probability": 0.5})(images, ids, 0)
    assert torch.equal(half["student1"], sharp["student1"])
    assert torch.equal(half["teacher0"], sharp["teacher0"])
    widths = {"blur_sigma": (4.0, 4.0), "blur_probability": 0.5}
    wide = transform(**STILL | widths)(images, ids, 0)
    blurred = (wide["student"] != sharp["student"]).flatten(2).any(2).numpy()
    for own in blurred.T:
        assert_share(own, 0.5)
    assert abs(np.corrcoef(blurred.T)[0, 1]) < 5 / count**0.5
    index, crop = np.argwhere(blurred)[0]
    before, after = sharp["student"][index, crop].byte(), wide["student"][index, crop]
    assert (oracle.blur(before, 4.0 * 23 / 160, 3) - after).abs().max() <= 0.5 + 1e-4  # half a step for rounding


def test_widths_of_the_blur_are_uniform():
    """Of a line, what stays in its place tells the width."""
    count = 1200
    line = torch.zeros(count, 3, 32, 32, dtype=torch.uint8)
    line[..., 16] = 255
    looks = STILL | WHOLE | {"crop_size": 32, "crops": 1, "patches": 0, "blur_probability": 1.0}
    made = transform(teacher=plain(32), **looks, blur_sigma=(5.0, 10.0))(line, np.arange(count), 0)
    peaks = made["student"][:, 0, 0, 16, 16].numpy()
    edges = [1.0, 1.25, 1.5, 1.75, 2.0]  # 5 to 10, times 32 / 160
    at_edges = [float(255 / np.exp(-0.5 * (np.arange(-8, 9) / sigma) ** 2).sum()) for sigma in edges]
    assert at_edges[-1] - 0.5 <= peaks.min() < at_edges[-2]
    assert at_edges[1] < peaks.max() <= at_edges[0] + 0.5
    for low, high in zip(at_edges[1:], at_edges[:-1], strict=True):
        # The middle of a step of grey may lie beyond an edge: that many more or less are let pass.
        assert abs(((peaks >= low) & (peaks < high)).mean() - 0.25) <= 5 * (0.25 * 0.75 / count) ** 0.5 + 0.02


@settings(max_examples=25)
@given(
    st.integers(6, 40), st.integers(6, 40), st.integers(0, 3), st.integers(0, 9), st.integers(4, 24), st.integers(4, 40)
)
def test_whatever_the_sizes_views_fit(height, width, crops, patches, patch_size, crop_size):
    looks = {"crops": max(crops, 0 if patches else 1), "patches": patches, "patch_size": patch_size}
    made = transform(24, crop_size=crop_size, patch_base=max(27, patch_size), **looks)
    views = made(noise(2, 3, height, width), np.arange(2), 0)
    for view, images in views.items():
        assert images.shape[-2:] == made.views[view].image_size
        assert ((images >= -0.01) & (images <= 255.01)).all()
    shown = sum(images[0].numel() for images in views.values())
    assert made.num_values == shown + (3 * made.grid.base**2 if patches else 0)


DIGITS = open_source(DataSettings(source="digits")).train


def loader(source, made, *, ids=None, **options):
    ids = np.arange(48) if ids is None else ids
    options = {"seed": made.seed, "batch_size": 16, "workers": 0} | options
    return TrainLoader(source, ids, source.targets, {}, AugmentSettings(), transform=made, **options)


def flat(steps):
    return [batch for step in steps for batch in step]


def assert_same(first, second):
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.samples, other.samples)
        assert torch.equal(one.target, other.target)
        assert list(one.images) == list(other.images)
        assert all(torch.equal(one.images[view], other.images[view]) for view in one.images)


@pytest.fixture
def photos(tmp_path, write_tree):
    """Files of two sizes, which are not held in memory."""
    write_tree(tmp_path / "a", {"x": 24}, size=(40, 40))
    write_tree(tmp_path / "a", {"y": 24}, size=(30, 50), first_seed=100)
    return open_source(DataSettings(source=f"folder:{tmp_path}", unlabelled=True)).train


@pytest.mark.parametrize("kind", ["held", "files"])
def test_workers_and_devices_do_not_change_batches(kind, photos, request):
    source = DIGITS if kind == "held" else photos
    made = transform(12 if kind == "held" else 32, crops=2, patches=3)
    expected = flat(loader(source, made).epoch(1))
    for batch in expected:
        assert shapes(batch.images)["student"][:2] == (16, 2)
        assert shapes(batch.images)["student1"][:2] == (16, 3)
    assert_same(flat(loader(source, made, workers=2).epoch(1)), expected)
    assert_same(flat(loader(source, made, augment_device=HERE).epoch(1)), expected)
    assert_same(flat(loader(source, made, augment_device=HERE, workers=2).epoch(1)), expected)


@pytest.mark.parametrize("group_size", [None, 3])
def test_batches_of_a_set_on_the_device_are_those_of_the_host(group_size):
    made = transform(12)
    own, other = (loader(DIGITS, made, device_batch_size=4, augment_device=device) for device in (HERE, None))
    assert isinstance(own._feed, Resident)
    own._feed._group_size = group_size
    for epoch in (0, 1):
        assert_same(flat(own.epoch(epoch)), flat(other.epoch(epoch)))


def test_a_loader_shows_each_image_as_its_id_says():
    made = transform(12)
    own = loader(DIGITS, made, balanced=True)
    assert own.augment == AugmentSettings(crop="none", flip=0.0)
    for batch in flat(own.epoch(3)):
        samples = batch.samples.numpy()
        images = torch.stack([DIGITS.read(int(index)) for index in samples[:, 0]])
        expected = made(images, samples[:, 0], 3, samples[:, 1])
        assert all(torch.equal(batch.images[view], expected[view]) for view in expected)


def test_two_processes_see_together_what_one_sees():
    made = transform(12)
    whole = flat(loader(DIGITS, made).epoch(0))
    ranks = [flat(loader(DIGITS, made, rank=rank, world_size=2).epoch(0)) for rank in (0, 1)]
    for expected, *parts in zip(whole, *ranks, strict=True):
        for view, images in expected.images.items():
            assert torch.equal(torch.cat([part.images[view] for part in parts]), images)


def test_a_resumed_epoch_goes_on_where_it_was_left():
    made = transform(12)
    whole = flat(loader(DIGITS, made).epoch(0))
    assert_same(flat(loader(DIGITS, made, augment_device=HERE).epoch(0, start_step=1)), whole[1:])


def test_the_settings_of_the_transform_are_all_that_changes_its_views():
    images, ids, first = noise(64, 3, 32, 32), np.arange(64), transform()
    changes = {
        "crops": 3, "crop_size": 20, "crop_scale": (0.1, 0.5), "patches": 4, "patch_size": 10, "patch_base": 40,
        "patch_scale": (0.5, 0.9), "color_jitter": (0.3, 0.4, 0.4, 0.1), "jitter_probability": 0.5,
        "grey_probability": 0.6, "blur_probability": 0.9, "blur_sigma": (1.0, 3.0), "flip": 0.1,
    }  # fmt: skip
    assert set(changes) == set(ViewSettings.model_fields)
    shown = first(images, ids, 0)
    for key, value in changes.items():
        other = replace(first, looks=first.looks.model_copy(update={key: value}))(images, ids, 0)
        assert not all(torch.equal(one, shown[view]) for view, one in other.items()), key
