"""Image files of any common kind -> uint8 tensors with one (grey) or three (colour) channels."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from crossdistill.data.source import CorruptImage, probe_shape

_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
_DEEP_GREY_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_NO_IMAGES = frozenset({"BUFR", "EPS", "FLI", "GRIB", "HDF5", "MPEG", "PDF", "WMF"})
"""Formats that Pillow lists, but which are films, pages, or containers that it cannot read by itself."""
_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = frozenset({5, 6, 7, 8})

ImageFile = Path | io.BytesIO


def decode(file: ImageFile, where: str) -> Tensor:
    """Decode an image file to uint8 ``(C, H, W)``, turned upright as its EXIF data say.

    Grey modes give one channel, all others three; transparency is dropped. 16-bit grey is scaled by 255/65535, and so
    is 32-bit grey unless its values go up to 255 only.

    Raises:
        CorruptImage: the file is missing, truncated, no image, or of a mode without a known range.
    """
    try:
        with Image.open(file) as image:
            pixels = _pixels(_upright(image), image.format)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever they like on broken files
        raise CorruptImage(where, _reason(error)) from error
    return torch.from_numpy(pixels)


@cache
def image_suffixes() -> frozenset[str]:
    """Endings of files that Pillow opens as images, in small letters with their dot."""
    suffixes = Image.registered_extensions()  # fills OPEN, where pictures of several cameras (MPO) count as JPEG
    formats = {*Image.OPEN, "MPO"} - _NO_IMAGES
    return frozenset(suffix for suffix, name in suffixes.items() if name in formats)


def shape_of(file: ImageFile, where: str) -> tuple[int, int, int]:
    """(channels, height, width) as :func:`decode` would give them, from the file's header alone."""
    try:
        with Image.open(file) as image:
            width, height = image.size
            if _orientation(image) in _SIDEWAYS:
                width, height = height, width
            return (1 if image.mode in _GREY_MODES else 3), height, width
    except Exception as error:
        raise CorruptImage(where, _reason(error)) from error


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if _orientation(image) is not None else image


def _orientation(image: Image.Image) -> int | None:
    """How the image must be turned; of a JPEG without EXIF and XMP data nothing, which is known at once."""
    if image.format == "JPEG" and not {"exif", "xmp"} & image.info.keys():
        return None
    orientation: int | None = image.getexif().get(_EXIF_ORIENTATION)
    return orientation


def _pixels(image: Image.Image, file_format: str | None) -> np.ndarray:
    if image.mode in _DEEP_GREY_MODES:
        # Pillow opens 16 bits of these formats in a mode of 32, of PNG only in older versions.
        return _deep_grey(image, has_16_bits=image.mode != "I" or file_format in ("PNG", "PPM"))[None]
    if image.mode == "F":
        raise ValueError("its grey values are floating-point numbers of unknown range; save it with 8 or 16 bits")
    if image.mode in _GREY_MODES:
        return np.array(image.convert("L"))[None]
    # A copy in any case: the pixels of a single one would else be Pillow's own, which must not be written to.
    colour = image if image.mode == "RGB" else image.convert("RGB")
    return np.array(np.asarray(colour).transpose(2, 0, 1), order="C")


def _deep_grey(image: Image.Image, *, has_16_bits: bool) -> np.ndarray:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(f"its grey values run from {values.min()} to {values.max()}; save it with 8 or 16 bits")
    scale = 257 if has_16_bits or values.max() > 0xFF else 1
    return np.rint(values / scale).astype(np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


class EncodedSource(ABC):
    """Base of sources whose images are encoded files: decoding, and the shape that a sample of them shares."""

    mirror_safe = True

    @abstractmethod
    def file(self, index: int) -> ImageFile:
        """The encoded image; raises :class:`CorruptImage` where there is none."""

    @abstractmethod
    def describe(self, index: int) -> str:
        """Where the image lies, for messages."""

    @property
    @abstractmethod
    def files(self) -> Sequence[Path]:
        """All files that hold the images; none where these are unknown."""

    @abstractmethod
    def __len__(self) -> int: ...

    def read(self, index: int) -> Tensor:
        """The image as uint8 ``(C, H, W)``; raises :class:`CorruptImage`."""
        return decode(self.file(index), self.describe(index))

    @property
    def num_channels(self) -> int | None:
        """Channels of the stored images, ``None`` if mixed."""
        return self._shape[0]

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) if the images share it."""
        return self._shape[1]

    @cached_property
    def _shape(self) -> tuple[int | None, tuple[int, int] | None]:
        return probe_shape(self._probes(), lambda index: shape_of(self.file(index), self.describe(index)))

    def _probes(self) -> NDArray[np.int64]:
        """Images that may be looked at to learn the shape."""
        return np.arange(len(self), dtype=np.int64)
