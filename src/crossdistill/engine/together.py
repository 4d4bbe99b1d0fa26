"""What one of several processes does for all of them, and what all of them bring together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from crossdistill.engine.devices import in_group
from crossdistill.errors import InputError

T = TypeVar("T")


def on_main(action: Callable[[], T]) -> T:
    """Run ``action`` on the main process only; every process gets its result, or raises its error.

    For what touches files: no process reads what another is writing, and none goes on where the main one stopped.
    The result travels between processes, so it must be plain data. With one process this is just ``action()``.

    Raises:
        InputError: raised by the action, on every process.
        RuntimeError: on the other processes, where the action failed in another way.
    """
    if not in_group():
        return action()
    outcome: list[Any] = [None, None]
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            outcome[0] = action()
        except Exception as error:  # whatever it is, the others are waiting to hear of it
            failure = error
            outcome[1] = error if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    dist.broadcast_object_list(outcome, src=0)
    if failure is not None:
        raise failure
    if isinstance(outcome[1], InputError):
        raise outcome[1]
    if outcome[1] is not None:
        raise RuntimeError(f"the main process failed: {outcome[1]}")
    result: T = outcome[0]
    return result


def from_all(value: T) -> list[T]:
    """The values that all processes bring, in order of rank; each gets the whole list."""
    if not in_group():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
