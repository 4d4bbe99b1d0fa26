"""What lies where in a tar file, read from its headers alone, and where the first of them is not as it must be."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crossdistill.errors import InputError

_BLOCK = 512
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LONG_NAME, _LONG_LINK = b"L", b"K"


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar file: its name, and where its bytes lie."""

    name: str
    offset: int
    size: int


def members(descriptor: int, path: Path) -> Iterator[Member]:
    """The regular files of an open tar file, in order.

    Names and sizes in extended headers (GNU and pax) are read as well. The standard library's reader takes a broken
    header, and a file that ends between two members, for the end of the archive; here both are errors.

    Raises:
        InputError: a compressed, truncated or broken file, with the offset.
    """
    length, offset = os.fstat(descriptor).st_size, 0
    extended: dict[str, str] = {}
    while (header := _header(descriptor, path, offset)) is not None:
        size = int(extended.get("size", header.size))
        begin = offset + _BLOCK
        offset = begin + -(-size // _BLOCK) * _BLOCK
        if begin + size > length:
            name = extended.get("path", header.name)
            raise _broken(path, begin, f"the file ends at byte {length}, but {name!r} reaches to {begin + size}")
        if header.type == _LONG_NAME:
            extended["path"] = _text(os.pread(descriptor, size, begin).rstrip(b"\0"))
        elif header.type == tarfile.XHDTYPE:
            extended |= _pax_records(os.pread(descriptor, size, begin), path, begin)
        elif header.type not in (tarfile.XGLTYPE, _LONG_LINK):
            if header.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
                yield Member(extended.get("path", header.name), begin, size)
            extended = {}


def _header(descriptor: int, path: Path, offset: int) -> tarfile.TarInfo | None:
    """The header at that offset, ``None`` at the end of the archive."""
    block = os.pread(descriptor, _BLOCK, offset)
    if block and not any(block):
        return None
    kind = next((kind for magic, kind in _COMPRESSED.items() if block.startswith(magic)), None)
    if kind is not None and not offset:
        raise compressed(path, kind)
    if len(block) < _BLOCK:
        ends = "the file ends here, without the empty block that closes a tar file"
        raise _broken(path, offset, ends if offset or block else "the file is empty")
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        raise _broken(path, offset, f"no tar header ({error})") from error


def _pax_records(content: bytes, path: Path, offset: int) -> dict[str, str]:
    """Records ``LENGTH KEY=VALUE\\n``, of which path and size matter here."""
    records, at = {}, 0
    try:
        while at < len(content):
            length = int(content[at : content.index(b" ", at)])
            key, _, value = content[at : at + length - 1].partition(b" ")[2].partition(b"=")
            records[_text(key)] = _text(value)
            at += max(length, 1)
        size = records.get("size", "0")
        if not size.isdecimal():
            raise ValueError(f"size {size!r}")
    except ValueError as error:
        raise _broken(path, offset, f"no extended header ({error})") from error
    return {key: records[key] for key in ("path", "size") if key in records}


def compressed(path: Path, kind: str) -> InputError:
    """The refusal of a compressed shard."""
    return InputError(
        f"shard {path}, which is compressed ({kind})",
        "a plain .tar file, in which single images can be found",
        "unpack it first: images in it are compressed already",
    )


def _broken(path: Path, offset: int, what: str) -> InputError:
    return InputError(
        f"shard {path}, byte {offset}: {what}", "a complete tar file", "fetch or write that shard again, or remove it"
    )


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")
