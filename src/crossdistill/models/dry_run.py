"""Run a network on tensors without data, to learn shapes in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

T = TypeVar("T")

BATCH_SIZE = 2
"""Batch norms refuse one sample with one position in train mode."""


class _Probe(nn.Module, Generic[T]):
    """Makes a function of a network a module, so that ``functional_call`` can lend it other tensors."""

    def __init__(self, net: nn.Module, call: Callable[[nn.Module, Tensor], T]) -> None:
        super().__init__()
        self.net, self.call = net, call

    def forward(self, images: Tensor) -> T:
        return self.call(self.net, images)


def dry_run(
    net: nn.Module, call: Callable[[nn.Module, Tensor], T], image_shape: tuple[int, int, int], *, training: bool = False
) -> T:
    """``call(net, images)`` on two images ``(C, H, W)``, leaving weights, statistics, modes and generators alone.

    Everything lies on the meta device; a network that cannot run there gets zeros on its own device, and so does one
    with recurrent layers, which are unrolled step by step there.
    """
    with mode(net, training), torch.no_grad(), left_alone(net):
        try:
            if any(isinstance(module, nn.RNNBase) for module in net.modules()):
                raise NotImplementedError
            return _lend(net, call, image_shape, torch.device("meta"))
        except (RuntimeError, NotImplementedError):
            device = next((tensor.device for tensor in net.parameters()), torch.device("cpu"))
            with forked(device):
                return _lend(net, call, image_shape, device)


def _lend(
    net: nn.Module, call: Callable[[nn.Module, Tensor], T], image_shape: tuple[int, int, int], device: torch.device
) -> T:
    # copies where the device is the same, since a pass in train mode writes to its buffers
    tensors = {
        f"net.{name}": tensor.detach().to(device, copy=not isinstance(tensor, nn.Parameter))
        for name, tensor in slots(net).items()
    }
    dtype = next((tensor.dtype for tensor in net.parameters()), torch.float32)
    images = torch.zeros(BATCH_SIZE, *image_shape, device=device, dtype=dtype)
    result: T = functional_call(_Probe(net, call), tensors, (images,), tie_weights=False)
    return result


def slots(net: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer of every module under one name.

    These are the names to lend tensors under (with ``tie_weights=False``): a module that is used in several places
    has several names, and what is put in its place under the second one would stay there.
    """
    found: dict[str, Tensor] = {}
    for prefix, module in net.named_modules():
        members = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        found |= {f"{prefix}.{name}" if prefix else name: tensor for name, tensor in members.items()}
    return found


@contextmanager
def left_alone(net: nn.Module) -> Iterator[None]:
    """Undoes what a forward pass writes on the modules: tables that are made on first use, features kept for later."""
    containers = ("_parameters", "_buffers", "_modules")
    before = [
        (module, dict(vars(module)), {name: dict(vars(module)[name]) for name in containers})
        for module in net.modules()
    ]
    try:
        yield
    finally:
        for module, attributes, members in before:
            for name, kept in members.items():
                if not _same(vars(module)[name], kept):
                    vars(module)[name].clear()
                    vars(module)[name].update(kept)
            vars(module).clear()
            vars(module).update(attributes)


def _same(now: dict[str, Any], kept: dict[str, Any]) -> bool:
    return now.keys() == kept.keys() and all(now[name] is kept[name] for name in kept)


def forked(device: torch.device) -> Any:
    """A context that puts the generators of the CPU and of a device back."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


@contextmanager
def mode(net: nn.Module, training: bool) -> Iterator[None]:
    """Puts a network into one mode and every module back into its own."""
    before = {module: module.training for module in net.modules()}
    net.train(training)
    try:
        yield
    finally:
        for module, was_training in before.items():
            module.training = was_training
