"""What in a training step would make the host wait for a GPU, found on a machine that has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = {
    *("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "nonzero_static", "masked_select", "argwhere"),
    *("allclose", "_linalg_svd", "_linalg_eigh", "linalg_eig"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave"),
}
"""Operations whose result, or its size, the host must know."""

INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}

TO_HOST = {"tolist", "numpy", "cpu", "item", "__bool__", "__int__", "__float__", "__index__", "__contains__"}
FROM_HOST = {"tensor", "as_tensor", "new_tensor", "from_numpy"}
"""Python numbers that become a tensor are copied from memory that is not pinned."""


class Waits(Exception):
    """A step did something for which the host would wait."""


class _Operations(TorchDispatchMode):
    """Also sees the backward pass."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in INDEXING and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        has_tensor_repeats = name != "repeat_interleave" or func._overloadname != "self_int"
        if masks or (name in READS and has_tensor_repeats) or name == "lift_fresh":
            raise Waits(f"{func}{' with a mask' if masks else ''}")
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    """Sees what is no operation: a tensor of the host is read without one."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in TO_HOST and isinstance(args[0], Tensor):
            raise Waits(f"Tensor.{name}")
        if name in FROM_HOST:
            raise Waits(f"torch.{name}")
        if name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(one, list) for one in index):
                raise Waits(f"Tensor.{name} with a list")
        return func(*args, **(kwargs or {}))


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Raise :class:`Waits` for whatever in this block would make the host wait, were its tensors on a GPU."""
    with _Calls(), _Operations():
        yield
