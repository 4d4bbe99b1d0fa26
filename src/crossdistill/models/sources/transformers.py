"""Image classifiers of transformers as networks that take images and return logits."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.errors import InputError, nearest
from crossdistill.models.sources.source import Head, Origin, Request, remember
from crossdistill.models.views import Size

SAVED = "transformers"
"""In the config.json of an export of ours: transformers' own configuration of that network."""

REVERSED = "reversed_channels"
BYTE = 255.0
NEAREST, BILINEAR, BICUBIC = 0, 2, 3
INTERPOLATIONS = {NEAREST: "nearest", BILINEAR: "bilinear", BICUBIC: "bicubic"}


class ImageClassifier(nn.Module):
    """A classifier of transformers that takes images ``(B, C, H, W)`` and returns logits ``(B, K)``.

    Args:
        model: one of ``AutoModelForImageClassification``.
        image_size: of the images it will see; position embeddings are interpolated where it is not the model's own.
        reversed_channels: the model wants blue, green, red.
    """

    def __init__(self, model: nn.Module, image_size: Size | None, *, reversed_channels: bool = False) -> None:
        super().__init__()
        self.model = model
        self.num_classes: int = model.config.num_labels  # type: ignore[union-attr, assignment]
        self.reversed_channels = reversed_channels
        self.options = {"interpolate_pos_encoding": True} if _must_interpolate(model, image_size) else {}

    def forward(self, images: Tensor) -> Tensor:
        """Images prepared as the model's own processor does, but for the order of the channels."""
        if self.reversed_channels:
            images = images.flip(1)
        logits: Tensor = self.model(images, **self.options).logits
        return logits

    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...]:
        """The last layer, or a tuple of those whose logits are averaged (DeiT, LeViT), the main one first."""
        backbone = getattr(self.model, str(getattr(self.model, "base_model_prefix", "")), None)
        inside = set(backbone.modules()) if isinstance(backbone, nn.Module) else set()
        layers = [module for module in self.model.modules() if isinstance(module, nn.Linear)]
        heads = [one for one in layers if one not in inside and one.out_features == self.num_classes]
        found = tuple(heads or layers[-1:])
        return found[0] if len(found) == 1 else found


def head(config: dict[str, Any], name: str) -> Head | None:
    """The classifier that a configuration describes; None for a backbone without one.

    Raises:
        InputError: a network for another task, or transformers is not installed.
    """
    known = _transformers().models.auto.modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    architectures = [str(one) for one in config.get("architectures") or ()]
    if config["model_type"] not in known or any("Detection" in one or "Segmentation" in one for one in architectures):
        raise InputError(
            f"{name}, a {', '.join(architectures) or config['model_type']}: no classifier of images",
            "a repository of AutoModelForImageClassification",
            "choose another one",
        )
    if architectures and not any("ImageClassification" in one for one in architectures):
        return None
    labels = _config(config).id2label
    names = tuple(str(labels[index]) for index in sorted(labels))
    invented = all(one == f"LABEL_{index}" for index, one in enumerate(names))
    return Head(len(names), None if invented else names)


def load(request: Request, name: str, folder: Path) -> nn.Module:
    """The network in a folder of transformers' layout.

    Raises:
        InputError: no safetensors, weights without a classifier or of another network, arguments that its
            configuration does not have, or no description of how images are prepared.
    """
    transformers = _transformers()
    config = _with_arguments(_config(_read(transformers, folder, name)), request, name)
    auto = transformers.AutoModelForImageClassification
    with _quiet(transformers):
        if not request.pretrained:
            model = auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
        else:
            model = _with_weights(auto, folder, config, name)
        facts, reversed_channels = _preprocessing(transformers, folder, name)
    return _wrapped(model, facts, request, name, reversed_channels=reversed_channels)


def rebuild(request: Request, name: str) -> nn.Module:
    """The network that an export of ours describes, before its weights are loaded."""
    transformers = _transformers()
    saved = request.checkpoint.config if request.checkpoint is not None else {}
    config = _with_arguments(_config(saved[SAVED]), request, name)
    with _quiet(transformers):
        auto = transformers.AutoModelForImageClassification
        model = auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return _wrapped(model, {}, request, name, reversed_channels=bool(saved.get(REVERSED)))


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f"a network of transformers, which is not there ({error})",
            "the package transformers",
            'pip install "crossdistill[hub]"',
        ) from error
    return transformers


def _read(transformers: ModuleType, folder: Path, name: str) -> dict[str, Any]:
    try:
        config: dict[str, Any] = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()
    except Exception as error:  # a type that this version does not know, code of its own, missing values
        raise InputError(
            f"{name}: {type(error).__name__}: {error}", "a configuration that transformers knows", "choose another one"
        ) from error
    return config


def _config(saved: dict[str, Any]) -> Any:
    values = {key: value for key, value in saved.items() if key not in ("model_type", "transformers_version")}
    return _transformers().AutoConfig.for_model(saved["model_type"], **values)


