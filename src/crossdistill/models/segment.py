"""A piece of a traced forward pass as a plain function of the live network."""

from __future__ import annotations

import importlib
import linecache
import zlib
from types import ModuleType
from typing import Any

import torch
from torch import fx


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


def between(graph: fx.Graph, start: fx.Node, results: tuple[fx.Node, ...], *, copy_first: bool, label: str) -> Segment:
    """The part of a graph after ``start`` that computes ``results``; one result is returned bare, more as a tuple.

    Args:
        graph: of the whole forward pass.
        start: the value that enters, which must be all that the part needs.
        results: nodes of the graph.
        copy_first: work on a copy, because the part overwrites the value that others still read.
        label: shown as the file name in tracebacks.
    """
    part = fx.Graph()
    entry = part.placeholder("tensor")
    known = {start: part.call_function(torch.clone, (entry,)) if copy_first else entry}

    def copy(node: fx.Node) -> fx.Node:
        if node not in known:  # parameters are read again wherever they are needed
            known[node] = part.node_copy(node, copy)
        return known[node]

    begun = False
    for node in graph.nodes:
        if begun and node.op not in ("get_attr", "output"):
            copy(node)
        begun = begun or node is start
        if all(result in known for result in results):
            break
    values = tuple(known[result] for result in results)
    part.output(values if len(values) > 1 else values[0])
    code = part.python_code(root_module="self")
    return Segment(code.src, dict(code.globals), label)
