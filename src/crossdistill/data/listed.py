"""Some training images by the names in a file, such as the published lists of few labels."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from crossdistill.data.shards.stream import Stream
from crossdistill.data.source import Source, check_several_classes
from crossdistill.data.sources.subset import Subset
from crossdistill.errors import InputError

_WANTED = "a text file with the end of an image's path in each line, such as n01440764_10026.JPEG"


def only_listed(source: Source, names: Path) -> Subset:
    """The images of a source whose paths end in a line of a file; lines count once, and their order not at all.

    Args:
        source: training images that are files.
        names: the file; ``cat/1.png`` is the end of ``train/cat/1.png``, and not of ``train/bobcat/1.png``.

    Raises:
        InputError: no such file, no line, a line that is the end of no path or of several, images of a single class,
            or a stream.
    """
    if isinstance(source, Stream):
        raise InputError(
            f"data.train_list={names} for {source.name}, a stream",
            "images that can be looked up",
            "copy the shards here",
        )
    wanted = _lines(names)
    by_file = defaultdict(list)
    for index in range(len(source.targets)):
        path = source.describe(index).replace("\\", "/")
        by_file[path.rpartition("/")[2]].append((path, index))
    ids = np.unique(np.array([_index_of(one, by_file, source, names) for one in wanted], dtype=np.int64))
    if source.class_names:
        check_several_classes(source.class_names, source.targets[ids], f"images of {names}")
    return Subset(source, ids, names.name)


def _lines(names: Path) -> list[str]:
    try:
        text = names.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data.train_list={names}: {error}", _WANTED, "check the file") from error
    wanted = list(dict.fromkeys(line.strip().replace("\\", "/") for line in text.splitlines() if line.strip()))
    if not wanted:
        raise InputError(f"data.train_list={names}, which has no line", _WANTED, "check the file")
    return wanted


def _index_of(wanted: str, by_file: dict[str, list[tuple[str, int]]], source: Source, names: Path) -> int:
    wanted = wanted.removeprefix("./").lstrip("/")
    alike = by_file.get(wanted.rpartition("/")[2], [])
    found = [(path, index) for path, index in alike if f"/{path}".endswith(f"/{wanted}")]
    if not found:
        raise InputError(
            f"{wanted!r} in {names}, which none of {len(source.targets)} training images is called",
            f"the end of the path of one, such as {source.describe(0)}",
            "check the list and the data; names with their folders must have the folders of the data",
        )
    if len(found) > 1:
        raise InputError(
            f"{wanted!r} in {names}, which is the end of {len(found)} paths ({found[0][0]}, {found[1][0]})",
            "the end of one path",
            "write the folder before the name in that line",
        )
    return found[0][1]
