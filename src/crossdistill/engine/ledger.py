"""Losses of past steps, kept on the device and read together, so that no step waits for the host."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from crossdistill.engine.devices import in_group
from crossdistill.errors import InputError
from crossdistill.settings import TrainSettings


class Ledger:
    """The losses since the last reading, by step and name."""

    def __init__(self, accelerator: Accelerator, settings: TrainSettings) -> None:
        self._accelerator, self._settings = accelerator, settings
        self._pending: list[tuple[int, dict[str, Tensor]]] = []

    def add(self, step: int, losses: dict[str, Tensor]) -> None:
        """Note the detached losses of one step, each a scalar on the device."""
        self._pending.append((step, losses))

    def read(self, *, stop: bool) -> tuple[dict[str, float], bool]:
        """Mean of each loss since the last reading, over steps and processes, and whether any process wants to stop.

        Raises:
            InputError: naming the first loss that is not finite and its step. All processes raise alike.
        """
        device = self._accelerator.device
        values = [value.float() for _, losses in self._pending for value in losses.values()]
        message = torch.stack([*values, torch.tensor(float(stop), device=device)])
        *numbers, any_stop = self._accelerator.reduce(message, "mean").tolist()
        by_name: dict[str, list[float]] = defaultdict(list)
        remaining = iter(numbers)
        for step, losses in self._pending:
            for name in losses:
                value = next(remaining)
                if not math.isfinite(value):
                    raise not_finite(f"loss {name!r} is {value} at step {step}", self._settings)
                by_name[name].append(value)
        self._pending.clear()
        return {name: sum(found) / len(found) for name, found in by_name.items()}, any_stop > 0


def check_finite(learner: nn.Module, step: int, settings: TrainSettings) -> None:
    """Refuse weights or buffers that are not finite: a gradient can be broken where every loss still looks sound.

    Raises:
        InputError: naming the first such tensor.
    """
    tensors = {name: t for name, t in learner.state_dict().items() if t.is_floating_point()}
    # Of a sharded tensor each process holds a part; all must come to the same verdict.
    parts = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors.values())
    sound = torch.stack([part.isfinite().all() for part in parts])
    if in_group():
        torch.distributed.all_reduce(sound, torch.distributed.ReduceOp.MIN)
    if not sound.all():
        name = list(tensors)[int(sound.logical_not().nonzero()[0])]
        raise not_finite(f"{name} holds values that are not finite after step {step}", settings)


def check_alike(learner: nn.Module, names: Iterable[str]) -> None:
    """Make sure that buffers which every process computes for itself are the same in all of them.

    Raises:
        RuntimeError: naming the first that is not, on every process.
    """
    buffers = dict(learner.named_buffers())
    chosen = [name for name in names if name in buffers]
    if not in_group() or not chosen:
        return
    # Sums in float64 of values and of squares: equal tensors have equal ones, and others hardly.
    tensors = (buffers[name].double() for name in chosen)
    marks = torch.stack([torch.stack([one.sum(), one.square().sum()]) for one in tensors])
    least, most = marks.clone(), marks.clone()
    torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    differing = (least != most).any(dim=1)
    if differing.any():
        name = chosen[int(differing.nonzero()[0])]
        raise RuntimeError(f"{name} is not the same on all processes: they no longer train one network")


def not_finite(given: str, settings: TrainSettings) -> InputError:
    """The error for a run that broke, with what usually helps."""
    advice = [f"lower train.lr (now {settings.lr:g})"]
    if settings.clip_grad is None:
        advice.append("set train.clip_grad (1 to 5 is usual)")
    if settings.precision == "fp16":
        advice.append("use train.precision=bf16 or fp32")
    return InputError(
        given,
        "finite numbers",
        ", ".join(advice) + "; look at the input images and the teacher too. Checkpoints written before are sound",
    )
