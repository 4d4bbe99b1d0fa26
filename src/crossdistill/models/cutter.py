"""What every way of cutting a network offers, and where a network's classifier is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from crossdistill.contracts import Outputs
from crossdistill.models.points import Point


class Cutter(Protocol):
    """Runs a network in pieces. It holds no tensor and no module, so copies of the network can share it."""

    points: tuple[Point, ...]

    def whole(self, net: nn.Module, images: Tensor) -> Outputs:
        """One forward pass ``(B, C, H, W)`` with logits, embedding and the tensor of every stage."""
        ...

    def until(self, net: nn.Module, images: Tensor, stage: int) -> Tensor:
        """The forward pass as far as the end of stage 1, 2, …"""
        ...

    def resume(self, net: nn.Module, feature: Tensor, stage: int) -> Outputs:
        """The rest of the forward pass, from the tensor that ends the stage."""
        ...


class CannotCut(Exception):
    """This way of cutting does not fit this network; another one may."""


def classifier_names(net: nn.Module) -> list[str]:
    """Names of the modules that turn the embedding into logits, the main one first."""
    get = getattr(net, "get_classifier", None)
    if callable(get):
        found = get()
        heads = _heads(found)
        names = [_last_layer(head, name) for head in heads for name, module in net.named_modules() if module is head]
    else:
        names = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)][-1:]
    return [name for name in names if name]


def opened_at(net: nn.Module, level: int) -> frozenset[str]:
    """Names of the modules to look into: sequences and the way to the classifier, then ``level`` layers of the rest."""
    always = {name for name, module in net.named_modules() if isinstance(module, nn.Sequential)}
    for head in classifier_names(net):
        always |= set(parents(head))
    deep = {name for name, module in net.named_modules() if name.count(".") < level and _has_inside(module)}
    return frozenset(always | deep)


def parents(name: str) -> Iterator[str]:
    """Names of the modules around a module, the outermost first; the network itself is not among them.

    >>> list(parents("layers.0.norm"))
    ['layers', 'layers.0']
    """
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


def _last_layer(head: nn.Module, name: str) -> str:
    """The layer that gives the logits, where the classifier is a module with a norm, a pooling or a dropout before."""
    layers = [inner for inner, module in head.named_modules() if inner and isinstance(module, (nn.Linear, nn.Conv2d))]
    return f"{name}.{layers[-1]}" if layers else name


def _heads(found: Any) -> list[nn.Module]:
    """Several classifiers come as a tuple, the main one first, or as a list of modules, one a depth, the last last."""
    if isinstance(found, nn.ModuleList):
        return list(found)[::-1]
    return list(found) if isinstance(found, (tuple, list)) else [found]


def _has_inside(module: nn.Module) -> bool:
    """Whether a module is made of modules, or computes without weights as no layer of torch does (embeddings of
    positions)."""
    if next(module.children(), None) is not None:
        return True
    of_torch = type(module).__module__.startswith("torch.nn.")
    return not of_torch and next(module.parameters(), None) is None
