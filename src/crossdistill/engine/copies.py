"""The weights of a run where every process holds all of them: one process, or several with DDP."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed import broadcast
from torch.nn.parallel import DistributedDataParallel

from crossdistill.engine.average import moving_average
from crossdistill.engine.evaluate import eval_mode
from crossdistill.engine.learner import Learner
from crossdistill.engine.ledger import not_finite
from crossdistill.engine.optimize import build_optimizer
from crossdistill.settings import TrainSettings

State = dict[str, Any]

MOST_SKIPPED = 40
"""Steps in a row: each halves the loss scale, which starts at 2 ** 16."""


class Copies:
    """Student, method, optimiser and moving average: what a step calls and changes, and what is measured and saved.

    Args:
        learner: student and method on their device; they are trained in place.
        settings: optimiser, clipping, averaging, compilation.
        accelerator: the other processes, autocast and loss scaling.
    """

    num_skipped = 0
    _scale = 0.0  # of losses in fp16, as last read; 0: not read yet

    def __init__(self, learner: Learner, settings: TrainSettings, accelerator: Accelerator) -> None:
        self.accelerator, self.settings = accelerator, settings
        self.learner = learner
        learner.compile_parts(settings)
        self.optimizer = accelerator.prepare_optimizer(build_optimizer(learner, settings))
        leave_out(learner, [f"method.{name}" for name in learner.method.alike()])
        self.model: nn.Module = accelerator.prepare_model(learner)  # processes now start from the same weights
        self.ema = moving_average(learner.student, settings.ema_decay)

    def update(self, step: int) -> None:
        """One step of the optimiser with the gradients at hand, then of the average; ``step`` counts from 1.

        In fp16 gradients may overflow while the loss scale is being found. Such a step changes no weight.

        Raises:
            InputError: they overflow at every scale.
        """
        if self.settings.clip_grad is not None:  # accelerate undoes the loss scale first
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_grad)
        was_skipped = self._step()
        self.optimizer.zero_grad()
        if was_skipped:
            self.num_skipped += 1
            if self.num_skipped == MOST_SKIPPED:
                raise not_finite(f"gradients are not finite in {MOST_SKIPPED} steps in a row", self.settings)
            return
        self.num_skipped = 0
        if self.ema is not None:
            self.ema.update(self.learner.student, step=step)

    def _step(self) -> bool:
        """Whether the optimiser skipped its step, which only happens in fp16.

        With loss scaling somebody must read whether gradients overflowed: a device is waited for, once a step. A fused
        optimiser sees to it on the device, of which accelerate does not hear; but then the scale has been lowered.
        """
        scaler = self.accelerator.scaler
        if scaler is None or not getattr(self.optimizer.optimizer, "_step_supports_amp_scaling", False):
            self.optimizer.step()
            return bool(self.optimizer.step_was_skipped)
        before = self._scale or scaler.get_scale()
        self.optimizer.step()
        self._scale = scaler.get_scale()
        return self._scale < before

    @contextmanager
    def exported(self) -> Iterator[nn.Module]:
        """The student as it would be exported now: the moving average where there is one."""
        student = self.learner.student if self.ema is None else self.ema.module
        if self.accelerator.num_processes > 1:
            same_buffers(student)
        yield student

    @contextmanager
    def measured(self) -> Iterator[Mapping[str, nn.Module]]:
        """The method's own networks as they are trained now, in eval mode with all that they are made of."""
        networks = self.learner.method.measured()
        if networks and self.accelerator.num_processes > 1:
            same_buffers(self.learner)
        with eval_mode(self.learner):
            yield networks

    def finish(self, chosen: dict[str, Tensor]) -> None:
        """Leave the student in eval mode with the ``chosen`` weights, or without any those of :meth:`exported`."""
        with self.exported() as exported:
            self.learner.student.eval().load_state_dict(chosen or exported.state_dict())

    def state_dict(self) -> State:
        """All that a resume needs: no generator states, since each step seeds its own, and no position but the step."""
        scaler = self.accelerator.scaler
        return {
            "student": self.learner.student.state_dict(),
            "method": self.learner.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Take up the state of :meth:`state_dict`, also one that the other way of holding weights gave."""
        self.learner.student.load_state_dict(state["student"])
        self.learner.method.load_state_dict(state["method"])
        optimizer = state["optimizer"]
        # Whether it is fused is for this run to say: with its groups, an optimiser takes up everything about them.
        now = [{name: group[name] for name in ("fused",) if name in group} for group in self.optimizer.param_groups]
        groups = [{**old, **new} for old, new in zip(optimizer["param_groups"], now, strict=True)]
        self.optimizer.load_state_dict({**optimizer, "param_groups": groups})
        for parameter, entries in self.optimizer.state.items():
            entries |= {name: _laid_out(value, parameter) for name, value in entries.items()}
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
            self._scale = 0.0


def _laid_out(value: Any, parameter: Tensor) -> Any:
    """A tensor that goes with each element of a weight, in that weight's order in memory: fused kernels go by that."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def leave_out(learner: nn.Module, buffers: list[str]) -> None:
    """Have DDP send all buffers but these with each forward pass: every process has them already."""
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(learner, buffers)  # type: ignore[no-untyped-call]


def same_buffers(module: nn.Module) -> None:
    """Give every process the main one's statistics and memories.

    DDP does so before a forward pass, but after the last one each process has its own.
    """
    saved = module.state_dict().keys()
    by_type: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for name, tensor in module.named_buffers():
        if name in saved:  # what is not saved is a constant
            by_type[tensor.dtype].append(tensor)
    for tensors in by_type.values():
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        broadcast(flat, src=0)
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()
