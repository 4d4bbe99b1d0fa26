"""Whether a store is sound, and removing what is not, so that it can be written anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crossdistill.errors import InputError
from crossdistill.store import Store, Verification, verify
from crossdistill.store.shard import shard_path

_SHOWN = 20


def verify_store(path: Path, *, remove_damaged: bool = False) -> dict[str, Any]:
    """Check every byte of a store against its hash; the figures of one that is sound.

    Args:
        remove_damaged: delete the shards that are damaged. The command that made the store then writes exactly these
            and the missing ones.

    Raises:
        InputError: damaged or missing shards, with what to do, and all of them in its ``result``; or no store.
    """
    found = verify(path)
    if remove_damaged:
        for place in found.damaged:
            shard_path(path, *place).unlink(missing_ok=True)
    result = {
        "kind": "store_verified",
        "store": str(path),
        "num_whole_epochs": found.num_epochs,
        "num_begun_epochs": found.num_begun,
        "num_shards": found.num_shards,
        "num_rows": found.num_rows,
        "num_bytes": found.num_bytes,
        "damaged": [{"epoch": epoch, "shard": shard, "why": why} for (epoch, shard), why in found.damaged.items()],
        "missing": [{"epoch": epoch, "shard": shard} for epoch, shard in found.missing],
    }
    if not found.sound:
        error = _unsound(path, found, removed=remove_damaged)
        error.result = result
        raise error
    return result


def _unsound(path: Path, found: Verification, *, removed: bool) -> InputError:
    problems = []
    if found.damaged:
        listed = [f"epoch {epoch} shard {shard}: {reason}" for (epoch, shard), reason in found.damaged.items()]
        problems.append(f"{_number(len(listed), 'damaged')} ({_first(listed)}){', now removed' if removed else ''}")
    if found.missing:
        listed = [f"epoch {epoch} shard {shard}" for epoch, shard in found.missing]
        problems.append(f"{_number(len(listed), 'missing')} ({_first(listed)})")
    again = f"give again {Store.open(path).manifest.made_by(found.num_begun)}: it writes the missing shards"
    if found.damaged and not removed:
        again = f"remove the damaged ones (`crossdistill store --verify {path} --remove-damaged`), then {again}"
    begun = f"{found.num_begun} {'epoch' if found.num_begun == 1 else 'epochs'} begun"
    whole = f"the first {found.num_epochs} whole" if found.num_epochs else "not even the first whole"
    return InputError(
        f"store {path}: {begun}, {whole}; {' and '.join(problems)}",
        "every shard of each epoch that was begun, every byte as it was written",
        again,
    )


def _number(count: int, what: str) -> str:
    return f"{count} {what} {'shard' if count == 1 else 'shards'}"


def _first(phrases: list[str]) -> str:
    more = len(phrases) - _SHOWN
    return "; ".join(phrases[:_SHOWN]) + (f"; and {more} more (--json lists all)" if more > 0 else "")
