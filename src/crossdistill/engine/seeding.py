"""What makes a step repeatable: generators seeded per step, deterministic kernels, and the facts that still matter."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.utils.deterministic
from accelerate import Accelerator

from crossdistill.engine.devices import shards_wanted
from crossdistill.settings import TrainSettings


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch (all devices), numpy and python from (seed, step, rank), so that no generator state is ever saved."""
    words = np.random.SeedSequence([seed, step, rank]).generate_state(4, np.uint32)
    value = int(words[0]) << 32 | int(words[1])
    torch.default_generator.manual_seed(value)  # `torch.manual_seed` asks every kind of device, which takes 0.1 ms
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(value)
    np.random.seed(words[2])
    random.seed(int(words[3]))


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On CUDA, choose kernels that give the same bits each time; where none exists, PyTorch warns.

    What was set before is set again afterwards.
    """
    if device.type != "cuda":
        yield
        return
    memory: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        memory.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling fresh memory finds reads of uninitialised tensors; it costs time and changes no result of sound kernels.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = before[2]


def environment(accelerator: Accelerator, settings: TrainSettings) -> dict[str, Any]:
    """What a resumed run must share with the interrupted one to continue bit for bit."""
    device = accelerator.device
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "precision": settings.precision,
        "processes": accelerator.num_processes,
        "device_batch_size": settings.device_batch_size,
        "parallel": "fsdp" if shards_wanted(settings, accelerator) else "ddp",
        "channels_last": settings.channels_last,
        "compile_student": settings.compile_student,
        "compile_teacher": settings.compile_teacher,
        "compile_method": settings.compile_method,
        "cuda_graphs": settings.cuda_graphs,
        "fused_optimizer": settings.fused_optimizer,
    }
