"""What can be set of a federation; networks, data, method and loop are set as those of any other run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from crossdistill.errors import InputError, nearest
from crossdistill.runs.objective import resolve_method
from crossdistill.settings import (
    AugmentSettings,
    DataSettings,
    MethodSettings,
    ModelSettings,
    Strict,
    TrainSettings,
    options_of,
    overridden,
    validate,
)

SMALL: Mapping[str, dict[str, Any]] = {
    "cnn": {"name": "timm/resnet10t", "args": {"channels": [16, 32, 64, 96], "stem_width": 16}, "image_size": 32},
    "transformer": {
        "name": "timm/vit_tiny_patch16_224",
        "args": {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4},
        "image_size": 16,
    },
    "mlp": {
        "name": "timm/resmlp_tiny",
        "args": {"patch_size": 4, "embed_dim": 64, "num_blocks": 4},
        "image_size": 16,
    },
}
"""Words for small networks of each family, for small images; any other name is taken as it is."""

LOCAL_DEFAULTS: dict[str, Any] = {
    "epochs": 10,
    "batch_size": 32,
    "optimizer": "adam",
    "lr": 1e-3,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_epochs": 0.0,
}
"""Training on a client's own labels in each round."""

TUNE_DEFAULTS: dict[str, Any] = {**LOCAL_DEFAULTS, "epochs": 5, "cross_entropy_weight": 0.0}
"""Fine-tuning on the fused teacher in each round: its answers alone, since the next training brings the labels."""

_ONE_ROUND = ("eval_every", "checkpoint_every", "log_every", "select", "ema_decay", "compile_student", "parallel")
"""Settings of the loop that have no meaning in a few epochs that a round takes."""


class PartitionSettings(Strict):
    """Who has which of the training images."""

    kind: Literal["dirichlet", "shards", "column", "folder"] = Field(
        "dirichlet",
        description="dirichlet: drawn class shares; shards: a few classes each; column: by a column of parquet files; "
        "folder: one folder a site",
    )
    alpha: float = Field(0.5, gt=0, description="dirichlet: small is one or two classes a client, 100 is the same mix")
    samples: int | None = Field(None, ge=1, description="images of each client; default: all, in equal parts")
    shards: int = Field(2, ge=1, description="shards: how many each client gets, each of one class or two")
    column: str | None = Field(None, description="column: its name; every value is a client")
    test_share: float = Field(0.2, gt=0, lt=1, description="column: share of a client's images to test on")
    test_limit: int | None = Field(
        None, ge=1, description="test on so many of the set's test images at most, drawn once for all clients"
    )


class TransferSettings(Strict):
    """The images that all clients answer; their labels are never read."""

    source: str | None = Field(None, description="a data set of its own; default: a share of the training images")
    share: float = Field(0.2, gt=0, lt=1, description="of the training images, where there is no other set")
    limit: int | None = Field(None, ge=1, description="use only so many of them")


class FusionSettings(Strict):
    """How the server makes a teacher for each client."""

    beta: float = Field(10.0, ge=0, description="how fast a weight falls with divergence; 0 is the uniform mean")
    temperature: float = Field(3.0, gt=0, description="of what clients answer and are taught")
    threshold: float = Field(0.0, ge=0, description="drop teachers whose weight is below threshold / clients")
    relative: bool = Field(False, description="compare distributions with the clients' mean: unbalanced transfer sets")
    guard: bool = Field(False, description="ignore clients whose answers do not belong to the images")
    least_agreement: float = Field(0.2, ge=0, le=1, description="guard: agreement below which a client is ignored")
    stale: bool = Field(False, description="use an absent client's answers of the round before")
    quorum: int | None = Field(None, ge=1, description="fewest answers to fuse; default: half the clients, at least 2")


class SafetySettings(Strict):
    """The safety net: every client keeps some of its labels to find out whether fusion helps it."""

    reject: bool = Field(True, description="go back to the weights before, if fine-tuning made them worse")
    val_share: float = Field(0.2, gt=0, lt=1, description="share of a client's images that validate")
    tolerance: float = Field(0.01, ge=0, lt=1, description="loss of validation accuracy that is accepted")


