"""What every source of networks offers, so that ``build`` needs to know none of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from crossdistill.models.checkpoint import Checkpoint
from crossdistill.models.views import Size

PRETRAINED = "pretrained"
"""After ``@`` or ``--init``: the weights that the source itself publishes."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a source is asked to construct.

    ``checkpoint`` is what the weights will be read from afterwards: a folder may say how its network was built.
    ``pretrained`` asks for published weights, with a new classifier where theirs has other classes.
    """

    name: str
    num_classes: int
    size: Size | None = None
    args: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    checkpoint: Checkpoint | None = None
    allow_code: bool = False

    @property
    def saved_args(self) -> dict[str, Any]:
        """The constructor's arguments: those recorded with the weights, and over them those given now."""
        recorded = self.checkpoint.model_args if self.checkpoint is not None else {}
        return {key: value for key, value in recorded.items() if key not in ("num_classes", "img_size")} | self.args


@dataclass(frozen=True, slots=True)
class Head:
    """The classifier that published weights bring."""

    num_classes: int
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """How a network that is not timm's was built; an export records it, so that the folder can be given as a name."""

    architecture: str
    model_args: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Builds networks by name. Names are given without the source's prefix and without what follows ``@``."""

    prefix: str
    """What names of this source begin with, as specifications and exports write it."""

    always_trained: bool
    """Whether a bare name means trained weights."""

    def check(self, name: str) -> None:
        """Whether there is such a classifier.

        Raises:
            InputError: there is none (with the nearest names), or it classifies no images.
        """
        ...

    def published(self, name: str) -> Head | None:
        """The classifier of the weights that are published under this name; None where they have none.

        Raises:
            InputError: there are no weights.
        """
        ...

    def classifiers(self, name: str) -> tuple[str, ...]:
        """Names of the classifier's modules, as far as they are known before the network is built."""
        ...

    def read(self, checkpoint: Checkpoint) -> Checkpoint:
        """The same weights under the names that the network has for them."""
        ...

    def create(self, request: Request) -> nn.Module:
        """The network, with published weights if they are asked for and random ones otherwise.

        Raises:
            InputError: arguments or a size that the constructor refuses, or weights that cannot be had.
        """
        ...


def remember(net: nn.Module, origin: Origin, preprocessing: dict[str, Any], request: Request) -> nn.Module:
    """Note on a network how it was built and how it wants its images; a saved folder's own words on that win."""
    saved = request.checkpoint.config.get("pretrained_cfg") if request.checkpoint is not None else None
    net.origin = origin  # type: ignore[assignment]
    net.pretrained_cfg = {**preprocessing, **(saved or {})}  # type: ignore[assignment]
    return net


def origin_of(net: nn.Module) -> Origin | None:
    """How a network was built, where a source of ours other than timm did it."""
    origin = getattr(net, "origin", None)
    return origin if isinstance(origin, Origin) else None
