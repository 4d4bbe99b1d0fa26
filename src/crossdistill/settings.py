"""The settings tree: strict, typed, and overridden with ``key=value``; an unknown key names the nearest one."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator, model_validator

from crossdistill.errors import InputError, nearest

S = TypeVar("S", bound=BaseModel)


class Strict(BaseModel):
    """Base of every node: unknown keys are errors, and values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSettings(Strict):
    """A network by name, as ``crossdistill.models.build`` takes it."""

    name: str = Field(
        description="timm/<name> or torchvision/<name> (@pretrained, @PATH), hf-hub:<id>, file:net.py:build, a folder"
    )
    image_size: int | None = Field(None, ge=4, le=8192, description="input height and width; default: the model's own")
    init: str | None = Field(None, description="weights to start from (PATH or 'pretrained'); the head may differ")
    new_classifier: bool = Field(False, description="start the classifier at zero, whatever the weights hold there")
    stages: tuple[str, ...] | None = Field(
        None, min_length=1, description="modules that end the stages; default: found by tracing"
    )
    args: dict[str, Any] = Field(default_factory=dict, description="arguments of the model's constructor")


class TeacherSettings(ModelSettings):
    """A teacher; several make an ensemble, weighted by ``weight``."""

    weight: float = Field(1.0, gt=0)
    class_map: str | dict[str, str | int | list[str | int]] | None = Field(
        None, description="a teacher of other classes: names, a YAML or JSON file, or {class: class of the teacher}"
    )

    @field_validator("class_map", mode="before")
    @classmethod
    def _class_map(cls, given: Any) -> Any:
        return given if given is None or isinstance(given, str) else check_class_map(given, "class_map")


class MethodSettings(BaseModel):
    """A method by name; every other key is one of its own options (``crossdistill methods NAME`` lists them)."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = "kd"

    @property
    def options(self) -> dict[str, Any]:
        """The method's own options, as given."""
        return dict(self.model_extra or {})


class AugmentSettings(Strict):
    """Random changes to training images. ``None`` lets the data source choose; the choice is recorded."""

    crop: Literal["none", "pad", "resized"] | None = Field(
        None, description="pad: shift by up to `padding`; resized: random area and aspect ratio"
    )
    padding: float = Field(0.125, ge=0, le=0.5, description="largest shift, as a share of the image's side")
    scale: tuple[float, float] = Field((0.08, 1.0), description="area of a resized crop, as shares of the image")
    ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="aspect ratio of a resized crop, width / height")
    flip: float | None = Field(None, ge=0, le=1, description="probability of a left-right flip")
    interpolation: Literal["model", "random"] = Field(
        "model", description="how crops are resized: as the model says, or bilinear or bicubic by chance"
    )
    rand_augment: str | None = Field(None, description="RandAugment in timm's words, such as rand-m9-mstd0.5-inc1")
    color_jitter: float = Field(0.0, ge=0, le=1, description="largest change of brightness, contrast and saturation")
    erase: float = Field(0.0, ge=0, le=1, description="probability that a rectangle is replaced by noise")
    mixup: float = Field(0.0, ge=0, description="alpha of mixup's Beta distribution; 0 is off")
    cutmix: float = Field(0.0, ge=0, description="alpha of cutmix's Beta distribution; 0 is off")
    mix_probability: float = Field(1.0, ge=0, le=1, description="probability that a pair of images is mixed")
    cutmix_share: float = Field(0.5, ge=0, le=1, description="share of cutmix where mixup is on as well")

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for name, (low, high), most in (("scale", self.scale, 1.0), ("ratio", self.ratio, math.inf)):
            if not 0 < low <= high <= most:
                raise InputError(
                    f"data.augment.{name}={[low, high]}",
                    "two numbers above 0, the smaller first" + (", up to 1" if most == 1 else ""),
                    f"give data.augment.{name}='[LOW, HIGH]'",
                )
        return self


