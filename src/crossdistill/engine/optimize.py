"""timm's optimisers and schedules by name, for student and method together."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatch
from typing import Any

import torch
from timm.optim import (  # type: ignore[attr-defined]
    create_optimizer_v2,
    get_optimizer_info,
    list_optimizers,
    param_groups_weight_decay,
)
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from crossdistill.errors import InputError, nearest
from crossdistill.models.cutter import classifier_names
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

    Biases and other one-dimensional parameters get no weight decay, nor does what ``learner.no_weight_decay()`` lists;
    with ``decay_all`` everything does. The student's classifier may have a rate of its own (``classifier_lr``).

    With ``fused_optimizer`` one kernel updates all weights, in another order of roundings: by default wherever PyTorch
    has such a kernel (Adam, AdamW, SGD and Adagrad, on CPUs as on GPUs; measured in ``benchmarks/parts.py``).

    Raises:
        InputError: a name that timm does not know, an optimiser that this loop cannot drive, one without a fused kernel
            where that is asked for, or a rate for a classifier without weights.
    """
    name = settings.optimizer
    check_optimizer(name)
    fused: dict[str, Any] = {"fused": True} if _fuse(learner, settings) else {}
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            parameter_groups(learner, settings), name, lr=settings.lr, momentum=settings.momentum, **fused
        )
    except (AssertionError, ImportError, TypeError) as error:
        raise InputError(f"optimizer {name!r}: {error}", "one that can be built here", "use adamw or sgd") from error
    return optimizer


def parameter_groups(learner: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """All trained parameters by weight decay and rate; the first group has the rate that is shown.

    ``lr_scale`` is timm's word for a group whose rate is a multiple of the schedule's.
    """
    if settings.decay_all:
        trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [{"params": trained, "weight_decay": settings.weight_decay}]
    else:
        exempt: Callable[[], Collection[str]] = getattr(learner, "no_weight_decay", tuple)
        groups = param_groups_weight_decay(learner, weight_decay=settings.weight_decay, no_weight_decay_list=exempt())
    if settings.classifier_lr is None:
        return groups
    heads = _classifier(learner, settings)
    trunk = [{**one, "params": [each for each in one["params"] if id(each) not in heads]} for one in groups]
    own = [{**one, "params": [each for each in one["params"] if id(each) in heads]} for one in groups]
    scale = settings.classifier_lr / settings.lr
    return [one for one in [*trunk, *({**one, "lr_scale": scale} for one in own)] if one["params"]]


def _classifier(learner: nn.Module, settings: TrainSettings) -> set[int]:
    """Identities of the parameters of the student's classifier.

    Raises:
        InputError: it has none, and a rate for it is asked for.
    """
    student: nn.Module = getattr(learner, "student", learner)
    net: nn.Module = getattr(student, "net", student)
    found = {id(one) for name in classifier_names(net) for one in net.get_submodule(name).parameters()}
    if not found:
        raise InputError(
            f"train.classifier_lr={settings.classifier_lr:g} for a {type(net).__name__}, whose classifier is empty",
            "a network that ends in a layer with weights",
            "leave train.classifier_lr out",
        )
    return found


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
    ``decay_epochs`` or at ``milestones``, or constant. No schedule goes above ``lr``. With ``warmup="before"`` warm-up
    goes by step, and the schedule begins where it ends instead of running on beneath it.

    Args:
        optimizer: its parameter groups are set.
        settings: ``schedule``, ``schedule_per``, ``lr``, ``min_lr``, warm-up and decay.
        total_steps: length of the run in optimiser steps.
        steps_per_epoch: what an epoch is.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, settings: TrainSettings, *, total_steps: int, steps_per_epoch: int
    ) -> None:
        before = settings.warmup == "before"
        self._steps_per_epoch = steps_per_epoch if settings.schedule_per == "epoch" else 1
        # With warm-up before it, time is counted in steps, and the schedule is asked at the beginnings of epochs alone.
        self._steps_per_unit = 1 if before else self._steps_per_epoch
        units_per_epoch = steps_per_epoch // self._steps_per_unit
        total = math.ceil(total_steps / self._steps_per_unit)
        self._warmup = int(min(round(settings.warmup_epochs * units_per_epoch), total * LARGEST_WARMUP))
        constant = settings.schedule == "constant"
        decays = settings.schedule if settings.milestones is None else "multistep"
        self._scheduler, _ = create_scheduler_v2(
            optimizer,
            sched="step" if constant else decays,
            num_epochs=total - self._warmup if before else total,
            warmup_epochs=self._warmup,
            warmup_prefix=before,
            warmup_lr=min(settings.warmup_lr, settings.lr),
            min_lr=min(settings.min_lr, settings.lr),
            decay_epochs=settings.decay_epochs * units_per_epoch,
            # timm decays one unit before a milestone, and counts from the end of a warm-up that comes before.
            decay_milestones=[
                round(one * units_per_epoch) + 1 - self._warmup * before for one in settings.milestones or ()
            ],
            decay_rate=1.0 if constant else settings.decay_rate,
            step_on_epochs=True,  # its unit of time is whatever we count in
        )
        self._optimizer = optimizer

    def set(self, step: int) -> None:
        """Set the rate for the optimiser step that follows ``step`` finished ones."""
        unit = step // self._steps_per_unit
        if self._steps_per_unit < self._steps_per_epoch:
            unit = max(min(unit, self._warmup), unit - step % self._steps_per_epoch)
        self._scheduler.step(unit)

    @property
    def current(self) -> float:
        """The rate that is set now."""
        return float(self._optimizer.param_groups[0]["lr"])
