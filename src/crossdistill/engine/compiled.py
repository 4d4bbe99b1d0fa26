"""``torch.compile`` for the networks of a training step, and nothing of it left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from crossdistill.contracts import Teacher
from crossdistill.errors import InputError
from crossdistill.settings import TrainSettings
from crossdistill.teachers import FrozenTeacher

BACKEND = "inductor"

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """The function compiled for each shape on its own.

    Code that serves several shapes depends on which of them came first, and a resumed run meets them in another order.
    """
    result: F = torch.compile(function, backend=BACKEND, dynamic=False)  # type: ignore[assignment]
    return result


def check_compiler(settings: TrainSettings, device: torch.device) -> None:
    """Compile something small, if anything is to be compiled: whether it works depends on the machine.

    Raises:
        InputError: there is no compiler, or it fails.
    """
    if not (settings.compile_student or settings.compile_teacher):
        return
    try:
        numbers = torch.ones(8, device=device, requires_grad=True)
        torch.autograd.grad(compiled(_sum_of_squares)(numbers), numbers)
    except Exception as error:  # of PyTorch's, of Triton's, or of the system's, as the case may be
        name = "train.compile_student" if settings.compile_student else "train.compile_teacher"
        needed = "a C++ compiler" if device.type == "cpu" else "Triton, a C compiler and a GPU that Triton knows"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{name} on a machine where torch.compile fails: {reason}",
            f"{needed}, found by PyTorch",
            f"install it (CXX names another compiler), or set {name}=false",
        ) from error


def _sum_of_squares(x: Tensor) -> Tensor:
    return (x * x).sum()


@contextmanager
def compiled_teacher(teacher: Teacher | None, settings: TrainSettings) -> Iterator[None]:
    """The teacher's networks run compiled in this block; names and weights stay, and afterwards all is as before.

    Raises:
        InputError: a teacher without a network.
    """
    networks = _networks(teacher) if settings.compile_teacher else []
    for network in networks:
        network.forward = compiled(network.forward)
    try:
        yield
    finally:
        for network in networks:
            del network.forward  # the class's own comes to light again
        if networks or settings.compile_student:
            # Compiled code is kept by function, a few pieces each; later runs of this process need the room.
            torch.compiler.reset()


def _networks(teacher: Teacher | None) -> list[nn.Module]:
    if teacher is None:
        return []
    modules = teacher.modules() if isinstance(teacher, nn.Module) else ()
    networks = [module.model for module in modules if isinstance(module, FrozenTeacher)]
    if not networks:
        raise InputError(
            f"train.compile_teacher with teacher {teacher.spec.name}, which runs no network",
            "a live teacher",
            "set train.compile_teacher=false",
        )
    return networks
