"""Which device, which precision, which process of how many."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, GradientAccumulationPlugin

from crossdistill.errors import InputError, nearest
from crossdistill.settings import TrainSettings

_DEVICES = ("auto", "cpu", "cuda")
_USE_FSDP = "ACCELERATE_USE_FSDP"
_SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def process() -> tuple[int, int]:
    """(rank, number of processes), as the launcher set them; (0, 1) without one."""
    if in_group():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def in_group() -> bool:
    """Whether this process is connected to others."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def connect(device: str = "auto", precision: str = "fp32") -> Accelerator:
    """An :class:`accelerate.Accelerator` for this device (auto, cpu, cuda) and precision (fp32, bf16, fp16).

    Several runs in one process may ask for different ones. accelerate keeps its state for the life of the process
    and refuses changes, so that state is dropped first where it differs; a process group stays as it is. One that is
    opened here is closed when the process exits.

    Raises:
        InputError: an unknown device, a device or precision that this machine does not have, or a launcher that is not
            supported.
    """
    if device not in _DEVICES:
        raise InputError(f"device {device!r}", f"one of {', '.join(_DEVICES)}", nearest(device, _DEVICES))
    use_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda", "a CUDA device that PyTorch can see", "use device=auto or device=cpu")
    _check_precision(precision, use_cpu)
    if not use_cpu:  # deterministic matrix products need this before the first of them
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    mixed_precision = "no" if precision == "fp32" else precision
    _forget_other_state(use_cpu, mixed_precision)
    was_in_group = in_group()
    with _own_sharding():
        accelerator = Accelerator(
            cpu=use_cpu,
            mixed_precision=mixed_precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            # Which parameters a step uses depends on the method and on its weights, so it must be found out.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    if in_group() and not was_in_group:
        atexit.register(_leave_group)
    if accelerator.distributed_type not in _SUPPORTED:
        raise InputError(
            f"a launch of type {accelerator.distributed_type.value}",
            "one process, or several on CPU or GPU, with DDP or FSDP2",
            "launch with `torchrun`, `accelerate launch --multi_gpu` or `--use_fsdp --fsdp_version 2`",
        )
    return accelerator


def shards_wanted(settings: TrainSettings, accelerator: Accelerator) -> bool:
    """Whether weights are to be sharded: several processes, and the settings or `accelerate launch` ask for it."""
    return accelerator.num_processes > 1 and (settings.parallel == "fsdp" or _launched_with_fsdp())


def _launched_with_fsdp() -> bool:
    return os.environ.get(_USE_FSDP, "").lower() in ("true", "1")


@contextmanager
def _own_sharding() -> Iterator[None]:
    """Hide from accelerate that its launcher asked for FSDP, which this package does by itself.

    Raises:
        InputError: the launcher asked for FSDP1, or for offloading to the CPU.
    """
    asked = os.environ.get(_USE_FSDP)
    if _launched_with_fsdp():
        version = os.environ.get("FSDP_VERSION", "1")
        offloads = os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true"
        if version != "2" or offloads:
            raise InputError(
                f"a launch with FSDP of version {version}{', offloading to the CPU' if offloads else ''}",
                "FSDP of version 2, without offloading",
                "launch with `accelerate launch --use_fsdp --fsdp_version 2`, or `torchrun` and train.parallel=fsdp",
            )
        del os.environ[_USE_FSDP]
    try:
        yield
    finally:
        if asked is not None:
            os.environ[_USE_FSDP] = asked


def _leave_group() -> None:
    if in_group():
        torch.distributed.destroy_process_group()


def _check_precision(precision: str, use_cpu: bool) -> None:
    if precision == "fp16" and use_cpu:
        raise InputError("precision fp16 on CPU", "fp32 or bf16 on CPU", "set train.precision=bf16 or fp32")
    if precision == "bf16" and not use_cpu and not torch.cuda.is_bf16_supported():
        name = torch.cuda.get_device_name()
        raise InputError(f"precision bf16 on {name}", "a GPU with bf16", "set train.precision=fp16 or fp32")


def _forget_other_state(use_cpu: bool, mixed_precision: str) -> None:
    if PartialState._shared_state and (PartialState().device.type == "cpu") != use_cpu:
        AcceleratorState._reset_state(reset_partial_state=True)
    shared = AcceleratorState._shared_state
    if shared and shared.get("_mixed_precision") != mixed_precision:
        AcceleratorState._reset_state()
