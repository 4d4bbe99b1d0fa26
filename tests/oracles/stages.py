"""The slow, obvious way to look inside a network: hooks on modules that a person picked from its source."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def module_outputs(net: nn.Module, images: Tensor, names: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
    """Logits, and a copy of each named module's output as it was when the module returned it."""
    kept: dict[str, Tensor] = {}

    def keeper(name: str):
        def keep(module, inputs, output):
            kept[name] = output.clone()

        return keep

    handles = [net.get_submodule(name).register_forward_hook(keeper(name)) for name in names]
    try:
        with torch.no_grad():
            logits = net(images)
    finally:
        for handle in handles:
            handle.remove()
    return logits, [kept[name] for name in names]


def classifier_input(net: nn.Module, images: Tensor) -> Tensor:
    """What the classifier is given."""
    seen: list[Tensor] = []
    handle = net.get_classifier().register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    with torch.no_grad():
        net(images)
    handle.remove()
    return seen[0]
