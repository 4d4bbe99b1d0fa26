"""What happens around a step for methods and teachers that move along: their turn, their figures, their state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from crossdistill.contracts import Follower, Method, Moment, Teacher
from crossdistill.engine.copies import same_buffers
from crossdistill.engine.devices import in_group
from crossdistill.engine.progress import Reporter
from crossdistill.engine.record import Record

TEACHER = "teacher"
"""The part of a checkpoint that holds a teacher with state of its own."""


def begin_step(method: Method, teacher: Teacher | None, student: nn.Module, moment: Moment) -> None:
    """A step begins: a teacher that follows the student moves now, by the weights before the step."""
    method.begin_step(moment)
    if isinstance(teacher, Follower):
        teacher.follow(student, moment)


def read_figures(method: Method, accelerator: Accelerator, record: Record, reporter: Reporter) -> dict[str, Any]:
    """The method's figures, averaged over processes, for the log; a word where they give cause for concern."""
    figures = _on_host(method, accelerator)
    for name, text in method.concerns(figures).items():
        if record.warn(name, text):
            reporter.message(f"warning: {text}")
    return {"figures": figures} if figures else {}


def _on_host(method: Method, accelerator: Accelerator) -> dict[str, float]:
    figures = method.figures()
    if not figures:
        return {}
    values = torch.stack([value.detach().float() for value in figures.values()]).to(accelerator.device)
    return dict(zip(figures, accelerator.reduce(values, "mean").tolist(), strict=True))


def settle(teacher: Teacher | None) -> None:
    """Give every process the main one's batch statistics of a teacher that follows: on CPUs each has its own."""
    if in_group() and isinstance(teacher, nn.Module) and isinstance(teacher, Follower):
        same_buffers(teacher)


def state_of(teacher: Teacher | None) -> dict[str, Any]:
    """What of the teacher belongs into a checkpoint: all of one that follows, nothing of any other."""
    settle(teacher)
    return {TEACHER: teacher.state_dict()} if isinstance(teacher, Follower) else {}


def take_up(teacher: Teacher | None, state: Mapping[str, Any]) -> None:
    """Give a teacher that follows what :func:`state_of` kept of it."""
    if isinstance(teacher, Follower):
        teacher.load_state_dict(state[TEACHER])
