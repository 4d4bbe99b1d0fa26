"""The rows of all processes, for losses that compare each sample with those of every other process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import nn as collectives


def gather_rows(tensors: Sequence[Tensor]) -> tuple[list[Tensor], int]:
    """Each tensor with its rows of all processes in order of rank, and where the rows of this process begin.

    Gradients go back to the process whose rows they are; what needs none is gathered without. Alone, a process gets
    the tensors as they are.

    Args:
        tensors: T times ``(B, ...)``; B may differ between processes, all else and T must not.

    Returns:
        T times ``(sum of B, ...)``, and the offset.
    """
    if not tensors or num_processes() == 1:
        return list(tensors), 0
    counts = row_counts(tensors[0])
    return [all_rows(tensor, counts) for tensor in tensors], sum(counts[: rank()])


def num_processes() -> int:
    """How many processes train together."""
    return torch.distributed.get_world_size() if _grouped() else 1


def rank() -> int:
    """Which of them this one is."""
    return torch.distributed.get_rank() if _grouped() else 0


def _grouped() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _summed(tensor: Tensor) -> Tensor:
    if tensor.requires_grad:
        total: Tensor = collectives.functional.all_reduce(tensor.contiguous())  # type: ignore[no-untyped-call]
        return total
    total = tensor.clone()
    torch.distributed.all_reduce(total)
    return total


def summed(tensor: Tensor) -> Tensor:
    """The sum of this tensor over all processes, each of which gets it; gradients go to all of them. Alone, itself."""
    return tensor if num_processes() == 1 else _summed(tensor)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # sizes of other processes are known to no compiler
def row_counts(tensor: Tensor) -> list[int]:
    """How many rows each process of the group has."""
    own = torch.full((1,), len(tensor), device=tensor.device)
    sizes = [torch.zeros_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(sizes, own)
    return [int(size) for size in sizes]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def all_rows(tensor: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows of all processes, of which each has as many as ``counts`` says; gradients go back where they came from.

    Every process sends as many as the largest has, since collectives want one shape.
    """
    missing = max(counts) - len(tensor)
    padded = torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]) if missing else tensor.contiguous()
    parts: Sequence[Tensor]
    if tensor.requires_grad:
        parts = collectives.functional.all_gather(padded)  # type: ignore[no-untyped-call]
    else:
        parts = [torch.empty_like(padded) for _ in counts]
        torch.distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
