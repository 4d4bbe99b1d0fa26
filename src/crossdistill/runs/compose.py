"""The one composition root: settings -> data, student, teachers, method, ready for the engine."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from crossdistill.contracts import STUDENT_VIEW, UNLABELLED, InputSpec, Method, Teacher
from crossdistill.data import (
    EvalLoader,
    Selection,
    Splits,
    Stream,
    StreamEvalLoader,
    StreamLoader,
    TrainLoader,
    eval_loader,
    open_labelled,
    select_stream,
    select_training,
)
from crossdistill.data.sampler import num_steps
from crossdistill.engine import DEFAULT_EPOCHS, check_optimizer, connect, process, total_steps, weights_for
from crossdistill.errors import InputError
from crossdistill.models import StagedModel, build
from crossdistill.models.weights import renew_classifier
from crossdistill.runs.identity import data_hash
from crossdistill.runs.objective import build_method, resolve_method
from crossdistill.runs.stores import check_stored, open_stored, refuse_as_model, store_of
from crossdistill.settings import DataSettings, ModelSettings, Settings, TeacherSettings, TrainSettings
from crossdistill.teachers import EnsembleTeacher, FrozenTeacher, MappedTeacher, StoredTeacher, make_class_map

# Two seeds a run, so that the student's first weights do not depend on which method trains it.
METHOD_SEED_OFFSET = 1_000_003
"""Added to a run's seed for its method."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything one run needs, built and checked against each other before the first step.

    ``settings`` hold what was chosen where nothing was given. ``train`` are theirs, with epochs counted on all
    training images, also for a student alone that uses only the labelled ones. ``test_loader`` gives the reported
    numbers; ``selection_loader`` is what epochs are measured on, the same unless the best epoch is selected, which
    needs images of its own.
    """

    settings: Settings
    train: TrainSettings
    splits: Splits
    student: StagedModel
    teacher: Teacher | None
    method: Method
    train_loader: TrainLoader | StreamLoader
    test_loader: EvalLoader | StreamEvalLoader
    selection_loader: EvalLoader | StreamEvalLoader
    num_labelled: int
    num_train: int
    warnings: list[str] = field(default_factory=list)

    def identity(self) -> dict[str, str | None]:
        """Hashes of what settings only name: classes, labels and file names of the data, and the teacher's weights."""
        return {
            "data_sha256": data_hash(self.splits),
            "teacher_sha256": None if self.teacher is None else self.teacher.fingerprint(),
        }


def compose(settings: Settings, modules: Mapping[str, nn.Module] | None = None) -> Parts:
    """Build the parts of a run.

    Args:
        settings: the run's settings; they may leave choices open (``None``), which the parts then hold.
        modules: networks given as objects instead of names, by the name that the settings use for them.

    Raises:
        InputError: parts that do not exist or do not fit together.
    """
    modules = modules or {}
    name, options = resolve_method(settings.method.name, settings.method.options)
    check_optimizer(settings.train.optimizer)
    splits = open_labelled(settings.data)
    num_classes = len(splits.class_names)
    torch.manual_seed(settings.seed)
    student = model_of(settings.student, splits.class_names, modules, allow_code=settings.allow_code)
    if settings.data.eval_crop_pct is not None:  # part of the student, so that whoever uses it prepares images alike
        shown = replace(student.spec.input, crop_pct=settings.data.eval_crop_pct)
        student.spec = replace(student.spec, input=shown)
    teacher = _teacher(settings, splits.class_names, modules)
    torch.manual_seed(settings.seed + METHOD_SEED_OFFSET)
    method = build_method(name, options, student, teacher, num_classes=num_classes)
    # Where the data bring validation images of their own, no training image is given up for them.
    hold_out = settings.train.select == "best" and splits.validation is None
    if isinstance(splits.train, Stream):
        chosen = select_stream(splits.train, settings.data, hold_out)
    else:
        seed = data_seed(settings.data, settings.seed)
        chosen = select_training(splits.train.targets, settings.data, seed, hold_out, splits.class_names)
    labelled_ids = chosen.train_ids[chosen.labelled[chosen.train_ids]]
    # Without a teacher an unlabelled image teaches nothing; without it the student alone is as good as it gets.
    ids = chosen.train_ids if teacher is not None else labelled_ids
    loaders = _loaders(settings, splits, views_of(student, teacher), chosen, ids)
    weights_for(loaders[0], settings.train, num_classes)  # refused here, before anything is measured
    shared_steps = num_steps(len(chosen.train_ids), settings.train.batch_size)
    train = _in_own_epochs(settings.train, own_steps=loaders[0].steps_per_epoch, shared_steps=shared_steps)
    warnings = []
    if isinstance(teacher, StoredTeacher):
        warnings = check_stored(teacher, splits, loaders[0], train, settings.data)
    return Parts(
        _resolved(settings, student, loaders[0]),
        train,
        splits,
        student,
        teacher,
        method,
        *loaders,
        num_labelled=len(labelled_ids),
        num_train=len(chosen.train_ids),
        warnings=warnings,
    )


