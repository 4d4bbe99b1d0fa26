"""One image file of the user's, prepared as for evaluation."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from crossdistill.contracts import InputSpec
from crossdistill.data.pixels import centre_view, check_channels, normalise
from crossdistill.data.source import CorruptImage
from crossdistill.data.sources.decode import decode
from crossdistill.errors import InputError


def prepare_image(path: Path, spec: InputSpec, crop_pct: float | None = None) -> Tensor:
    """The image as the model wants it: float32 ``(C, H, W)``.

    Args:
        path: the file.
        spec: what the model wants.
        crop_pct: share of the side that is shown; default as the model says, but tiny images whole.

    Raises:
        InputError: no such file, not an image, or channels that the model cannot take.
    """
    try:
        image = decode(path, str(path))
    except CorruptImage as corrupt:
        raise InputError(f"image {corrupt}", "a readable image file", "check the path and the file") from corrupt
    check_channels(image.shape[0], spec, str(path))
    return normalise(centre_view(image, spec, crop_pct), spec)
