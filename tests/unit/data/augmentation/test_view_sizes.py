from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdistill.data import resolve_views
from crossdistill.errors import InputError
from crossdistill.settings import ViewSettings

KEYS = ("crop_size", "patch_size", "patch_base")


def source(size=None, mirror_safe=True):
    return SimpleNamespace(name="photos", image_size=size, mirror_safe=mirror_safe)


def resolved(image_size=224, multiple_of=1, images=None, mirror_safe=True, **settings):
    return resolve_views(
        ViewSettings(**settings), image_size=image_size, source=source(images, mirror_safe), multiple_of=multiple_of
    )


def sizes_of(settings):
    return tuple(getattr(settings, key) for key in KEYS)


@pytest.mark.parametrize(
    ("image_size", "multiple_of", "sizes"),
    [
        (224, 1, (160, 96, 256)),
        (224, 16, (160, 96, 256)),
        (224, 14, (154, 98, 252)),
        (32, 1, (23, 14, 37)),
        (32, 4, (24, 12, 36)),
        (32, 16, (16, 16, 32)),
        (32, 32, (32, 32, 32)),
    ],
)
def test_open_sizes_follow_the_student(image_size, multiple_of, sizes):
    assert sizes_of(resolved(image_size, multiple_of)) == sizes


@given(st.integers(4, 1024), st.integers(1, 64))
def test_open_sizes_are_multiples_and_fit_each_other(image_size, multiple_of):
    settings = resolved(image_size, multiple_of)
    crop, patch, base = sizes_of(settings)
    assert not any(size % multiple_of for size in (crop, patch, base))
    assert 0 < patch <= crop <= base
    assert resolve_views(settings, image_size=16, source=source(), multiple_of=multiple_of) == settings


def test_what_is_given_stays():
    settings = resolved(crop_size=128, patch_size=64, patch_base=200, flip=0.25, mirror_safe=False)
    assert (*sizes_of(settings), settings.flip) == (128, 64, 200, 0.25)


@pytest.mark.parametrize(("mirror_safe", "flip"), [(True, 0.5), (False, 0.0)])
def test_the_source_decides_about_flips(mirror_safe, flip):
    assert resolved(mirror_safe=mirror_safe).flip == flip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"patch_size": 300},
            r"patches of 300 px, cut from images of 256 px\nexpected: .*patch_base\n.*lower views.patch_size",
        ),
        ({"patch_base": 90}, "patches of 96 px, cut from images of 90 px"),
        ({"crop_size": 100, "multiple_of": 16}, r"views.crop_size=100 .* 16 px(.|\n)*multiple of 16\n.* 96 or 112"),
        ({"patch_size": 10, "multiple_of": 16}, r"views.patch_size=10 (.|\n)*set views.patch_size to 16"),
        (
            {"images": (300, 79)},
            r"images of 300 x 79 px \(photos\), smaller than half of views.crop_size=160\nexpected: images of 80 px"
            r"(.|\n)*set views.crop_size to 158 or less, or lower the model's image size",
        ),
        ({"images": (47, 47), "crops": 0}, "smaller than half of views.patch_size=96"),
    ],
)
def test_sizes_that_do_not_fit(settings, message):
    with pytest.raises(InputError, match=message):
        resolved(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"images": (80, 80)},
        {"images": (48, 48), "crops": 0},
        {"images": None},
        {"patches": 0, "patch_size": 300},
        {"patches": 0, "patch_size": 10, "multiple_of": 16},
        {"crops": 0, "crop_size": 100, "multiple_of": 16},
    ],
)
def test_images_may_be_half_as_large_and_what_is_not_shown_may_not_fit(settings):
    assert resolved(**settings)


@pytest.mark.parametrize("jitter", [(1.1, 0, 0, 0), (0.4, 0.4, -0.1, 0.1), (0.4, 0.4, 0.4, 0.6)])
def test_changes_of_colour_beyond_all_bounds(jitter):
    with pytest.raises(ValueError, match=r"(?s)views.color_jitter=\[.*hue from 0 to 0.5"):
        ViewSettings(color_jitter=jitter)
