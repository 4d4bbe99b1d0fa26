"""Networks of timm by name, and how such a name can be wrong: unknown, renamed, with a wrong tag, no classifier."""

from __future__ import annotations

import timm
import torch
from timm.models import (
    get_arch_pretrained_cfgs,
    get_deprecated_models,
    get_pretrained_cfg,
    is_model,
    is_model_pretrained,
    split_model_name_tag,
)
from torch import nn

from crossdistill.errors import InputError, nearest
from crossdistill.models import additions
from crossdistill.models.checkpoint import Checkpoint
from crossdistill.models.create import create
from crossdistill.models.sources.source import Head, Request

__all__ = ["Timm", "additions"]


class Timm:
    """timm's registry, with the networks of ours that are registered there."""

    prefix = ""
    always_trained = False

    def names(self) -> list[str]:
        """Names of all architectures, without tags."""
        return [str(name) for name in timm.list_models()]

    def holds(self, name: str) -> bool:
        """Whether a name without prefix can only be one of timm's, also where it is out of date."""
        return bool(is_model(name))

    def check(self, name: str) -> None:
        """Raises: InputError: a name that timm does not know, or knows as something else."""
        architecture, tag = split_model_name_tag(name)
        if not is_model(architecture):
            raise InputError(
                f"model {name!r}",
                "a model of timm, <name>@PATH, or a path",
                f"{nearest(architecture, self.names())} `crossdistill models PATTERN` lists them",
            )
        renamed = get_deprecated_models()
        if architecture in renamed:
            raise _renamed(name, renamed[architecture])
        if tag and name not in get_arch_pretrained_cfgs(architecture):
            raise _wrong_tag(name, architecture)
        if not _has_classifier(architecture):
            raise InputError(
                f"model {name!r}, an encoder without a classifier",
                "a network that gives one row of logits for an image",
                "choose another model",
            )

    def published(self, name: str) -> Head | None:
        """The head of timm's weights, None where they bring none."""
        if not is_model_pretrained(name):
            raise InputError(f"{name}@pretrained", "a model for which timm has weights", "leave out @pretrained")
        config = get_pretrained_cfg(name)
        return Head(config.num_classes) if config is not None and config.num_classes else None

    def classifiers(self, name: str) -> tuple[str, ...]:
        """As timm's configuration says."""
        config = get_pretrained_cfg(name)
        names = (config.classifier if config is not None else None) or ()
        return (names,) if isinstance(names, str) else tuple(names)

    def read(self, checkpoint: Checkpoint) -> Checkpoint:
        """As it is."""
        return checkpoint

    def create(self, request: Request) -> nn.Module:
        """The network as timm builds it; a folder says itself with which arguments."""
        options = {"num_classes": request.num_classes, **request.args}
        return create(request.name, request.checkpoint, options, request.size, pretrained=request.pretrained)


def _renamed(name: str, current: str | None) -> InputError:
    if current is None:
        return InputError(f"model {name!r}, which timm has removed", "a model that timm still has", "choose another")
    architecture = split_model_name_tag(current)[0]
    if current not in get_arch_pretrained_cfgs(architecture):  # one of the tags in that list is out of date itself
        current = architecture
    weights = f" ({current}@pretrained has the weights that went by the old name)" if "." in current else ""
    return InputError(f"model {name!r}, an old name", f"its name today, {current!r}", f"write timm/{current}{weights}")


def _wrong_tag(name: str, architecture: str) -> InputError:
    known = [full.partition(".")[2] for full in get_arch_pretrained_cfgs(architecture) if "." in full]
    return InputError(
        f"model {name!r}",
        f"one of the tags of {architecture}: {', '.join(known)}" if known else f"{architecture}, which has no tags",
        nearest(name.partition(".")[2], known) if known else f"write {architecture}",
    )


def _has_classifier(architecture: str) -> bool:
    """Encoders of language models have none, whatever number of classes is asked for."""
    config = get_pretrained_cfg(architecture)
    if config is not None and config.num_classes:
        return True
    with torch.device("meta"):
        net = timm.create_model(architecture, num_classes=2)
    return hasattr(net, "get_classifier")
