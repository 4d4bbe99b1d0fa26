"""Tracing a network's own forward into a graph of calls, and running that graph without data."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.models import get_notrace_functions, is_notrace_module
from torch import Tensor, fx, nn

from crossdistill.models.cuts import RANDOM, WEIGHTS
from crossdistill.models.cutter import CannotCut
from crossdistill.models.dry_run import dry_run, left_alone, mode


class Tracer(fx.Tracer):
    """Looks into the opened modules only; everything else is one call."""

    proxy_buffer_attributes = True

    def __init__(self, opened: frozenset[str]) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))  # type: ignore[no-untyped-call]
        self.opened = opened

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.opened or is_notrace_module(type(m))

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        # every argument but the images keeps its default, so `if mask is not None` is decided now
        return root_fn, [self.root, self.create_proxy("placeholder", "images", (), {})]


def trace(net: nn.Module, tracer: Tracer, *, training: bool) -> fx.Graph:
    """The graph of one mode's forward pass; the network is left as it was.

    Raises:
        CannotCut: control flow depends on data or on chance, or tracing would need constants stored on the network.
    """
    before = set(vars(net))
    generators = _generators()
    try:
        with mode(net, training), left_alone(net):
            graph = tracer.trace(net)
            constants = {str(node.target) for node in graph.nodes if node.op == "get_attr"} & (set(vars(net)) - before)
            _mark(net, graph)
    except Exception as error:  # tracing runs the network's own code, which may fail in any way
        raise CannotCut(f"tracing fails: {error}") from error
    if constants:
        raise CannotCut("tracing needs constants on the network")
    # calls are recorded, not made, so only the network's own control flow can have drawn
    if not all(map(_equal, generators, _generators())):
        raise CannotCut("its forward draws random numbers to decide what runs")
    return graph


def _generators() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(legacy=True), torch.get_rng_state()


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return all(map(_equal, one, other))
    return bool(np.array_equal(one, other))


def _mark(net: nn.Module, graph: fx.Graph) -> None:
    """Note which calls have weights, and which draw random numbers in this mode, so that they cannot be made again."""
    for node in graph.nodes:
        if node.op == "call_module":
            module = net.get_submodule(str(node.target))
            node.meta[RANDOM] = any(part.training and drop_rate(part) > 0 for part in module.modules())
            node.meta[WEIGHTS] = next(module.parameters(), None) is not None
        else:
            name = getattr(node.target, "__name__", str(node.target))
            node.meta[RANDOM] = "drop" in name or name.startswith(("rand", "bernoulli", "multinomial", "normal"))


def drop_rate(module: nn.Module) -> float:
    """The probability of a dropout or of a dropped path; 0 for every other module."""
    rate = getattr(module, "p", getattr(module, "drop_prob", 0.0))
    return float(rate) if "Drop" in type(module).__name__ and isinstance(rate, (int, float)) else 0.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What a dry run says of a graph: the tensor shape at each node, and the nodes overwritten later on."""

    shapes: dict[str, tuple[int, ...]]
    overwritten: frozenset[str]


class _Recorder(fx.Interpreter):
    """Runs a graph node by node and remembers every tensor and its version."""

    def __init__(self, net: nn.Module, graph: fx.Graph) -> None:
        super().__init__(net, garbage_collect_values=False, graph=graph)
        self.seen: dict[str, tuple[Tensor, int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.seen[n.name] = (value, value._version)
        return value


def measure(net: nn.Module, graph: fx.Graph, image_shape: tuple[int, int, int], *, training: bool) -> Measured:
    """Shapes and overwritten tensors of one mode, on images ``(C, H, W)``."""

    def record(network: nn.Module, images: Tensor) -> Measured:
        recorder = _Recorder(network, graph)
        recorder.run(images)
        return Measured(
            {name: tuple(tensor.shape) for name, (tensor, _) in recorder.seen.items()},
            frozenset(name for name, (tensor, version) in recorder.seen.items() if tensor._version != version),
        )

    return dry_run(net, record, image_shape, training=training)
