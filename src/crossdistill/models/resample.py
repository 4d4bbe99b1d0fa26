"""Position parameters for another image size than the one at which weights were saved.

timm resamples them while it loads pretrained weights, each architecture in its own way; that loading is asked first.
Architectures for which timm does nothing get the same resampling by the name and shape of the parameter.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed, resample_abs_pos_embed_nhwc
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table, resize_rel_pos_bias_table_levit
from timm.models.nest import NestLevel, resize_pos_embed
from torch import Tensor, nn
from torch.nn import functional

from crossdistill.models.sizes import recipe
from crossdistill.models.views import Size

MOST_PREFIX_TOKENS = 16


def resampled(
    net: nn.Module, tensors: Mapping[str, Tensor], saved_size: Size | None, saved_args: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Saved tensors as the network needs them at its image size; what cannot be resampled stays as it is.

    Args:
        net: the network, built at its size.
        tensors: of the same keys, saved at another size.
        saved_size: (height, width) at which they were saved, where that is known; else square grids are assumed.
        saved_args: arguments with which the saved network was built.
    """
    loaded = _through_timm(net, tensors, saved_size, saved_args)
    if loaded is not None:
        return loaded
    own = net.state_dict()
    return {
        key: _by_shape(net, key, tensor, own[key]) if tensor.shape != own[key].shape else tensor
        for key, tensor in tensors.items()
    }


def _through_timm(
    net: nn.Module, tensors: Mapping[str, Tensor], saved_size: Size | None, saved_args: Mapping[str, Any]
) -> dict[str, Tensor] | None:
    """What timm's loading of pretrained weights makes of the tensors, or None where it refuses them."""
    made = recipe(net)
    if made is None:
        return None
    architecture, args = made
    config: dict[str, Any] = copy.deepcopy(vars(net)["pretrained_cfg"])
    size = saved_size or config["input_size"][1:]
    config |= {
        "source": "",
        "state_dict": dict(tensors),
        "custom_load": False,
        "num_classes": args["num_classes"],
        "label_offset": 0,
        "input_size": (args.get("in_chans", config["input_size"][0]), *size),
    }
    try:
        with torch.random.fork_rng(devices=[]):  # construction draws weights, which the caller's numbers must not feel
            twin = timm.create_model(
                architecture, pretrained=True, pretrained_cfg=config, pretrained_model_args=dict(saved_args), **args
            )
    except Exception:  # timm's filters fail in any way on tensors that they were not written for
        return None
    loaded: dict[str, Tensor] = twin.state_dict()
    return loaded


def _by_shape(net: nn.Module, key: str, saved: Tensor, own: Tensor) -> Tensor:
    """One parameter, resampled by timm's functions; unchanged where its name or shape says nothing."""
    module_name, _, name = key.rpartition(".")
    resample = next((rule for word, rule in RULES.items() if word in name), None)
    if resample is None:
        return saved
    found = resample(net.get_submodule(module_name), saved, own)
    return found if found is not None and found.shape == own.shape else saved


def _absolute(module: nn.Module, saved: Tensor, own: Tensor) -> Tensor | None:
    """Position embeddings ``(1, H, W, C)``, ``(1, C, H, W)``, ``(1, L, C)`` with any prefix tokens, or in blocks."""
    found: Tensor | None = None
    if isinstance(module, NestLevel):
        found = resize_pos_embed(saved, own)  # type: ignore[no-untyped-call]
    elif saved.ndim == own.ndim == 4 and saved.shape[1] != own.shape[1]:
        found = resample_abs_pos_embed_nhwc(saved, list(own.shape[1:3]))
    elif saved.ndim == own.ndim == 4 and saved.shape[3] != own.shape[3]:
        last = resample_abs_pos_embed_nhwc(saved.permute(0, 2, 3, 1), list(own.shape[2:]))
        found = last.permute(0, 3, 1, 2).contiguous()
    elif saved.ndim == own.ndim == 3:
        for prefix in range(MOST_PREFIX_TOKENS + 1):
            sides = [_root(tensor.shape[1] - prefix) for tensor in (saved, own)]
            if found is None and None not in sides:
                found = resample_abs_pos_embed(saved, [sides[1], sides[1]], num_prefix_tokens=prefix)
    return found


def _bias_of_windows(module: nn.Module, saved: Tensor, own: Tensor) -> Tensor | None:
    """Tables ``(positions, heads)`` over the offsets within a window, as in Swin."""
    window = getattr(module, "window_size", None)
    if not isinstance(window, (tuple, list)) or saved.ndim != own.ndim:
        return None
    try:
        found: Tensor = resize_rel_pos_bias_table(saved, new_window_size=tuple(window), new_bias_shape=own.shape)
    except (ValueError, RuntimeError, AssertionError):  # no square window, or extra tokens that do not fit
        return None
    return found


def _bias_of_offsets(module: nn.Module, saved: Tensor, own: Tensor) -> Tensor | None:
    """Tables ``(heads, positions)`` over the absolute offsets in a square grid, as in LeViT."""
    if saved.ndim != 2 or saved.shape[0] != own.shape[0] or None in (_root(saved.shape[1]), _root(own.shape[1])):
        return None
    found: Tensor = resize_rel_pos_bias_table_levit(saved.T, tuple(own.T.shape)).T.contiguous()
    return found


def _along_axis(module: nn.Module, saved: Tensor, own: Tensor) -> Tensor | None:
    """Tables ``(offsets, C)`` along one axis, linearly as timm does for MViTv2 (models/mvitv2.py)."""
    if saved.ndim != 2 or saved.shape[1] != own.shape[1]:
        return None
    return functional.interpolate(saved.T[None], size=own.shape[0], mode="linear")[0].T.contiguous()


def _root(count: int) -> int | None:
    """The side of a square grid of so many positions."""
    side = math.isqrt(max(count, 0))
    return side if side and side * side == count else None


RULES: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor | None]] = {
    "pos_embed": _absolute,
    "relative_position_bias_table": _bias_of_windows,
    "attention_biases": _bias_of_offsets,
    "rel_pos_": _along_axis,
    "height_rel": _along_axis,
    "width_rel": _along_axis,
}
"""How parameters are resampled, by a part of their name."""
