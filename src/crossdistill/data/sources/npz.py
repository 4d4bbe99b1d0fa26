"""``npz:FILE``: arrays of images and labels in one NumPy file, as MedMNIST has them."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.data.source import Splits
from crossdistill.data.sources.arrays import ArraySource, as_images, check_counts
from crossdistill.data.sources.classes import NO_FACTS, Classes, Facts
from crossdistill.data.sources.split_names import choose_splits, split_words
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings

_LAYOUT = "a .npz file with train_images, train_labels, test_images, test_labels (also val_)"
_FAILURES = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError)


def open_npz(path: str | Path, settings: DataSettings, facts: Facts = NO_FACTS) -> Splits:
    """Open a file with ``{train,val,test}_{images,labels}``.

    Images are uint8 ``(N, H, W)`` or ``(N, H, W, 3)``, labels whole numbers ``(N,)`` or ``(N, 1)``. Only the splits in
    use are read. Nothing is unpickled.

    Raises:
        InputError: an unreadable file, no such arrays, arrays of another type or shape, two names for one split.
    """
    file = Path(path).expanduser()
    words = split_words(_words(file), str(file))
    chosen = choose_splits(words, settings, str(file), reported=facts.reported)
    read = {chosen.train: _labels(file, words[chosen.train])}
    classes = Classes.of(read[chosen.train], facts.class_names)

    def open_split(split: str) -> ArraySource:
        key = f"{words[split]}_images"
        pixels = as_images(_array(file, key), f"{file}, {key}")
        labels = read[split] if split in read else _labels(file, words[split])
        check_counts(len(pixels), len(labels), f"{file}, {key}")
        targets = classes.targets(labels, lambda index: f"image {index} of {file}, {words[split]}_labels")
        return ArraySource(f"{file} ({split})", pixels, targets, classes.names, facts.mirror_safe)

    return chosen.open(open_split)


def _words(file: Path) -> list[str]:
    """The words before ``_images``, each of which has labels."""
    if not file.is_file():
        problem = "is a folder" if file.exists() else "does not exist"
        raise InputError(f"{file}, which {problem}", _LAYOUT, "check the path")
    with _opened(file) as arrays:
        keys = list(arrays.files)
    words = [key.removesuffix("_images") for key in keys if key.endswith("_images")]
    without = [word for word in words if f"{word}_labels" not in keys]
    if not words or without:
        missing = f"no {without[0]}_labels" if without else "no images"
        held = ", ".join(keys) or "none"
        raise InputError(f"{file} with {missing}; its arrays: {held}", _LAYOUT, "rename the arrays")
    return words


def _labels(file: Path, word: str) -> list[int]:
    key = f"{word}_labels"
    labels = _array(file, key)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 1 and labels.dtype.kind in "iu":
        return list(map(int, labels.tolist()))
    raise InputError(
        f"{file}, {key}: labels of type {labels.dtype} and shape {labels.shape}",
        "one whole number an image, (N,) or (N, 1); several labels an image are not supported",
        "convert the labels",
    )


def _array(file: Path, key: str) -> NDArray[Any]:
    with _opened(file) as arrays:
        try:
            return np.asarray(arrays[key])
        except _FAILURES as error:
            # NumPy's own words for an array of objects tell how to unpickle it.
            told = "it holds Python objects, which are never unpickled" if "allow_pickle" in str(error) else str(error)
            raise _unreadable(file, f"{key}: {told}") from error


def _opened(file: Path) -> Any:
    """The archive, of whose arrays none is read yet. What is no archive NumPy would take for a pickle."""
    try:
        with file.open("rb") as content:
            start = content.read(6)
        if start[:2] == b"PK":
            return np.load(file, allow_pickle=False)
    except _FAILURES as error:
        raise _unreadable(file, str(error)) from error
    alone = "it is one array alone, as of a .npy file" if start == b"\x93NUMPY" else "it is no archive of arrays"
    raise _unreadable(file, alone if start else "it is empty")


def _unreadable(file: Path, problem: str) -> InputError:
    return InputError(f"{file}, which cannot be read: {problem}", f"{_LAYOUT}, without objects", "write it again")
