"""Whether a store is sound, and removing what is not, so that it can be written anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crossdistill.errors import InputError
from crossdistill.store import Verification, verify
from crossdistill.store.shard import shard_path

_SHOWN = 3


def verify_store(path: Path, *, remove_damaged: bool = False) -> dict[str, Any]:
    """Check every byte of a store against its hash; the figures of one that is sound.

    Args:
        remove_damaged: delete the shards that are damaged. Nothing else ever removes a shard, and the command that
            made the store then writes exactly these and the missing ones.

    Raises:
        InputError: damaged or missing shards, named, with what to do; or no store.
    """
    found = verify(path)
    if remove_damaged:
        for place in found.damaged:
            shard_path(path, *place).unlink(missing_ok=True)
    if not found.sound:
        raise _unsound(path, found, removed=remove_damaged)
    return {
        "kind": "store_verified",
        "store": str(path),
        "num_epochs": found.num_epochs,
        "num_shards": found.num_shards,
        "num_rows": found.num_rows,
        "num_bytes": found.num_bytes,
    }


def _unsound(path: Path, found: Verification, *, removed: bool) -> InputError:
    problems = []
    if found.damaged:
        listed = [f"epoch {epoch} shard {shard}: {reason}" for (epoch, shard), reason in found.damaged.items()]
        problems.append(f"{_number(len(listed), 'damaged')} ({_first(listed)}){', now removed' if removed else ''}")
    if found.missing:
        listed = [f"epoch {epoch} shard {shard}" for epoch, shard in found.missing]
        problems.append(f"{_number(len(listed), 'missing')} ({_first(listed)})")
    again = "give the `crossdistill store` command that made it again: it writes the missing shards, and no others"
    if found.damaged and not removed:
        again = f"remove the damaged ones (`crossdistill store --verify {path} --remove-damaged`), then {again}"
    return InputError(
        f"store {path} of {found.num_epochs} whole epochs with {' and '.join(problems)}",
        "every shard of each epoch that was begun, every byte as it was written",
        again,
    )


def _number(count: int, what: str) -> str:
    return f"{count} {what} {'shard' if count == 1 else 'shards'}"


def _first(phrases: list[str]) -> str:
    return "; ".join(phrases[:_SHOWN]) + ("; …" if len(phrases) > _SHOWN else "")
