"""Files written whole or not at all, and a refused write turned into an error the user can act on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crossdistill.errors import InputError


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Wrap writes below ``folder``: no permission, no space or a file in the way raises :class:`InputError`."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write below {folder}: {error.strerror}{_free_space(folder)}",
            "a folder that can be written and has room",
            "make room or give another --out; what was complete before is kept, and --resume goes on from it",
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


def _free_space(folder: Path) -> str:
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    return "" if existing is None else f" ({shutil.disk_usage(existing).free / 2**20:.0f} MiB free)"
