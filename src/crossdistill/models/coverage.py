"""What each network of timm gives: family, stages, or the reason why it has fewer than three."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import timm
import torch
from timm.models import model_entrypoint
from torch import nn

from crossdistill.contracts import StageSpec
from crossdistill.errors import InputError
from crossdistill.models.cuts import tensors_alive
from crossdistill.models.cutter import CannotCut, opened_at
from crossdistill.models.points import ENOUGH_STAGES
from crossdistill.models.shaped import ShapedTracer
from crossdistill.models.spec import input_of
from crossdistill.models.split import Split
from crossdistill.models.stage import stage
from crossdistill.models.trace import trace
from crossdistill.models.zoo import smallest_variants

NUM_CLASSES = 10
"""Any number does: the classifier is built for it."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """One network: timm's file, its name, and what was found; ``reason`` says why there are fewer than three stages.

    ``any_size`` tells that its stages hold for images of other sizes too, not just the one it was built for.
    """

    file: str
    name: str
    family: str = ""
    image_size: int = 0
    num_parameters: int = 0
    stages: tuple[StageSpec, ...] = ()
    any_size: bool = False
    reason: str = ""


def coverage(names: Iterable[str] | None = None) -> Iterator[Coverage]:
    """Build networks without memory for weights and find their stages, one after the other.

    Args:
        names: of timm; None takes the smallest variant of every file.
    """
    for name in smallest_variants().values() if names is None else names:
        yield cover(name)


def cover(name: str) -> Coverage:
    """What one network of timm gives, on the meta device."""
    file = file_of(name)
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=NUM_CLASSES)
    try:
        model = stage(net, name, NUM_CLASSES, None, None)
    except InputError as error:
        return Coverage(file, name, reason=error.given)
    spec, cutter = model.spec, model._cutter
    return Coverage(
        file,
        name,
        spec.family,
        spec.input.image_size[0],
        spec.num_parameters,
        spec.stages,
        isinstance(cutter, Split) and cutter.image_shape is None,
        "" if len(spec.stages) >= ENOUGH_STAGES else _reason(net),
    )


def file_of(name: str) -> str:
    """The file of timm that registers a name."""
    return str(model_entrypoint(name).__module__).rpartition(".")[2]


def _reason(net: nn.Module) -> str:
    spec = input_of(net, None)
    shape = (spec.num_channels, *spec.image_size)
    try:
        graph = trace(net, ShapedTracer(opened_at(net, 0), shape, torch.float32), training=False)
    except CannotCut as error:
        return str(error)
    between = tensors_alive(graph)
    middle = between[len(between) // 4 : -(len(between) // 4) or None]
    return f"passes on up to {max(middle)} tensors at once between its blocks"
