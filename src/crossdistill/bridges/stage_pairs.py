"""Which stage of the teacher faces which stage of the student, and both maps on one grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from crossdistill.bridges.layout import as_map
from crossdistill.contracts import ModelSpec, Outputs, StageSpec
from crossdistill.errors import InputError, UnsuitablePair
from crossdistill.losses.inputs import widen
from crossdistill.losses.maps import average_to


@dataclass(frozen=True, slots=True)
class StagePair:
    """A stage of the student and the stage of the teacher that it is compared with; numbers count from 1."""

    number: int
    teacher_number: int
    student: StageSpec
    teacher: StageSpec

    @property
    def grid(self) -> tuple[int, int]:
        """The :func:`common_grid` at the image sizes of both networks."""
        return smaller_grid(self.student.grid, self.teacher.grid)

    def maps(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        """Both stages as maps ``(B, C, H, W)`` in float32 or wider, each on its own grid, without prefix tokens."""
        student_map = as_map(student.require_stages()[self.number - 1], self.student)
        teacher_map = as_map(teacher.require_stages()[self.teacher_number - 1], self.teacher)
        return widen(student_map), widen(teacher_map)

    def maps_on_one_grid(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        """Both maps, on their :func:`common_grid`."""
        return common_grid(*self.maps(student, teacher))


def stage_pairs(student: ModelSpec, teacher: ModelSpec, stages: Sequence[int] | None = None) -> tuple[StagePair, ...]:
    """One pair for each chosen stage of the student, from shallow to deep.

    Args:
        student: the student's facts.
        teacher: the teacher's facts.
        stages: which stages of the student, counted from 1; default all.

    Raises:
        UnsuitablePair: a network without stages.
        InputError: a stage that does not exist, or none chosen.
    """
    for role, spec in (("student", student), ("teacher", teacher)):
        if not spec.stages:
            raise UnsuitablePair(
                f"{role} {spec.name!r}, which has no stages",
                "two networks with stages: their maps are compared",
                "name its stages by hand (`stages` of the model's settings), or take a method that needs none",
            )
    numbers = sorted(stage_numbers(stages, student))
    if not numbers:
        raise InputError("stages=[]", "at least one stage", "drop the option to use the default")
    return tuple(_pair(student, teacher, number) for number in numbers)


def _pair(student: ModelSpec, teacher: ModelSpec, number: int) -> StagePair:
    faced = facing_stage(number, num_stages=len(student.stages), num_teacher_stages=len(teacher.stages))
    return StagePair(number, faced, student.stages[number - 1], teacher.stages[faced - 1])


def facing_stage(number: int, *, num_stages: int, num_teacher_stages: int) -> int:
    """The teacher's first stage that ends at the same relative depth as the student's, or deeper; from 1.

    Stage i of n ends at depth i / n, so equal numbers of stages pair i with i, and the last always faces the last.

    >>> [facing_stage(number, num_stages=4, num_teacher_stages=3) for number in (1, 2, 3, 4)]
    [1, 2, 3, 3]
    >>> [facing_stage(number, num_stages=3, num_teacher_stages=4) for number in (1, 2, 3)]
    [2, 3, 4]
    """
    return -(-number * num_teacher_stages // num_stages)


def stage_numbers(stages: Sequence[int] | None, student: ModelSpec) -> list[int]:
    """The chosen stages of the student in the order given, counted from 1; default all.

    Raises:
        InputError: a stage that does not exist, or one chosen twice.
    """
    num_stages = len(student.stages)
    if stages is None:
        return list(range(1, num_stages + 1))
    if len(set(stages)) < len(stages) or any(number not in range(1, num_stages + 1) for number in stages):
        raise InputError(
            f"stages={list(stages)}",
            f"different numbers from 1 to {num_stages}: student {student.name!r} has {stage_count(num_stages)}",
            "leave out the others, or drop the option to use all stages",
        )
    return list(stages)


def stage_count(number: int) -> str:
    """How many stages, in words.

    >>> stage_count(1), stage_count(4)
    ('1 stage', '4 stages')
    """
    return f"{number} stage" if number == 1 else f"{number} stages"


def common_grid(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps ``(B, C, H, W)``, each averaged down to the smaller height and the smaller width of both.

    Our choice: neither is ever enlarged, which would ask for detail that the coarser network does not have.

    >>> import torch
    >>> [tuple(one.shape) for one in common_grid(torch.zeros(2, 8, 14, 14), torch.zeros(2, 5, 7, 20))]
    [(2, 8, 7, 14), (2, 5, 7, 14)]
    """
    grid = smaller_grid(first.shape[2:], second.shape[2:])
    return average_to(first, grid), average_to(second, grid)


def smaller_grid(first: Sequence[int], second: Sequence[int]) -> tuple[int, int]:
    """The smaller height and the smaller width of two grids (height, width)."""
    return min(first[0], second[0]), min(first[1], second[1])
