"""Files written whole or not at all, and a refused write turned into an error the user can act on."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crossdistill.errors import InputError

NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
"""What the system says where a disk, a file or a quota is full."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Wrap writes below ``folder``: no permission, no space or a file in the way raises :class:`InputError`."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in NO_ROOM
        raise InputError(
            f"cannot write below {folder}: {error.strerror}{_free_space(folder) if is_full else ''}",
            "a folder that can be written and has room",
            "make room and go on with --resume: what was complete before is kept" if is_full else "give another --out",
        ) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of either."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """:func:`write_bytes` for UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def sync(folder: Path) -> None:
    """Make names in ``folder`` outlast a power cut, where the system lets a folder be opened."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def shipped(relative: str) -> Path | None:
    """A file or folder that comes with the project but is no code: inside the package in a wheel, beside ``src`` in a
    checkout."""
    package = Path(__file__).resolve().parent
    homes = (package, package.parents[1])
    return next((home / relative for home in homes if (home / relative).exists()), None)


def _free_space(folder: Path) -> str:
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    return "" if existing is None else f" ({shutil.disk_usage(existing).free / 2**20:.0f} MiB free)"
