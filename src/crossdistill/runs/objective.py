"""The method of a run: for one teacher, for several, and for a weighted sum of methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from crossdistill.contracts import Batch, Composite, Method, ModelSpec, Modules, Outputs, Signal, Teacher
from crossdistill.errors import InputError, UnsuitablePair
from crossdistill.registry import METHODS
from crossdistill.settings import options_of, resolve_options
from crossdistill.teachers import ANSWERED_TOGETHER, FrozenTeacher, Known, StoredTeacher, are_several, check_signals

_TOO_LARGE = ("allocate", "overflow", "out of memory")
"""What PyTorch says, in lower case, of tensors that no memory holds."""


def resolve_method(name: str, options: Mapping[str, Any], *, prefix: str = "method.") -> tuple[str, dict[str, Any]]:
    """The registered name and all options of a method, and of the methods that it is made of, with defaults filled in.

    Raises:
        InputError: a method that does not exist, an option that it does not take (both with the nearest one), or one of
            another type.
    """
    record = METHODS.get(name)
    resolved = resolve_options(record.name, record.value.build, dict(options), prefix=prefix)
    if issubclass(record.value, Composite):
        record.value.check(**resolved)
        resolved["methods"] = {
            part: resolve_method(part, given, prefix=f"{prefix}methods.{part}.")[1]
            for part, given in resolved["methods"].items()
        }
    return record.name, resolved


def build_method(
    name: str, options: Mapping[str, Any], student: nn.Module, teacher: Teacher | None, *, num_classes: int
) -> Method:
    """Build the method of a run, and let teachers pass on what it needs of each.

    That is set on the teacher itself: of several methods built with one teacher, the last decides what it passes on.
    Methods that are to run side by side take a teacher each, around the same network.

    A method that needs logits only hears several teachers as one, their ensemble. One that needs more is built once a
    teacher, and its losses are summed with the teachers' weights. A sum of methods follows this rule part by part.

    Args:
        name: the registered name.
        options: those of :func:`resolve_method`.
        student: a staged model with a ``spec``.
        teacher: ``None`` for a method that needs no teacher.
        num_classes: classes of the data.

    Raises:
        UnsuitablePair: networks that the method cannot serve, with the methods that can.
        InputError: options or networks that it refuses.
    """
    try:
        method = _build(name, options, student, teacher, num_classes)
    except UnsuitablePair as error:
        serving = _serving(name, student, teacher, num_classes)
        advice = f"methods that serve this pair: {', '.join(serving)}" if serving else "no method serves this pair"
        raise UnsuitablePair(error.given, error.expected, f"{error.action}; {advice}") from error
    if are_several(teacher):
        teacher.passes_on = _of_each(method)
    elif isinstance(teacher, FrozenTeacher | StoredTeacher):
        teacher.passes_on = method.needs
    return method


class PerTeacher(Composite):
    """One method for each of several teachers, with the teachers' weights, which add up to 1.

    So a second teacher does not change how much distillation counts beside the hard labels (our choice). Losses and
    networks are named after their teacher's view: ``crd_teacher0``.

    Args:
        parts: the methods by view, in the order of the ensemble's members.
        weights: the ensemble's.
    """

    def __init__(self, parts: Mapping[str, Method], weights: tuple[float, ...]) -> None:
        super().__init__(parts)
        self.weights = weights

    @classmethod
    def build(
        cls, student_spec: ModelSpec, teacher_spec: ModelSpec, parts: Mapping[str, Method], *args: Any, **options: Any
    ) -> Self:
        """Make it of methods that are built already, each for its own teacher."""
        return cls(parts, **options)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """The losses of every teacher's method, each given that teacher's own answer."""
        if teacher.members is None:
            raise RuntimeError("these outputs are not those of an ensemble")
        losses: dict[str, Tensor] = {}
        for (view, part), member, weight in zip(self.parts.items(), teacher.members, self.weights, strict=True):
            losses |= {self.named(view, name): weight * loss for name, loss in part(student, member, batch).items()}
        return losses

    def named(self, part: str, name: str) -> str:
        """The name, then whose it is."""
        return f"{name}_{part}"


def _build(
    name: str, options: Mapping[str, Any], student: nn.Module, teacher: Teacher | None, num_classes: int
) -> Method:
    value: type[Method] = METHODS.get(name).value
    if issubclass(value, Composite):
        parts = {
            part: _build(part, given, student, teacher, num_classes)
            for part, given in value.counting(**options).items()
        }
        return value.build(*_specs(student, teacher), parts, num_classes=num_classes, **options)
    if not are_several(teacher):
        return _for_one(name, options, student, teacher, num_classes)
    with torch.random.fork_rng(devices=[]):  # its options decide what it needs, so it takes building to find out
        needs = _made(name, options, student, teacher.teachers[0], num_classes).needs
    if needs <= ANSWERED_TOGETHER:
        return _for_one(name, options, student, teacher, num_classes)
    each = {one.view: _for_one(name, options, student, one, num_classes) for one in teacher.teachers}
    return PerTeacher(each, teacher.weights)


def _for_one(
    name: str, options: Mapping[str, Any], student: nn.Module, teacher: Known | None, num_classes: int
) -> Method:
    """The method for one teacher, or for the one voice of several."""
    method = _made(name, options, student, teacher, num_classes)
    if teacher is not None:
        check_signals(method, teacher)  # options may make it need more than its class says
    return method


def _made(name: str, options: Mapping[str, Any], student: nn.Module, teacher: Known | None, num_classes: int) -> Method:
    """The method as it builds itself, whether or not the teacher holds all that it turns out to need."""
    value: type[Method] = METHODS.get(name).value
    modules = None
    if teacher is not None and "modules" in value.needs:  # without them there is nothing to build with
        check_signals(value, teacher)
    if "modules" in value.needs and isinstance(teacher, FrozenTeacher):
        modules = Modules(student, teacher.model, teacher.view)
    try:
        return value.build(*_specs(student, teacher), num_classes=num_classes, modules=modules, **options)
    except (RuntimeError, MemoryError, OverflowError, TypeError) as error:  # PyTorch has one for each place
        if not isinstance(error, MemoryError) and not any(word in str(error).lower() for word in _TOO_LARGE):
            raise
        raise _too_large(name, options, error) from error


def _specs(student: nn.Module, teacher: Known | None) -> tuple[Any, Any]:
    return student.spec, teacher.spec if teacher is not None else None


def _too_large(name: str, options: Mapping[str, Any], error: Exception) -> InputError:
    """Of a method whose tensors do not fit, naming the options that are not the default."""
    defaults = {key: default for key, (_, default) in options_of(METHODS.get(name).value.build).items()}
    given = ", ".join(f"{key}={value}" for key, value in options.items() if value != defaults[key])
    reason = str(error).partition("\n")[0].rpartition("DefaultCPUAllocator: ")[2].rstrip(".")
    return InputError(
        f"method {name} with {given or 'its defaults'} for these networks, which takes more memory than there is "
        f"({reason or 'out of memory'})",
        "tensors that fit in memory",
        "lower the option that sets their size" if given else "choose a method that needs less, or smaller networks",
    )


def _of_each(method: Method) -> frozenset[Signal]:
    """What a method needs of every single one of several teachers."""
    if isinstance(method, PerTeacher):
        return method.needs
    each: frozenset[Signal] = frozenset()
    if isinstance(method, Composite):
        each = each.union(*(_of_each(part) for part in method.parts.values()))  # type: ignore[arg-type]
    return each


def _serving(refused: str, student: nn.Module, teacher: Teacher | None, num_classes: int) -> list[str]:
    """Names of the other methods that can be built for these networks with their defaults; nobody's chance is used."""
    serving = []
    for record in METHODS:
        if record.name == refused or not record.value.needs:
            continue
        with torch.random.fork_rng(devices=[]):
            try:
                _build(record.name, resolve_method(record.name, {})[1], student, teacher, num_classes)
            except Exception:  # whatever a method says of networks it was not asked to serve, this is advice only
                continue
        serving.append(record.name)
    return serving
