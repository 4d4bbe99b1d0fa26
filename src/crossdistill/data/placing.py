"""Small host arrays on the device that works on pixels, without making the host wait for it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def placed(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array as a tensor there; on the CPU it shares the array's memory."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":  # only pinned memory is copied while the host goes on
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers that are needed again and again, float32 and brought there once; not to be changed."""
    return torch.tensor(values, dtype=torch.float32, device=device)
