"""timm's optimisers and schedules by name, for student and method together."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from typing import Any

import torch
from timm.optim import (  # type: ignore[attr-defined]
    create_optimizer_v2,
    get_optimizer_info,
    list_optimizers,
)
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from crossdistill.errors import InputError, nearest
from crossdistill.settings import TrainSettings

LARGEST_WARMUP = 0.2
"""Share of the run that warm-up may take."""


def undecayed(student: nn.Module) -> set[str]:
    """Names of the student's parameters that it wants no weight decay on (position embeddings, class tokens, …).

    The network says so in its own words (``no_weight_decay()``, names or patterns); here they are the names under
    which the student's ``named_parameters`` lists them.
    """
    net: nn.Module = getattr(student, "net", student)
    declare: Callable[[], Iterable[str]] = getattr(net, "no_weight_decay", tuple)
    patterns = declare()
    wanted = {
        id(parameter)
        for name, parameter in net.named_parameters()
        if any(fnmatch(name, pattern) for pattern in patterns)
    }
    return {name for name, parameter in student.named_parameters() if id(parameter) in wanted}


def check_optimizer(name: str) -> None:
    """Refuse a name of which no optimiser can be built, before anything else is.

    Raises:
        InputError: a name that timm does not know, or an optimiser that this loop cannot drive.
    """
    known = [str(one) for one in list_optimizers()]
    if name.lower().removeprefix("lookahead_") not in known:
        raise InputError(f"optimizer {name!r}", "an optimiser name of timm", nearest(name, known))
    if get_optimizer_info(name.lower().split("_")[-1]).second_order:
        raise InputError(f"optimizer {name!r}, of second order", "one of first order", "use adamw, sgd or lamb")


def build_optimizer(learner: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Any optimiser of timm over all trained parameters of ``learner``, where they lie now.

    Biases and other one-dimensional parameters get no weight decay, nor does what ``learner.no_weight_decay()`` lists.

    With ``fused_optimizer`` one kernel updates all weights, in another order of roundings: by default wherever PyTorch
    has such a kernel (Adam, AdamW, SGD and Adagrad, on CPUs as on GPUs; measured in ``benchmarks/parts.py``).

    Raises:
        InputError: a name that timm does not know, an optimiser that this loop cannot drive, or one without a fused
            kernel where that is asked for.
    """
    name = settings.optimizer
    check_optimizer(name)
    fused: dict[str, Any] = {"fused": True} if _fuse(learner, settings) else {}
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            learner, name, lr=settings.lr, weight_decay=settings.weight_decay, momentum=settings.momentum, **fused
        )
    except (AssertionError, ImportError, TypeError) as error:
        raise InputError(f"optimizer {name!r}: {error}", "one that can be built here", "use adamw or sgd") from error
    return optimizer


def _fuse(learner: nn.Module, settings: TrainSettings) -> bool:
    """Whether the optimiser is to be fused.

    Raises:
        InputError: it must be, and cannot.
    """
    if settings.fused_optimizer is False:
        return False
    trained = (parameter for parameter in learner.parameters() if parameter.requires_grad)
    smallest = min(trained, key=Tensor.numel, default=torch.empty(0))
    able = _has_fused(settings.optimizer, smallest)
    if settings.fused_optimizer and not able:
        sharded = "shards of " if isinstance(smallest, DTensor) else ""
        raise InputError(
            f"train.fused_optimizer with optimizer {settings.optimizer!r} and {sharded}weights on "
            f"{smallest.device.type}, for which PyTorch has no fused kernel",
            "an optimiser that has one there, such as adamw or adam",
            "choose it, or leave train.fused_optimizer out",
        )
    return able


def _has_fused(name: str, weight: Tensor) -> bool:
    """Whether PyTorch's class of that name takes a fused step on such a weight: device, shards and version decide."""
    made: Any = get_optimizer_info(name.lower().split("_")[-1]).opt_class
    if not isinstance(made, type) or "fused" not in inspect.signature(made).parameters:
        return False
    trial = nn.Parameter(torch.zeros_like(weight))
    trial.grad = torch.zeros_like(weight)
    try:
        made([trial], lr=1e-3, fused=True).step()
    except RuntimeError:
        return False
    return True


class LearningRate:
    """The learning rate as a pure function of the step, so that nothing of it needs saving.

    Linear warm-up counts inside the total and takes at most a fifth of it; then cosine to ``min_lr``, a decay every
    ``decay_epochs``, or constant. No schedule goes above ``lr``.

    Args:
        optimizer: its parameter groups are set.
        settings: ``schedule``, ``schedule_per``, ``lr``, ``min_lr``, warm-up and decay.
        total_steps: length of the run in optimiser steps.
        steps_per_epoch: what an epoch is.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, settings: TrainSettings, *, total_steps: int, steps_per_epoch: int
    ) -> None:
        per_epoch = settings.schedule_per == "epoch"
        self._steps_per_unit = steps_per_epoch if per_epoch else 1
        units_per_epoch = 1 if per_epoch else steps_per_epoch
        total = math.ceil(total_steps / self._steps_per_unit)
        constant = settings.schedule == "constant"
        self._scheduler, _ = create_scheduler_v2(
            optimizer,
            sched="step" if constant else settings.schedule,
            num_epochs=total,
            warmup_epochs=int(min(round(settings.warmup_epochs * units_per_epoch), total * LARGEST_WARMUP)),
            warmup_lr=min(settings.warmup_lr, settings.lr),
            min_lr=min(settings.min_lr, settings.lr),
            decay_epochs=settings.decay_epochs * units_per_epoch,
            decay_rate=1.0 if constant else settings.decay_rate,
            step_on_epochs=True,  # its unit of time is whatever we count in
        )
        self._optimizer = optimizer

    def set(self, step: int) -> None:
        """Set the rate for the optimiser step that follows ``step`` finished ones."""
        self._scheduler.step(step // self._steps_per_unit)

    @property
    def current(self) -> float:
        """The rate that is set now."""
        return float(self._optimizer.param_groups[0]["lr"])