def data_seed(data: DataSettings, seed: int) -> int:
    """The seed of which images there are, of their order and of their random changes; ``seed`` is the run's."""
    return seed if data.seed is None else data.seed


def _resolved(settings: Settings, student: StagedModel, train_loader: TrainLoader | StreamLoader) -> Settings:
    """The settings with the choices that were left open."""
    height, width = student.spec.input.image_size
    size = height if height == width else settings.student.image_size
    epochs = settings.train.epochs or (DEFAULT_EPOCHS if settings.train.steps is None else None)
    return settings.model_copy(
        update={
            "student": settings.student.model_copy(update={"image_size": size}),
            "data": settings.data.model_copy(update={"augment": train_loader.augment}),
            "train": settings.train.model_copy(update={"epochs": epochs}),
        }
    )


def _in_own_epochs(train: TrainSettings, *, own_steps: int, shared_steps: int) -> TrainSettings:
    """The same training, in steps, for a set whose epochs are shorter: as long, and with the same schedule."""
    if own_steps == shared_steps:
        return train
    longer = shared_steps / own_steps
    return train.model_copy(
        update={
            "epochs": None,
            "steps": total_steps(train, shared_steps),
            "warmup_epochs": train.warmup_epochs * longer,
            "decay_epochs": train.decay_epochs * longer,
            "milestones": None if train.milestones is None else tuple(one * longer for one in train.milestones),
            "eval_every": max(1, round(train.eval_every * longer)),
            "checkpoint_every": max(1, round(train.checkpoint_every * longer)),
        }
    )


def model_of(
    settings: ModelSettings,
    class_names: tuple[str, ...] | None,
    modules: Mapping[str, nn.Module] | None = None,
    *,
    allow_code: bool = False,
) -> StagedModel:
    """The network of these settings, with a head for these classes (None: those of its weights).

    A network given as an object is copied: every run of a plan starts from it, and none changes the caller's own.
    """
    given = (modules or {}).get(settings.name)
    if given is None:
        refuse_as_model(settings.name)
    made = build(
        settings.name if given is None else copy.deepcopy(given),
        num_classes=None if class_names is None else len(class_names),
        image_size=settings.image_size,
        class_names=class_names,
        init=settings.init,
        stages=settings.stages,
        allow_code=allow_code,
        **settings.args,
    )
    if settings.new_classifier:
        renew_classifier(made.net)
    return made


def _teacher(settings: Settings, class_names: tuple[str, ...], modules: Mapping[str, nn.Module]) -> Teacher | None:
    if not settings.teachers:
        return None
    store = store_of(settings.teachers, modules)
    if store is not None:
        return open_stored(store, class_names, settings.train)
    return live_teacher(settings.teachers, class_names, modules, allow_code=settings.allow_code)


