"""Which classes of a teacher stand for each class of the student, where the two do not have the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from crossdistill.contracts import ModelSpec
from crossdistill.errors import InputError, nearest
from crossdistill.settings import check_class_map
from crossdistill.teachers.class_names import TeacherClasses

BY_NAMES = "names"
SHOWN_CLASSES = 3

Given = str | Mapping[str, str | int | list[str | int]]
"""``"names"``, the path of a YAML or JSON file, or the mapping itself."""


@dataclass(frozen=True, slots=True)
class ClassMap:
    """For each class of the student, by its position in ``class_names``, the numbers of the teacher's classes."""

    class_names: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]


def make_class_map(given: Given, class_names: Sequence[str], teacher: ModelSpec) -> ClassMap:
    """Find the teacher's classes for every class of the data.

    Args:
        given: ``"names"`` looks each class up among the names of the teacher's classes (see
            :class:`~crossdistill.teachers.class_names.TeacherClasses`); a mapping gives for each class of the data a
            name, a number from 0, or a list of these, and a path names a file that holds such a mapping.
        class_names: the data's classes in order.
        teacher: the teacher's facts, with its own classes.

    Raises:
        InputError: a class of the data without a teacher class, a class that either does not have, a name of several
            classes, an empty list, or one teacher class for two of the data's.
    """
    classes = TeacherClasses(teacher)
    where, wanted = _wanted(given, class_names, classes)
    _check_known(where, wanted, class_names)
    missing = [name for name in class_names if name not in wanted]
    if missing:
        raise _missing(where, missing, classes)
    groups = tuple(_group(where, name, wanted[name], classes) for name in class_names)
    _check_used_once(where, class_names, groups, classes)
    return ClassMap(tuple(class_names), groups)


def _wanted(
    given: Given, class_names: Sequence[str], classes: TeacherClasses
) -> tuple[str, Mapping[str, str | int | list[str | int]]]:
    """What to call the map in messages, and the teacher classes that it names for each class of the data."""
    if not isinstance(given, str):
        return "class map", check_class_map(dict(given), "class map")
    if given != BY_NAMES:
        return f"class map {given}", check_class_map(_read(Path(given).expanduser()), f"class map {given}")
    if not classes.named:
        raise InputError(
            f"class map 'names' for teacher {classes.teacher}, whose {classes.num_classes} classes have no names",
            "label_names in the config.json beside its weights, or ImageNet's number of classes",
            "map each class to its number, from 0, in a file",
        )
    return "class map 'names'", {name: name for name in class_names if classes.called(name)}


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise InputError(
            f"class map {path}: {error.strerror}", "'names', or a readable YAML or JSON file", "check the path"
        ) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: JSON, and text that is not UTF-8
        raise InputError(f"class map {path}: {error}", "valid YAML or JSON", "mend the file at that line") from error


def _check_known(where: str, wanted: Mapping[str, Any], class_names: Sequence[str]) -> None:
    known = set(class_names)
    unknown = next((name for name in wanted if name not in known), None)
    if unknown is not None:
        raise InputError(
            f"{where} with class {unknown!r}, which the data do not have",
            f"the data's {len(class_names)} classes",
            f"{nearest(unknown, class_names)} Remove or correct that line",
        )


def _missing(where: str, missing: Sequence[str], classes: TeacherClasses) -> InputError:
    shown = missing[:SHOWN_CLASSES]
    more = f", … ({len(missing)} in all)" if len(missing) > len(shown) else ""
    hints = (f"{name}: {hint}" for name in shown if "did you mean" in (hint := classes.nearest(name)))
    return InputError(
        f"{where} without a class of teacher {classes.teacher} for {', '.join(map(repr, shown))}{more}",
        "a teacher class for every class of the data",
        " ".join(("map them in a file, by name or by number from 0.", *hints)),
    )


def _group(where: str, name: str, given: str | int | list[str | int], classes: TeacherClasses) -> tuple[int, ...]:
    members = given if isinstance(given, list) else [given]
    if not members:
        raise InputError(f"{where} with no teacher class in {name}: []", "at least one", "name one")
    return tuple(classes.find(one, where=f"{where}, {name}") for one in members)


def _check_used_once(
    where: str, class_names: Sequence[str], groups: Sequence[tuple[int, ...]], classes: TeacherClasses
) -> None:
    """Twice counted, a class would give its probability to both."""
    taken: dict[int, str] = {}
    for name, group in zip(class_names, groups, strict=True):
        for number in group:
            if number in taken:
                raise InputError(
                    f"{where} with class {classes.describe(number)} of teacher {classes.teacher} for {taken[number]!r} "
                    + ("twice" if taken[number] == name else f"and for {name!r}"),
                    "each teacher class once",
                    "give one of them another class, or leave it out of a list",
                )
            taken[number] = name
