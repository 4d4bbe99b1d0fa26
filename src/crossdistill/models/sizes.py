"""Networks at an image size: constructing them at one, and finding the sizes that a network can have."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.models import get_model_args, get_model_traits
from torch import Tensor, nn

from crossdistill.errors import InputError
from crossdistill.models.dry_run import BATCH_SIZE, dry_run
from crossdistill.models.views import Size

CANDIDATES = (16, 32, 48, 64, 96, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512)
"""Sides in pixels that are tried when a size does not work; a network's own comes on top."""

SECONDS = 4.0
"""For so much processor time sizes are tried, those nearest to the wanted one first."""


def construct(source: str, options: dict[str, Any], size: Size | None, *, pretrained: bool = False) -> nn.Module:
    """A network of timm; an image size goes to constructors that take one, and to no other.

    Raises:
        Exception: whatever the constructor raises.
    """
    net: nn.Module
    if size is not None:
        try:
            net = timm.create_model(source, pretrained=pretrained, **{"img_size": size, **options})
            return net
        except TypeError as error:
            if "unexpected keyword" not in str(error) or "img_size" not in str(error):
                raise
    net = timm.create_model(source, pretrained=pretrained, **options)
    return net


def recipe(net: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """The architecture and arguments from which timm made a network; None where it did not."""
    config = getattr(net, "pretrained_cfg", None)
    architecture = config.get("architecture") if isinstance(config, dict) else None
    if not architecture or not timm.is_model(architecture):
        return None
    return str(architecture), get_model_args(net)


def size_of(net: nn.Module) -> Size | None:
    """The image size that the network's constructor was given, None where it took none."""
    size = get_model_traits(net).get("img_size")
    return (int(size[0]), int(size[1])) if size is not None else None


def own_size(architecture: str) -> Size | None:
    """(height, width) that timm states for an architecture."""
    config = timm.models.get_pretrained_cfg(architecture)
    return (config.input_size[1], config.input_size[2]) if config is not None else None


def sizes_of(architecture: str, options: dict[str, Any], wanted: Size, *, seconds: float = SECONDS) -> list[int]:
    """Sides of the square images that an architecture of timm can have, among ``CANDIDATES`` and its own size."""
    options = {key: value for key, value in options.items() if key != "img_size"}
    any_size: list[nn.Module] = []  # a network whose constructor takes no size need not be made again

    def runs(side: int) -> bool:
        with torch.device("meta"):
            net = any_size[0] if any_size else construct(architecture, options, (side, side))
            if size_of(net) is None:
                any_size[:] = [net]
            channels = getattr(net, "in_chans", options.get("in_chans", 3))
            with torch.no_grad():
                return _is_logits(net.eval()(torch.zeros(BATCH_SIZE, channels, side, side)))

    return _tried(runs, own_size(architecture), wanted, seconds)


def sizes_for(net: nn.Module, image_shape: tuple[int, int, int], *, seconds: float = SECONDS) -> list[int]:
    """Sides of the square images that a network like this one can have; one of timm is rebuilt for every size.

    Args:
        net: the network, whose forward fails.
        image_shape: ``(C, H, W)`` of the images on which it fails.
        seconds: after which no further size is tried.
    """
    wanted = (image_shape[1], image_shape[2])
    made = recipe(net)
    if made is not None:
        return sizes_of(*made, wanted, seconds=seconds)

    def runs(side: int) -> bool:
        return _is_logits(dry_run(net, lambda network, images: network(images), (image_shape[0], side, side)))

    return _tried(runs, None, wanted, seconds)


def size_error(given: str, found: list[int], own: Size | None) -> InputError:
    """The refusal of a size, with the sizes that work."""
    stated = f"its own size is {own[0]} x {own[1]} px" if own else ""
    if not found:
        return InputError(given, "a size that the network can process", stated or "give another size")
    return InputError(
        given,
        f"a size that works: {', '.join(str(side) for side in found)} px",
        f"choose one of these{f'; {stated}' if stated else ''}",
    )


def _tried(runs: Callable[[int], bool], own: Size | None, wanted: Size, seconds: float) -> list[int]:
    """The sides for which ``runs`` says yes: its own first, then from the wanted size outwards until time is up."""
    started = time.thread_time()
    first = {own[0]} if own is not None and own[0] == own[1] else set()
    order = sorted({*CANDIDATES, *first}, key=lambda side: (side not in first, abs(side - max(wanted)), side))
    found = []
    for side in order:
        if side not in first and time.thread_time() - started > seconds:
            break
        try:
            if runs(side):
                found.append(side)
        except Exception:  # constructors and forwards fail in any way at sizes that they cannot have
            continue
    return sorted(found)


def _is_logits(output: object) -> bool:
    return isinstance(output, Tensor) and output.ndim == 2
