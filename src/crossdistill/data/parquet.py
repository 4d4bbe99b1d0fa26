"""``parquet:PATH``: images and classes in the columns of parquet files, as the Hugging Face hub stores them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crossdistill.data.decode import EncodedSource
from crossdistill.data.source import CorruptImage, Splits, check_several_classes
from crossdistill.data.splits import fixed_split
from crossdistill.errors import InputError, nearest

_EVALUATION_SPLITS = {"test": "test", "val": "val", "validation": "val"}
_HELD_OUT_SHARE = 0.2


class ParquetSource(EncodedSource):
    """Rows of parquet files; a file's images are read when the first of them is asked for, and kept encoded.

    Args:
        rows: the rows of this source, counted over all files ``(N,)``.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        column: str,
        rows: NDArray[np.int64],
        targets: NDArray[np.int64],
        class_names: tuple[str, ...],
    ) -> None:
        self.name, self.targets, self.class_names = name, targets, class_names
        self._files, self._column, self._rows = files, column, rows
        self._ends = np.cumsum([_metadata(file).num_rows for file in files])
        self._images: dict[int, Any] = {}

    def file(self, index: int) -> io.BytesIO:
        """The encoded image of that row."""
        shard, row = self._place(index)
        if shard not in self._images:
            self._images[shard] = _column(self._files[shard], self._column)
        cell = self._images[shard][row].as_py()
        content = cell["bytes"] if isinstance(cell, dict) else cell
        if content is None:
            raise CorruptImage(self.describe(index), "the row holds no image bytes")
        return io.BytesIO(content)

    def describe(self, index: int) -> str:
        """File and row (from 0) of the image."""
        shard, row = self._place(index)
        return f"{self._files[shard]}, row {row}"

    def __len__(self) -> int:
        return len(self._rows)

    def _place(self, index: int) -> tuple[int, int]:
        row = int(self._rows[index])
        shard = int(np.searchsorted(self._ends, row, side="right"))
        return shard, row - (int(self._ends[shard - 1]) if shard else 0)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_images": {}}  # a worker process reads the files itself


def open_parquet(root: Path, *, image_column: str, label_column: str) -> Splits:
    """Open a folder with ``train-*`` and ``test-*`` (or ``val-*``) files, or one file that is split 80/20.

    Classes are named by the Hugging Face metadata of the file if there are any, else by the labels themselves.

    Raises:
        InputError: no such path, unreadable file, unknown column, labels that are missing, negative or unknown.
    """
    train_files, evaluation_files, evaluation_name = _shards(root)
    for file in [*train_files, *evaluation_files]:
        _check_columns(file, image_column, label_column)
    values = _labels(train_files, label_column)
    class_names = _names_in_metadata(train_files[0], label_column)
    classes = list(range(len(class_names))) if class_names else sorted(set(values))
    class_names = class_names or tuple(map(str, classes))
    targets = _targets(values, classes, train_files, label_column)
    check_several_classes(class_names, targets, f"parquet files of {root}")
    rows = np.arange(len(targets), dtype=np.int64)
    if evaluation_files:
        train = ParquetSource(f"{root} (train)", train_files, image_column, rows, targets, class_names)
        values = _labels(evaluation_files, label_column)
        rows, targets = np.arange(len(values)), _targets(values, classes, evaluation_files, label_column)
        name = f"{root} ({evaluation_name})"
        evaluation = ParquetSource(name, evaluation_files, image_column, rows, targets, class_names)
        return Splits(train, evaluation, evaluation_name)
    train, evaluation = (
        ParquetSource(f"{root} ({part})", train_files, image_column, ids, targets[ids], class_names)
        for part, ids in zip(
            ("train", "val"), fixed_split(targets, round(len(rows) * _HELD_OUT_SHARE), class_names), strict=True
        )
    )
    return Splits(train, evaluation, "val")


