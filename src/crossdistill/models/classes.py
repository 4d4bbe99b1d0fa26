"""The classes of a network that is built by name: how many, in which order, and whether its weights have them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from crossdistill.errors import InputError
from crossdistill.models import weights
from crossdistill.models.checkpoint import Checkpoint
from crossdistill.models.cutter import classifier_names
from crossdistill.models.names import Named
from crossdistill.models.sources.source import PRETRAINED, Head

IMAGENET_CLASSES = 1000
"""The classes of ImageNet go by several names, but always stand in one order."""


def published_head(named: Named, start: Checkpoint | str | None, num_classes: int | None) -> Head | None:
    """The classifier of published weights that is kept. None: no such weights, none in them, or they are a start.

    Raises:
        InputError: there are no weights, or their classifier is for another number of classes than the data; a source
            would draw another one at random.
    """
    if start == PRETRAINED:
        named.source.published(named.name)
    if named.weights != PRETRAINED:
        return None
    head = named.source.published(named.name)
    number = head.num_classes if head is not None else 0
    if num_classes is not None and num_classes != number:
        raise InputError(
            f"{_trained(named)}, whose head has {number} classes, for data of {num_classes}",
            "weights whose head has the data's classes (a teacher may have others: --class-map)",
            f"to fine-tune it: crossdistill train --model {named.full} --init pretrained --data … --out …, "
            "then use that run",
        )
    return head


def keeps_head(named: Named, num_classes: int) -> bool:
    """Whether published weights that are started from bring a classifier of this size, which sources then keep."""
    head = named.source.published(named.name)
    return head is not None and head.num_classes == num_classes


def _trained(named: Named) -> str:
    return named.full if named.source.always_trained else f"{named.full}@{PRETRAINED}"


def stated_classes(named: Named, head: Head | None, num_classes: int | None) -> int | None:
    """The number of classes that published weights have, or that saved ones state or show."""
    checkpoint = named.checkpoint
    if checkpoint is None or num_classes is not None:
        return head.num_classes if head is not None else None
    if checkpoint.num_classes is not None:
        return checkpoint.num_classes
    return checkpoint.num_rows(named.source.classifiers(named.name))


def number_of_classes(name: str, num_classes: int | None, class_names: Sequence[str] | None, stated: int | None) -> int:
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


def in_order_of(net: nn.Module, named: Named, head: Head, class_names: Sequence[str] | None) -> Sequence[str] | None:
    """Put the rows of a published classifier into the order of the data's classes; the names of its outputs then.

    Raises:
        InputError: it was trained on other classes.
    """
    order = weights.class_order(head.class_names, class_names)
    if order == "other classes" and head.num_classes != IMAGENET_CLASSES:
        raise InputError(
            f"{_trained(named)} with the classes {', '.join((head.class_names or ())[:3])}, …",
            f"the data's classes {', '.join((class_names or ())[:3])}, …",
            f"to fine-tune it: crossdistill train --model {named.full} --init pretrained --data … --out …",
        )
    if not isinstance(order, str):
        with torch.no_grad():
            for name in classifier_names(net):
                for parameter in net.get_submodule(name).parameters(recurse=False):
                    parameter.copy_(parameter[order])
    return class_names if class_names is not None else head.class_names
