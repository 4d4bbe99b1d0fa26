"""The binary version of CIFAR-10 and CIFAR-100: records of one or two labels and 3,072 pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crossdistill.data.source import Splits
from crossdistill.data.sources.arrays import ArraySource
from crossdistill.data.sources.classes import NO_FACTS, Classes, Facts, find_column
from crossdistill.data.sources.split_names import choose_splits
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings

_NUM_PIXELS = 3 * 32 * 32


@dataclass(frozen=True, slots=True)
class Binary:
    """Where the labels of a version lie: the files of its splits, its labels a record, and their files of names."""

    files: Mapping[str, Sequence[str]]
    names: dict[str, str]


_FILES_10 = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
_BINARY = {
    "cifar-10-batches-bin": Binary(_FILES_10, {"label": "batches.meta.txt"}),
    "cifar-100-binary": Binary(
        {"train": ["train.bin"], "test": ["test.bin"]},
        {"coarse_label": "coarse_label_names.txt", "fine_label": "fine_label_names.txt"},
    ),
}


def find_cifar(root: Path) -> Path | None:
    """The folder of a binary version: ``root`` itself or one of its folders."""
    return next((folder for name in _BINARY for folder in (root, root / name) if _is(folder, name)), None)


def _is(folder: Path, name: str) -> bool:
    return any((folder / file).is_file() for files in _BINARY[name].files.values() for file in files)


def open_cifar(path: str | Path, settings: DataSettings, facts: Facts = NO_FACTS) -> Splits:
    """Open a folder that :func:`find_cifar` has found; ``data.label_column=coarse_label`` takes CIFAR-100's 20 classes.

    Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.

    Raises:
        InputError: a file that is missing or of the wrong length, or no such labels.
    """
    root = Path(path).expanduser()
    version = next(one for name, one in _BINARY.items() if _is(root, name))
    columns = list(version.names)
    column = columns.index(find_column("label_column", settings.label_column, columns, str(root)))
    names = _names(root / version.names[columns[column]]) or facts.class_names
    chosen = choose_splits(version.files, settings, str(root))
    records = {split: _records(root, version.files[split], len(columns)) for split in ("train", "test")}
    classes = Classes.of(records[chosen.train][:, column].tolist(), names)

    def open_split(split: str) -> ArraySource:
        found = records[split]
        targets = classes.targets(found[:, column].tolist(), lambda index: f"{root} ({split}), image {index}")
        pixels = found[:, len(columns) :].reshape(-1, 3, 32, 32)
        return ArraySource(f"{root} ({split})", pixels, targets, classes.names, facts.mirror_safe)

    return chosen.open(open_split)


def _names(file: Path) -> tuple[str, ...] | None:
    if not file.is_file():
        return None
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def _records(root: Path, names: Sequence[str], num_labels: int) -> np.ndarray:
    """Records ``(N, labels + 3,072)`` of all files of a split."""
    length, parts = num_labels + _NUM_PIXELS, []
    for name in names:
        try:
            content = np.fromfile(root / name, dtype=np.uint8)
        except OSError as error:
            raise _wrong(root / name, f"cannot be read ({error.strerror})") from error
        if len(content) % length or not len(content):
            raise _wrong(root / name, f"has {len(content)} bytes, which is no whole number of records of {length}")
        parts.append(content.reshape(-1, length))
    return np.concatenate(parts)


def _wrong(file: Path, problem: str) -> InputError:
    return InputError(f"{file}, which {problem}", "the complete binary version of CIFAR", "fetch or unpack it again")
