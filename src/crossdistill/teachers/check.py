"""Checks made before training: does the teacher hold what the method asks for, and does it know anything?"""

from __future__ import annotations

import math

from crossdistill.contracts import Method, Teacher
from crossdistill.errors import InputError, UnsuitablePair
from crossdistill.teachers.ensemble import EnsembleTeacher

STANDARD_ERRORS = 3


def check_signals(method: type[Method] | Method, teacher: Teacher) -> None:
    """Refuse a teacher that does not hold what the method needs; of several, the first that does not.

    Raises:
        UnsuitablePair: naming the missing signals.
    """
    for one in teacher.teachers if isinstance(teacher, EnsembleTeacher) else (teacher,):
        missing = method.needs - one.holds
        if missing:
            name = method.__name__ if isinstance(method, type) else type(method).__name__
            raise UnsuitablePair(
                f"method {name}, which needs {_words(method.needs)}, and teacher {one.spec.name}, "
                f"which holds {_words(one.holds)}",
                f"a teacher that also holds {_words(missing)}",
                "give a live teacher without a class map, or choose a method that needs less",
            )


def check_above_chance(accuracy: float, num_samples: int, num_classes: int, *, allow: bool) -> str | None:
    """Refuse a teacher that is not clearly better than guessing.

    Chance is ``p = 1 / K`` with standard error ``sqrt(p (1 - p) / n)``; the accuracy must exceed it by more
    than three of them.

    Args:
        accuracy: share of samples that the teacher classifies rightly, between 0 and 1.
        num_samples: how many samples that share was measured on.
        num_classes: K.
        allow: go on all the same.

    Returns:
        A warning where the teacher is at chance and allowed, else ``None``.

    Raises:
        InputError: a teacher at chance that is not allowed.
    """
    if num_classes < 2 or num_samples < 1:
        return None
    chance = 1 / num_classes
    threshold = chance + STANDARD_ERRORS * math.sqrt(chance * (1 - chance) / num_samples)
    if accuracy > threshold:
        return None
    given = (
        f"a teacher with accuracy {accuracy:.1%} on {num_samples} {'image' if num_samples == 1 else 'images'} of "
        f"{num_classes} classes, "
        f"where guessing gives {chance:.1%}"
    )
    if allow:
        return f"{given}: it has nothing to teach; going on because that is allowed"
    raise InputError(
        given,
        f"more than {threshold:.1%}, three standard errors above guessing",
        "give a trained teacher (timm/NAME@pretrained, NAME@PATH or a run folder; `crossdistill train` makes one), "
        "or set allow_untrained_teacher=true; --dry-run only warns",
    )


def _words(signals: frozenset[str]) -> str:
    return ", ".join(sorted(signals)) or "nothing"
