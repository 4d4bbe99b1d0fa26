"""Settings -> data, student, teacher and method of a pretraining run, built and checked against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from crossdistill.contracts import UNLABELLED, Method
from crossdistill.data import (
    MultiViewTransform,
    Splits,
    Stream,
    TrainLoader,
    open_source,
    resolve_views,
    select_training,
)
from crossdistill.data.augmentation.multi_view import TEACHER_VIEW
from crossdistill.engine import DEFAULT_EPOCHS, check_optimizer, connect, process
from crossdistill.errors import InputError
from crossdistill.models import StagedModel
from crossdistill.models.cutter import classifier_names
from crossdistill.models.weights import renew_classifier
from crossdistill.runs.compose import METHOD_SEED_OFFSET, data_seed, model_of
from crossdistill.runs.identity import data_hash
from crossdistill.runs.inspect import check_trained
from crossdistill.runs.objective import build_method
from crossdistill.selfsup.exam import NeighbourExam
from crossdistill.selfsup.settings import PretrainSettings
from crossdistill.settings import ViewSettings
from crossdistill.teachers import FrozenTeacher, MovingAverageTeacher

PATCH, PATCH_BASE = 96, 256
"""Published sides of patches, and of what they are cut from."""

NO_CLASSES = ("unlabelled",)
"""What stands for the classes of images that have none: a network's head must have some."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything a pretraining run needs; ``settings`` hold what was chosen where nothing was given.

    ``exam`` measures on labels that training never reads; ``None`` where the data have none.
    """

    settings: PretrainSettings
    splits: Splits
    student: StagedModel
    teacher: FrozenTeacher
    method: Method
    train_loader: TrainLoader
    exam: NeighbourExam | None
    warnings: list[str] = field(default_factory=list)

    @property
    def follows(self) -> bool:
        """Whether the teacher is the student's moving average."""
        return isinstance(self.teacher, MovingAverageTeacher)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Those of the data, or a word that stands for none."""
        return self.splits.class_names or NO_CLASSES

    def identity(self) -> dict[str, str | None]:
        """Hashes of what settings only name: the data, and the weights of a teacher that was given."""
        teacher = None if self.follows else self.teacher.fingerprint()
        return {"data_sha256": data_hash(self.splits), "teacher_sha256": teacher}


def compose(settings: PretrainSettings, modules: Mapping[str, nn.Module] | None = None) -> Parts:
    """Build the parts of a run.

    Args:
        settings: of :func:`~crossdistill.selfsup.settings.load_settings`; what they leave open the parts then hold.
        modules: networks given as objects instead of names, by the name that the settings use for them.

    Raises:
        InputError: parts that do not exist or do not fit together.
    """
    name, options = settings.method.name, settings.method.options
    check_optimizer(settings.train.optimizer)
    splits = _images(settings)
    torch.manual_seed(settings.seed)
    names = splits.class_names or NO_CLASSES
    student = model_of(settings.student, names, modules, allow_code=settings.allow_code)
    _freeze_classifier(student)
    teacher = _teacher(settings, student, modules)
    torch.manual_seed(settings.seed + METHOD_SEED_OFFSET)
    method = build_method(name, options, student, teacher, num_classes=len(names))
    views = _views(settings.views, student, splits)
    seed = data_seed(settings.data, settings.seed)
    ids = select_training(splits.train.targets, settings.data, seed, False, splits.class_names).train_ids
    loader = _train_loader(settings, splits, student, teacher, views, ids, seed)
    resolved = _resolved(settings, student, views)
    parts = Parts(resolved, splits, student, teacher, method, loader, _exam(settings, splits, teacher, student, ids))
    parts.warnings.extend(_warnings(parts))
    return parts


def _images(settings: PretrainSettings) -> Splits:
    splits = open_source(settings.data)
    if isinstance(splits.train, Stream):
        raise InputError(
            f"data source {settings.data.source!r}, a remote stream",
            "images that can be counted and read by index: several views of each are drawn by its place",
            "copy the shards here, or name them by a local path",
        )
    return splits


def _freeze_classifier(student: StagedModel) -> None:
    """No label trains it; at zero it says nothing until a probe takes its place."""
    renew_classifier(student.net)
    for name in classifier_names(student.net):
        student.net.get_submodule(name).requires_grad_(False)


def _teacher(
    settings: PretrainSettings, student: StagedModel, modules: Mapping[str, nn.Module] | None
) -> FrozenTeacher:
    """The student's moving average, or the network that was given, whatever its classes are."""
    if settings.teacher is None:
        momentum = settings.momentum
        return MovingAverageTeacher(student, momentum=momentum.start, schedule=momentum.schedule, view=TEACHER_VIEW)
    if settings.teacher.name not in (modules or {}):
        check_trained(settings.teacher.name)
    model = model_of(settings.teacher, None, modules, allow_code=settings.allow_code)
    return FrozenTeacher(model, view=TEACHER_VIEW)


