"""A nested state dict as two halves: tensors for safetensors, everything else for JSON. Nothing is ever pickled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# A dictionary with one of these keys stands for something that JSON does not have.
_TENSOR, _ITEMS, _TUPLE, _FLOAT = "$tensor", "$items", "$tuple", "$float"
_MARKS = frozenset({_TENSOR, _ITEMS, _TUPLE, _FLOAT})


def split(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Skeleton for JSON and tensors by name; :func:`join` is the inverse.

    Dictionaries with keys of any plain type, lists, tuples, tensors, None, bool, int, float (also nan and inf) and str
    come back as they were; tensors come back on the CPU, in the same memory format.

    Raises:
        TypeError: anything else, with the place where it was found.
    """
    tensors: dict[str, Tensor] = {}
    return _split(tree, "", tensors), tensors


def join(skeleton: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that :func:`split` took apart."""
    if isinstance(skeleton, list):
        return [join(item, tensors) for item in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    if _TENSOR in skeleton:
        # A copy of its own is aligned as PyTorch aligns, so that kernels take the same path as before.
        return tensors[skeleton[_TENSOR]].clone(memory_format=_FORMATS[skeleton["format"]])
    if _ITEMS in skeleton:
        return {key: join(value, tensors) for key, value in skeleton[_ITEMS]}
    if _TUPLE in skeleton:
        return tuple(join(item, tensors) for item in skeleton[_TUPLE])
    if _FLOAT in skeleton:
        return float(skeleton[_FLOAT])
    return {key: join(value, tensors) for key, value in skeleton.items()}


_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def _split(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = path or "tensor"
        # Always a copy: safetensors refuses tensors that share memory, as tied weights do.
        tensors[name] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {_TENSOR: name, "format": _format(value)}
    if isinstance(value, Mapping):
        items = [(key, _split(child, f"{path}.{key}" if path else str(key), tensors)) for key, child in value.items()]
        if all(isinstance(key, str) for key in value) and not _MARKS & value.keys():
            return dict(items)
        if not all(key is None or isinstance(key, (bool, int, float, str)) for key in value):
            raise TypeError(f"state at {path!r} has keys that are not plain: {list(value)[:3]}")
        return {_ITEMS: [[key, child] for key, child in items]}
    if isinstance(value, (list, tuple)):
        children = [_split(child, f"{path}.{index}", tensors) for index, child in enumerate(value)]
        return {_TUPLE: children} if isinstance(value, tuple) else children
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: repr(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"state at {path!r} is {type(value).__name__}, which is neither a tensor nor plain data")


def _format(tensor: Tensor) -> str:
    is_map = tensor.ndim == 4 and not tensor.is_contiguous()
    return "channels_last" if is_map and tensor.is_contiguous(memory_format=torch.channels_last) else "contiguous"
