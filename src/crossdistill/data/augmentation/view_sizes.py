"""What the settings of pretraining's views leave open: sizes follow the student's, and flips the source."""

from __future__ import annotations

from crossdistill.data.source import Source
from crossdistill.errors import InputError
from crossdistill.settings import ViewSettings

_PUBLISHED_IMAGE = 224
_PUBLISHED = {"crop_size": 160, "patch_size": 96, "patch_base": 256}

_LARGEST_ENLARGEMENT = 2


def resolve_views(settings: ViewSettings, *, image_size: int, source: Source, multiple_of: int = 1) -> ViewSettings:
    """The settings without ``None``.

    Args:
        image_size: height and width of the images that the student is built for.
        source: its images are known to be safe to mirror or not, and may be known to be too small.
        multiple_of: sizes that the student takes, such as the patch size of a vision transformer. Sizes that are open
            are rounded to such a multiple, at least one.

    Raises:
        InputError: a size that is no such multiple, patches larger than what they are cut from, or images smaller than
            half of what the student is to see: up to twice their size they are enlarged.
    """
    sizes = {
        key: getattr(settings, key) or multiple_of * max(1, round(share * image_size / _PUBLISHED_IMAGE / multiple_of))
        for key, share in _PUBLISHED.items()
    }
    flip = settings.flip if settings.flip is not None else 0.5 if source.mirror_safe else 0.0
    resolved = settings.model_copy(update={**sizes, "flip": flip})
    shown = [key for key, count in (("crop_size", settings.crops), ("patch_size", settings.patches)) if count]
    for key in shown:
        _check_multiple(key, sizes[key], multiple_of)
    if settings.patches and sizes["patch_size"] > sizes["patch_base"]:
        raise InputError(
            f"patches of {sizes['patch_size']} px, cut from images of {sizes['patch_base']} px",
            "views.patch_size up to views.patch_base",
            "lower views.patch_size, or raise views.patch_base",
        )
    _check_images(source, shown[0], sizes[shown[0]])
    return resolved


def _check_multiple(key: str, size: int, multiple_of: int) -> None:
    if size % multiple_of:
        below, above = size // multiple_of * multiple_of, -(-size // multiple_of) * multiple_of
        raise InputError(
            f"views.{key}={size} for a student that sees {multiple_of} px at a time",
            f"a multiple of {multiple_of}",
            f"set views.{key} to {f'{below} or ' if below else ''}{above}",
        )


def _check_images(source: Source, key: str, size: int) -> None:
    """Refuse images that are known to be so small that views would hardly show more than the kernel that enlarges."""
    known = source.image_size
    if known is not None and _LARGEST_ENLARGEMENT * min(known) < size:
        raise InputError(
            f"images of {known[0]} x {known[1]} px ({source.name}), smaller than half of views.{key}={size}",
            f"images of {-(-size // _LARGEST_ENLARGEMENT)} px or more for views of {size} px",
            f"set views.{key} to {_LARGEST_ENLARGEMENT * min(known)} or less, or lower the model's image size",
        )
