"""Batch statistics of whole images: a student that was trained on crops of two sizes has those of crops."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from crossdistill.contracts import STUDENT_VIEW, Batch, InputSpec
from crossdistill.data import EvalLoader, Source
from crossdistill.data.philox import Purpose, random_order
from crossdistill.engine import process
from crossdistill.engine.evaluate import eval_mode

MOST_BATCHES = 200
_FIXED_SEED = 0


def batch_norms(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The layers that keep statistics of batches."""
    layers = (one for one in network.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm))
    return [layer for layer in layers if layer.track_running_stats]


def mixed_batches(source: Source, ids: NDArray[np.int64], view: InputSpec, *, batch_size: int) -> Iterator[Batch]:
    """Whole images in batches of one size and in random order: batches of one class lack the spread between classes.

    With several processes each has its own batches, equally many.

    Args:
        source: where the images are.
        ids: those that may be taken.
        view: how the network wants them.
        batch_size: images of a batch; all of them, where they are fewer.
    """
    rank, world_size = process()
    own = ids[random_order(len(ids), seed=_FIXED_SEED, purpose=Purpose.LIMIT)][rank::world_size]
    own = own[: len(ids) // world_size]
    size = min(batch_size, len(own))
    for start in range(0, len(own) - size + 1, size) if size else ():
        chosen = own[start : start + size]
        yield from EvalLoader(source, {STUDENT_VIEW: view}, ids=chosen, batch_size=size, workers=0, max_corrupt_share=1)


@torch.no_grad()
def recalibrate(network: nn.Module, batches: Iterable[Batch], accelerator: Accelerator) -> bool:
    """Replace the running statistics by the mean over up to 200 batches of whole images, in place.

    Weights stay as they are; several processes bring their shares together.

    Args:
        network: ``images -> Outputs``.
        batches: in random order (:func:`mixed_batches`); those of one image, which has no spread, are passed over.
        accelerator: the device, and the other processes.

    Returns:
        Whether anything was replaced: there are such layers, and batches for them in every process.
    """
    layers = batch_norms(network)
    if not layers:
        return False
    before = [(layer.momentum, copy.deepcopy(layer.state_dict())) for layer in layers]
    network.to(accelerator.device)
    seen = 0
    with eval_mode(network):
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum, layer.training = None, True  # None: a plain mean over all batches
        for batch in islice(batches, MOST_BATCHES):
            if len(batch) > 1:
                network(batch.to(accelerator.device).images[STUDENT_VIEW])
                seen += 1
        fewest = int(accelerator.gather(torch.tensor([seen], device=accelerator.device)).min())
        for layer, (momentum, state) in zip(layers, before, strict=True):
            layer.momentum, layer.training = momentum, False
            if fewest == 0:
                layer.load_state_dict(state)
                continue
            for statistic in (layer.running_mean, layer.running_var):
                if statistic is not None:
                    statistic.copy_(accelerator.reduce(statistic.clone(), "mean"))
    return fewest > 0