def _with_arguments(config: Any, request: Request, name: str) -> Any:
    known = config.to_dict()
    for key, value in request.saved_args.items():
        if key not in known:
            raise InputError(f"{name} with {key}={value!r}", "a key of its configuration", nearest(key, known))
        setattr(config, key, value)
    if config.num_labels != request.num_classes:
        config.num_labels = request.num_classes
    config.architectures = config.architectures or []  # some of its classes cannot be chosen from None
    return config


def _with_weights(auto: Any, folder: Path, config: Any, name: str) -> nn.Module:
    try:
        model, found = auto.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:  # no safetensors, a damaged file, arguments that its layers refuse
        raise InputError(
            f"{name}: {type(error).__name__}: {error}",
            "weights in model.safetensors that fit its configuration",
            "choose another repository, or save the weights as safetensors",
        ) from error
    expected = auto._model_mapping[type(config)]
    fresh = {key for key in found["missing_keys"] if not key.startswith(("classifier", "fc"))}
    differing = {key for key, *_ in found["mismatched_keys"] if "classifier" not in key}
    if fresh or differing:
        raise InputError(
            f"{name}, whose weights lack {', '.join(sorted(fresh | differing)[:3])} of {expected}",
            "the weights of that network",
            "drop the arguments that change its layers, or choose another repository",
        )
    network: nn.Module = model
    return network


def _wrapped(
    model: nn.Module, facts: dict[str, Any], request: Request, name: str, *, reversed_channels: bool
) -> nn.Module:
    saved = request.checkpoint.config.get("pretrained_cfg") or {} if request.checkpoint is not None else {}
    size = request.size or {**facts, **saved}["input_size"][1:]
    net = ImageClassifier(model, tuple(size), reversed_channels=reversed_channels)
    described = {SAVED: model.config.to_dict(), REVERSED: reversed_channels}  # type: ignore[union-attr, operator]
    return remember(net, Origin(name, request.saved_args, described), facts, request)


def _must_interpolate(model: nn.Module, image_size: Size | None) -> bool:
    own = getattr(model.config, "image_size", None)
    if (
        own is None
        or image_size is None
        or "interpolate_pos_encoding" not in inspect.signature(model.forward).parameters
    ):
        return False
    return tuple(image_size) != ((own, own) if isinstance(own, int) else tuple(own))


def _preprocessing(transformers: ModuleType, folder: Path, name: str) -> tuple[dict[str, Any], bool]:
    """What the processor beside the weights does, in timm's words; and whether it reverses the channels."""
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=False).to_dict()
    except Exception as error:  # missing, or of a type that this version does not know
        raise InputError(
            f"{name}: {type(error).__name__}: {error}",
            "preprocessor_config.json, which says how its images are prepared",
            "choose another repository, or add that file to a folder of your own",
        ) from error
    size, crop_pct = _size_and_crop(processor)
    mean, std = _mean_and_std(processor)
    facts = {
        "input_size": (len(mean), *size),
        "crop_pct": crop_pct,
        "mean": mean,
        "std": std,
        "interpolation": INTERPOLATIONS.get(int(processor.get("resample", BILINEAR)), "bicubic"),
    }
    return facts, bool(processor.get("do_flip_channel_order"))


def _size_and_crop(processor: dict[str, Any]) -> tuple[Size, float]:
    """The size that the network sees, and its share of the resized image."""
    resized = _sides(processor["size"])
    if processor.get("do_center_crop"):
        cropped = _sides(processor["crop_size"])
        return cropped, min(1.0, cropped[0] / resized[0]) if processor.get("do_resize") else 1.0
    # as its processor has it: large images are not cropped
    crop_pct = processor.get("crop_pct") if resized[0] < 384 else None
    return resized, float(crop_pct or 1.0)


def _sides(size: Any) -> Size:
    sides = size if isinstance(size, dict) else {"shortest_edge": size}
    if sides.get("height") and sides.get("width"):
        return int(sides["height"]), int(sides["width"])
    return int(sides["shortest_edge"]), int(sides["shortest_edge"])


def _mean_and_std(processor: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Statistics for images from 0 to 1, whatever scale and offset the processor works with."""
    scale = BYTE * float(processor["rescale_factor"]) if processor.get("do_rescale") else BYTE
    offset = 1.0 if processor.get("rescale_offset") else 0.0
    normalizes = bool(processor.get("do_normalize"))
    means = _three(processor["image_mean"]) if normalizes else (0.0, 0.0, 0.0)
    stds = _three(processor["image_std"]) if normalizes else (1.0, 1.0, 1.0)
    again = _three(processor["image_std"]) if processor.get("include_top") else (1.0, 1.0, 1.0)  # EfficientNet's
    mean = tuple((mean + offset) / scale for mean in means)
    return mean, tuple(std * second / scale for std, second in zip(stds, again, strict=True))


def _three(value: Any) -> tuple[float, ...]:
    return (float(value),) * 3 if isinstance(value, (int, float)) else tuple(float(one) for one in value)


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Its reports on new classifiers and its bars are for people who call it themselves."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