class ViewSettings(Strict):
    """What pretraining shows of an image: a mild view to the teacher, crops and patches to the student.

    Sizes that are left open follow the model's image size in the published proportions, 224 to 160 (crops), 96
    (patches) and 256 (what patches are cut from).
    """

    crops: int = Field(2, ge=0, le=16, description="crops of an image that the student sees")
    crop_size: int | None = Field(None, ge=4, le=8192, description="height and width of a crop")
    crop_scale: tuple[float, float] = Field((0.08, 0.6), description="area of a crop, as shares of the image")
    patches: int = Field(5, ge=0, le=9, description="of the nine patches of an image, those that the student sees")
    patch_size: int | None = Field(None, ge=4, le=8192, description="height and width of a patch")
    patch_base: int | None = Field(None, ge=4, le=8192, description="height and width of what patches are cut from")
    patch_scale: tuple[float, float] = Field((0.6, 1.0), description="area of that, as shares of the image")
    color_jitter: tuple[float, float, float, float] = Field(
        (0.4, 0.4, 0.4, 0.1), description="largest change of brightness, contrast, saturation and hue"
    )
    jitter_probability: float = Field(0.8, ge=0, le=1)
    grey_probability: float = Field(0.2, ge=0, le=1)
    blur_probability: float = Field(0.5, ge=0, le=1, description="of crops; patches are never blurred")
    blur_sigma: tuple[float, float] = Field((0.1, 2.0), description="in pixels of a crop of 160; scaled with its size")
    flip: float | None = Field(None, ge=0, le=1, description="probability of a left-right flip; default: the source's")

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if self.crops + self.patches == 0:
            raise InputError("views.crops=0 and views.patches=0", "a view for the student", "ask for crops or patches")
        *factors, hue = self.color_jitter
        if not all(0 <= factor <= 1 for factor in factors) or not 0 <= hue <= 0.5:
            raise InputError(
                f"views.color_jitter={list(self.color_jitter)}",
                "brightness, contrast and saturation from 0 to 1, and hue from 0 to 0.5",
                "give views.color_jitter='[0.4, 0.4, 0.4, 0.1]', or less",
            )
        for name, (low, high), most in (
            ("crop_scale", self.crop_scale, 1.0),
            ("patch_scale", self.patch_scale, 1.0),
            ("blur_sigma", self.blur_sigma, math.inf),
        ):
            if not 0 < low <= high <= most:
                raise InputError(
                    f"views.{name}={[low, high]}",
                    "two numbers above 0, the smaller first" + (", up to 1" if most == 1 else ""),
                    f"give views.{name}='[LOW, HIGH]'",
                )
        return self


class StreamSettings(Strict):
    """What must be said of a remote stream: it is read once, in its own order, and never indexed."""

    num_train: int = Field(ge=1, description="training images an epoch")
    class_names: tuple[str, ...] = Field(min_length=2, description="classes, in the order of their numbers")


class DataSettings(Strict):
    """Where images come from, which of them are used, and how they are loaded."""

    source: str = Field(description="digits, KIND:PATH, or a known name; see docs/data.md")
    unlabelled: bool = Field(
        False, description="take all images below a folder: to pretrain on, without classes; of folder: sources alone"
    )
    train_split: str | None = Field(None, description="the split to train on; default: train")
    evaluation_split: str | None = Field(
        None, description="the split that accuracy is reported on; default: test, else val"
    )
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**63,
        description="of which images, their order and their random changes; default: the run's, one a run",
    )
    cycle_epochs: int | None = Field(
        None, ge=1, description="show the images of the first so many epochs again and again; default: new ones each"
    )
    val_share: float = Field(
        0.1, gt=0, lt=1, description="share of the training images that selects the best epoch, at least one a class"
    )
    limit_train: int | None = Field(None, ge=1, description="use only so many training images, stratified")
    train_list: str | None = Field(
        None, description="a file with the end of an image's path in each line: train on these images alone"
    )
    first_per_class: int | None = Field(
        None, ge=1, description="use only the first so many training images of each class, in the set's order"
    )
    labels_per_class: int | None = Field(
        None, ge=1, description="keep so many labels a class; the other training images become unlabelled"
    )
    image_column: str | None = Field(None, description="the column that holds the images; default: image")
    label_column: str | None = Field(None, description="the column that holds the classes; default: label")
    sampling: Literal["shuffled", "class_balanced"] = Field(
        "shuffled", description="class_balanced: every class equally often, images of rare ones several times an epoch"
    )
    stream: StreamSettings | None = Field(None, description="facts of a remote stream, which cannot be counted")
    eval_crop_pct: float | None = Field(
        None,
        ge=0.05,
        le=1,
        description="share of the side shown in evaluation; default: the model's, tiny images whole",
    )
    augment_on: Literal["cpu", "device"] = Field(
        "cpu", description="where pixels are changed: in the loader, or batched on the device that trains"
    )
    workers: int | None = Field(
        None, ge=0, description="loader processes; default: none where batches are cheap to make"
    )
    max_corrupt_share: float = Field(0.01, ge=0, le=1, description="stop when more images than this are unreadable")
    augment: AugmentSettings = AugmentSettings()


