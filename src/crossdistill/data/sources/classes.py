"""Which classes a set has, and the targets that its labels become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.data.sources.split_names import REPORTED
from crossdistill.errors import InputError, nearest

IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png")
LABEL_COLUMNS = ("label", "fine_label", "labels", "target", "class")
"""Columns that are taken where none is named: the first of these that there is."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a set beyond its files.

    ``class_names`` are those of the labels 0, 1, …, for files that hold none. ``mirror_safe``: whether a mirrored image
    still shows its class. ``reported``: see :func:`crossdistill.data.sources.split_names.choose_splits`.
    """

    class_names: tuple[str, ...] | None = None
    mirror_safe: bool = True
    reported: tuple[str, ...] = REPORTED


NO_FACTS = Facts()


@dataclass(frozen=True, slots=True)
class Classes:
    """Names, and the labels that stand for them in the files, both in the order of the targets."""

    names: tuple[str, ...]
    labels: tuple[int | str, ...]

    @classmethod
    def of(cls, labels: Sequence[Any], names: Sequence[str] | None = None) -> Classes:
        """The classes of these labels: numbers that count the names, or else every label one class, sorted.

        Negative numbers are no class.
        """
        if names and all(isinstance(label, int) for label in labels):
            return cls(tuple(names), tuple(range(len(names))))
        found = sorted(label for label in set(labels) if not _is_negative(label))
        return cls(tuple(map(str, found)), tuple(found))

    def targets(self, labels: Sequence[Any], place: Callable[[int], str]) -> NDArray[np.int64]:
        """Targets ``(N,)`` of these labels.

        Args:
            place: where the label of that index lies, for messages.

        Raises:
            InputError: a label that is not among the classes, or negative.
        """
        target_of = {label: target for target, label in enumerate(self.labels)}
        unknown = list(dict.fromkeys(label for label in labels if label not in target_of))
        if unknown:
            first = next((label for label in unknown if _is_negative(label)), unknown[0])
            num_rows = sum(label not in target_of for label in labels)
            which = f": {', '.join(map(repr, unknown[:5]))}" if len(unknown) > 1 else ""
            more = f" ({num_rows} such labels{which})" if num_rows > 1 else ""
            known = f"one of the {len(self.labels)} classes of the training data"
            raise InputError(
                f"label {first!r} of {place(labels.index(first))}{more}",
                "no negative number: images without a label are refused" if _is_negative(first) else known,
                "correct or remove such rows, or choose other splits (data.train_split, data.evaluation_split)",
            )
        return np.array([target_of[label] for label in labels], dtype=np.int64)


def _is_negative(label: Any) -> bool:
    return isinstance(label, int) and label < 0


def check_labels(labels: Sequence[Any], where: str, column: str) -> None:
    """Refuse labels that are missing, or neither all whole numbers nor all strings."""
    kinds = {type(label) for label in labels}
    if type(None) in kinds:
        raise InputError(
            f"{where}: {sum(label is None for label in labels)} rows without a label in column {column!r}, "
            f"the first is row {next(row for row, label in enumerate(labels) if label is None)}",
            "a label in every row",
            "fill or remove these rows, or set data.label_column",
        )
    if not (kinds <= {int} or kinds <= {str}):
        raise InputError(
            f"label column {column!r} of {where}, which holds {' and '.join(sorted(kind.__name__ for kind in kinds))}",
            "whole numbers or strings",
            "set data.label_column",
        )


def check_same_names(names: Sequence[str] | None, others: Sequence[str] | None, where: str) -> None:
    """Refuse files whose numbers stand for other classes than those of the training files."""
    if names is not None and others is not None and tuple(names) != tuple(others):
        at = next((at for at, pair in enumerate(zip(names, others, strict=False)) if pair[0] != pair[1]), None)
        told = f"{len(others)} classes" if at is None else f"{others[at]!r} as class {at}"
        trained = f"{len(names)}" if at is None else f"{names[at]!r}"
        raise InputError(
            f"{where}: {told}, but {trained} in the training files",
            "the same classes in the same order",
            "write the files again",
        )


def find_column(key: str, asked: str | None, present: Sequence[str], where: str) -> str:
    """The column for data.image_column or data.label_column, of those present.

    Args:
        key: "image_column" or "label_column".
        asked: the setting; ``None`` takes the first of the usual names.
    """
    usual = IMAGE_COLUMNS if key == "image_column" else LABEL_COLUMNS
    if asked is not None and asked in present:
        return asked
    found = [name for name in usual if name in present]
    if asked is None and found:
        return found[0]
    column = usual[0] if asked is None else asked
    raise InputError(
        f"column {column!r}, which {where} does not have",
        f"one of its columns: {', '.join(present)}",
        f"set data.{key} ({nearest(column, present)})",
    )
