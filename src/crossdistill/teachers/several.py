"""What several teachers in one are to whoever asks them: one answer together, and some of each on its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeGuard

from crossdistill.contracts import ModelSpec, Signal, Teacher


class Known(Protocol):
    """What must be known of a teacher to build a method for it."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def holds(self) -> frozenset[Signal]: ...


class Member(Known, Protocol):
    """One of several teachers; ``view`` is its name among them."""

    @property
    def view(self) -> str: ...


class SeveralTeachers(Teacher, Protocol):
    """Teachers that answer together, with ``weights`` that add up to 1.

    ``passes_on`` is which signals of each one stay in ``Outputs.members``, in the order of ``teachers``.
    """

    passes_on: frozenset[Signal]

    @property
    def teachers(self) -> Sequence[Member]: ...

    @property
    def weights(self) -> tuple[float, ...]: ...


def are_several(teacher: Known | None) -> TypeGuard[SeveralTeachers]:
    """Whether a teacher is several in one, live or stored."""
    return hasattr(teacher, "teachers")