class TrainSettings(Strict):
    """The loop: how long, how large, which optimiser and schedule. Batch size and rates are global, not per device."""

    epochs: int | None = Field(None, ge=1, description="passes over the training images (default 100)")
    steps: int | None = Field(None, ge=1, description="optimiser steps, instead of epochs")
    batch_size: int = Field(128, ge=1, description="images a step, over all processes")
    device_batch_size: int | None = Field(
        None, ge=1, description="most images at once on one device; more are accumulated"
    )
    optimizer: str = Field("adamw", description="any optimiser name of timm")
    lr: float = Field(1e-3, gt=0)
    classifier_lr: float | None = Field(
        None, gt=0, description="learning rate of the student's classifier, on the same schedule; default: lr"
    )
    weight_decay: float = Field(0.05, ge=0, description="not applied to biases and other one-dimensional parameters")
    momentum: float = Field(0.9, ge=0, lt=1)
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    min_lr: float = Field(1e-5, ge=0)
    warmup_epochs: float = Field(5.0, ge=0, description="counts inside the total; at most a fifth of it")
    warmup_lr: float = Field(1e-6, ge=0)
    decay_epochs: float = Field(30.0, gt=0, description="step schedule: epochs between two decays")
    milestones: Annotated[tuple[float, ...], Field(min_length=1)] | None = Field(
        None, description="step schedule: the epochs at which it decays, instead of every decay_epochs"
    )
    decay_rate: float = Field(0.1, gt=0, description="step schedule: factor of a decay")
    schedule_per: Literal["step", "epoch"] = Field("step", description="how often the learning rate changes")
    warmup: Literal["inside", "before"] = Field(
        "inside", description="the schedule runs on beneath the warm-up, or begins after it (warm-up then goes by step)"
    )
    decay_all: bool = Field(False, description="decay biases and other one-dimensional parameters as well")
    clip_grad: float | None = Field(None, gt=0, description="largest norm of the gradient")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    cross_entropy_weight: float = Field(1.0, ge=0, description="weight of the hard-label term")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="average the student's weights with this decay")
    class_weights: Literal["balanced"] | Annotated[tuple[float, ...], Field(min_length=1)] | None = Field(
        None, description="weight of each class in the hard-label term; balanced: by the inverse of its images"
    )
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = Field(False, description="keep images and weights channel-last, which GPUs like")
    compile_student: bool = Field(False, description="compile the student with torch.compile")
    compile_teacher: bool = Field(False, description="compile the teachers with torch.compile")
    compile_method: bool = Field(False, description="compile bridges and losses with torch.compile")
    cuda_graphs: bool = Field(False, description="replay what is compiled as CUDA graphs: less work for the host")
    fused_optimizer: bool | None = Field(
        None, description="update all weights in one kernel; default: where PyTorch has one for optimiser and device"
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="several processes: whole copies (DDP), or shards of student and method (FSDP2)"
    )
    select: Literal["last", "best"] = Field(
        "last", description="which epoch is reported; 'best' holds out val_share of the training images"
    )
    eval_every: int = Field(1, ge=1, description="epochs between two evaluations; the last is always evaluated")
    checkpoint_every: int = Field(1, ge=1, description="epochs between two checkpoints; the last is always kept")
    log_every: int = Field(10, ge=1, description="steps between two lines of the log")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise InputError(
                f"train.epochs={self.epochs} and train.steps={self.steps}, which are both set",
                "one of them",
                "give --epochs or --steps, or drop the key from the settings",
            )
        if self.milestones is not None and self.schedule != "step":
            raise InputError(
                f"train.milestones={list(self.milestones)} with train.schedule={self.schedule}",
                "milestones of the step schedule",
                "set train.schedule=step, or drop train.milestones",
            )
        return self


