"""How much each class counts in the hard-label term."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.errors import InputError
from crossdistill.settings import TrainSettings


@runtime_checkable
class CountsClasses(Protocol):
    """A loader that knows how many labelled training images each class has."""

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """``(K,)``, over the whole training set."""
        ...


def class_weights(
    settings: TrainSettings, counts: Sequence[int] | NDArray[np.int64] | None, num_classes: int
) -> Tensor | None:
    """The weights ``(K,)`` float32 that ``train.class_weights`` asks for, or ``None`` where all classes count alike.

    "balanced" is ``N / (K n_c)`` for a class with n_c of the N labelled training images, so that the weights of all
    images add up to N and every class has the same part of it.

    Args:
        settings: ``class_weights``.
        counts: labelled training images of each class, ``None`` where they are not known.
        num_classes: K.

    Raises:
        InputError: another number of weights, a weight that is not a number above 0, or images that are to be balanced
            and are not counted or miss a class.
    """
    given = settings.class_weights
    if given is None:
        return None
    if given == "balanced":
        return _balanced(counts, num_classes)
    if len(given) != num_classes:
        raise InputError(
            f"{len(given)} class_weights for {num_classes} classes",
            f"{num_classes} weights, in the order of the classes",
            "give one a class, or class_weights=balanced",
        )
    weights = torch.tensor(given, dtype=torch.float32)
    wrong = (weights > 0).logical_not().nonzero().flatten().tolist()
    if wrong:
        raise InputError(
            f"class_weights with {given[wrong[0]]} for class {wrong[0]}",
            "weights above 0",
            "raise it; to leave a class out, leave out its images",
        )
    return weights


def weights_for(loader: object, settings: TrainSettings, num_classes: int) -> Tensor | None:
    """:func:`class_weights` with the counts of this loader, where it has them."""
    if settings.class_weights is None:
        return None
    return class_weights(settings, loader.class_counts if isinstance(loader, CountsClasses) else None, num_classes)


def _balanced(counts: Sequence[int] | NDArray[np.int64] | None, num_classes: int) -> Tensor:
    if counts is None:
        raise InputError(
            "class_weights=balanced with training images that are not counted by class",
            "data whose labels are known before training, or the weights themselves",
            f"give {num_classes} numbers as class_weights",
        )
    numbers = torch.tensor([int(count) for count in counts], dtype=torch.float64)
    if len(numbers) != num_classes or not numbers.all():
        empty = numbers.eq(0).nonzero().flatten().tolist()
        given = f"no labelled image of class {empty[0]}" if empty else f"images of {len(numbers)} classes"
        raise InputError(
            f"class_weights=balanced with {given}, for {num_classes} classes",
            "at least one labelled training image of every class",
            "label some, leave the class out of the data, or give the weights as numbers",
        )
    return (numbers.sum() / (num_classes * numbers)).float()