def live_teacher(
    teachers: Sequence[TeacherSettings],
    class_names: tuple[str, ...],
    modules: Mapping[str, nn.Module],
    *,
    allow_code: bool = False,
) -> FrozenTeacher | EnsembleTeacher:
    """The networks of these settings as one teacher."""
    frozen = [
        _frozen(one, class_names, modules, view=f"teacher{index}", allow_code=allow_code)
        for index, one in enumerate(teachers)
    ]
    return frozen[0] if len(frozen) == 1 else EnsembleTeacher(frozen, [one.weight for one in teachers])


def _frozen(
    settings: TeacherSettings,
    class_names: tuple[str, ...],
    modules: Mapping[str, nn.Module],
    *,
    view: str,
    allow_code: bool,
) -> FrozenTeacher:
    """One teacher: with the data's classes, or with its own and a map to them."""
    if settings.class_map is None:
        return FrozenTeacher(model_of(settings, class_names, modules, allow_code=allow_code), view=view)
    model = model_of(settings, None, modules, allow_code=allow_code)
    return MappedTeacher(model, make_class_map(settings.class_map, class_names, model.spec), view=view)


def views_of(student: StagedModel, teacher: Teacher | None) -> dict[str, InputSpec]:
    """What each network wants to see of an image, by view; stored answers need no image."""
    return {STUDENT_VIEW: student.spec.input, **teacher_views(teacher)}


def teacher_views(teacher: Teacher | None) -> dict[str, InputSpec]:
    """The same for the teacher's networks."""
    if isinstance(teacher, EnsembleTeacher):
        return {one.view: one.spec.input for one in teacher.teachers}
    return {teacher.view: teacher.spec.input} if isinstance(teacher, FrozenTeacher) else {}


def is_balanced(data: DataSettings, chosen: Selection, ids: NDArray[np.int64]) -> bool:
    """Whether classes are sampled equally often, which needs a label for each training image."""
    balanced = data.sampling == "class_balanced"
    if balanced and not chosen.labelled[ids].all():
        raise InputError(
            f"data.sampling=class_balanced with {int((~chosen.labelled[ids]).sum())} of {len(ids)} training images "
            "unlabelled",
            "a class for each of them",
            "use data.sampling=shuffled, or give all labels",
        )
    return balanced


def _loaders(
    settings: Settings, splits: Splits, views: dict[str, InputSpec], chosen: Selection, ids: NDArray[np.int64]
) -> tuple[TrainLoader | StreamLoader, EvalLoader | StreamEvalLoader, EvalLoader | StreamEvalLoader]:
    data, balanced = settings.data, is_balanced(settings.data, chosen, ids)
    on_device = data.augment_on == "device"
    rank, world_size = process()
    common: dict[str, Any] = {
        "workers": data.workers,
        "rank": rank,
        "world_size": world_size,
        "max_corrupt_share": data.max_corrupt_share,
    }
    training: dict[str, Any] = {
        "seed": data_seed(data, settings.seed),
        "cycle_epochs": data.cycle_epochs,
        "batch_size": settings.train.batch_size,
        "device_batch_size": settings.train.device_batch_size,
        "augment_device": connect(settings.device, settings.train.precision).device if on_device else None,
        **common,
    }
    train_loader: TrainLoader | StreamLoader
    if isinstance(splits.train, Stream):
        train_loader = StreamLoader(splits.train, views, data.augment, **training)
    else:
        targets = np.where(chosen.labelled, splits.train.targets, UNLABELLED)
        train_loader = TrainLoader(splits.train, ids, targets, views, data.augment, balanced=balanced, **training)
    # What a device can train on at once, it can also evaluate at once.
    common["batch_size"] = settings.train.device_batch_size or -(-settings.train.batch_size // world_size)
    common["crop_pct"] = data.eval_crop_pct
    test_loader = eval_loader(splits.evaluation, views, **common)
    if settings.train.select != "best":
        return train_loader, test_loader, test_loader
    if splits.validation is not None:
        return train_loader, test_loader, eval_loader(splits.validation, views, **common)
    return train_loader, test_loader, EvalLoader(splits.train, views, ids=chosen.val_ids, **common)
