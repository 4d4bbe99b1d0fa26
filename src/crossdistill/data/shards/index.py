"""The samples of a tar shard: where the image of each lies, and its label; kept between runs in the user's cache."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.data.shards.tar_headers import Member, members
from crossdistill.errors import InputError
from crossdistill.files import write_bytes

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "tif", "tiff")
LABEL_SUFFIXES = ("cls", "json", "txt")
"""Of several images or labels of a sample the first in these lists counts."""

_VERSION = 1
_META = re.compile(r"__[^/]*__($|/)")


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """The samples of one shard in their order: keys and labels as UTF-8 ``(N,)``, offset and size of the images."""

    keys: NDArray[np.bytes_]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.bytes_]


def read_index(path: Path) -> ShardIndex:
    """Index of a shard, from the cache if the file has not changed since.

    Raises:
        InputError: a shard that cannot be read, or samples without image or label, or twice under one key.
    """
    try:
        status = path.stat()
        facts = json.dumps([_VERSION, str(path.absolute()), status.st_size, status.st_mtime_ns])
        kept = _cache_file(path)
        index = None if kept is None else _load(kept, facts)
        if index is None:
            index = _build(path)
            if kept is not None:
                _keep(kept, facts, index)
    except OSError as error:
        raise unreadable(path, error) from error
    return index


def unreadable(path: Path, error: OSError) -> InputError:
    """What is said of a shard that the system does not let one read."""
    reason = error.strerror or str(error)
    return InputError(f"shard {path}: {reason}", "a tar file that can be read", "check the path and its permissions")


def key_and_suffix(name: str) -> tuple[str, str] | None:
    """Key and lower-case suffix of a member: what stands before and after the first dot of its file's name.

    >>> key_and_suffix("cats/0001.seg.PNG")
    ('cats/0001', 'seg.png')
    """
    folder, slash, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    if not stem or not dot or _META.match(name):
        return None
    return folder + slash + stem, suffix.lower()


def label_text(suffix: str, content: bytes, where: str) -> str | None:
    """The label in a member: the text of .cls and .txt, or "label" of .json; ``None`` where there is none.

    Raises:
        InputError: content that is not text or JSON, or a label that is neither a whole number nor a string.
    """
    try:
        text = content.decode("utf-8").strip()
        tree = json.loads(text) if suffix == "json" else {"label": text}
        label = tree.get("label") if isinstance(tree, dict) else None
        str(label).encode("utf-8")  # JSON can spell half a character
    except ValueError as error:
        raise InputError(f"{where}: {error}", f"UTF-8 text in .{suffix}", "write the shard again") from error
    if label is None or (isinstance(label, int | str) and not isinstance(label, bool)):
        return None if label is None else str(label).strip() or None
    raise InputError(f"{where}: label {label!r}", "a whole number or a string", "correct the label in .json")


def _build(path: Path) -> ShardIndex:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        samples = _samples(descriptor, path)
        images = [_first(IMAGE_SUFFIXES, parts) for parts in samples.values()]
        labels = [_label(descriptor, parts, f"{path}, sample {key!r}") for key, parts in samples.items()]
    finally:
        os.close(descriptor)
    _check_whole(path, "image", list(samples), images, IMAGE_SUFFIXES)
    _check_whole(path, "label", list(samples), labels, LABEL_SUFFIXES)
    return ShardIndex(
        np.array([os.fsencode(key) for key in samples], dtype=np.bytes_),
        np.array([image.offset for image in images if image], dtype=np.int64),
        np.array([image.size for image in images if image], dtype=np.int64),
        np.array([label.encode() for label in labels if label], dtype=np.bytes_),
    )


def _samples(descriptor: int, path: Path) -> dict[str, dict[str, Member]]:
    """Images and labels of each sample by suffix, in the order of the samples' first members."""
    samples: dict[str, dict[str, Member]] = {}
    repeated = []
    for member in members(descriptor, path):
        named = key_and_suffix(member.name)
        if named is None or named[1] not in IMAGE_SUFFIXES + LABEL_SUFFIXES:
            continue
        key, suffix = named
        parts = samples.setdefault(key, {})
        if suffix in parts:
            repeated.append(member.name)
        parts[suffix] = member
    if repeated:
        raise InputError(
            f"shard {path} with {len(repeated)} member(s) twice under one key, the first is {repeated[0]!r}",
            "a key of its own for every sample (what stands before the first dot of a member's name)",
            "write the shard again",
        )
    return samples


def _first(suffixes: tuple[str, ...], parts: dict[str, Member]) -> Member | None:
    return next((parts[suffix] for suffix in suffixes if suffix in parts), None)


def _label(descriptor: int, parts: dict[str, Member], where: str) -> str | None:
    for suffix in LABEL_SUFFIXES:
        if (member := parts.get(suffix)) is not None:
            label = label_text(suffix, os.pread(descriptor, member.size, member.offset), where)
            if label is not None:
                return label
    return None


def _check_whole(path: Path, what: str, keys: list[str], found: list[Any], suffixes: tuple[str, ...]) -> None:
    lacking = [key for key, one in zip(keys, found, strict=True) if one is None]
    if lacking:
        raise InputError(
            f"shard {path} with {len(lacking)} of {len(keys)} samples without {what}, the first is {lacking[0]!r}",
            f"one of {' '.join(f'.{suffix}' for suffix in suffixes)} in every sample",
            "write the shard again, with both under one key",
        )


def _cache_file(path: Path) -> Path | None:
    """Where the index of a shard is kept: below XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(root) if root else Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        return None
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
    return folder / "crossdistill" / "shards" / f"{name}.npz"


def _load(file: Path, facts: str) -> ShardIndex | None:
    """What is kept in a file, if it is sound and of these facts."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            if kept["facts"].tobytes().decode("utf-8") != facts:
                return None
            index = ShardIndex(kept["keys"], kept["offsets"], kept["sizes"], kept["labels"])
    except Exception:  # a broken cache fails in any way, and is written anew
        return None
    arrays = (index.keys, index.offsets, index.sizes, index.labels)
    sound = [array.dtype.kind for array in arrays] == ["S", "i", "i", "S"] and {a.shape for a in arrays} == {
        (len(index.keys),)
    }
    return index if sound else None


def _keep(file: Path, facts: str, index: ShardIndex) -> None:
    content = io.BytesIO()
    np.savez(
        content,
        facts=np.frombuffer(facts.encode("utf-8"), dtype=np.uint8),
        keys=index.keys,
        offsets=index.offsets,
        sizes=index.sizes,
        labels=index.labels,
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, content.getvalue())
    except OSError:  # without a cache the headers are read again next time, no more
        return
