"""Batch statistics of whole images: a student that was trained on crops of two sizes has those of crops."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
from accelerate import Accelerator
from torch import nn

from crossdistill.contracts import STUDENT_VIEW, Batch
from crossdistill.engine.evaluate import eval_mode

MOST_BATCHES = 200


def batch_norms(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The layers that keep statistics of batches."""
    layers = (one for one in network.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm))
    return [layer for layer in layers if layer.track_running_stats]


@torch.no_grad()
def recalibrate(network: nn.Module, loader: Iterable[Batch], accelerator: Accelerator) -> bool:
    """Replace the running statistics by the mean over up to 200 batches of whole images, in place.

    Weights stay as they are; several processes bring their shares together.

    Returns:
        Whether there was anything to replace.
    """
    layers = batch_norms(network)
    if not layers:
        return False
    before = [layer.momentum for layer in layers]
    network.to(accelerator.device)
    with eval_mode(network):
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum, layer.training = None, True  # None: a plain mean over all batches
        for batch in islice(loader, MOST_BATCHES):
            if len(batch) > 1:  # one image has no spread
                network(batch.to(accelerator.device).images[STUDENT_VIEW])
        for layer, momentum in zip(layers, before, strict=True):
            layer.momentum, layer.training = momentum, False
            for statistic in (layer.running_mean, layer.running_var):
                if statistic is not None:
                    statistic.copy_(accelerator.reduce(statistic.clone(), "mean"))
    return True
