"""Files in the making: written beside their place under a name of their own, then put there whole."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
import time
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path

from crossdistill.files import sync

STALE_SECONDS = 24 * 3600
"""A temporary file this old is nobody's any more, whoever's it was: no shard takes so long to write."""

_NAME = re.compile(r"\..+\.(?P<machine>[0-9a-f]{12})-(?P<pid>\d+)-[0-9a-f]{8}\.tmp")


def partial_path(path: Path) -> Path:
    """A name beside ``path`` for the time of writing, which says which process on which machine is at it."""
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def is_partial(path: Path) -> bool:
    """Whether this is such a name."""
    return _NAME.fullmatch(path.name) is not None


def write_partial(partial: Path, content: bytes) -> None:
    """Write a temporary file down to the disk."""
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def put(path: Path, content: bytes) -> None:
    """Write a file so that others see the one before or this one, never half of it, also after a power cut.

    Raises:
        OSError: the disk is full or may not be written; what was there is as it was.
    """
    partial = partial_path(path)
    try:
        write_partial(partial, content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def put_first(path: Path, content: bytes) -> None:
    """As :func:`put`, unless there is a file already; of several who try at once, one succeeds."""
    partial = partial_path(path)
    try:
        write_partial(partial, content)
        try:
            os.link(partial, path)  # a link never takes the place of a file, as renaming does
        except FileExistsError:
            return
        except OSError:  # a file system without links: of those who look at the same moment, the last wins
            if not path.exists():
                partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files in ``folder`` whose writers are gone; those of live ones stay.

    A writer on this machine is gone if its process is. Of one elsewhere nothing is known: its file stays until it is
    ``STALE_SECONDS`` old.
    """
    for path in folder.glob(".*.tmp"):
        if _is_abandoned(path):
            with suppress(OSError):  # somebody else's, or just gone: it is in nobody's way
                path.unlink()


def _is_abandoned(path: Path) -> bool:
    match = _NAME.fullmatch(path.name)
    if match is None:
        return False
    if match["machine"] == _machine() and not _is_alive(int(match["pid"])):
        return True
    try:
        return time.time() - path.stat().st_mtime > STALE_SECONDS
    except FileNotFoundError:  # its writer has just finished
        return False


@cache
def _machine() -> str:
    """A short hash of where process numbers mean the same: a machine since it started, or a container on one."""
    parts = [socket.gethostname()]
    try:
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), str(os.stat("/proc/self/ns/pid").st_ino)]
    except OSError:  # not Linux
        parts.append(str(uuid.getnode()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # there, asking would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's process
        return True
    return True
