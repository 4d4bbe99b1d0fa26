"""A linear probe: how well a linear classifier reads classes off a frozen representation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.data.philox import Purpose, random_order
from crossdistill.engine.evaluate import eval_mode
from crossdistill.errors import InputError
from crossdistill.models import StagedModel
from crossdistill.models.cutter import classifier_names
from crossdistill.selfsup.features import Features
from crossdistill.selfsup.knn import accuracy

DEFAULT_RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
HELD_OUT = 0.1
_EPOCHS, _BATCH_SIZE, _MOMENTUM = 50, 256, 0.9


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """``embedding @ weight.T + bias``: weight ``(K, D)``, bias ``(K,)``, for embeddings as the network gives them.

    ``rate`` was chosen among several on held-out training images, of which ``held_out_top1`` is the accuracy.
    """

    weight: Tensor
    bias: Tensor
    rate: float
    held_out_top1: float | None
    warnings: tuple[str, ...] = field(default=())


def linear_probe(
    train: Features,
    *,
    num_classes: int,
    rates: Sequence[float] = DEFAULT_RATES,
    epochs: int = _EPOCHS,
    batch_size: int = _BATCH_SIZE,
    seed: int = 0,
) -> LinearProbe:
    """Train probes with all learning rates at once, choose one on held-out training images, and train it on all.

    SGD with momentum 0.9, a cosine to zero by the step and no weight decay, on embeddings that are standardised by
    their mean and deviation over the training images; the result applies to embeddings as they are. Test images have
    no say.

    Args:
        train: embeddings and labels to learn from.
        num_classes: K.
        rates: learning rates.
        epochs: passes over the images.
        batch_size: images a step.
        seed: of the order and of what is held out.

    Raises:
        InputError: no labelled image, or no rate.
    """
    train = train.labelled()
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise InputError(f"rates {list(rates)}", "learning rates above 0, at least one", "give some, such as 0.1,1")
    mean, deviation = train.embeddings.mean(dim=0), train.embeddings.std(dim=0, correction=0).clamp(min=1e-6)
    standard = (train.embeddings - mean) / deviation
    how = {"num_classes": num_classes, "epochs": epochs, "batch_size": batch_size, "seed": seed}
    held_out = _held_out(train.targets, seed)
    rate, share, warnings = rates[len(rates) // 2], None, []
    if held_out is None:
        warnings.append(f"no class has two images: nothing could be held out, and the rate is {rate:g} unchosen")
    elif len(rates) > 1:
        weights, biases = fit_probes(standard[~held_out], train.targets[~held_out], rates=rates, **how)
        tried = [
            accuracy(standard[held_out] @ weight.T + bias, train.targets[held_out])["top1"]
            for weight, bias in zip(weights, biases, strict=True)
        ]
        best = int(np.argmax(tried))
        rate, share = rates[best], tried[best]
        if best in (0, len(rates) - 1) and tried[best] > max(tried[1:-1], default=-1.0):
            warnings.append(f"the chosen rate {rate:g} is at an end of the sweep: others may be better")
    weights, biases = fit_probes(standard, train.targets, rates=[rate], **how)
    weight = weights[0] / deviation
    return LinearProbe(weight, biases[0] - weight @ mean, rate, share, tuple(warnings))


def fit_probes(
    embeddings: Tensor,
    targets: Tensor,
    *,
    rates: Sequence[float],
    num_classes: int,
    epochs: int,
    batch_size: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Weights ``(R, K, D)`` and biases ``(R, K)`` of one probe a rate, trained from zero on the same batches.

    Each learns as it would alone: the loss is the sum over rates, and none has a part in another's gradient.
    """
    num_images, width = embeddings.shape
    weights = torch.zeros(len(rates), num_classes, width)
    biases = torch.zeros(len(rates), num_classes)
    velocity = [torch.zeros_like(weights), torch.zeros_like(biases)]
    steps_per_epoch = -(-num_images // batch_size)
    scale = torch.tensor(rates)
    for step in range(epochs * steps_per_epoch):
        epoch, place = divmod(step, steps_per_epoch)
        if place == 0:
            order = torch.from_numpy(random_order(num_images, seed=seed, epoch=epoch, purpose=Purpose.PERMUTATION))
        rows = order[place * batch_size : (place + 1) * batch_size]
        gradients = _gradients(weights, biases, embeddings[rows], targets[rows])
        now = scale * (1 + math.cos(math.pi * step / (epochs * steps_per_epoch))) / 2
        for parameter, moving, gradient in zip((weights, biases), velocity, gradients, strict=True):
            moving.mul_(_MOMENTUM).add_(gradient)
            parameter.sub_(now.reshape(-1, *[1] * (parameter.ndim - 1)) * moving)
    return weights, biases


def _gradients(weights: Tensor, biases: Tensor, embeddings: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Of the mean cross-entropy of each probe, in closed form: softmax minus one-hot, times the embedding."""
    logits = torch.einsum("bd,rkd->rbk", embeddings, weights) + biases[:, None]
    errors = (logits.softmax(dim=2) - F.one_hot(targets, biases.shape[1])) / len(targets)
    return torch.einsum("rbk,bd->rkd", errors, embeddings), errors.sum(dim=1)


def _held_out(targets: Tensor, seed: int) -> Tensor | None:
    """A mask of a tenth of each class, at least one image of those with two; ``None`` where no class has two."""
    chosen = torch.zeros(len(targets), dtype=torch.bool)
    order = torch.from_numpy(random_order(len(targets), seed=seed, purpose=Purpose.VALIDATION))
    shuffled = targets[order]
    for one in set(targets.tolist()):
        members = order[shuffled == one]
        count = min(len(members) - 1, max(1, round(HELD_OUT * len(members))))
        chosen[members[:count]] = True
    return chosen if chosen.any() else None


def probe_accuracy(probe: LinearProbe, queries: Features) -> dict[str, Any]:
    """``top1`` (and ``top5`` with more than five classes) of the probe, and ``num_samples``."""
    queries = queries.labelled()
    return accuracy(queries.embeddings @ probe.weight.T + probe.bias, queries.targets)


@torch.no_grad()
def install_probe(model: StagedModel, probe: LinearProbe) -> bool:
    """Make the probe the classifier of its network, if that is one linear layer on the embedding.

    Returns:
        Whether it was: the network's logits are then those of the probe; else it is as it was.
    """
    names = classifier_names(model.net)
    head = model.net.get_submodule(names[-1]) if len(names) == 1 else None
    if not isinstance(head, nn.Linear) or head.weight.shape != probe.weight.shape or head.bias is None:
        return False
    before = head.weight.clone(), head.bias.clone()
    head.weight.copy_(probe.weight)
    head.bias.copy_(probe.bias)
    if _answers_as(model, probe):
        return True
    head.weight.copy_(before[0])
    head.bias.copy_(before[1])
    return False


def _answers_as(model: StagedModel, probe: LinearProbe) -> bool:
    """Whether logits of some random images are what the probe says of their embeddings."""
    spec = model.spec
    images = torch.randn(2, spec.input.num_channels, *spec.input.image_size, generator=torch.Generator().manual_seed(0))
    device = next(model.parameters()).device
    with eval_mode(model):
        outputs = model(images.to(device))
    expected = outputs.require("embedding") @ probe.weight.to(device).T + probe.bias.to(device)
    return torch.allclose(outputs.require("logits"), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
