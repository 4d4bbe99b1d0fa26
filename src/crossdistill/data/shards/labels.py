"""What the labels in shards mean: whole numbers are numbers of classes, other text is the name of one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossdistill.errors import InputError, nearest

CLASS_FILE = "classes.txt"
"""A file beside the training shards that names the classes, one a line, in the order of their numbers."""

_NUMBER = re.compile(r"[+-]?\d+")


@dataclass(frozen=True, slots=True)
class ShardClasses:
    """Class names, and the class that each possible label stands for."""

    names: tuple[str, ...]
    by_label: Mapping[int | str, int]

    @classmethod
    def of_names(cls, names: Sequence[str]) -> ShardClasses:
        """Named classes: labels are their names, or their numbers from 0."""
        by_name: dict[int | str, int] = {name: target for target, name in enumerate(names)}
        return cls(tuple(names), by_name | {target: target for target in range(len(names))})

    @classmethod
    def of_labels(cls, texts: Sequence[str], where: str) -> ShardClasses:
        """The classes that occur, in order: numbers by value, else names by the alphabet."""
        labels = [_label(text) for text in texts]
        numbers = sorted(label for label in labels if isinstance(label, int))
        names = sorted(label for label in labels if isinstance(label, str))
        if numbers and names:
            raise InputError(
                f"{where}: some labels are numbers ({numbers[0]}), others text ({names[0]!r})",
                f"one of the two, or a file {CLASS_FILE} beside the training shards that names the classes",
                f"write {CLASS_FILE}, one name a line, in the order of the numbers",
            )
        classes: list[int | str] = [*(number for number in dict.fromkeys(numbers) if number >= 0), *names]
        return cls(tuple(map(str, classes)), {label: target for target, label in enumerate(classes)})

    def target(self, text: str, where: str) -> int:
        """The class of a label; ``where`` names the sample for the message.

        Raises:
            InputError: a negative number, or no class.
        """
        target = self.by_label.get(_label(text))
        if target is not None:
            return target
        if text.startswith("-") and _NUMBER.fullmatch(text):
            raise InputError(
                f"label {text!r} of {where}",
                "no negative number: samples without a label are refused",
                "correct the label, or leave such samples out of the shards",
            )
        known = nearest(text, self.names)
        raise InputError(
            f"label {text!r} of {where}",
            f"a number from 0, or the name, of one of the {len(self.names)} classes",
            f"correct the label, or the list of classes ({known})",
        )

    def targets(self, labels: NDArray[np.bytes_], where: Callable[[int], str]) -> NDArray[np.int64]:
        """Classes of all labels ``(N,)``; ``where`` names the sample at an index."""
        texts, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
        # By place, so that the sample that is named is the first of them all.
        found = {at: self.target(_text(texts[at]), where(int(first[at]))) for at in np.argsort(first)}
        return np.array([found[at] for at in range(len(texts))], dtype=np.int64)[inverse]


def read_classes(folder: Path) -> ShardClasses | None:
    """The classes that ``classes.txt`` in that folder names, if there is one.

    Raises:
        InputError: a file that is not text, or that names a class twice.
    """
    path = folder / CLASS_FILE
    if not path.is_file():
        return None
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"class file {path}: {error}", "one class name a line, as UTF-8", "mend the file") from error
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise InputError(f"class file {path} with {twice!r} twice", "every name once", "correct the file")
    return ShardClasses.of_names(names)


def classes_of(labels: Sequence[NDArray[np.bytes_]], where: str) -> ShardClasses:
    """The classes that occur in the labels of several shards."""
    texts = {_text(one) for shard in labels for one in np.unique(shard)}
    return ShardClasses.of_labels(sorted(texts), where)


def _label(text: str) -> int | str:
    return int(text) if _NUMBER.fullmatch(text) else text


def _text(label: bytes) -> str:
    return bytes(label).decode("utf-8")
