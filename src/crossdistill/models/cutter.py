"""What every way of cutting a network offers, and where a network's classifier is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Protocol

from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from crossdistill.contracts import Outputs
from crossdistill.models.dry_run import dry_run
from crossdistill.models.points import Point

OTHER_SIDES = (64, 32, 16, 128)
"""Image sizes at which a network runs that is not made for the size it states, or states none."""


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
        names = _layers_of_logits(net)
    return [name for name in names if name]


def _layers_of_logits(net: nn.Module) -> list[str]:
    """The last layer that runs and gives as many outputs as there are logits; where no run tells, the last layer."""
    names: dict[nn.Module, str] = {}
    names |= {module: name for name, module in net.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    size = resolve_model_data_config(net)["input_size"]  # type: ignore[no-untyped-call]
    for side in (size[1:], *((side, side) for side in OTHER_SIDES)):
        try:
            return dry_run(net, lambda network, images: _ran_last(network, images, names), (size[0], *side))
        except Exception:  # another size, or a network that cannot run, which is told elsewhere
            continue
    return list(names.values())[-1:]


def _ran_last(net: nn.Module, images: Tensor, names: dict[nn.Module, str]) -> list[str]:
    ran: list[tuple[str, Any]] = []
    with ExitStack() as hooks:
        for module in names:
            hook = module.register_forward_hook(lambda module, inputs, output: ran.append((names[module], output)))
            hooks.enter_context(hook)
        logits = net(images)
    direct = [name for name, output in ran if output is logits]
    as_wide = [name for name, output in ran if output.shape[1] == logits.shape[1] and output.ndim in (2, 4)]
    return (direct or as_wide)[-1:]


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