def _shards(root: Path) -> tuple[list[Path], list[Path], str]:
    """Training files, evaluation files (none: the training files are to be split) and the evaluation's name."""
    if root.is_file():
        return [root], [], "val"
    files = sorted(root.glob("*.parquet")) or sorted(root.glob("data/*.parquet"))
    if not files:
        problem = "holds no .parquet file" if root.is_dir() else "does not exist"
        raise InputError(
            f"parquet path {root}, which {problem}", "a .parquet file or a folder of them", "check the path"
        )
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(file.stem.split("-")[0], []).append(file)
    if "train" in by_split:
        for split, evaluation_name in _EVALUATION_SPLITS.items():
            if split in by_split:
                return by_split["train"], by_split[split], evaluation_name
        return by_split["train"], [], "val"
    if len(files) == 1:
        return files, [], "val"
    raise InputError(
        f"folder {root} with {', '.join(file.name for file in files[:8])}{' …' if len(files) > 8 else ''}",
        "files named train-*.parquet and test-*.parquet (or val-*, validation-*)",
        "rename the files, or give one file, which is then split",
    )


def _metadata(file: Path) -> Any:
    try:
        return pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from error


def _column(file: Path, column: str) -> Any:
    try:
        return pq.read_table(file, columns=[column], memory_map=True, partitioning=None)[column]
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> InputError:
    return InputError(f"parquet file {file}: {error}", "a complete parquet file", "fetch or write the file again")


def _check_columns(file: Path, image_column: str, label_column: str) -> None:
    schema = _metadata(file).schema.to_arrow_schema()
    for key, column in (("image_column", image_column), ("label_column", label_column)):
        if column not in schema.names:
            raise InputError(
                f"column {column!r}, which {file} does not have",
                f"one of its columns: {', '.join(schema.names)}",
                f"set data.{key} ({nearest(column, schema.names)})",
            )
    kind = schema.field(image_column).type
    has_bytes = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not (has_bytes or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise InputError(
            f"image column {image_column!r} of {file}, which holds {kind}",
            "encoded images: binary, or struct<bytes: binary, path: string>",
            "set data.image_column",
        )


def _names_in_metadata(file: Path, column: str) -> tuple[str, ...] | None:
    stored = (_metadata(file).schema.to_arrow_schema().metadata or {}).get(b"huggingface")
    try:
        names = json.loads(stored)["info"]["features"][column]["names"] if stored else None
    except (ValueError, KeyError, TypeError):
        return None
    return tuple(map(str, names)) if names else None


def _labels(files: Sequence[Path], column: str) -> list[Any]:
    """Labels of all rows, as integers or strings."""
    values: list[Any] = []
    for file in files:
        labels = _column(file, column)
        if labels.null_count:
            row = labels.to_pylist().index(None)
            raise InputError(
                f"{file}: {labels.null_count} rows without a label in column {column!r}, the first is row {row}",
                "a label in every row",
                "fill or remove these rows, or set data.label_column",
            )
        values += labels.to_pylist()
    kinds = {type(value) for value in values}
    if kinds <= {int} or kinds <= {str}:
        return values
    raise InputError(
        f"label column {column!r} of {files[0]}, which holds {' and '.join(sorted(kind.__name__ for kind in kinds))}",
        "whole numbers or strings",
        "set data.label_column",
    )


def _targets(values: list[Any], classes: Sequence[Any], files: Sequence[Path], column: str) -> NDArray[np.int64]:
    index = {value: target for target, value in enumerate(classes)}
    unknown = sorted({value for value in values if value not in index or (isinstance(value, int) and value < 0)})
    if unknown:
        raise InputError(
            f"label column {column!r} of {files[0]}: {', '.join(map(repr, unknown[:5]))}",
            f"the {len(classes)} classes of the training data, and no negative numbers",
            "correct or remove these rows",
        )
    return np.array([index[value] for value in values], dtype=np.int64)
