"""Checks made before training: does the teacher hold what the method asks for, and does it know anything?"""

from __future__ import annotations

import math

from crossdistill.contracts import Method, Signal
from crossdistill.errors import InputError, UnsuitablePair
from crossdistill.teachers.several import Known, are_several
from crossdistill.teachers.stored import StoredMember, StoredTeacher

STANDARD_ERRORS = 3

ANSWERED_TOGETHER: frozenset[Signal] = frozenset({"logits"})
"""What several teachers have one answer for; of the rest each has its own."""


def check_signals(method: type[Method] | Method, teacher: Known) -> None:
    """Refuse a teacher that does not hold what the method needs; of several, the first that does not.

    Raises:
        UnsuitablePair: naming the missing signals.
    """
    one_by_one = are_several(teacher) and not method.needs <= ANSWERED_TOGETHER
    for one in teacher.teachers if one_by_one else (teacher,):  # type: ignore[attr-defined]
        missing = method.needs - one.holds
        if missing:
            name = method.__name__ if isinstance(method, type) else type(method).__name__
            raise UnsuitablePair(
                f"method {name}, which needs {_words(method.needs)}, and teacher {one.spec.name}, "
                f"which holds {_words(one.holds)}",
                f"a teacher that also holds {_words(missing)}",
                _remedy(one, missing),
            )


def _remedy(teacher: Known, missing: frozenset[Signal]) -> str:
    stored = isinstance(teacher, StoredTeacher | StoredMember)
    if stored and missing == {"embedding"}:
        return "store its answers with --embeddings, in another folder, or choose a method that needs less"
    live = "the live teacher, which is asked in every step" if stored else "a live teacher without a class map"
    return f"give {live}, or choose a method that needs less"


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
