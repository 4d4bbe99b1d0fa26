"""One pass over the images of a source: the shape, the format and a hash of each, and what cannot be read."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from crossdistill.data.held import HeldSource, num_cores
from crossdistill.data.source import CorruptImage, Source
from crossdistill.data.sources.decode import EncodedSource, ImageFile, shape_of
from crossdistill.data.sources.subset import Subset
from crossdistill.errors import InputError

_NUM_AT_ONCE = 512
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Scan:
    """What is known of every image of a source; ``None`` and zeros stand for an image that cannot be read.

    ``shapes`` is ``(N, 3)``: channels, height, width. Equal ``digests`` mean equal pixels in images of equal size, or
    equal files where only files were read. ``formats`` counts images by format, such as "JPEG"; empty for sources that
    hold plain pixels.
    """

    shapes: NDArray[np.int64]
    digests: tuple[bytes | None, ...]
    formats: dict[str, int]
    unreadable: tuple[CorruptImage, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    shape: tuple[int, int, int]
    digest: bytes
    format: str | None


def scan(source: Source, *, quick: bool = False, watch: Callable[[int], None] | None = None) -> Scan:
    """Look at every image once, in threads.

    Args:
        quick: of encoded images read the file and its header only, so that equal means equal files, and an image is
            unreadable where its header is; else every image is decoded.
        watch: told now and then how many images were looked at.
    """
    num_images = len(source.targets)
    shapes = np.zeros((num_images, 3), dtype=np.int64)
    digests: list[bytes | None] = [None] * num_images
    formats: Counter[str] = Counter()
    unreadable = []
    for index, found in enumerate(_found(source, quick)):
        if isinstance(found, CorruptImage):
            unreadable.append(found)
        else:
            shapes[index], digests[index] = found.shape, found.digest
            formats.update([found.format] if found.format else [])
        if watch is not None and ((index + 1) % _NUM_AT_ONCE == 0 or index + 1 == num_images):
            watch(index + 1)
    return Scan(shapes, tuple(digests), dict(formats.most_common()), tuple(unreadable))


def _found(source: Source, quick: bool) -> Iterator[_Found | CorruptImage]:
    """What is found of each image, in order; no more than some hundreds are ahead of whoever asks."""
    num_images = len(source.targets)
    with ThreadPoolExecutor(num_cores()) as pool:
        for start in range(0, num_images, _NUM_AT_ONCE):
            indices = range(start, min(start + _NUM_AT_ONCE, num_images))
            yield from pool.map(lambda index: _look(*_inmost(source, index), quick), indices)


def digest(pixels: Tensor | NDArray[np.uint8]) -> bytes:
    """A hash of shape and values of uint8 pixels ``(C, H, W)``; three equal channels count as one of grey.

    Some formats, such as WebP, know no grey images.
    """
    values = np.ascontiguousarray(pixels)
    if len(values) == 3 and (values[1:] == values[0]).all():
        values = values[:1]
    return _hash(f"{values.shape}".encode(), values.data)


def file_digest(source: Source, index: int) -> bytes | None:
    """A hash of the encoded image; ``None`` where there is none, or it cannot be read."""
    inmost, index = _inmost(source, index)
    try:
        return _hash(_content(inmost.file(index))) if isinstance(inmost, EncodedSource) else None
    except (CorruptImage, InputError, OSError):
        return None


def encoded(source: Source) -> EncodedSource | None:
    """The source of encoded images that this one reads from; ``None`` for plain pixels and streams."""
    inmost, _ = _inmost(source, 0)
    return inmost if isinstance(inmost, EncodedSource) else None


def _hash(*parts: bytes | memoryview) -> bytes:
    hashed = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        hashed.update(part)
    return hashed.digest()


def _inmost(source: Source, index: int) -> tuple[Source, int]:
    """The source that holds the image itself, and the image's index there."""
    while isinstance(source, HeldSource | Subset):
        if isinstance(source, Subset):
            index = int(source.ids[index])
        source = source.source
    return source, index


def _look(source: Source, index: int, quick: bool) -> _Found | CorruptImage:
    try:
        kind = _format(source.file(index)) if isinstance(source, EncodedSource) else None
        if quick and isinstance(source, EncodedSource):
            shape = shape_of(source.file(index), source.describe(index))
            return _Found(shape, _hash(_content(source.file(index))), kind)
        pixels = source.read(index)
    except CorruptImage as corrupt:
        return corrupt
    return _Found((pixels.shape[0], pixels.shape[1], pixels.shape[2]), digest(pixels), kind)


def _format(file: ImageFile) -> str | None:
    """Format by the header, ``None`` where there is none; decoding then says why."""
    try:
        with Image.open(file) as image:
            return image.format
    except Exception:  # decoders raise whatever they like on broken files
        return None


def _content(file: ImageFile) -> bytes:
    return file.getvalue() if isinstance(file, io.BytesIO) else file.read_bytes()