class TransportSettings(Strict):
    """How probabilities travel."""

    kind: Literal["fp16", "fp32", "top_k"] = Field("fp16", description="top_k: only the largest of a row, in fp16")
    top_k: int = Field(5, ge=1)


class PrivacySettings(Strict):
    """Differential privacy of local training (DP-SGD); off unless epsilon or a noise multiplier is given."""

    epsilon: float | None = Field(None, gt=0, description="budget of the whole run; the noise follows from it")
    noise_multiplier: float | None = Field(None, ge=0, description="noise in units of max_grad_norm")
    max_grad_norm: float = Field(1.0, gt=0, description="largest gradient of a single image")
    delta: float | None = Field(None, gt=0, lt=1, description="default: images ** -1.1")

    @property
    def on(self) -> bool:
        """Whether training is noisy."""
        return self.epsilon is not None or self.noise_multiplier is not None


class FederateSettings(Strict):
    """One federated run."""

    models: tuple[ModelSettings, ...] = Field(min_length=1, description="dealt to the clients in turn")
    clients: int = Field(10, ge=2, le=100_000)
    rounds: int = Field(10, ge=1)
    strategy: str = "knfu"
    data: DataSettings
    classes: tuple[str, ...] | None = Field(None, description="all classes, where sites have folders of their own")
    partition: PartitionSettings = PartitionSettings()
    transfer: TransferSettings = TransferSettings()
    fusion: FusionSettings = FusionSettings()
    method: MethodSettings = MethodSettings(name="kd")
    safety: SafetySettings = SafetySettings()
    transport: TransportSettings = TransportSettings()
    privacy: PrivacySettings = PrivacySettings()
    train: TrainSettings = TrainSettings(**LOCAL_DEFAULTS)
    tune: TrainSettings = TrainSettings(**TUNE_DEFAULTS)
    eval_every: int = Field(1, ge=1, description="rounds between two tests; the last is always tested")
    gather: float = Field(120.0, ge=0, description="seconds to wait for all clients before a run begins without some")
    patience: float = Field(3600.0, gt=0, description="seconds to wait for the answers of a round")
    seed: int = Field(0, ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.partition.kind == "column" and self.partition.column is None:
            raise InputError("partition.kind=column", "the name of the column", "give partition.column=NAME")
        if self.privacy.epsilon is not None and self.privacy.noise_multiplier is not None:
            raise InputError(
                "privacy.epsilon and privacy.noise_multiplier, which are both given",
                "one of them: each follows from the other",
                "drop one",
            )
        for name, loop, defaults in (("train", self.train, LOCAL_DEFAULTS), ("tune", self.tune, TUNE_DEFAULTS)):
            _check_loop(name, loop, defaults)
            _check_momentum(name, loop)
        return self

    def model_for(self, client: int) -> ModelSettings:
        """The network of a client: they are dealt in turn."""
        return self.models[client % len(self.models)]


def _check_momentum(name: str, loop: TrainSettings) -> None:
    """Refuse what PyTorch refuses on every client: Nesterov's momentum of nothing."""
    if loop.optimizer.lower() in ("sgd", "nesterov", "sgdw") and loop.momentum == 0:
        raise InputError(
            f"{name}.optimizer={loop.optimizer} with {name}.momentum=0",
            "a momentum above 0, which timm's sgd uses in Nesterov's way",
            f"set {name}.optimizer=momentum for plain descent",
        )


def _check_loop(name: str, loop: TrainSettings, defaults: Mapping[str, Any]) -> None:
    """Refuse settings of the loop that a round would not hear."""
    usual = TrainSettings(**defaults)
    asked = [key for key in _ONE_ROUND if getattr(loop, key) != getattr(usual, key)]
    if name == "tune" and loop.cross_entropy_weight > 0:
        asked.append("cross_entropy_weight")  # images of the transfer set have no label
    if asked:
        shown = ", ".join(f"{name}.{key}={getattr(loop, key)}" for key in asked)
        raise InputError(f"{shown} for the few epochs of a round", "settings that a round hears", "leave these out")


def load_settings(tree: dict[str, Any], overrides: Iterable[str] = ()) -> FederateSettings:
    """Validate a tree after ``key=value`` overrides, with the words of :data:`SMALL` and all options filled in.

    Raises:
        InputError: an unknown key (with the nearest one), a wrong type, a strategy or method that does not exist or
            cannot be used between owners.
    """
    defaults = {"train": LOCAL_DEFAULTS, "tune": TUNE_DEFAULTS, "method": {"name": "kd"}}
    tree = {**tree, **{key: {**default, **tree.get(key, {})} for key, default in defaults.items()}}
    tree = overridden(tree, overrides)
    given = tree.get("models", list(SMALL))
    tree["models"] = [_model(one) for one in (given if isinstance(given, list | tuple) else [given])]
    settings = validate(FederateSettings, tree)
    _check_data(settings)
    if settings.privacy.on:
        check_private(settings)
    return settings.model_copy(update={"method": _method(settings)})


def _model(given: Any) -> Any:
    """The settings of a network that is named by a word, by its name, or by its settings already."""
    if isinstance(given, str):
        return dict(SMALL.get(given, {"name": given}))
    if isinstance(given, Mapping) and given.get("name") in SMALL:
        small = SMALL[given["name"]]
        return {**small, **given, "name": small["name"], "args": {**small["args"], **given.get("args", {})}}
    return given


def _method(settings: FederateSettings) -> MethodSettings:
    """The method with all its options; one that has a temperature takes that of the fused knowledge."""
    from crossdistill.registry import METHODS

    record = METHODS.get(settings.method.name)
    if not record.value.needs or not record.value.needs <= {"logits"}:
        able = [one.name for one in METHODS if one.value.needs == {"logits"}]
        raise InputError(
            f"method {record.name!r} between owners, who send nothing but predictions",
            f"a method on logits: {', '.join(able)}",
            nearest(record.name, able),
        )
    options, temperature = settings.method.options, settings.fusion.temperature
    if "temperature" in options_of(record.value.build):
        if options.get("temperature", temperature) != temperature:
            raise InputError(
                f"method.temperature={options['temperature']} and fusion.temperature={temperature:g}",
                "one temperature, at which knowledge is sent and compared",
                "set fusion.temperature alone",
            )
        options = {**options, "temperature": temperature}
    name, resolved = resolve_method(record.name, options)
    return MethodSettings(name=name, **resolved)


def _check_data(settings: FederateSettings) -> None:
    """Refuse settings of the data that have no part in a federation and would go unheard."""
    data, usual = settings.data, DataSettings(source=settings.data.source)
    for key in ("labels_per_class", "unlabelled", "stream", "cycle_epochs", "seed", "val_share", "limit_train"):
        if getattr(data, key) != getattr(usual, key):
            instead = {
                "val_share": "safety.val_share",
                "limit_train": "partition.samples",
                "seed": "seed",
            }.get(key)
            raise InputError(
                f"data.{key}={getattr(data, key)!r} for a federation",
                "settings that a client hears",
                f"set {instead} instead" if instead else "leave it out",
            )
    if data.augment.mixup or data.augment.cutmix:
        raise InputError("data.augment.mixup or cutmix for a federation", "no mixing", "leave it out")


REVEALING = ("epd_true", "selective_fd", "centralised")
"""Strategies that read something off the images themselves, past any noise."""


def check_private(settings: FederateSettings) -> None:
    """Refuse what would go past the noise, or what noisy training does not hear."""
    data, privacy = settings.data, settings.privacy
    wrong = {
        "privacy.noise_multiplier=0, which bounds nothing": privacy.noise_multiplier == 0,
        f"data.sampling={data.sampling}": data.sampling != "shuffled",
        "data.augment": data.augment != AugmentSettings(),
        f"strategy {settings.strategy!r}, which goes past the noise": settings.strategy in REVEALING,
    }
    found = [name for name, is_wrong in wrong.items() if is_wrong]
    if found:
        raise InputError(
            f"{'; '.join(found)}, with differential privacy",
            "what noisy training can bound",
            "leave it out, or do without privacy.*",
        )


def quiet_augment() -> AugmentSettings:
    """No random changes: the teacher's answer belongs to the image as it is."""
    return AugmentSettings(crop="none", flip=0.0)
