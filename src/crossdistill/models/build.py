"""From a name to a staged model: read the name, let its source build the network, load weights, find the stages."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from crossdistill.contracts import ModelSpec
from crossdistill.errors import InputError
from crossdistill.models import weights
from crossdistill.models.checkpoint import Checkpoint, locate
from crossdistill.models.classes import in_order_of, keeps_head, number_of_classes, published_head, stated_classes
from crossdistill.models.names import TIMM, TORCHVISION, parse
from crossdistill.models.sources.source import PRETRAINED, Request
from crossdistill.models.stage import stage
from crossdistill.models.staged import StagedModel
from crossdistill.models.views import Size

__all__ = ["Network", "build", "list_models", "network"]


@dataclass(frozen=True, slots=True)
class Network:
    """A network that is not cut into stages yet, and what is known of it."""

    net: nn.Module
    name: str
    num_classes: int
    size: Size | None = None
    class_names: tuple[str, ...] | None = None


def build(
    name: str | nn.Module,
    *,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    class_names: Sequence[str] | None = None,
    init: str | None = None,
    stages: Sequence[str] | None = None,
    allow_code: bool = False,
    **args: Any,
) -> StagedModel:
    """Build a network for so many classes and find out its stages.

    Args:
        name: ``timm/<name>`` or ``<name>`` (random weights), ``torchvision/<name>``, ``<name>@pretrained`` (published
            weights, classifier included), ``<name>@PATH`` (weights that have the data's classes already),
            ``hf-hub:<owner>/<name>`` (with its weights), ``file:net.py:function``, a path that holds a config.json or
            a run, or a module (also a staged one).
        num_classes: classes of the data; None takes those of the weights where these state them.
        image_size: height and width in pixels; None takes the model's own, or that of a saved folder.
        class_names: the data's classes in order; saved classes are matched by name.
        init: "pretrained" or a path: weights to start from, of which the classifier may differ.
        stages: names of the modules whose outputs end the stages, in order; None finds the stages.
        allow_code: run the Python file that a ``file:`` name, or a run of one, names.
        **args: further arguments of the constructor.

    Raises:
        InputError: an unknown name, weights that do not fit, a size or argument that the model does not take, no
            number of classes, code that is not allowed, stages that the network does not have.
    """
    if isinstance(name, nn.Module):
        made = _from_module(name, num_classes, _size(image_size), class_names, _start(init), args)
    else:
        made = network(
            name,
            num_classes=num_classes,
            image_size=image_size,
            class_names=class_names,
            init=init,
            allow_code=allow_code,
            **args,
        )
    if stages is None and isinstance(name, StagedModel):
        stages = name.stage_names
    return stage(made.net, made.name, made.num_classes, made.size, made.class_names, stages)


def network(
    name: str,
    *,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    class_names: Sequence[str] | None = None,
    init: str | None = None,
    allow_code: bool = False,
    **args: Any,
) -> Network:
    """The network of a name with its weights, not cut into stages; arguments and errors are those of :func:`build`."""
    named, start = parse(name), _start(init)
    if start is not None and named.source.always_trained:
        named = replace(named, weights=None)
    if start is not None and named.weights is not None:
        raise InputError(
            f"model {name!r}, which has weights of its own, together with init={init!r}",
            "one source of weights",
            f"start {named.full!r} from init, or leave init out",
        )
    head = published_head(named, start, num_classes)
    num_classes = number_of_classes(name, num_classes, class_names, stated_classes(named, head, num_classes))
    checkpoint = named.checkpoint
    published = PRETRAINED in (named.weights, start)
    size = _size(image_size) or (weights.saved_size(checkpoint) if checkpoint is not None else None)
    net = named.source.create(Request(named.name, num_classes, size, args, published, checkpoint, allow_code))
    if checkpoint is not None:
        weights.load(net, checkpoint, name=named.full, class_names=class_names)
        class_names = class_names if class_names is not None else checkpoint.class_names
    elif head is not None:
        class_names = in_order_of(net, named, head, class_names)
    if isinstance(start, Checkpoint):
        weights.start_from(net, named.source.read(start), name=named.full, class_names=class_names)
    elif start == PRETRAINED and not keeps_head(named, num_classes):
        weights.renew_classifier(net)
    return Network(net, named.full, num_classes, size, _tuple(class_names))


def list_models(pattern: str | None = None) -> list[str]:
    """Names of all models, or of those that match a pattern (``resnet`` means ``*resnet*``)."""
    names = TIMM.names() + [f"{TORCHVISION.prefix}{name}" for name in TORCHVISION.names()]
    if pattern is None:
        return names
    if not set("*?[") & set(pattern):
        pattern = f"*{pattern}*"
    return fnmatch.filter(names, pattern)


def _start(init: str | None) -> Checkpoint | str | None:
    return init if init in (None, PRETRAINED) else locate(str(init))


def _size(given: int | tuple[int, int] | None) -> Size | None:
    return (given, given) if isinstance(given, int) else given


def _tuple(names: Sequence[str] | None) -> tuple[str, ...] | None:
    return tuple(names) if names is not None else None


def _from_module(
    net: nn.Module,
    num_classes: int | None,
    size: Size | None,
    class_names: Sequence[str] | None,
    start: Checkpoint | str | None,
    args: dict[str, Any],
) -> Network:
    """A network that is built already; one that is staged brings what it knows."""
    name, stated = type(net).__name__, None
    if isinstance(net, StagedModel):
        spec, net = net.spec, net.net
        name, stated, size = spec.name, spec.num_classes, size or spec.input.image_size
        class_names = _same_names(spec, class_names)
    num_classes = number_of_classes(name, num_classes, class_names, stated)
    if args:
        raise InputError(f"{', '.join(args)} for a {name} that is built already", "no arguments", "drop them")
    if isinstance(start, Checkpoint):
        weights.start_from(net, start, name=name, class_names=class_names)
    elif start is not None:
        raise InputError(f"init={start!r} for a {name} that is built already", "a path", "load the weights before")
    return Network(net, name, num_classes, size, _tuple(class_names))


def _same_names(spec: ModelSpec, class_names: Sequence[str] | None) -> Sequence[str] | None:
    if None not in (spec.class_names, class_names) and list(spec.class_names or ()) != list(class_names or ()):
        raise InputError(
            f"a {spec.name} that was built for the classes {', '.join(spec.class_names or ())}",
            f"the data's classes in their order: {', '.join(class_names or ())}",
            "build it with these class names, or give its plain network (.net) if its outputs mean them",
        )
    return class_names if class_names is not None else spec.class_names
