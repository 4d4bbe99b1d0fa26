"""``torch.compile`` for the parts of a training step, and nothing of it left behind."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from crossdistill.contracts import Teacher
from crossdistill.errors import InputError
from crossdistill.settings import TrainSettings
from crossdistill.teachers import FrozenTeacher

BACKEND = "inductor"

RECOMPILE_LIMIT = 16
"""Pieces of compiled code a function may have, one for each shape that it meets; beyond, it runs as it is written.

The last micro-batch of a step and of a set are shapes of their own, and no run meets many more.
"""

PARTS = ("compile_student", "compile_teacher", "compile_method")
"""Settings that each ask for one part of the step to be compiled."""

_TAKES_LIMIT = "recompile_limit" in inspect.signature(torch.compile).parameters  # earlier versions: PyTorch's own

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F, *, cuda_graphs: bool = False) -> F:
    """The function compiled for each shape on its own; with ``cuda_graphs`` its kernels are recorded and replayed.

    Code that serves several shapes depends on which of them came first, and a resumed run meets them in another order.
    """
    mode = "reduce-overhead" if cuda_graphs else None
    limit: dict[str, Any] = {"recompile_limit": RECOMPILE_LIMIT} if _TAKES_LIMIT else {}
    result: F = torch.compile(function, backend=BACKEND, mode=mode, dynamic=False, **limit)  # type: ignore[assignment]
    return result


def begin_replay(learner: nn.Module, *, is_second: bool) -> None:
    """A micro-batch begins: CUDA graphs may overwrite all that they gave in the last one.

    Gradients are to stay and be added to. Those of the first micro-batch of a step lie where graphs write, and are
    moved before the second; from then on they are added up where they lie.
    """
    if is_second:
        for parameter in learner.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()
    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


def check_compiler(settings: TrainSettings, device: torch.device, *, sharded: bool = False) -> None:
    """Compile something small, if anything is to be compiled: whether it works depends on the machine.

    Raises:
        InputError: there is no compiler, or it fails; or CUDA graphs without anything to record them of, or where they
            cannot be replayed.
    """
    wanted = [part for part in PARTS if getattr(settings, part)]
    if settings.cuda_graphs:
        _check_graphs(wanted, device, sharded=sharded)
    if not wanted:
        return
    try:
        numbers = torch.ones(8, device=device, requires_grad=True)
        torch.autograd.grad(compiled(_sum_of_squares)(numbers), numbers)
    except Exception as error:  # of PyTorch's, of Triton's, or of the system's, as the case may be
        name = f"train.{wanted[0]}"
        needed = "a C++ compiler" if device.type == "cpu" else "Triton, a C compiler and a GPU that Triton knows"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{name} on a machine where torch.compile fails: {reason}",
            f"{needed}, found by PyTorch",
            f"install it (CXX names another compiler), or set {name}=false",
        ) from error


def _check_graphs(wanted: list[str], device: torch.device, *, sharded: bool) -> None:
    if not wanted:
        raise InputError(
            "train.cuda_graphs without anything compiled",
            "a compiled part of the step: only that can be replayed as a CUDA graph",
            f"set {', '.join(f'train.{part}=true' for part in PARTS)}, or some of them; or train.cuda_graphs=false",
        )
    if device.type != "cuda":
        raise InputError(
            f"train.cuda_graphs on {device.type}", "a CUDA device", "use device=cuda, or set train.cuda_graphs=false"
        )
    if sharded:
        raise InputError(
            "train.cuda_graphs with sharded weights, which lie elsewhere in memory in every step",
            "weights that stay where they are",
            "set train.parallel=ddp, or train.cuda_graphs=false",
        )


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
        network.forward = compiled(network.forward, cuda_graphs=settings.cuda_graphs)
    try:
        yield
    finally:
        for network in networks:
            del network.forward  # the class's own comes to light again
        if networks or settings.compile_student or settings.compile_method:
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
