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
    grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not tensors or not grouped or torch.distributed.get_world_size() == 1:
        return list(tensors), 0
    counts = row_counts(tensors[0])
    return [all_rows(tensor, counts) for tensor in tensors], sum(counts[: torch.distributed.get_rank()])


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
