"""``idx:PATH``: images and labels in IDX files, as MNIST came: ``train-images-idx3-ubyte[.gz]`` and so on."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossdistill.data.source import Splits
from crossdistill.data.sources.arrays import ArraySource, as_images, check_counts
from crossdistill.data.sources.classes import Classes, Facts
from crossdistill.data.sources.split_names import by_split, choose_splits
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings

_IMAGES = re.compile(r"(?P<split>.+)[-_]images[-_.]idx\d-ubyte(\.gz)?")
_LAYOUT = "a folder with files such as train-images-idx3-ubyte and train-labels-idx1-ubyte, or the same with .gz"
_UBYTE = 0x08

DIGITS_FACTS = Facts(mirror_safe=False)
"""Of unknown files, flips are off: most sets of this format are signs, which a mirror changes."""


def idx_images(root: Path) -> dict[str, Path]:
    """The files of images in a folder, by the word for their split; unpacked ones before packed ones."""
    found: dict[str, Path] = {}
    for file in sorted(root.glob("*images*idx*ubyte*")):  # the shorter name, without .gz, comes first
        match = _IMAGES.fullmatch(file.name)
        if match:
            found.setdefault(match["split"], file)
    return found


def open_idx(path: str | Path, settings: DataSettings, facts: Facts = DIGITS_FACTS) -> Splits:
    """Open a folder of IDX files: uint8 images ``(N, H, W)`` or ``(N, H, W, 3)``, and uint8 labels ``(N,)``.

    Raises:
        InputError: no such files, truncated ones, another type or shape, images and labels of different number.
    """
    root = Path(path).expanduser()
    images = idx_images(root)
    if not images:
        problem = "does not exist" if not root.exists() else "is a file" if root.is_file() else "holds no images"
        raise InputError(f"path {root} of IDX files, which {problem}", _LAYOUT, "check the path and the names")
    words = by_split(map(Path, images))
    files = {split: _only(split, [images[str(word)] for word in found]) for split, found in words.items()}
    chosen = choose_splits(files, settings, f"idx files of {root}", reported=facts.reported)
    read = {chosen.train: _labels(files[chosen.train])}
    classes = Classes.of(read[chosen.train], facts.class_names)

    def open_split(split: str) -> ArraySource:
        file = files[split]
        pixels, labels = as_images(_read(file), str(file)), read[split] if split in read else _labels(file)
        check_counts(len(pixels), len(labels), str(file))
        targets = classes.targets(labels, lambda index: f"image {index} of {file}")
        return ArraySource(f"{root} ({split})", pixels, targets, classes.names, facts.mirror_safe)

    return chosen.open(open_split)


def _only(split: str, files: list[Path]) -> Path:
    if len(files) == 1:
        return files[0]
    raise InputError(
        f"several files of images for the split {split}: {', '.join(file.name for file in files)}",
        "one file of images a split",
        "keep one set of files in a folder",
    )


def _labels(images: Path) -> list[int]:
    """The labels that belong to a file of images."""
    name = re.sub(r"images([-_.])idx\d", r"labels\1idx1", images.name).removesuffix(".gz")
    file = next((file for end in ("", ".gz") if (file := images.with_name(name + end)).exists()), None)
    if file is None:
        raise InputError(f"no {name} beside {images}", _LAYOUT, "add the file of labels, or correct its name")
    labels = _read(file)
    if labels.ndim == 1:
        return list(map(int, labels))
    raise InputError(f"{file}: labels of shape {labels.shape}", "one label an image, (N,)", "check the file")


def _read(file: Path) -> NDArray[np.uint8]:
    """The array of an IDX file: two zero bytes, type, number of axes, their lengths (32 bits, big-endian), values."""
    content = _unpacked(file)
    num_axes = content[3] if len(content) >= 4 else 0
    start = 4 + 4 * num_axes
    if content[:2] != b"\0\0" or not num_axes or len(content) < start:
        raise _wrong(file, f"begins with {content[:4].hex(' ') or 'nothing'}, which is no IDX header")
    if content[2] != _UBYTE:
        raise _wrong(file, f"holds values of type 0x{content[2]:02x}, not bytes (0x08)")
    shape = tuple(map(int, np.frombuffer(content, dtype=">u4", count=num_axes, offset=4)))
    expected, held = math.prod(shape), len(content) - start
    if expected != held:
        raise _wrong(file, f"holds {held} values where its header {shape} says {expected}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _unpacked(file: Path) -> bytes:
    try:
        content = file.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise _wrong(file, f"cannot be read ({error})") from error


def _wrong(file: Path, problem: str) -> InputError:
    return InputError(f"{file}, which {problem}", "a complete IDX file of bytes", "fetch the file again")
