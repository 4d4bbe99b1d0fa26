"""The one composition root: settings -> data, student, teachers, method, ready for the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from crossdistill.contracts import UNLABELLED, InputSpec, Method, Modules, Teacher
from crossdistill.data import EvalLoader, Splits, TrainLoader, open_source, select_training
from crossdistill.engine import process
from crossdistill.models import StagedModel, build
from crossdistill.registry import METHODS
from crossdistill.settings import ModelSettings, Settings, resolve_options
from crossdistill.teachers import EnsembleTeacher, FrozenTeacher, check_signals

STUDENT_VIEW = "student"

# Two seeds a run, so that the student's first weights do not depend on which method trains it.
_METHOD_SEED_OFFSET = 1_000_003


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything one run needs, built and checked against each other before the first step.

    ``test_loader`` gives the reported numbers; ``selection_loader`` is what epochs are measured on, the same unless
    the best epoch is selected, which needs images of its own.
    """

    settings: Settings
    splits: Splits
    student: StagedModel
    teacher: Teacher | None
    method: Method
    train_loader: TrainLoader
    test_loader: EvalLoader
    selection_loader: EvalLoader
    num_labelled: int
    warnings: list[str] = field(default_factory=list)


def compose(settings: Settings, modules: Mapping[str, nn.Module] | None = None) -> Parts:
    """Build the parts of a run.

    Args:
        settings: the run's settings; they may leave choices open (``None``), which the parts then hold.
        modules: networks given as objects instead of names, by the name that the settings use for them.

    Raises:
        InputError: parts that do not exist or do not fit together.
    """
    modules = modules or {}
    record = METHODS.get(settings.method.name)
    options = resolve_options(settings.method.name, record.value.build, settings.method.options)
    splits = open_source(settings.data)
    num_classes = len(splits.class_names)
    torch.manual_seed(settings.seed)
    student = model_of(settings.student, splits.class_names, modules)
    teacher = _teacher(settings, splits.class_names, modules)
    if teacher is not None:
        check_signals(record.value, teacher)
    torch.manual_seed(settings.seed + _METHOD_SEED_OFFSET)
    method = record.value.build(
        student.spec,
        teacher.spec if teacher is not None else None,
        num_classes=num_classes,
        modules=_modules(record.value, student, teacher),
        **options,
    )
    loaders = _loaders(settings, splits, views_of(student, teacher), alone=teacher is None)
    return Parts(settings, splits, student, teacher, method, *loaders)


def model_of(
    settings: ModelSettings, class_names: tuple[str, ...], modules: Mapping[str, nn.Module] | None = None
) -> StagedModel:
    """The network of these settings, with a head for these classes."""
    return build(
        (modules or {}).get(settings.name, settings.name),
        num_classes=len(class_names),
        image_size=settings.image_size,
        class_names=class_names,
        init=settings.init,
        **settings.args,
    )


def _teacher(settings: Settings, class_names: tuple[str, ...], modules: Mapping[str, nn.Module]) -> Teacher | None:
    if not settings.teachers:
        return None
    frozen = [
        FrozenTeacher(model_of(one, class_names, modules), view=f"teacher{index}")
        for index, one in enumerate(settings.teachers)
    ]
    if len(frozen) == 1:
        return frozen[0]
    return EnsembleTeacher(frozen, [one.weight for one in settings.teachers])


def _modules(method: type[Method], student: StagedModel, teacher: Teacher | None) -> Modules | None:
    if "modules" not in method.needs or not isinstance(teacher, FrozenTeacher):
        return None
    return Modules(student, teacher.model)


def views_of(student: StagedModel, teacher: Teacher | None) -> dict[str, InputSpec]:
    """What each network wants to see of an image, by view."""
    views = {STUDENT_VIEW: student.spec.input}
    if isinstance(teacher, EnsembleTeacher):
        views |= {one.view: one.spec.input for one in teacher.teachers}
    elif isinstance(teacher, FrozenTeacher):
        views[teacher.view] = teacher.spec.input
    return views


def _loaders(
    settings: Settings, splits: Splits, views: dict[str, InputSpec], *, alone: bool
) -> tuple[TrainLoader, EvalLoader, EvalLoader, int]:
    data, select_best = settings.data, settings.train.select == "best"
    chosen = select_training(splits.train.targets, data, settings.seed, select_best, splits.class_names)
    labelled_ids = chosen.train_ids[chosen.labelled[chosen.train_ids]]
    rank, world_size = process()
    common: dict[str, Any] = {
        "batch_size": settings.train.batch_size,
        "workers": data.workers,
        "rank": rank,
        "world_size": world_size,
        "max_corrupt_share": data.max_corrupt_share,
    }
    train_loader = TrainLoader(
        splits.train,
        # Without a teacher an unlabelled image teaches nothing; leaving it out makes the student alone as good as it gets.
        labelled_ids if alone else chosen.train_ids,
        np.where(chosen.labelled, splits.train.targets, UNLABELLED),
        views,
        data.augment,
        seed=settings.seed,
        device_batch_size=settings.train.device_batch_size,
        **common,
    )
    test_loader = EvalLoader(splits.evaluation, views, **common)
    selection_loader = EvalLoader(splits.train, views, ids=chosen.val_ids, **common) if select_best else test_loader
    return train_loader, test_loader, selection_loader, len(labelled_ids)
