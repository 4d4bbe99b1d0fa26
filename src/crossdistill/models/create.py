"""Constructing a network of timm: its own arguments, at an image size, with timm's weights or none."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

from crossdistill.errors import InputError
from crossdistill.models.checkpoint import Checkpoint
from crossdistill.models.views import Size


def create(
    architecture: str, checkpoint: Checkpoint | None, options: dict[str, Any], size: Size | None, *, pretrained: bool
) -> nn.Module:
    """The network as timm builds it; an image size goes to constructors that take one.

    Raises:
        InputError: arguments or a size that its constructor refuses, or weights that cannot be had.
    """
    folder = checkpoint.folder if checkpoint else None
    source = f"local-dir:{folder}" if folder else architecture
    try:
        net: nn.Module
        if size is not None:
            try:
                net = timm.create_model(source, pretrained=pretrained, **{"img_size": size, **options})
                return net
            except TypeError as error:
                if "img_size" not in str(error):
                    raise
        net = timm.create_model(source, pretrained=pretrained, **options)
        return net
    except Exception as error:  # constructors and downloads fail in many ways, all to be told to the user
        raise _creation_error(architecture, options, size, pretrained, error) from error


def _creation_error(
    architecture: str, options: dict[str, Any], size: Size | None, pretrained: bool, error: Exception
) -> InputError:
    text = f"{type(error).__name__}: {error}"
    given = ", ".join(f"{key}={value!r}" for key, value in options.items())
    if isinstance(error, TypeError):
        return InputError(
            f"{architecture} with {given}: {text}", "arguments that its constructor takes", "correct or drop them"
        )
    if pretrained:
        return InputError(
            f"{architecture}@pretrained: {text}",
            "weights from timm's hub or from its cache",
            f"check the network, or give a local file: {architecture}@PATH",
        )
    shown = f" at {size[0]} x {size[1]} px" if size else ""
    return InputError(
        f"{architecture}{shown} with {given}: {text}",
        "a size and arguments that its constructor takes",
        f"its own size is {_own_size(architecture)} px" if size else "correct or drop the arguments",
    )


def _own_size(architecture: str) -> str:
    config = timm.models.get_pretrained_cfg(architecture)
    return " x ".join(str(side) for side in config.input_size[1:]) if config else "unknown"
