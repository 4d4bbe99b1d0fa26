"""Samples as training shows them: a few images, as evaluated and in the views of several epochs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.contracts import Batch, InputSpec
from crossdistill.data import CorruptImage, EvalLoader, Source, TrainLoader
from crossdistill.data.sampler import Order, class_balanced, permutation, shuffled
from crossdistill.report.samples import Cell, Row
from crossdistill.runs.compose import STUDENT_VIEW
from crossdistill.settings import AugmentSettings

NUM_EPOCHS = 6
_LEAST_SHARE = 0.005
_WHOLE = 0.995

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Training:
    """What decides the pixels of a training run: images, labels, the student's input, random changes.

    ``targets`` ``(N,)`` are those of the whole source, -1 for unlabelled; ``ids`` the images that are trained on.
    ``crop_pct`` is of the evaluation, as :class:`EvalLoader` takes it.
    """

    source: Source
    ids: Ids
    targets: NDArray[np.int64]
    spec: InputSpec
    augment: AugmentSettings
    seed: int
    balanced: bool = False
    crop_pct: float | None = None

    def order(self, epoch: int) -> Order:
        """What that epoch shows in turn ``(N, 2)``: places among ``ids``, and how often each came before."""
        if self.balanced:
            return class_balanced(self.targets[self.ids], seed=self.seed, epoch=epoch)
        return shuffled(len(self.ids), seed=self.seed, epoch=epoch)

    def loader(self, ids: Ids) -> TrainLoader:
        """The loader of a run for these images alone, in one batch."""
        return TrainLoader(
            self.source,
            ids,
            self.targets,
            {STUDENT_VIEW: self.spec},
            self.augment,
            seed=self.seed,
            batch_size=len(ids),
            workers=0,
            max_corrupt_share=1.0,
        )


def choose_samples(training: Training, num_samples: int) -> list[int]:
    """Readable labelled images, spread evenly over the classes and sorted by class; fewer if there are no more."""
    shuffled = np.random.default_rng(training.seed).permutation(training.ids)
    targets = training.targets[shuffled]
    classes = np.unique(targets[targets >= 0])
    places = np.linspace(0, len(classes) - 1, num=min(num_samples, len(classes))).round().astype(int)
    waiting = [shuffled[targets == classes[place]].tolist() for place in places]
    chosen: list[list[int]] = [[] for _ in waiting]
    while any(waiting) and sum(map(len, chosen)) < num_samples:
        for members, taken in zip(waiting, chosen, strict=True):
            if sum(map(len, chosen)) < num_samples:
                taken += _first_readable(training.source, members)
    return [index for taken in chosen for index in taken]


def _first_readable(source: Source, members: list[int]) -> list[int]:
    """Take images off the list until one can be read."""
    while members:
        index = members.pop(0)
        try:
            source.read(index)
        except CorruptImage:
            continue
        return [index]
    return []


def sample_rows(training: Training, samples: list[int], *, num_epochs: int = NUM_EPOCHS) -> tuple[list[str], list[Row]]:
    """Names of the columns, and a row for each sample: as evaluated, then what it becomes in each epoch."""
    evaluated = EvalLoader(
        training.source,
        {STUDENT_VIEW: training.spec},
        batch_size=len(samples),
        workers=0,
        ids=np.array(samples),
        max_corrupt_share=1.0,
        crop_pct=training.crop_pct,
    )
    columns = [_cells(training, batch, captions=False) for batch in evaluated]
    columns += [_epoch_of(training, samples, epoch) for epoch in range(num_epochs)]
    rows = []
    for index in samples:
        name = training.source.class_names[training.targets[index]]
        rows.append(Row(name, f"image {index}", tuple(column.get(index) for column in columns)))
    return ["as evaluated", *(f"epoch {epoch + 1}" for epoch in range(num_epochs))], rows


def _epoch_of(training: Training, samples: list[int], epoch: int) -> Mapping[int, Cell]:
    """Cells of the samples as that epoch of training shows them, each beside the image that it is mixed with there.

    Class-balanced epochs leave out some images of large classes, which then have no cell.
    """
    order = training.order(epoch)
    order[:, 0] = training.ids[order[:, 0]]
    shown = np.flatnonzero(np.isin(order[:, 0], samples) & (order[:, 1] == 0))
    if not len(shown):
        return {}
    pairs = np.unique(shown // 2)
    wanted = np.concatenate([order[2 * pair : 2 * pair + 2, 0] for pair in pairs])
    # A loader shuffles what it is given; these ids come out of it in the order that is wanted.
    ids = np.empty_like(wanted)
    ids[permutation(len(wanted), seed=training.seed, epoch=epoch)] = wanted
    ((batch,),) = training.loader(ids).epoch(epoch)
    return _cells(training, batch)


def _cells(training: Training, batch: Batch, *, captions: bool = True) -> Mapping[int, Cell]:
    """A cell for every image of a batch, by sample id."""
    images = _shown(batch.images[STUDENT_VIEW], training.spec)
    names = training.source.class_names
    return {
        int(index): Cell(image, _mixture(target, names) if captions and target.ndim else ())
        for index, image, target in zip(batch.sample_id, images, batch.target, strict=True)
    }


def _shown(images: Tensor, spec: InputSpec) -> NDArray[np.uint8]:
    """Prepared images ``(B, C, H, W)`` with their normalisation taken back: uint8 ``(B, H, W, 3)``."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    pixels = ((images * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    shown: NDArray[np.uint8] = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    return shown


def _mixture(target: Tensor, class_names: tuple[str, ...]) -> tuple[str, ...]:
    """The classes of a mixed image in words, the larger share first; nothing where it is not mixed.

    Args:
        target: class probabilities ``(K,)``; zeros for an image without a label.
    """
    if not float(target.sum()):
        return ("no label",)
    shares, classes = target.sort(descending=True)
    if float(shares[0]) > _WHOLE:
        return ()
    return tuple(
        f"{100 * share:.0f} % · {class_names[index]}"
        for share, index in zip(shares.tolist(), classes.tolist(), strict=True)
        if share > _LEAST_SHARE
    )
