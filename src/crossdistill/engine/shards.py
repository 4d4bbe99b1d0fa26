"""The weights of a run where every process holds a part of each (FSDP2)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed import broadcast
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from crossdistill.contracts import Teacher
from crossdistill.engine.average import moving_average
from crossdistill.engine.copies import Copies, State, same_buffers
from crossdistill.engine.evaluate import eval_mode
from crossdistill.engine.learner import Learner
from crossdistill.engine.optimize import build_optimizer
from crossdistill.errors import InputError
from crossdistill.settings import TrainSettings


class Shards(Copies):
    """As :class:`Copies`; weights, gradients, optimiser state and average are spread over the processes.

    A twin of the learner is trained in shards. The learner itself waits on the CPU, whole, to be measured (processes
    may hold different numbers of batches then, and a gather needs all of them) and to be handed back at the end. The
    teacher stays whole on every process, also where the method holds parts of it.

    Shards are gathered before the twin's forward pass and freed after its backward pass, all at once: a method may
    then reach into the student wherever it likes.

    accelerate shards on GPUs only, and then wants to wrap, load and save in its own way. So PyTorch is asked directly,
    and accelerate keeps devices, autocast and loss scaling. State is gathered tensor by tensor, into the form that one
    process has: ``torch.distributed.checkpoint`` refuses a method without weights, and an optimiser that has no state
    for a weight that no loss reaches.

    Raises:
        InputError: an optimiser that does not work on shards.
    """

    def __init__(
        self, learner: Learner, teacher: Teacher | None, settings: TrainSettings, accelerator: Accelerator
    ) -> None:
        self.accelerator, self.settings, self.teacher = accelerator, settings, teacher
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        _check_optimizer(settings, mesh)
        for tensor in (*learner.parameters(), *learner.buffers()):
            broadcast(tensor.detach(), src=0)
        self.whole = learner
        shared: list[nn.Module] = list(teacher.modules()) if isinstance(teacher, nn.Module) else []
        self.learner = copy.deepcopy(learner, {id(module): module for module in shared})
        self.whole.to("cpu")
        if isinstance(teacher, nn.Module):  # the method may have taken it along
            teacher.to(accelerator.device)
        frozen = {parameter for module in shared for parameter in module.parameters()}
        self.ema = moving_average(self.learner.student, settings.ema_decay)  # shards cannot be copied
        if self.ema is not None:
            self.ema.foreach = False  # its list holds shards and plain buffers, which no kernel takes together
            fully_shard(self.ema.module, mesh=mesh)
        fully_shard(self.learner, mesh=mesh, ignored_params=frozen)
        self.learner.compile_parts(settings)
        self.optimizer = accelerator.prepare_optimizer(build_optimizer(self.learner, settings))
        # "Evaluation" is accelerate's word for autocast without DDP.
        self.model = accelerator.prepare_model(self.learner, evaluation_mode=True)

    def update(self, step: int) -> None:
        """Also keep buffers the same on all processes; nobody else does it for shards."""
        same_buffers(self.learner)
        super().update(step)

    @contextmanager
    def exported(self) -> Iterator[nn.Module]:
        """The whole student as it would be exported now, on every process."""
        source = self.learner.student if self.ema is None else self.ema.module
        self.whole.student.load_state_dict(_each_tensor(source.state_dict(), _full))
        try:
            yield self.whole.student
        finally:
            self.whole.student.to("cpu")

    @contextmanager
    def measured(self) -> Iterator[Mapping[str, nn.Module]]:
        """The whole method's own networks, which are made of the whole student, with the weights of the shards."""
        networks = self.whole.method.measured()
        if not networks:
            yield {}
            return
        for whole, part in ((self.whole.student, self.learner.student), (self.whole.method, self.learner.method)):
            whole.load_state_dict(_each_tensor(part.state_dict(), _full))
        self.whole.to(self.accelerator.device)
        try:
            with eval_mode(self.whole):
                yield networks
        finally:
            self.whole.to("cpu")
            if isinstance(self.teacher, nn.Module):  # the method may have taken it along
                self.teacher.to(self.accelerator.device)

    def finish(self, chosen: dict[str, Tensor]) -> None:
        """Also hand the method back as it was trained."""
        self.whole.method.load_state_dict(_each_tensor(self.learner.method.state_dict(), _full))
        with self.exported() as exported:
            exported.eval().load_state_dict(chosen or exported.state_dict())
        self.whole.to(self.accelerator.device)

    def state_dict(self) -> State:
        """As of one process, on the main process; the others take part and get empty tensors."""
        gathered: State = _each_tensor(super().state_dict(), self._on_main)
        return gathered

    def load_state_dict(self, state: State) -> None:
        """Take up the state of :meth:`state_dict`, which every process has read whole."""
        now = super().state_dict()
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        by_parameter = {
            index: _each_tensor(entries, partial(_scattered, like=parameters[index]))
            for index, entries in state["optimizer"]["state"].items()
        }
        modules = {part: _each_scattered(state[part], now[part]) for part in ("student", "method", "ema") if now[part]}
        super().load_state_dict({**state, **modules, "optimizer": {**state["optimizer"], "state": by_parameter}})

    def _on_main(self, tensor: Tensor) -> Tensor:
        full = _full(tensor)
        return full.cpu() if self.accelerator.is_main_process else full.new_empty(0)


def _check_optimizer(settings: TrainSettings, mesh: DeviceMesh) -> None:
    """Try a step on a small layer: PyTorch does not have every operation on shards that optimisers use.

    Raises:
        InputError: the step fails.
    """
    layer = nn.Linear(4, 2 * mesh.size(), device=mesh.device_type)
    fully_shard(layer, mesh=mesh)
    optimizer = build_optimizer(layer, settings)
    layer(torch.ones(2, 4, device=mesh.device_type)).sum().backward()
    try:
        optimizer.step()
    except Exception as error:  # each optimiser fails in its own way
        raise InputError(
            f"optimizer {settings.optimizer!r} with sharded weights, on which it fails: {str(error).split('. ')[0]}",
            "an optimiser that works on shards",
            "use adamw, sgd or lamb, or train.parallel=ddp",
        ) from error


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _each_scattered(state: State, now: State) -> State:
    return {name: _scattered(tensor, now[name]) if name in now else tensor for name, tensor in state.items()}


def _scattered(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that goes with the parameter ``like``: cut alike, or of another shape whole."""
    if not isinstance(like, DTensor) or tensor.ndim == 0:
        return tensor
    placements = like.placements if tensor.shape == like.shape else [Replicate()]
    return distribute_tensor(tensor.to(like.device), like.device_mesh, placements, src_data_rank=None)


def _each_tensor(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nested state with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: _each_tensor(value, change) for key, value in tree.items()}
    return type(tree)(_each_tensor(value, change) for value in tree) if isinstance(tree, (list, tuple)) else tree
