"""Where in a graph one tensor is all there is, and what a part of the graph can compute again for itself."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from torch import Tensor, fx

BATCH_SIZES = (2, 3)
VALUES = "values"
"""Key under which a node's ``meta`` holds what it gave for both batch sizes, where the graph was traced with shapes."""

WEIGHTS = "weights"
"""Key under which a node's ``meta`` tells that it is a module with parameters."""

RANDOM = "random"
"""Key under which a node's ``meta`` tells that it draws random numbers."""


def single_tensor_cuts(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Pairs (value, next node) where the value is all that the rest of the graph needs of what ran before.

    Parameters, and what follows from them and from shapes alone, do not count: they are computed again where needed.
    """
    for node, following, alive in _alive(graph):
        if alive == [node] and node.op != "placeholder":
            yield node, following


def tensors_alive(graph: fx.Graph) -> list[int]:
    """How many tensors the rest of a graph traced with shapes needs after each call of a module."""
    return [sum(map(_num_tensors, alive)) for node, _, alive in _alive(graph) if node.op == "call_module"]


def _num_tensors(node: fx.Node) -> int:
    value = node.meta[VALUES][0]
    return sum(isinstance(part, Tensor) for part in (value if isinstance(value, (tuple, list)) else [value]))


def _alive(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node, list[fx.Node]]]:
    """Each node, the one after it, and the values that are needed between the two."""
    again = recomputable(graph)
    nodes = [node for node in graph.nodes if node not in again]
    position = {node: index for index, node in enumerate(nodes)}
    last_use = {node: max((position[user] for user in node.users if user not in again), default=-1) for node in nodes}
    alive: list[fx.Node] = []
    for node, following in pairwise(nodes):
        alive = [value for value in [*alive, node] if last_use[value] > position[node]]
        yield node, following, alive


def recomputable(graph: fx.Graph) -> frozenset[fx.Node]:
    """Nodes that do not depend on what the images show: parameters, sizes, and whatever is computed from these."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        from_found = all(before in found for before in node.all_input_nodes) and not node.meta.get(RANDOM)
        if images_each(node) is not None or is_place(node) or from_found:
            found.add(node)
    return frozenset(found)


def images_each(node: fx.Node) -> int | None:
    """How large a number is for each image of the batch, if the node is a number that is proportional to the batch."""
    values = node.meta.get(VALUES, (None,))
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return None
    each = values[0] // BATCH_SIZES[0]
    return each if all(value == each * size for value, size in zip(values, BATCH_SIZES, strict=True)) else None


def is_place(node: fx.Node) -> bool:
    """Whether a node is a tensor's device or number type, which all the tensors of a pass share."""
    return node.op == "call_function" and node.target is getattr and node.args[1] in ("device", "dtype")


def rows_each(node: fx.Node) -> int:
    """How many rows the first dimension of a tensor has for each image of the batch."""
    values = node.meta.get(VALUES, (None,))
    return values[0].shape[0] // BATCH_SIZES[0] if isinstance(values[0], Tensor) else 1


def signatures(graph: fx.Graph) -> dict[str, int]:
    """What tells the same place in two modes' graphs, by node: a hash of the weights that were used up to it.

    Names alone do not, since fx numbers calls of one kind, and one mode may have more of them.
    """
    used = 0
    found: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "get_attr" or node.meta.get(WEIGHTS):
            used = hash((used, str(node.target)))
        found[node.name] = used
    return found


def owner(node: fx.Node) -> str:
    """Name of the module that a node is or belongs to."""
    return str(node.target) if node.op == "call_module" else next(reversed(_stack(node)), "")


def depth(node: fx.Node, following: fx.Node) -> int:
    """How many containers hold both the node and the one after it."""

    def containers(of: fx.Node) -> list[str]:
        return _stack(of)[:-1] if of.op == "call_module" else _stack(of)

    return len(set(containers(node)) & set(containers(following)))


def _stack(node: fx.Node) -> list[str]:
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    return list(stack)