class Settings(Strict):
    """One run: a student, its teachers (none for plain training), a method, data and the loop."""

    student: ModelSettings
    teachers: tuple[TeacherSettings, ...] = ()
    method: MethodSettings = MethodSettings(name="none")
    data: DataSettings
    train: TrainSettings = TrainSettings()
    seed: int = Field(0, ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    allow_untrained_teacher: bool = False
    allow_code: bool = Field(False, description="run the Python file that a model file:PATH.py:FUNCTION names")

    @model_validator(mode="after")
    def _method_and_teachers(self) -> Self:
        if self.method.name == "none" and self.teachers:
            names = ", ".join(repr(teacher.name) for teacher in self.teachers)
            raise InputError(
                f"method 'none', which trains the student alone, and teacher {names}",
                "one of them",
                "leave out the teacher, or choose another method",
            )
        if self.method.name != "none" and not self.teachers:
            raise InputError(
                f"method {self.method.name!r} without a teacher",
                "a teacher, which that method needs",
                "give one with `crossdistill distill --teacher`, or teachers: [{name: …}] in a recipe",
            )
        return self


def check_class_map(given: Any, where: str) -> dict[str, str | int | list[str | int]]:
    """A mapping from each class of the data to a class of the teacher, its number, or a list of these.

    >>> check_class_map({0: "tench", "dog": [151, 217]}, "class_map")
    {'0': 'tench', 'dog': [151, 217]}

    Raises:
        InputError: anything else; YAML reads some words, such as ``no``, as other things than text.
    """
    if not isinstance(given, dict):
        raise InputError(
            f"{where}, which is {type(given).__name__} {given!r}",
            "'names', a file, or a mapping {class of the data: class of the teacher}",
            "write one line for each class",
        )
    for name, teacher_classes in given.items():
        found = [name, *(teacher_classes if isinstance(teacher_classes, list) else [teacher_classes])]
        strange = [one for one in found if isinstance(one, bool) or not isinstance(one, (str, int))]
        if strange:
            raise InputError(
                f"{where} with {name!r}: {teacher_classes!r}, where {strange[0]!r} is {type(strange[0]).__name__}",
                "names of classes, numbers of the teacher's classes from 0, or lists of these",
                "quote the name, or correct that line",
            )
    names = Counter(str(name) for name in given)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        raise InputError(
            f"{where} with class {twice!r} twice, as a number and as text",
            "one line for each class",
            "remove one of the two lines",
        )
    return {str(name): teacher_classes for name, teacher_classes in given.items()}


def load(tree: dict[str, Any], overrides: Iterable[str] = ()) -> Settings:
    """Validate a tree after applying ``key=value`` overrides such as ``train.lr=0.1`` (values are YAML).

    Raises:
        InputError: an unknown key (with the nearest one), a wrong type, a missing value.
    """
    return validate(Settings, overridden(tree, overrides))


def overridden(tree: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A tree of settings after ``key=value`` overrides, not yet validated."""
    for override in overrides:
        key, value = parse_override(override)
        tree = _with(tree, key.split("."), value, key)
    return tree


def read(path: Path, overrides: Iterable[str] = ()) -> Settings:
    """Settings from a YAML file."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"settings file {path}: {error.strerror}", "a readable YAML file", "check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"settings file {path}: {error}", "valid YAML", "mend the file at that line") from error
    if not isinstance(tree, dict):
        raise InputError(f"settings file {path} holds {type(tree).__name__}", "a mapping of keys", "mend the file")
    return load(tree, overrides)


def parse_override(text: str) -> tuple[str, Any]:
    """Split ``key=value``; the value is read as YAML, so ``1e-3``, ``true`` and ``[1, 2]`` mean what they say.

    >>> parse_override("train.lr=1e-3")
    ('train.lr', 0.001)
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"override {text!r}", "key=value, such as train.lr=0.1", "write it with an equals sign")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"override {text!r}: {error}", "a value that YAML can read", "quote the value") from error
    if isinstance(parsed, str):  # YAML 1.1 reads 1e-3 as text
        with contextlib.suppress(ValueError):
            parsed = float(parsed) if any(digit.isdigit() for digit in parsed) else parsed
    return key, parsed


def _with(tree: dict[str, Any], path: list[str], value: Any, key: str) -> dict[str, Any]:
    head, *rest = path
    if not rest:
        return {**tree, head: value}
    child = tree.get(head, {})
    if isinstance(child, (list, tuple)) and rest[0].isdigit():
        index = int(rest[0])
        if index >= len(child):
            raise InputError(f"key {key!r}", f"an index below {len(child)}", "count from 0")
        items = list(child)
        items[index] = _with({"": items[index]}, ["", *rest[1:]], value, key)[""]
        return {**tree, head: items}
    if not isinstance(child, dict):
        raise InputError(f"key {key!r}", f"{head!r} to hold keys, but it holds {child!r}", "shorten the key")
    return {**tree, head: _with(child, rest, value, key)}


def validate(model: type[S], tree: dict[str, Any], *, prefix: str = "") -> S:
    """Validate against a pydantic model; the first problem becomes an :class:`InputError` in our words."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise _as_input_error(model, error, prefix) from None


def _as_input_error(model: type[BaseModel], error: ValidationError, prefix: str) -> InputError:
    first = error.errors(include_url=False)[0]
    location = list(first["loc"])
    path = prefix + ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        siblings = _fields_at(model, location[:-1])
        return InputError(f"unknown key {path!r}", "a key of the settings", nearest(str(location[-1]), siblings))
    if first["type"] == "missing" and isinstance(location[-1], int):
        key = prefix + ".".join(map(str, location[:-1]))
        return InputError(f"{key} with {location[-1]} value(s)", f"at least {location[-1] + 1}", f"give {key}='[…]'")
    if first["type"] == "missing":
        return InputError(f"no value for {path!r}", "a value", f"give {path}=VALUE")
    raised = first.get("ctx", {}).get("error")
    if isinstance(raised, InputError):  # by one of the validators above, in our words already
        return raised
    # Of a value that may be one of several types, each type tells what it wants, under a name of its own.
    words = [part for part in location if not _names_a_type(part)]
    path = prefix + ".".join(map(str, words))
    told = [one for one in error.errors(include_url=False) if [*one["loc"]][: len(words)] == words]
    messages = dict.fromkeys(one["msg"].removeprefix("Input should be ") for one in told or [first])
    expected = ", or ".join(message[0].lower() + message[1:] for message in messages)
    return InputError(f"{path} = {first['input']!r}", expected, f"change {path}")


def _names_a_type(part: int | str) -> bool:
    """Whether pydantic added this part of a place for one of several types, such as ``tuple[float, ...]``."""
    return isinstance(part, str) and (not part.isidentifier() or part in ("str", "dict", "int", "float"))


def _fields_at(model: type[BaseModel], location: list[int | str]) -> list[str]:
    node: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        annotation = node.model_fields[part].annotation
        node = next(
            (arg for arg in (annotation, *getattr(annotation, "__args__", ())) if hasattr(arg, "model_fields")),
            node,
        )
    return list(node.model_fields)


def resolve_options(
    name: str, build: Callable[..., Any], options: dict[str, Any], *, prefix: str = "method."
) -> dict[str, Any]:
    """Check a method's options against the keyword-only parameters of its ``build``; defaults are filled in.

    ``prefix`` is how messages begin the name of an option.

    Raises:
        InputError: an option that ``build`` does not take (with the nearest one), or of another type.
    """
    fields = options_of(build)
    model = create_model(f"{name} options", __base__=Strict, **fields)
    checked = validate(model, options, prefix=prefix)
    return {key: getattr(checked, key) for key in fields}


def options_of(build: Callable[..., Any]) -> dict[str, Any]:
    """The options that a method's ``build`` takes beside what every method takes: name -> (type, default)."""
    function = getattr(build, "__func__", build)
    hints = get_type_hints(function, include_extras=True)
    return {
        parameter.name: (hints.get(parameter.name, Any), parameter.default)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.name not in ("num_classes", "modules")
    }
