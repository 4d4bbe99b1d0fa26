"""Constructing a network of timm: its own arguments, at an image size, with timm's weights or none."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from crossdistill.errors import InputError
from crossdistill.models.checkpoint import Checkpoint
from crossdistill.models.sizes import construct, own_size, size_error, sizes_of
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
        return construct(source, options, size, pretrained=pretrained)
    except Exception as error:  # constructors and downloads fail in many ways, all to be told to the user
        saved = checkpoint.model_args if checkpoint and folder else {}
        raise _creation_error(architecture, {**saved, **options}, size, pretrained, error) from error


def _creation_error(
    architecture: str, options: dict[str, Any], size: Size | None, pretrained: bool, error: Exception
) -> InputError:
    text = f"{type(error).__name__}: {error}"
    given = ", ".join(f"{key}={value!r}" for key, value in options.items())
    if isinstance(error, TypeError):
        return InputError(
            f"{architecture} with {given}: {text}", "arguments that its constructor takes", "correct or drop them"
        )
    if pretrained and _constructs(architecture, options, size):
        return InputError(
            f"{architecture}@pretrained: {text}",
            "weights from timm's hub or from its cache",
            f"check the network, or give a local file: {architecture}@PATH",
        )
    found = sizes_of(architecture, options, size) if size else []
    if size and found:
        return size_error(
            f"{architecture} at {size[0]} x {size[1]} px with {given}: {text}", found, own_size(architecture)
        )
    return InputError(
        f"{architecture} with {given}: {text}", "arguments that its constructor takes", "correct or drop them"
    )


def _constructs(architecture: str, options: dict[str, Any], size: Size | None) -> bool:
    """Whether the network can be made at all, weights apart."""
    try:
        with torch.device("meta"):
            construct(architecture, options, size)
    except Exception:  # the reason is told with the error that led here
        return False
    return True
