"""``parquet:PATH``: images and classes in the columns of parquet files, as the Hugging Face hub stores them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crossdistill.data.decode import EncodedSource
from crossdistill.data.row_groups import RowGroups, read_column, read_metadata
from crossdistill.data.source import CorruptImage, Splits, check_several_classes
from crossdistill.data.splits import hold_out
from crossdistill.errors import InputError, nearest

_EVALUATION_SPLITS = {"test": "test", "val": "val", "validation": "val"}


class ParquetSource(EncodedSource):
    """Rows of parquet files, whose images are read in row groups when one of them is asked for.

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
        self._rows, self._cells = rows, RowGroups(files, column)

    def file(self, index: int) -> io.BytesIO:
        """The encoded image of that row."""
        cell = self._cells[int(self._rows[index])]
        content = cell["bytes"] if isinstance(cell, dict) else cell
        if content is None:
            raise CorruptImage(self.describe(index), "the row holds no image bytes")
        return io.BytesIO(content)

    def describe(self, index: int) -> str:
        """File and row (from 0) of the image."""
        file, row = self._cells.place(int(self._rows[index]))
        return f"{file}, row {row}"

    def __len__(self) -> int:
        return len(self._rows)

    def _probes(self) -> NDArray[np.int64]:
        """Images of the first and the last row group, so that no more than these are read to learn the shape."""
        groups = self._cells.group_of(self._rows)
        return np.flatnonzero(np.isin(groups, [*groups[:1], *groups[-1:]]))


def open_parquet(root: Path, *, image_column: str, label_column: str) -> Splits:
    """Open a folder with ``train-*`` and ``test-*`` (or ``val-*``) files, or one file that is split 80/20.

    Beside ``test-*``, ``val-*`` or ``validation-*`` is the validation split. Classes are named by the Hugging Face
    metadata of the file if there are any, else by the labels themselves.

    Raises:
        InputError: no such path, unreadable file, unknown column, labels that are missing, negative or unknown.
    """
    train_files, others = _shards(root)
    for file in chain(train_files, *others.values()):
        _check_columns(file, image_column, label_column)
    values = _labels(train_files, label_column)
    class_names = _names_in_metadata(train_files[0], label_column)
    classes = list(range(len(class_names))) if class_names else sorted(set(values))
    class_names = class_names or tuple(map(str, classes))
    targets = _targets(values, classes, train_files, label_column)
    check_several_classes(class_names, targets, f"parquet files of {root}")

    def part(name: str, ids: NDArray[np.int64]) -> ParquetSource:
        return ParquetSource(f"{root} ({name})", train_files, image_column, ids, targets[ids], class_names)

    def whole(name: str, files: Sequence[Path]) -> ParquetSource:
        own = _targets(_labels(files, label_column), classes, files, label_column)
        return ParquetSource(f"{root} ({name})", files, image_column, np.arange(len(own)), own, class_names)

    if not others:
        return hold_out(targets, class_names, part)
    evaluation_name, *rest = others
    sources = {name: whole(name, files) for name, files in others.items()}
    train = part("train", np.arange(len(targets)))
    return Splits(train, sources[evaluation_name], evaluation_name, sources[rest[0]] if rest else None)


def _shards(root: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """Training files, and those of "test" and "val", test first (none: the training files are to be split)."""
    if root.is_file():
        return [root], {}
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
        others: dict[str, list[Path]] = {}
        for split, name in _EVALUATION_SPLITS.items():
            if split in by_split:
                others.setdefault(name, by_split[split])
        return by_split["train"], others
    if len(files) == 1:
        return files, {}
    raise InputError(
        f"folder {root} with {', '.join(file.name for file in files[:8])}{' …' if len(files) > 8 else ''}",
        "files named train-*.parquet and test-*.parquet (or val-*, validation-*)",
        "rename the files, or give one file, which is then split",
    )


def _check_columns(file: Path, image_column: str, label_column: str) -> None:
    schema = read_metadata(file).schema.to_arrow_schema()
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
    stored = (read_metadata(file).schema.to_arrow_schema().metadata or {}).get(b"huggingface")
    try:
        names = json.loads(stored)["info"]["features"][column]["names"] if stored else None
    except (ValueError, KeyError, TypeError):
        return None
    return tuple(map(str, names)) if names else None


def _labels(files: Sequence[Path], column: str) -> list[Any]:
    """Labels of all rows, as integers or strings."""
    values: list[Any] = []
    for file in files:
        labels = read_column(file, column)
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
