"""From a plain network to a staged one: check its forward, cut it, measure it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from crossdistill.errors import InputError, nearest
from crossdistill.models.cutter import CannotCut, Cutter, parents
from crossdistill.models.dry_run import dry_run
from crossdistill.models.points import ENOUGH_STAGES
from crossdistill.models.replay import replay
from crossdistill.models.sizes import size_error, sizes_for
from crossdistill.models.spec import input_of, measure
from crossdistill.models.split import split
from crossdistill.models.staged import StagedModel
from crossdistill.models.views import Size


def stage(
    net: nn.Module,
    name: str,
    num_classes: int,
    size: Size | None,
    class_names: Sequence[str] | None,
    stage_names: Sequence[str] | None = None,
) -> StagedModel:
    """Cut a network and measure it.

    Args:
        net: a classifier of images.
        name: for the specification and for messages.
        num_classes: what its output must have.
        size: (height, width) of its images; None takes its own.
        class_names: for the specification.
        stage_names: modules whose outputs end the stages, in order; None finds the stages.

    Raises:
        InputError: its forward does not take images of that size, or gives other than ``(B, num_classes)`` logits; no
            such modules, or more than their outputs is needed to go on.
    """
    input_spec = input_of(net, size)
    shape = (input_spec.num_channels, *input_spec.image_size)
    _check_forward(net, name, shape, num_classes)
    if stage_names is not None:
        _check_names(net, name, stage_names)
    cutter = _cut(net, name, shape, stage_names)
    spec = measure(net, cutter, name=name, num_classes=num_classes, input_spec=input_spec, class_names=class_names)
    return StagedModel(net, spec, cutter, tuple(stage_names) if stage_names is not None else None)


def _check_names(net: nn.Module, name: str, stage_names: Sequence[str]) -> None:
    known = [module for module, _ in net.named_modules() if module]
    for index, wanted in enumerate(stage_names):
        if wanted not in known:
            raise InputError(
                f"stage {wanted!r} of {name}",
                "the name of a module, as net.named_modules() gives it",
                nearest(wanted, known),
            )
        if wanted in stage_names[:index] or any(wanted in parents(other) for other in stage_names):
            raise InputError(
                f"stages {', '.join(stage_names)} of {name}, where {wanted!r} comes twice or holds another",
                "modules that run one after the other",
                "name each once, and none inside another",
            )


def _cut(net: nn.Module, name: str, shape: tuple[int, int, int], stage_names: Sequence[str] | None) -> Cutter:
    """By tracing; by replay where the forward, or a part of it that may hold more stages, cannot be traced."""
    found: list[Cutter] = []
    reasons: list[str] = []
    try:
        traced = split(net, shape, stage_names)
        if len(traced.points) >= ENOUGH_STAGES or traced.looked_everywhere or stage_names is not None:
            return traced
        found.append(traced)
    except CannotCut as reason:
        reasons.append(f"split: {reason}")
    try:
        found.append(replay(net, shape, stage_names))
    except CannotCut as reason:
        reasons.append(f"replay: {reason}")
    if found:
        return max(found, key=lambda cutter: len(cutter.points))
    if stage_names is not None:
        raise InputError(
            f"{name} with the stages {', '.join(stage_names)} ({'; '.join(reasons)})",
            "modules, in the order in which they run, after which one tensor carries all that the rest needs",
            "choose others, or leave them out and let the stages be found",
        )
    raise InputError(
        f"{name}, which cannot be cut ({'; '.join(reasons)})",
        "a network that ends in a classifier module and returns one tensor of logits",
        "choose another network, or make its classifier a module",
    )


def _check_forward(net: nn.Module, name: str, shape: tuple[int, int, int], num_classes: int) -> None:
    try:
        logits = dry_run(net, lambda network, images: network(images), shape)
    except Exception as error:  # whatever the network's own code makes of images that do not fit
        given = f"{name} with images of {shape[1]} x {shape[2]} px: {str(error) or type(error).__name__}"
        raise size_error(given, sizes_for(net, shape), input_of(net, None).image_size) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] != num_classes:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"{name}, whose output is {found}",
            f"logits of {num_classes} classes: (2, {num_classes}) for two images",
            "build it with the data's number of classes",
        )