def _views(views: ViewSettings, student: StagedModel, splits: Splits) -> ViewSettings:
    """The sizes of all views; where the student takes one size only, crops and patches are enlarged to it."""
    spec = student.spec
    side = _side(student)
    tokens = bool(spec.stages) and spec.stages[0].layout == "NLC"
    multiple_of = spec.stages[0].stride if tokens else 1
    resolved = resolve_views(views, image_size=side, source=splits.train, multiple_of=multiple_of)
    changed: dict[str, int] = {}
    for key, count in (("crop_size", resolved.crops), ("patch_size", resolved.patches)):
        size = getattr(resolved, key)
        if not count or size == side or accepts(student, size):
            continue
        if getattr(views, key) is not None:
            raise InputError(
                f"views.{key}={size} for {spec.name}, which was built for {side} px and takes no other size",
                f"{side}, or a network of any size",
                f"leave views.{key} out: crops are then enlarged to {side} px",
            )
        changed[key] = side
        if key == "patch_size" and views.patch_base is None:
            changed["patch_base"] = round(side * PATCH_BASE / PATCH)  # nine patches lie as far apart as published
    return resolved.model_copy(update=changed)


def _side(student: StagedModel) -> int:
    height, width = student.spec.input.image_size
    if height != width:
        raise InputError(f"{student.spec.name} for images of {height} x {width} px", "square images", "give one size")
    return height


def accepts(model: StagedModel, side: int) -> bool:
    """Whether a network answers images of this side, beside those that it was built for."""
    spec, training = model.spec, model.training
    model.eval()
    try:
        with torch.no_grad():
            answer = model(torch.zeros(1, spec.input.num_channels, side, side)).require("embedding")
    except Exception:  # whatever a network says of a size, it does not take it
        return False
    finally:
        model.train(training)
    return tuple(answer.shape) == (1, spec.embedding_dim)


def _train_loader(
    settings: PretrainSettings,
    splits: Splits,
    student: StagedModel,
    teacher: FrozenTeacher,
    views: ViewSettings,
    ids: Any,
    seed: int,
) -> TrainLoader:
    rank, world_size = process()
    on_device = settings.data.augment_on == "device"
    transform = MultiViewTransform(teacher.spec.input, student.spec.input, views, seed)
    return TrainLoader(
        splits.train,
        ids,
        np.full(len(splits.train.targets), UNLABELLED),
        transform.views,
        settings.data.augment,
        transform=transform,
        seed=seed,
        cycle_epochs=settings.data.cycle_epochs,
        batch_size=settings.train.batch_size,
        device_batch_size=settings.train.device_batch_size,
        augment_device=connect(settings.device, settings.train.precision).device if on_device else None,
        workers=settings.data.workers,
        rank=rank,
        world_size=world_size,
        max_corrupt_share=settings.data.max_corrupt_share,
    )


def _exam(
    settings: PretrainSettings, splits: Splits, teacher: FrozenTeacher, student: StagedModel, ids: Any
) -> NeighbourExam | None:
    labelled = ids[splits.train.targets[ids] >= 0]
    if not splits.class_names or not len(labelled) or not (splits.evaluation.targets >= 0).any():
        return None
    rank, world_size = process()
    return NeighbourExam.of(
        splits,
        labelled,
        student.spec.input,
        teacher if isinstance(teacher, MovingAverageTeacher) else None,
        settings.probe,
        batch_size=settings.train.device_batch_size or -(-settings.train.batch_size // world_size),
        workers=settings.data.workers,
        rank=rank,
        world_size=world_size,
        max_corrupt_share=settings.data.max_corrupt_share,
        crop_pct=settings.data.eval_crop_pct,
    )


def _resolved(settings: PretrainSettings, student: StagedModel, views: ViewSettings) -> PretrainSettings:
    """The settings with the choices that were left open."""
    epochs = settings.train.epochs or (DEFAULT_EPOCHS if settings.train.steps is None else None)
    return settings.model_copy(
        update={
            "student": settings.student.model_copy(update={"image_size": _side(student)}),
            "views": views,
            "train": settings.train.model_copy(update={"epochs": epochs}),
        }
    )


def _warnings(parts: Parts) -> list[str]:
    """What must be said before the first step."""
    found = []
    num_words = parts.settings.method.options.get("num_words")
    batch_size = min(parts.settings.train.batch_size, len(parts.train_loader.ids))
    if num_words is not None and num_words < batch_size:
        found.append(
            f"a vocabulary of {num_words} words and {batch_size} images a step: each step replaces all words, those of "
            "the last images staying; raise method.num_words, or set method.words_per_step"
        )
    if parts.exam is not None:
        found.extend(parts.exam.notes)
    else:
        found.append("these images have no labels: representations are not measured while they are learnt")
    sizes = parts.settings.views
    side = parts.student.spec.input.image_size[0]
    if sizes.crops and sizes.crop_size == side and sizes.patches and sizes.patch_size == side:
        found.append(f"{parts.student.spec.name} takes images of {side} px only: crops and patches are enlarged to it")
    return found
