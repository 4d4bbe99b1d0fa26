"""What can be set of a pretraining run; its parts are named as those of any other run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from crossdistill.contracts import Method
from crossdistill.errors import InputError
from crossdistill.registry import METHODS
from crossdistill.runs.objective import resolve_method
from crossdistill.settings import (
    AugmentSettings,
    DataSettings,
    MethodSettings,
    ModelSettings,
    Strict,
    TrainSettings,
    ViewSettings,
    overridden,
    validate,
)

METHOD = "bow"

TRAIN_DEFAULTS: dict[str, Any] = {
    "optimizer": "momentum",
    "lr": 0.05,
    "min_lr": 0.0,
    "weight_decay": 5e-4,
    "decay_all": True,
    "warmup_epochs": 0.0,
    "schedule_per": "epoch",
    "cross_entropy_weight": 0.0,
}
"""The loop of the published ResNet-18, on top of :class:`~crossdistill.settings.TrainSettings`."""


class MomentumSettings(Strict):
    """How the teacher follows the student."""

    start: float = Field(0.99, ge=0, le=1, description="share of the teacher's weights that a step keeps, at first")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="cosine: it rises to 1 over the run")


class ProbeSettings(Strict):
    """How representations are measured: on labels that training never reads, where the data have them."""

    neighbours: int = Field(20, ge=1, description="training images that vote on the class of a test image")
    temperature: float = Field(0.07, gt=0, description="how much nearer ones count more")
    bank: int | None = Field(
        20_000, ge=1, description="training images that vote and that the probe learns from, at most; null: all"
    )
    linear: bool = Field(True, description="fit a linear probe at the end; it becomes the classifier of what is kept")
    keep: Literal["student", "teacher"] = Field("student", description="which network the run keeps")
    recalibrate: bool = Field(False, description="keep batch statistics of whole images instead of crops")


class PretrainSettings(Strict):
    """One run: a student, views, a method whose teacher follows the student (or is given), data and the loop."""

    student: ModelSettings
    teacher: ModelSettings | None = Field(
        None, description="a trained network whose words are predicted, instead of the student's own average"
    )
    method: MethodSettings = MethodSettings(name=METHOD)
    momentum: MomentumSettings = MomentumSettings()
    views: ViewSettings = ViewSettings()
    data: DataSettings
    train: TrainSettings = TrainSettings(**TRAIN_DEFAULTS)
    probe: ProbeSettings = ProbeSettings()
    seed: int = Field(0, ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    allow_code: bool = Field(False, description="run the Python file that a model file:PATH.py:FUNCTION names")


def load_settings(tree: dict[str, Any], overrides: Iterable[str] = ()) -> PretrainSettings:
    """Validate a tree after ``key=value`` overrides; the loop is as published, and a method's options are all there.

    Raises:
        InputError: an unknown key (with the nearest one), a wrong type, a missing value, a method that cannot pretrain.
    """
    defaults: dict[str, dict[str, Any]] = {"train": TRAIN_DEFAULTS, "method": {"name": METHOD}}
    tree = {**tree, **{key: {**default, **tree.get(key, {})} for key, default in defaults.items()}}
    settings = validate(PretrainSettings, overridden(tree, overrides))
    _check_pretrains(settings.method.name)
    _check_label_free(settings)
    _check_own_average(settings)
    name, options = resolve_method(settings.method.name, settings.method.options)
    return settings.model_copy(update={"method": MethodSettings(name=name, **options)})


def _check_pretrains(name: str) -> None:
    value: type[Method] = METHODS.get(name).value
    if not value.takes_views:
        able = ", ".join(record.name for record in METHODS if record.value.takes_views)
        raise InputError(
            f"method {name!r}, which compares one view of the student with a teacher's answer to it",
            f"a method that pretrains: {able}",
            "choose it, or use `crossdistill distill`",
        )


def _check_own_average(settings: PretrainSettings) -> None:
    """Refuse settings of a teacher that follows, where another one is given."""
    if settings.teacher is None:
        return
    asked = ["momentum"] * (settings.momentum != MomentumSettings())
    asked += ["probe.keep=teacher"] * (settings.probe.keep == "teacher")
    if asked:
        raise InputError(
            f"{' and '.join(asked)} with teacher {settings.teacher.name!r}, which stays as it is and where it is",
            "settings of the student's own average, or a given teacher",
            "leave out one of the two",
        )


def _check_label_free(settings: PretrainSettings) -> None:
    """Refuse settings that want labels, or that have no part in pretraining and would go unheard."""
    train, data = settings.train, settings.data
    wanted = {
        f"train.cross_entropy_weight={train.cross_entropy_weight:g}": train.cross_entropy_weight > 0,
        f"train.select={train.select}": train.select != "last",
        "train.class_weights": train.class_weights is not None,
        f"train.label_smoothing={train.label_smoothing:g}": train.label_smoothing > 0,
        "train.classifier_lr": train.classifier_lr is not None,
        "data.val_share": data.val_share != DataSettings.model_fields["val_share"].default,
        f"data.labels_per_class={data.labels_per_class}": data.labels_per_class is not None,
        f"data.sampling={data.sampling}": data.sampling != "shuffled",
        "data.augment": data.augment != AugmentSettings(),
    }
    asked = [name for name, is_asked in wanted.items() if is_asked]
    if asked:
        raise InputError(
            f"{', '.join(asked)} for pretraining, which reads no label and reports its last epoch",
            "settings of pretraining: views are set by views.KEY=VALUE",
            "leave these out, or use `crossdistill train`",
        )
