"""From a name to a staged model: ``timm/<name>``, ``<name>@pretrained``, ``<name>@PATH``, a folder, or a module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from timm.models import is_model, is_model_pretrained
from torch import nn

from crossdistill.contracts import ModelSpec
from crossdistill.errors import InputError, nearest
from crossdistill.models import additions, weights
from crossdistill.models.checkpoint import Checkpoint, locate
from crossdistill.models.create import create
from crossdistill.models.stage import stage
from crossdistill.models.staged import StagedModel
from crossdistill.models.views import Size

__all__ = ["additions", "build", "list_models"]

NOT_YET = ("torchvision/", "hf-hub:", "hf_hub:", "file:", "local-dir:")
PRETRAINED = "pretrained"


def build(
    name: str | nn.Module,
    *,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    class_names: Sequence[str] | None = None,
    init: str | None = None,
    **args: Any,
) -> StagedModel:
    """Build a network for so many classes and find out its stages.

    Args:
        name: ``timm/<name>`` or ``<name>`` (random weights), ``<name>@pretrained`` (timm's weights, classifier
            included), ``<name>@PATH`` (weights that have the data's classes already), a path that holds a config.json
            or a run, or a module (also a staged one).
        num_classes: classes of the data; None takes those of the weights where these state them.
        image_size: height and width in pixels; None takes the model's own, or that of a saved folder.
        class_names: the data's classes in order; saved classes are matched by name.
        init: "pretrained" or a path: weights to start from, of which the classifier may differ.
        **args: further arguments of the constructor.

    Raises:
        InputError: an unknown name, weights that do not fit, a size or argument that the model does not take, no
            number of classes.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    start = init if init in (None, PRETRAINED) else locate(init)
    if isinstance(name, nn.Module):
        return _from_module(name, num_classes, size, class_names, start, args)
    architecture, source = parse(name)
    folder = source if isinstance(source, Checkpoint) else None
    stated = folder.num_classes if folder is not None else None
    if source == PRETRAINED:
        stated = _pretrained_classes(architecture, num_classes)
    num_classes = _number_of_classes(name, num_classes, class_names, stated)
    options = {"num_classes": num_classes, **args}
    if PRETRAINED in (source, start):
        _check_has_weights(architecture)
    net = create(architecture, folder, options, size, pretrained=PRETRAINED in (source, start))
    if folder is not None:
        weights.load(net, folder, name=architecture, class_names=class_names)
        class_names = class_names if class_names is not None else folder.class_names
        size = size or _saved_size(folder)
    if isinstance(start, Checkpoint):
        weights.start_from(net, start, name=architecture, class_names=class_names)
    return stage(net, architecture, num_classes, size, class_names)


def list_models(pattern: str | None = None) -> list[str]:
    """Names of all models, or of those that match a pattern (``resnet`` means ``*resnet*``)."""
    if pattern is not None and not set("*?[") & set(pattern):
        pattern = f"*{pattern}*"
    return [str(name) for name in timm.list_models(pattern or "")]


def parse(name: str) -> tuple[str, Checkpoint | str | None]:
    """Split a name into timm's architecture and where its weights come from.

    Raises:
        InputError: a source that is not supported, an unknown architecture, or a checkpoint of another one.
    """
    for prefix in NOT_YET:
        if name.startswith(prefix):
            raise InputError(f"model {name!r}", "timm/<name>, <name>@PATH or a path", f"{prefix} is not supported yet")
    bare = name.removeprefix("timm/")
    architecture, at, source = bare.partition("@")
    if is_model(architecture):
        if not at:
            return architecture, None
        return architecture, source if source == PRETRAINED else _of(architecture, locate(source))
    if Path(name).expanduser().exists():
        return _from_path(name)
    if not at and _looks_like_path(bare):
        locate(bare)
    raise InputError(
        f"model {name!r}",
        "a model of timm, <name>@PATH, or a path",
        f"{nearest(architecture, timm.list_models())} `crossdistill models PATTERN` lists them",
    )


def _number_of_classes(
    name: str, num_classes: int | None, class_names: Sequence[str] | None, stated: int | None
) -> int:
    """What is given, or else what the weights state; the names must be as many."""
    number = num_classes if num_classes is not None else stated
    if number is None:
        raise InputError(
            f"model {name!r}, which does not say how many classes it has",
            "a run folder, an exported student, or the number of classes",
            "give one of them",
        )
    if class_names is not None and len(class_names) != number:
        raise InputError(f"{len(class_names)} class names for {number} classes", "one for each", "correct them")
    return number


def _pretrained_classes(architecture: str, num_classes: int | None) -> int | None:
    """Classes of the head that timm's weights bring, None where they bring none; timm would draw another at random."""
    _check_has_weights(architecture)
    config = timm.models.get_pretrained_cfg(architecture)
    head: int = config.num_classes if config is not None else 0
    if num_classes is not None and num_classes != head:
        raise InputError(
            f"{architecture}@pretrained, whose head has {head} classes, for data of {num_classes}",
            "weights whose head has the data's classes",
            f"to fine-tune it: crossdistill train --model {architecture} --init pretrained --data … --out …, "
            "then use that run",
        )
    return head or None


def _check_has_weights(architecture: str) -> None:
    if not is_model_pretrained(architecture):
        raise InputError(f"{architecture}@pretrained", "a model for which timm has weights", "leave out @pretrained")


def _looks_like_path(text: str) -> bool:
    return "/" in text or Path(text).suffix in (".safetensors", ".pt", ".pth")


def _from_path(path: str) -> tuple[str, Checkpoint]:
    checkpoint = locate(path)
    if checkpoint.architecture is None:
        raise InputError(
            f"path {path!r} without a config.json that names the architecture",
            "a folder in timm's layout or a run folder",
            f"name the architecture: <name>@{path}",
        )
    if not is_model(checkpoint.architecture):
        raise InputError(
            f"{path!r}, whose config.json names the architecture {checkpoint.architecture!r}",
            "a model of timm",
            nearest(checkpoint.architecture, timm.list_models()),
        )
    return checkpoint.architecture, checkpoint


def _of(architecture: str, checkpoint: Checkpoint) -> Checkpoint:
    saved = checkpoint.architecture
    if saved is not None and saved != architecture.partition(".")[0]:
        raise InputError(
            f"{checkpoint.given}, a checkpoint of {saved!r}",
            f"a checkpoint of {architecture!r}",
            f"use {saved}@{checkpoint.given}, or just the path",
        )
    return checkpoint


def _saved_size(checkpoint: Checkpoint) -> Size | None:
    size = checkpoint.model_args.get("img_size")
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _from_module(
    net: nn.Module,
    num_classes: int | None,
    size: Size | None,
    class_names: Sequence[str] | None,
    start: Checkpoint | str | None,
    args: dict[str, Any],
) -> StagedModel:
    name, stated = type(net).__name__, None
    if isinstance(net, StagedModel):
        spec, net = net.spec, net.net
        name, stated, size = spec.name, spec.num_classes, size or spec.input.image_size
        class_names = _same_names(spec, class_names)
    num_classes = _number_of_classes(name, num_classes, class_names, stated)
    if args:
        raise InputError(f"{', '.join(args)} for a {name} that is built already", "no arguments", "drop them")
    if isinstance(start, Checkpoint):
        weights.start_from(net, start, name=name, class_names=class_names)
    elif start is not None:
        raise InputError(f"init={start!r} for a {name} that is built already", "a path", "load the weights before")
    return stage(net, name, num_classes, size, class_names)


def _same_names(spec: ModelSpec, class_names: Sequence[str] | None) -> Sequence[str] | None:
    if None not in (spec.class_names, class_names) and list(spec.class_names or ()) != list(class_names or ()):
        raise InputError(
            f"a {spec.name} that was built for the classes {', '.join(spec.class_names or ())}",
            f"the data's classes in their order: {', '.join(class_names or ())}",
            "build it with these class names, or give its plain network (.net) if its outputs mean them",
        )
    return class_names if class_names is not None else spec.class_names
