"""Exact accuracy over a loader, with any number of processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from crossdistill.contracts import UNLABELLED, Batch, Teacher
from crossdistill.errors import InputError
from crossdistill.losses import cross_entropy

TOP = 5


@torch.no_grad()
def evaluate(
    model: nn.Module | Teacher,
    loader: Iterable[Batch],
    *,
    accelerator: Accelerator,
    view: str = "student",
    max_batches: int | None = None,
    channels_last: bool = False,
) -> dict[str, Any]:
    """Accuracy and cross-entropy of a model or a teacher, counted sample by sample and added over processes.

    Args:
        model: a module ``images -> Outputs``, or a teacher; it is moved to the accelerator's device, put in eval mode,
            and afterwards each of its modules gets its mode back.
        loader: this process's share of the samples; unlabelled samples (target -1) are skipped.
        accelerator: of :func:`~crossdistill.engine.devices.connect`; gives device, precision and the other processes.
        view: which images the model sees (a teacher knows its own).
        max_batches: stop after so many, for a trial run.
        channels_last: how the images lie in memory.

    Returns:
        ``top1`` (and ``top5`` with more than five classes) as shares between 0 and 1, mean ``loss`` in nats,
        ``num_samples``, and by class ``class_correct`` and ``class_total``.

    Raises:
        InputError: no labelled sample.
    """
    if isinstance(model, nn.Module):
        model.to(accelerator.device)
    counts: _Counts | None = None
    with eval_mode(model):
        for batch in islice(loader, max_batches):
            moved = batch.to(accelerator.device, channels_last=channels_last)
            with accelerator.autocast():
                logits = _logits(model, moved, view)
            counts = counts or _Counts(logits.shape[1], accelerator.device)
            counts.add(logits, moved.target)
    num_classes = counts.num_classes if counts else 0
    # A process without a share of its own still has to take part in the sum.
    num_classes = int(accelerator.gather(torch.tensor([num_classes], device=accelerator.device)).max())
    counts = counts or _Counts(num_classes, accelerator.device)
    return counts.metrics(accelerator)


class _Counts:
    """Sums on the device, so that no batch waits for the host: loss, correct in first five, and both by class."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self.sums = torch.zeros(3 + 2 * num_classes, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, target: Tensor) -> None:
        """Count one batch: logits ``(B, K)``, target ``(B,)``."""
        labelled = target != UNLABELLED
        classes = target.clamp(min=0)
        ranked = logits.topk(min(TOP, self.num_classes), dim=1).indices == classes[:, None]
        first = logits.argmax(dim=1) == classes
        loss = cross_entropy(logits, target, reduction="none")
        head = [loss.double().sum(), (ranked.any(dim=1) & labelled).sum().double(), labelled.sum().double()]
        by_class = torch.zeros(2, self.num_classes, dtype=torch.float64, device=target.device)
        by_class.index_add_(1, classes, torch.stack([first & labelled, labelled]).double())
        self.sums += torch.cat([torch.stack(head), by_class.flatten()])

    def metrics(self, accelerator: Accelerator) -> dict[str, Any]:
        """The sums of all processes as the figures of :func:`evaluate`."""
        sums = accelerator.reduce(self.sums, "sum").tolist()
        loss, correct_in_five, num_samples = sums[:3]
        correct, total = sums[3 : 3 + self.num_classes], sums[3 + self.num_classes :]
        if num_samples == 0:
            raise InputError("no labelled image to evaluate on", "at least one", "check the split and its labels")
        top5 = {"top5": correct_in_five / num_samples} if self.num_classes > TOP else {}
        return {
            "top1": sum(correct) / num_samples,
            **top5,
            "loss": loss / num_samples,
            "num_samples": int(num_samples),
            "class_correct": [int(count) for count in correct],
            "class_total": [int(count) for count in total],
        }


def _logits(model: nn.Module | Teacher, batch: Batch, view: str) -> Tensor:
    if isinstance(model, Teacher):
        return model.signals(batch).require("logits").float()
    logits: Tensor = model(batch.images[view]).require("logits").float()
    return logits


@contextmanager
def eval_mode(model: nn.Module | Teacher) -> Iterator[None]:
    """Put a module in eval mode, and afterwards give each of its modules its mode back."""
    training = [module for module in model.modules() if module.training] if isinstance(model, nn.Module) else []
    if isinstance(model, nn.Module):
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
