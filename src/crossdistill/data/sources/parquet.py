"""``parquet:PATH``: images and classes in the columns of parquet files, as the Hugging Face hub stores them."""

from __future__ import annotations

import glob
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crossdistill.data.source import CorruptImage, Splits
from crossdistill.data.sources.classes import NO_FACTS, Classes, Facts, check_labels, check_same_names, find_column
from crossdistill.data.sources.decode import EncodedSource
from crossdistill.data.sources.row_groups import RowGroups, read_column, read_metadata
from crossdistill.data.sources.split_names import by_split, choose_splits, prefix, split_name
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings


class ParquetSource(EncodedSource):
    """All rows of parquet files, whose images are read in row groups when one of them is asked for."""

    def __init__(
        self,
        name: str,
        cells: RowGroups,
        targets: NDArray[np.int64],
        class_names: tuple[str, ...],
        *,
        mirror_safe: bool = True,
    ) -> None:
        self.name, self.targets, self.class_names, self.mirror_safe = name, targets, class_names, mirror_safe
        self._cells = cells

    def file(self, index: int) -> io.BytesIO:
        """The encoded image of that row."""
        cell = self._cells[index]
        content = cell["bytes"] if isinstance(cell, dict) else cell
        if content is None:
            raise CorruptImage(self.describe(index), "the row holds no image bytes")
        return io.BytesIO(content)

    def describe(self, index: int) -> str:
        """File and row (from 0) of the image."""
        return _row(self._cells, index)

    @property
    def files(self) -> Sequence[Path]:
        """The parquet files."""
        return self._cells.files

    def __len__(self) -> int:
        return len(self.targets)

    def _probes(self) -> NDArray[np.int64]:
        """Images of the first and the last row group, so that no more than these are read to learn the shape."""
        groups = self._cells.group_of(np.arange(len(self)))
        return np.flatnonzero(np.isin(groups, [*groups[:1], *groups[-1:]]))


def open_parquet(path: str, settings: DataSettings, facts: Facts = NO_FACTS) -> Splits:
    """Open a folder whose files are named by split (``train-*``, ``raw-test-*``), a pattern for files, or one file.

    Classes are named by the Hugging Face metadata of the files if there are any, else by ``facts``, else by the labels
    themselves.

    Raises:
        InputError: no such path, unreadable file, unknown column, labels that are missing, negative or unknown.
    """
    files = by_split(_files(path))
    chosen = choose_splits(files, settings, f"parquet:{path} ({_shown(files)})", reported=facts.reported)
    used = {split: files[split] for split in (chosen.train, chosen.evaluation, chosen.validation) if split is not None}
    first = used[chosen.train][0]
    image_column = find_column("image_column", settings.image_column, _columns(first), str(first))
    label_column = find_column("label_column", settings.label_column, _columns(first), str(first))
    names = _names_in_metadata(first, label_column)
    for file in (file for shards in used.values() for file in shards):
        _check_columns(file, image_column, label_column)
        check_same_names(names, _names_in_metadata(file, label_column), str(file))
    read = {chosen.train: _labels(used[chosen.train], label_column)}
    classes = Classes.of(read[chosen.train], names or facts.class_names)

    def open_split(split: str) -> ParquetSource:
        labels = read[split] if split in read else _labels(used[split], label_column)
        cells = RowGroups(used[split], image_column)
        targets = classes.targets(labels, lambda index: f"{_row(cells, index)}, column {label_column!r}")
        name = f"parquet files of {path} ({split})"
        return ParquetSource(name, cells, targets, classes.names, mirror_safe=facts.mirror_safe)

    return chosen.open(open_split)


def parquet_files(root: Path) -> list[Path]:
    """The files of a folder, of its folder ``data``, or of its folders if one of them is named train."""
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    is_split = any(split_name(folder.name) == "train" for folder in folders)
    files = sorted(root.glob("*.parquet")) or sorted(root.glob("data/*.parquet"))
    return files or [file for folder in folders if is_split for file in sorted(folder.glob("*.parquet"))]


def _files(path: str) -> list[Path]:
    root = Path(path).expanduser()
    if root.is_file():
        return [root]
    if root.is_dir():
        files = parquet_files(root)
        _check_one_set(root, files)
        problem = "holds no .parquet file"
    else:
        is_pattern = glob.has_magic(str(root))
        found = map(Path, glob.glob(str(root), recursive=True)) if is_pattern else ()
        files = sorted(file for file in found if file.is_file())
        problem = "fits no file" if is_pattern else "does not exist"
    if files:
        return files
    raise InputError(
        f"parquet path {path}, which {problem}", "a .parquet file, a folder of them, or a pattern", "check the path"
    )


def _check_one_set(root: Path, files: Sequence[Path]) -> None:
    """Refuse a folder that holds several sets, such as ``raw-train-*`` and ``clahe-train-*``."""
    for split, shards in by_split(files).items():
        sets = sorted({prefix(file) for file in shards})
        if len(sets) > 1:
            raise InputError(
                f"folder {root} with files of several sets for the split {split}: "
                f"{', '.join(f'{one}-*' if one else f'{split}*' for one in sets[:8])}",
                "one set of files",
                f"name it with a pattern, such as 'parquet:{root}/{sets[-1]}-*.parquet'",
            )


def _shown(files: dict[str, list[Path]]) -> str:
    names = [file.name for shards in files.values() for file in shards]
    return f"{', '.join(names[:8])}{' …' if len(names) > 8 else ''}"


def _row(cells: RowGroups, index: int) -> str:
    file, row = cells.place(index)
    return f"{file}, row {row}"


def _columns(file: Path) -> list[str]:
    return list(read_metadata(file).schema.to_arrow_schema().names)


def _check_columns(file: Path, image_column: str, label_column: str) -> None:
    schema = read_metadata(file).schema.to_arrow_schema()
    for key, column in (("image_column", image_column), ("label_column", label_column)):
        find_column(key, column, schema.names, str(file))
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
    labels: list[Any] = []
    for file in files:
        cells = read_column(file, column).to_pylist()
        check_labels(cells, str(file), column)
        labels += cells
    return labels
