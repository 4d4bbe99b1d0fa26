"""Stratified choices of images, each a pure function of its seed: splits, subsets, and which labels are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossdistill.data.philox import Purpose, random_order
from crossdistill.data.source import Source, Splits
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings

_FIXED_SEED = 0
_HELD_OUT_SHARE = 0.2

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which images train and which select the best epoch; ``labelled`` is a mask ``(N,)`` over the whole source."""

    train_ids: Ids
    labelled: NDArray[np.bool_]
    val_ids: Ids


def fixed_split(
    targets: NDArray[np.int64], num_held_out: int, class_names: Sequence[str] | None = None
) -> tuple[Ids, Ids]:
    """Split a set that brings no split: (training ids, evaluation ids), the same in every run."""
    everything = np.arange(len(targets), dtype=np.int64)
    held_out = _stratified(everything, targets, num_held_out, _FIXED_SEED, Purpose.SPLIT, class_names, keep_one=True)
    return np.setdiff1d(everything, held_out), held_out


def hold_out(targets: NDArray[np.int64], class_names: Sequence[str], part: Callable[[str, Ids], Source]) -> Splits:
    """Splits of a set that brings none: ``part`` makes the source of "train", and of "val" with a fixed 20 %."""
    num_held_out = round(len(targets) * _HELD_OUT_SHARE)
    train_ids, val_ids = fixed_split(targets, num_held_out, class_names)
    return Splits(part("train", train_ids), part("val", val_ids), "val")


def select_training(
    targets: NDArray[np.int64],
    settings: DataSettings,
    seed: int,
    select_best: bool,
    class_names: Sequence[str] | None = None,
) -> Selection:
    """Choose among the training images: ``first_per_class``, of these ``limit_train``, ``val_share``, and then labels.

    Args:
        targets: class of each image of the source ``(N,)``, -1 for unlabelled.
        seed: the run's seed.
        select_best: whether the best epoch is selected, which needs a held-out share.
        class_names: for messages.

    Raises:
        InputError: a class has too few images for what is asked.
    """
    ids = np.arange(len(targets), dtype=np.int64)
    if settings.first_per_class is not None:
        ids = first_of_each(targets, settings.first_per_class)
    if settings.limit_train is not None:
        _check_limit(settings.limit_train, targets[ids])
        ids = _stratified(ids, targets, settings.limit_train, seed, Purpose.LIMIT, class_names)
    val_ids = ids[:0]
    if select_best:
        num_val = max(1, round(len(ids) * settings.val_share))
        val_ids = _stratified(ids, targets, num_val, seed, Purpose.VALIDATION, class_names, keep_one=True)
        ids = np.setdiff1d(ids, val_ids)
    labelled = targets >= 0
    if settings.labels_per_class is not None:
        kept = _labels(ids, targets, settings.labels_per_class, seed, class_names)
        labelled = np.isin(np.arange(len(targets)), np.concatenate([kept, val_ids])) & labelled
    return Selection(ids, labelled, val_ids)


def first_of_each(targets: NDArray[np.int64], count: int) -> Ids:
    """The first ``count`` images of every class in canonical order, sorted; all of a class that has fewer.

    >>> first_of_each(np.array([1, 0, 1, 1, 0]), 2).tolist()
    [0, 1, 2, 4]
    """
    return np.sort(np.concatenate([np.flatnonzero(targets == one)[:count] for one in np.unique(targets)]))


def _check_limit(limit: int, targets: NDArray[np.int64]) -> None:
    num_classes = len(np.unique(targets))
    if not num_classes <= limit <= len(targets):
        raise InputError(
            f"data.limit_train={limit} for {len(targets)} training images of {num_classes} classes",
            f"a number from {num_classes} (one image a class) to {len(targets)}",
            "change data.limit_train",
        )


def _stratified(
    ids: Ids,
    targets: NDArray[np.int64],
    count: int,
    seed: int,
    purpose: Purpose,
    class_names: Sequence[str] | None,
    *,
    keep_one: bool = False,
) -> Ids:
    """``count`` of the ids, sorted, in the proportions of their classes, at least one a class.

    ``keep_one`` leaves at least one image of each class unchosen.
    """
    classes, sizes = np.unique(targets[ids], return_counts=True)
    highest = sizes - 1 if keep_one else sizes
    if highest.min() < 1:
        few = classes[highest.argmin()]
        raise InputError(
            f"class {_name(few, class_names)} with {sizes.min()} image(s) to split",
            "at least two, so that both parts have one",
            "add images of that class, or remove it",
        )
    quotas = _quotas(sizes, int(np.clip(count, len(sizes), highest.sum())), highest)
    members_by_class = _shuffled_by_class(ids, targets, classes, seed, purpose)
    chosen = [members[:quota] for members, quota in zip(members_by_class, quotas, strict=True)]
    return np.sort(np.concatenate(chosen))


def _quotas(sizes: Ids, count: int, highest: Ids) -> Ids:
    """Largest-remainder shares of ``count``, each from 1 to ``highest``."""
    exact = sizes * (count / sizes.sum())
    quotas: Ids = np.clip(np.floor(exact).astype(np.int64), 1, highest)
    while (lacking := count - int(quotas.sum())) != 0:
        step = 1 if lacking > 0 else -1
        movable = np.flatnonzero(quotas < highest if lacking > 0 else quotas > 1)
        by_need = movable[np.argsort(step * (quotas - exact)[movable], kind="stable")]
        quotas[by_need[: abs(lacking)]] += step
    return quotas


def _labels(
    ids: Ids, targets: NDArray[np.int64], labels_per_class: int, seed: int, class_names: Sequence[str] | None
) -> Ids:
    classes, sizes = np.unique(targets[ids][targets[ids] >= 0], return_counts=True)
    if sizes.min() < labels_per_class:
        few = classes[sizes.argmin()]
        raise InputError(
            f"data.labels_per_class={labels_per_class}, but class {_name(few, class_names)} has {sizes.min()} images",
            f"at most {sizes.min()}",
            "lower data.labels_per_class, or add images of that class",
        )
    members = _shuffled_by_class(ids, targets, classes, seed, Purpose.LABELS)
    return np.sort(np.concatenate([one[:labels_per_class] for one in members]))


def _shuffled_by_class(ids: Ids, targets: NDArray[np.int64], classes: Ids, seed: int, purpose: Purpose) -> list[Ids]:
    # The order is drawn over the whole source, so that a larger limit or more labels extend the smaller choice.
    place = np.empty(len(targets), dtype=np.int64)
    place[random_order(len(targets), seed=seed, purpose=purpose)] = np.arange(len(targets))
    shuffled = ids[np.argsort(place[ids])]
    return [shuffled[targets[shuffled] == one] for one in classes]


def _name(index: int, class_names: Sequence[str] | None) -> str:
    return repr(class_names[index]) if class_names is not None else str(index)
