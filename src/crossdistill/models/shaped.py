"""Tracing for one image size: shapes are numbers, so code that computes or decides with them runs as it is.

While the graph grows, every node is also run without data for two batch sizes. What is a number in both runs is that
number; a dimension that differs grows with the batch and stays symbolic.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from crossdistill.models.cuts import BATCH_SIZES, VALUES
from crossdistill.models.dry_run import slots
from crossdistill.models.trace import Tracer

FACTORIES = ("arange", "empty", "full", "linspace", "ones", "zeros")
"""Functions of torch that make tensors from numbers: calls to record, not constants to keep."""


class ShapedTracer(Tracer):
    """Traces for images of one size."""

    def __init__(self, opened: frozenset[str], image_shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        super().__init__(opened)
        self.images = tuple(torch.empty(size, *image_shape, dtype=dtype, device="meta") for size in BATCH_SIZES)
        self.evaluating = False

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        with ExitStack() as patches:
            for name in FACTORIES:
                patches.enter_context(patch.object(torch, name, self._recorded(getattr(torch, name))))
            return super().trace(root, concrete_args)

    def _recorded(self, factory: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            return (
                factory(*args, **kwargs)
                if self.evaluating
                else self.create_proxy("call_function", factory, args, kwargs)
            )

        return record

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _ShapedProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        return a.node if isinstance(a, fx.Proxy) else super().create_arg(a)  # before isinstance, which proxies answer

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *more, **named)
        node = proxy.node
        values = node.meta[VALUES] = tuple(self._evaluate(node, run) for run in range(len(BATCH_SIZES)))
        if _computes_numbers(node) and _is_number(values[0]) and values[0] == values[1]:
            node.graph.erase_node(node)
            return values[0]
        return proxy

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self.evaluating else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def _evaluate(self, node: fx.Node, run: int) -> Any:
        if node.op == "placeholder":
            return self.images[run]
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda before: before.meta[VALUES][run])
        self.evaluating = True
        try:
            with torch.no_grad(), torch.device("meta"):
                return self._call(node, args, kwargs)
        finally:
            self.evaluating = False

    def _call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.root).to("meta")
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        module = self.root.get_submodule(str(node.target))
        on_meta = {name: tensor.detach().to("meta") for name, tensor in slots(module).items()}
        return functional_call(module, on_meta, args, kwargs, tie_weights=False)


class _ShapedProxy(fx.Proxy):
    """A proxy that knows its shape and passes for a tensor."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # `isinstance(x, torch.Tensor)` in the network's own code is then true
        return torch.Tensor if isinstance(self.node.meta.get(VALUES, (None,))[0], Tensor) else _ShapedProxy

    @property
    def shape(self) -> tuple[Any, ...]:
        """Numbers, but for the dimensions that grow with the batch."""
        first, second = (value.shape for value in self.node.meta[VALUES])
        return tuple(
            one if one == other else self.tracer.create_proxy("call_method", "size", (self, dimension), {})
            for dimension, (one, other) in enumerate(zip(first, second, strict=True))
        )

    def __getattr__(self, k: str) -> Any:
        values = self.node.meta.get(VALUES, ())
        found = [getattr(value, k) for value in values if hasattr(value, k)]
        if len(found) == len(BATCH_SIZES) and _is_number(found[0]) and found[0] == found[1]:
            return found[0]
        return super().__getattr__(k)

    def size(self, dim: int | None = None) -> Any:
        """The shape, or one dimension of it."""
        return self.shape if dim is None else self.shape[dim]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.node.meta[VALUES][0].shape)

    def dim(self) -> int:
        """Number of dimensions."""
        return self.ndim

    def __iter__(self) -> Iterator[Any]:
        value = self.node.meta[VALUES][0]
        if isinstance(value, (tuple, list)):
            return (operator.getitem(self, index) for index in range(len(value)))
        return super().__iter__()

    def __len__(self) -> int:
        first, second = (len(value) for value in self.node.meta[VALUES])
        return first if first == second else super().__len__()  # which refuses


def _computes_numbers(node: fx.Node) -> bool:
    """Whether fx does without a proxy for the result; it needs one from modules and from the functions it wraps."""
    return node.op == "call_method" or (node.op == "call_function" and node.target in vars(operator).values())


def _is_number(value: Any) -> bool:
    """Integers, floats and rows of them; truth values are left symbolic, since they may hold for these batches only."""
    if isinstance(value, (tuple, list)):
        return all(_is_number(part) for part in value)
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
