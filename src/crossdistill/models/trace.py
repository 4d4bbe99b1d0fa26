"""Tracing a network's own forward into a graph of calls, and finding the places where one tensor is all there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from timm.models import get_notrace_functions, is_notrace_module
from torch import Tensor, fx, nn

from crossdistill.models.cutter import CannotCut
from crossdistill.models.dry_run import dry_run, mode


class _Tracer(fx.Tracer):
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


def trace(net: nn.Module, opened: frozenset[str], *, training: bool) -> fx.Graph:
    """The graph of one mode's forward pass.

    Raises:
        CannotCut: control flow depends on data, or tracing would need constants stored on the network.
    """
    before = set(vars(net))
    try:
        with mode(net, training):
            return _Tracer(opened).trace(net)
    except Exception as error:  # tracing runs the network's own code, which may fail in any way
        raise CannotCut(f"tracing fails: {error}") from error
    finally:
        added = set(vars(net)) - before
        for name in added:
            delattr(net, name)
        if added:
            raise CannotCut("tracing needs constants on the network")


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


def single_tensor_cuts(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Pairs (value, next node) where the value is all that the rest of the graph needs of what ran before.

    Parameters and buffers do not count, since they are read again wherever they are needed.
    """
    nodes = [node for node in graph.nodes if node.op != "get_attr"]
    position = {node: index for index, node in enumerate(nodes)}
    last_use = {node: max((position[user] for user in node.users), default=-1) for node in nodes}
    alive: list[fx.Node] = []
    for node, following in pairwise(nodes):
        alive = [value for value in [*alive, node] if last_use[value] > position[node]]
        if len(alive) == 1 and alive[0].op != "placeholder" and alive[0] is node:
            yield node, following


def depth(node: fx.Node, following: fx.Node) -> int:
    """How many containers hold both the node and the one after it."""

    def containers(of: fx.Node) -> list[str]:
        stack = list(of.meta.get("nn_module_stack") or ())
        return stack[:-1] if of.op == "call_module" else stack

    return len(set(containers(node)) & set(containers(following)))
