"""From a plain network to a staged one: check its forward, cut it, measure it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from crossdistill.errors import InputError
from crossdistill.models.cutter import CannotCut, Cutter
from crossdistill.models.dry_run import dry_run
from crossdistill.models.points import ENOUGH_STAGES
from crossdistill.models.replay import replay
from crossdistill.models.spec import input_of, measure
from crossdistill.models.split import split
from crossdistill.models.staged import StagedModel
from crossdistill.models.views import Size


def stage(
    net: nn.Module, name: str, num_classes: int, size: Size | None, class_names: Sequence[str] | None
) -> StagedModel:
    """Cut a network and measure it.

    Raises:
        InputError: its forward does not take images of that size, or gives other than ``(B, num_classes)`` logits.
    """
    input_spec = input_of(net, size)
    shape = (input_spec.num_channels, *input_spec.image_size)
    _check_forward(net, name, shape, num_classes)
    cutter = _cut(net, name, shape)
    spec = measure(net, cutter, name=name, num_classes=num_classes, input_spec=input_spec, class_names=class_names)
    return StagedModel(net, spec, cutter)


def _cut(net: nn.Module, name: str, shape: tuple[int, int, int]) -> Cutter:
    """By tracing; where that finds few stages or none, by replay if it finds more."""
    found: list[Cutter] = []
    reasons: list[str] = []
    for way in (split, replay):
        try:
            found.append(way(net, shape))
        except CannotCut as reason:
            reasons.append(f"{way.__name__}: {reason}")
        if found and len(found[-1].points) >= ENOUGH_STAGES:
            break
    if not found:
        raise InputError(
            f"{name}, which cannot be cut ({'; '.join(reasons)})",
            "a network that ends in a classifier module and returns one tensor of logits",
            "choose another network, or make its classifier a module",
        )
    return max(found, key=lambda cutter: len(cutter.points))


def _check_forward(net: nn.Module, name: str, shape: tuple[int, int, int], num_classes: int) -> None:
    try:
        logits = dry_run(net, lambda network, images: network(images), shape)
    except Exception as error:  # whatever the network's own code makes of images that do not fit
        own = input_of(net, None).image_size
        raise InputError(
            f"{name} with images of {shape[1]} x {shape[2]} px: {error}",
            "a size that the network can process",
            f"its own size is {own[0]} x {own[1]} px",
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] != num_classes:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"{name}, whose output is {found}",
            f"logits of {num_classes} classes: (2, {num_classes}) for two images",
            "build it with the data's number of classes",
        )
