"""Classifiers of torchvision: ``torchvision/<name>``, with the default weights that torchvision publishes."""

from __future__ import annotations

import inspect
import re
import sys
from functools import partial
from typing import Any

from accelerate import init_empty_weights
from torch import Tensor, nn
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from crossdistill.errors import InputError, nearest
from crossdistill.models.checkpoint import Checkpoint
from crossdistill.models.cutter import classifier_names
from crossdistill.models.sources.source import Head, Origin, Request, remember
from crossdistill.models.views import Size

AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Heads in the middle of GoogLeNet and Inception, which only a loss of their own would train."""

OLD_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")

OTHER_TASKS = {
    "detection": "a detector of objects",
    "segmentation": "a segmentation network",
    "video": "a classifier of videos",
    "optical_flow": "an estimator of optical flow",
    "quantization": "a quantized network, which cannot be trained",
}


class Torchvision:
    """The networks that ``torchvision.models`` registers as classifiers of images."""

    prefix = "torchvision/"
    always_trained = False

    def names(self) -> list[str]:
        """Names of all classifiers, without the prefix."""
        return [str(name) for name in models.list_models(module=models)]

    def check(self, name: str) -> None:
        """Raises: InputError: an unknown name, or a network for another task."""
        known = self.names()
        if name in known:
            return
        close = f"{nearest(name.removeprefix('quantized_'), known)} `crossdistill models 'torchvision/*'` lists them"
        for task, what in OTHER_TASKS.items():
            if name in models.list_models(module=getattr(models, task)):
                raise InputError(
                    f"torchvision/{name}, {what}: no classifier of images",
                    "a network that gives one row of logits for an image",
                    close,
                )
        raise InputError(f"model 'torchvision/{name}'", "a classifier of torchvision", close)

    def published(self, name: str) -> Head:
        """The head of the default weights, with their categories."""
        categories = tuple(models.get_model_weights(name).DEFAULT.meta["categories"])
        return Head(len(categories), categories)

    def classifiers(self, name: str) -> tuple[str, ...]:
        """Found in a network without weights."""
        with init_empty_weights():
            return tuple(classifier_names(_construct(Request(name, num_classes=2), None)))

    def read(self, checkpoint: Checkpoint) -> Checkpoint:
        """Files that torchvision publishes hold auxiliary heads, and older names of some layers."""
        return _Tidied(checkpoint.given, checkpoint.file, checkpoint.config)

    def create(self, request: Request) -> nn.Module:
        """The network; published position embeddings are interpolated to another image size."""
        weights = models.get_model_weights(request.name).DEFAULT
        transforms = weights.transforms()
        crop, resize = transforms.crop_size[0], transforms.resize_size[0]
        arguments = _arguments(request)
        net = _construct(request, (crop, crop))
        if request.pretrained:
            _load(net, request.name, weights)
        preprocessing = {
            "num_classes": request.num_classes,
            "input_size": (3, crop, crop),
            "crop_pct": crop / resize,
            "mean": tuple(transforms.mean),
            "std": tuple(transforms.std),
            "interpolation": transforms.interpolation.value,
        }
        return remember(net, Origin(f"{self.prefix}{request.name}", arguments), preprocessing, request)


class _Tidied(Checkpoint):
    """A checkpoint whose keys are put in order when they are read."""

    __slots__ = ()

    def tensors(self) -> dict[str, Tensor]:
        return _tidy(Checkpoint.tensors(self))


def _tidy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        OLD_DENSENET_KEY.sub(r"\1\2", key): tensor for key, tensor in tensors.items() if not key.startswith(AUXILIARY)
    }


def _arguments(request: Request) -> dict[str, Any]:
    """What the constructor gets beside size and classes."""
    arguments = request.saved_args
    if arguments.get("aux_logits"):
        raise InputError(
            f"torchvision/{request.name} with aux_logits=True",
            "one tensor of logits in train mode too",
            "drop that argument: auxiliary heads are not trained here",
        )
    if request.pretrained and "transform_input" in _parameters(request.name):
        # these weights were trained on another normalisation, to which the network converts
        arguments.setdefault("transform_input", True)
    return arguments


def _parameters(name: str) -> set[str]:
    """Parameters of the class that a builder constructs: the first one beside it that counts classes."""
    module = sys.modules[models.get_model_builder(name).__module__]
    for member in vars(module).values():
        if inspect.isclass(member) and issubclass(member, nn.Module) and member.__module__ == module.__name__:
            parameters = set(inspect.signature(member).parameters)
            if "num_classes" in parameters:
                return parameters
    return set()


def _construct(request: Request, own_size: Size | None) -> nn.Module:
    parameters = _parameters(request.name)
    arguments = _arguments(request) | {"num_classes": request.num_classes}
    if "aux_logits" in parameters:
        arguments |= {"aux_logits": False, "init_weights": not request.pretrained}
    _check_known(request, parameters)
    size = request.size or own_size
    if size is not None:
        arguments |= _size_argument(request.name, size, parameters)
    try:
        net = models.get_model(request.name, **arguments)
    except Exception as error:  # constructors fail in many ways, all to be told to the user
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise InputError(
            f"torchvision/{request.name} with {given}: {type(error).__name__}: {error}",
            "a size and arguments that its constructor takes",
            f"it takes {', '.join(sorted(parameters - {'num_classes'}))}"
            + (f", and its own size is {own_size[0]} x {own_size[1]} px" if own_size else ""),
        ) from error
    return _with_classifier(net)


def _check_known(request: Request, parameters: set[str]) -> None:
    """Some constructors swallow every keyword, so a misspelt one would do nothing."""
    module = sys.modules[models.get_model_builder(request.name).__module__]
    known = set(parameters)
    for member in vars(module).values():
        if inspect.isfunction(member) and member.__module__ == module.__name__:
            known |= set(inspect.signature(member).parameters)
    unknown = [key for key in request.args if key not in known]
    if unknown:
        raise InputError(
            f"torchvision/{request.name} with {unknown[0]}={request.args[unknown[0]]!r}",
            "arguments that its constructor takes",
            nearest(unknown[0], parameters - {"num_classes"}),
        )


def _size_argument(name: str, size: Size, parameters: set[str]) -> dict[str, Any]:
    if "input_size" in parameters:
        return {"input_size": size}
    if "image_size" not in parameters:
        return {}
    if size[0] != size[1]:
        raise InputError(f"torchvision/{name} at {size[0]} x {size[1]} px", "a square", "give one --image-size")
    return {"image_size": size[0]}


def _with_classifier(net: nn.Module) -> nn.Module:
    """Where the classifier is a convolution (SqueezeNet), say so as networks of timm do."""
    last = [name for name, module in net.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
    if isinstance(net.get_submodule(last), nn.Conv2d):
        net.get_classifier = partial(nn.Module.get_submodule, net, last)  # type: ignore[assignment]
    return net


def _load(net: nn.Module, name: str, weights: models.WeightsEnum) -> None:
    """Load published weights; a classifier for another number of classes stays as it was drawn."""
    try:
        tensors = _tidy(weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True))
    except Exception as error:  # no network, a damaged file, no room on the disk
        raise InputError(
            f"torchvision/{name}@pretrained: {type(error).__name__}: {error}",
            f"{weights.url} or a copy of it in torch's cache",
            f"check the network, or give a local file: torchvision/{name}@PATH",
        ) from error
    own = net.state_dict()
    if hasattr(net, "image_size") and hasattr(net, "patch_size"):
        tensors = dict(interpolate_embeddings(net.image_size, net.patch_size, tensors))
    heads = classifier_names(net)
    tensors |= {
        key: own[key]
        for key in own.keys() & tensors.keys()
        if key.rpartition(".")[0] in heads and own[key].shape != tensors[key].shape
    }
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"torchvision/{name}@pretrained: {error}",
            "the network that these weights were made for",
            "drop the arguments that change its layers",
        ) from error
