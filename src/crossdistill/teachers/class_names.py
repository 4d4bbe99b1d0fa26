"""What the classes of a teacher are called: by the names it was saved with, else by ImageNet's if it has as many."""

from __future__ import annotations

import functools
import re
from collections import defaultdict

from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

from crossdistill.contracts import ModelSpec
from crossdistill.errors import InputError, nearest

SMALLEST = "imagenet-1k"
"""Any of timm's lists describes the synsets of all of them."""

SYNSET = re.compile(r"n\d{8}")


class TeacherClasses:
    """The classes of a teacher by number, and every name by which each can be found.

    A class goes by its own name, by the description of its WordNet synset (where its name is a synset id such as
    ``n01440764``), and by each comma-separated part of both. Case, and which of space, hyphen and underscore stands
    between two words, make no difference.

    Args:
        spec: the teacher's facts. Without class names, a number of classes that only one of timm's ImageNet label
            lists has (1,000 and the larger sets) means that list.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.teacher, self.num_classes = spec.name, spec.num_classes
        self._names = tuple(spec.class_names or imagenet_names(spec.num_classes) or ())
        self._descriptions = _descriptions(self._names)
        self._own: dict[str, list[int]] = defaultdict(list)
        self._called: dict[str, list[int]] = defaultdict(list)
        for number, name in enumerate(self._names):
            self._own[name].append(number)
            for one in {normal(one) for one in _all_names(name, self._descriptions.get(name))}:
                self._called[one].append(number)

    @property
    def named(self) -> bool:
        """Whether anything is known but numbers."""
        return bool(self._names)

    def called(self, name: str) -> list[int]:
        """Numbers of the classes that go by this name; one that is exactly a class's own name means that class."""
        own = self._own.get(name, [])
        return list(own) if len(own) == 1 else list(self._called.get(normal(name), ()))

    def find(self, given: str | int, *, where: str) -> int:
        """The number of a class that is given by name or number.

        Args:
            where: what gives it, for messages.

        Raises:
            InputError: no such class, or several of that name.
        """
        if isinstance(given, int):
            if 0 <= given < self.num_classes:
                return given
            raise InputError(
                f"{where}: class {given} of teacher {self.teacher}",
                f"a number from 0 to {self.num_classes - 1}",
                "correct the number, or quote it if it is a name",
            )
        found = self.called(given)
        if len(found) == 1:
            return found[0]
        if found:
            raise self._ambiguous(given, found, where)
        raise InputError(
            f"{where}: class {given!r}, which teacher {self.teacher} does not have",
            f"one of its {self.num_classes} classes, by name or by number from 0",
            self.nearest(given) if self.named else "give numbers, without quotes: nothing says what its classes are",
        )

    def nearest(self, name: str) -> str:
        """A phrase with the known names nearest to this one."""
        return nearest(normal(name), self._called)

    def describe(self, number: int) -> str:
        """How messages name a class: number, name, and what its synset means."""
        if not self.named:
            return str(number)
        description = self._descriptions.get(self._names[number])
        return f"{number} {self._names[number]!r}" + (f" ({description})" if description else "")

    def _ambiguous(self, given: str, found: list[int], where: str) -> InputError:
        candidates = " and ".join(self.describe(number) for number in found)
        return InputError(
            f"{where}: {given!r}, a name of {len(found)} classes of teacher {self.teacher}: {candidates}",
            "a name of one class",
            f"map it in a file, to the number of one ({given}: {found[0]}) or to several ({given}: {found})",
        )


def imagenet_names(num_classes: int) -> list[str] | None:
    """Synset ids of the ImageNet label list that has exactly so many classes, in timm's order."""
    subset = infer_imagenet_subset({"num_classes": num_classes})
    return list(_info(subset).label_names()) if subset else None  # type: ignore[no-untyped-call]


@functools.cache
def _info(subset: str) -> ImageNetInfo:
    """Read from its files once."""
    return ImageNetInfo(subset)


def normal(name: str) -> str:
    """Lower case, with one space between words.

    >>> normal("Golf_ball"), normal("black-and-tan  coonhound ")
    ('golf ball', 'black and tan coonhound')
    """
    return re.sub(r"[\s_-]+", " ", name).strip().lower()


def _descriptions(names: tuple[str, ...]) -> dict[str, str]:
    """What WordNet calls each class whose name is a synset id that timm knows."""
    synsets = [name for name in names if SYNSET.fullmatch(name)]
    if not synsets:
        return {}
    info, known = _info(SMALLEST), {}
    for synset in synsets:
        try:
            known[synset] = str(info.label_name_to_description(synset))
        except KeyError:  # a synset outside ImageNet goes by its id alone
            continue
    return known


def _all_names(name: str, description: str | None) -> list[str]:
    whole = [name] if description is None else [name, description]
    return whole + [part for one in whole for part in one.split(",") if part.strip()]
