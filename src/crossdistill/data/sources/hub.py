"""``hf:ID`` and ``hf:PATH``: data sets of the Hugging Face hub, and local folders, through the ``datasets`` library."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.data.source import CorruptImage, Splits
from crossdistill.data.sources.classes import NO_FACTS, Classes, Facts, check_labels, check_same_names, find_column
from crossdistill.data.sources.decode import EncodedSource, ImageFile
from crossdistill.data.sources.split_names import choose_splits, split_words
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings

HUB_EXPECTED = "owner/name or owner/name:config of the hub, a folder of parquet or image files, or one of save_to_disk"
_HUB_ACTION = (
    "check the name and the connection (private sets need 'hf auth login'), or copy the files here: hf:PATH, "
    "or a known name below CROSSDISTILL_DATA"
)
_SAVED = ("dataset_dict.json", "state.json")


class HubSource(EncodedSource):
    """Rows of a data set, whose images are read by index from memory-mapped files, still encoded.

    Args:
        rows: a ``datasets.Dataset`` with the one column of images, which does not decode them.
    """

    def __init__(
        self,
        name: str,
        rows: Any,
        targets: NDArray[np.int64],
        class_names: tuple[str, ...],
        *,
        mirror_safe: bool = True,
    ) -> None:
        self.name, self.targets, self.class_names, self.mirror_safe = name, targets, class_names, mirror_safe
        self._rows = rows

    def file(self, index: int) -> ImageFile:
        """The encoded image of that row."""
        (cell,) = self._rows[index].values()
        content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if content is not None:
            return io.BytesIO(content)
        if path:
            return Path(path)
        raise CorruptImage(self.describe(index), "the row holds no image")

    def describe(self, index: int) -> str:
        """Set and row (from 0) of the image."""
        return f"{self.name}, row {index}"

    @property
    def files(self) -> Sequence[Path]:
        """The files of the library's cache; none where rows only name files."""
        (cell,) = self._rows[0].values()
        holds_bytes = not isinstance(cell, dict) or cell.get("bytes") is not None
        return [Path(one["filename"]) for one in self._rows.cache_files] if holds_bytes else []

    def __len__(self) -> int:
        return len(self.targets)


def is_saved(root: Path) -> bool:
    """Whether ``save_to_disk`` wrote this folder."""
    return any((root / name).is_file() for name in _SAVED)


def open_hub(name: str, settings: DataSettings, facts: Facts = NO_FACTS) -> Splits:
    """Open a data set by its id on the hub, or from a local folder. Code that comes with a set is never run.

    Raises:
        InputError: no such set, no connection, unknown column, labels that are missing, negative or unknown, two splits
            of one meaning.
    """
    where = f"hf:{name}"
    loaded = _load(name)
    keys = split_words(loaded, where)
    chosen = choose_splits(keys, settings, where, reported=facts.reported)
    train = loaded[keys[chosen.train]]
    image_column = find_column("image_column", settings.image_column, train.column_names, where)
    label_column = find_column("label_column", settings.label_column, train.column_names, where)
    names = _class_names(train, label_column)
    read = {chosen.train: _labels(train, label_column, where)}
    classes = Classes.of(read[chosen.train], names or facts.class_names)

    def open_split(split: str) -> HubSource:
        rows, at = loaded[keys[split]], f"{where} ({keys[split]})"
        for key, column in (("image_column", image_column), ("label_column", label_column)):
            find_column(key, column, rows.column_names, at)
        check_same_names(names, _class_names(rows, label_column), at)
        labels = read[split] if split in read else _labels(rows, label_column, at)
        targets = classes.targets(labels, lambda row: f"{at}, row {row}, column {label_column!r}")
        images = _encoded(rows, image_column, at)
        return HubSource(at, images, targets, classes.names, mirror_safe=facts.mirror_safe)

    return chosen.open(open_split)


def _load(name: str) -> dict[str, Any]:
    """Data sets by split."""
    datasets = _library()
    root = Path(name).expanduser()
    try:
        if is_saved(root):
            loaded = datasets.load_from_disk(str(root))
        elif root.exists():
            loaded = datasets.load_dataset(str(root))
        else:
            owner_name, _, config = name.partition(":")
            loaded = datasets.load_dataset(owner_name, config or None)
    except Exception as error:  # of the library, its file formats, and the network
        action = "check the folder and its files" if root.exists() else _HUB_ACTION
        raise InputError(f"data source hf:{name}: {_reason(error)}", HUB_EXPECTED, action) from error
    return dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or "all"): loaded}


def _library() -> Any:
    try:
        import datasets  # slow to import, and of an extra
    except ImportError as error:
        raise InputError(
            "a data source hf:…, for which the package datasets is missing",
            "the extra 'data'",
            'pip install "crossdistill[data]"',
        ) from error
    return datasets


def _reason(error: Exception) -> str:
    """What went wrong first, in one line."""
    cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" and error.__cause__ else error
    return " ".join(str(cause).split())[:500] or type(cause).__name__


def _class_names(rows: Any, column: str) -> tuple[str, ...] | None:
    names = getattr(rows.features.get(column), "names", None)
    return tuple(map(str, names)) if names else None


def _labels(rows: Any, column: str, where: str) -> list[Any]:
    labels = rows.with_format(None).select_columns([column])[:][column]
    check_labels(labels, where, column)
    return list(labels)


def _encoded(rows: Any, column: str, where: str) -> Any:
    """The column of images alone, as it is stored."""
    datasets = _library()
    feature = rows.features[column]
    rows = rows.with_format(None).select_columns([column])
    if isinstance(feature, datasets.Image):
        return rows.cast_column(column, datasets.Image(decode=False))
    is_binary = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
    if is_binary or (isinstance(feature, dict) and "bytes" in feature):
        return rows
    raise InputError(
        f"image column {column!r} of {where}, which holds {feature}", "encoded images", "set data.image_column"
    )
