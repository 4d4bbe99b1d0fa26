"""A piece of a traced forward pass as a plain function of the live network."""

from __future__ import annotations

import importlib
import linecache
import operator
import zlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import fx

from crossdistill.models.cuts import VALUES, images_each, is_place, rows_each
from crossdistill.models.cutter import CannotCut


class Segment:
    """A piece of a forward pass as a function ``(net, tensor)``; pickled as its source."""

    def __init__(self, source: str, constants: dict[str, Any], label: str) -> None:
        self.source, self.constants, self.label = source, constants, label
        filename = f"<{label} {zlib.crc32(source.encode()):08x}>"  # tracebacks then show the generated lines
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        scope = dict(constants)
        exec(compile(source, filename, "exec"), scope)
        self.run = scope["forward"]

    def __reduce__(self) -> tuple[Any, ...]:
        modules = {name: value.__name__ for name, value in self.constants.items() if isinstance(value, ModuleType)}
        others = {name: value for name, value in self.constants.items() if name not in modules}
        return _restore, (self.source, modules, others, self.label)

    def __deepcopy__(self, memo: dict[int, Any]) -> Segment:
        return self


def _restore(source: str, modules: dict[str, str], others: dict[str, Any], label: str) -> Segment:
    return Segment(source, others | {name: importlib.import_module(path) for name, path in modules.items()}, label)


def between(
    graph: fx.Graph,
    start: fx.Node,
    results: Sequence[fx.Node],
    *,
    again: frozenset[fx.Node],
    overwritten: frozenset[str],
    label: str,
) -> Segment:
    """The part of a graph after ``start`` that computes ``results``, returned as a tuple.

    Args:
        graph: of the whole forward pass.
        start: the value that enters, which must be all that the part needs.
        results: nodes of the graph.
        again: nodes that the part computes for itself wherever it needs them.
        overwritten: names of the values that the pass overwrites; where one enters or is returned, it goes on with a
            copy.
        label: shown as the file name in tracebacks.
    """
    part = fx.Graph()
    entry = part.placeholder("tensor")
    returned = {start: entry}
    known = {start: part.call_function(torch.clone, (entry,)) if start.name in overwritten else entry}

    def copy(node: fx.Node) -> fx.Node:
        if node in known:
            return known[node]
        each = images_each(node)
        if each is not None:
            known[node] = _batch(part, entry, each, rows_each(start))
        elif is_place(node) and node.args[0] not in known:
            _check_same(node, start)
            known[node] = part.call_function(getattr, (entry, node.args[1]))
        else:
            known[node] = part.node_copy(node, copy)
        if node in results:
            returned[node] = known[node]
            if node.name in overwritten:
                known[node] = part.call_function(torch.clone, (known[node],))
        return known[node]

    begun = False
    for node in graph.nodes:
        if begun and node not in again and node.op != "output":
            copy(node)
        begun = begun or node is start
        if all(result in returned for result in results):
            break
    part.output(tuple(returned[result] for result in results))
    code = part.python_code(root_module="self")
    return Segment(code.src, dict(code.globals), label)


def _check_same(place: fx.Node, start: fx.Node) -> None:
    """A number type that is read before the cut must be that of the value that enters, which stands in for it."""
    value = start.meta.get(VALUES, (None,))[0]
    expected = place.meta.get(VALUES, (None,))[0]
    if place.args[1] == "dtype" and isinstance(value, torch.Tensor) and value.dtype != expected:
        raise CannotCut(f"behind the cut a tensor's number type is needed, {expected}, which nothing there has")


def _batch(part: fx.Graph, entry: fx.Node, each: int, rows: int) -> fx.Node:
    """A number proportional to the batch, from the first dimension of the value that enters."""
    size = part.call_method("size", (entry, 0))
    images = size if rows == 1 else part.call_function(operator.floordiv, (size, rows))
    return images if each == 1 else part.call_function(operator.mul, (images, each))
