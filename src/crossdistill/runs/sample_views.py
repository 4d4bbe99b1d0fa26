"""Samples as training shows them: a few images, as evaluated and in the views of several epochs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.contracts import STUDENT_VIEW, Batch, InputSpec
from crossdistill.data import CorruptImage, EvalLoader, Source, TrainLoader
from crossdistill.data.philox import Purpose, random_order
from crossdistill.report.samples import Cell, Row
from crossdistill.settings import AugmentSettings

NUM_EPOCHS = 6
_LEAST_SHARE = 0.005
_WHOLE = 0.995

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Training:
    """What decides the pixels of a training run: images, labels, the student's input, random changes, and its steps.

    ``targets`` ``(N,)`` are those of the whole source, -1 for unlabelled; ``ids`` the images that are trained on.
    ``batch_size`` is that of the run: mixing partners are of one step, and an epoch drops its incomplete last step.
    ``crop_pct`` is of the evaluation, as :class:`EvalLoader` takes it.
    """

    source: Source
    ids: Ids
    targets: NDArray[np.int64]
    spec: InputSpec
    augment: AugmentSettings
    seed: int
    batch_size: int
    balanced: bool = False
    crop_pct: float | None = None

    def loader(self) -> TrainLoader:
        """The loader of the run, in this process."""
        return TrainLoader(
            self.source,
            self.ids,
            self.targets,
            {STUDENT_VIEW: self.spec},
            self.augment,
            seed=self.seed,
            batch_size=self.batch_size,
            balanced=self.balanced,
            workers=0,
            max_corrupt_share=1.0,
        )


def choose_samples(training: Training, num_samples: int) -> list[int]:
    """Readable labelled images, spread evenly over the classes and sorted by class; fewer if there are no more."""
    shuffled = training.ids[random_order(len(training.ids), seed=training.seed, purpose=Purpose.PICTURE)]
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
    loader = training.loader()
    columns += [_epoch_of(training, loader, samples, epoch) for epoch in range(num_epochs)]
    rows = []
    for index in samples:
        name = training.source.class_names[training.targets[index]]
        rows.append(Row(name, f"image {index}", tuple(column.get(index) for column in columns)))
    return ["as evaluated", *(f"epoch {epoch + 1}" for epoch in range(num_epochs))], rows


def _epoch_of(training: Training, loader: TrainLoader, samples: list[int], epoch: int) -> Mapping[int, Cell]:
    """Cells of the samples as that epoch of training shows them first, each mixed with its partner there.

    An image has no cell in an epoch that leaves it out: every epoch drops its incomplete last step, and a
    class-balanced one some images of large classes.
    """
    cells: dict[int, Cell] = {}
    for part in (part for step in loader.plan(epoch) for part in step):
        found = np.flatnonzero(np.isin(part[:, 0], [index for index in samples if index not in cells]))
        if not len(found):
            continue
        # The pairs are enough, since nothing else of a step changes an image.
        places = np.unique(found // 2)[:, None] * 2 + np.arange(2)
        batch = loader.batch(epoch, part[places[places < len(part)]])
        if batch is not None:
            cells = {**_cells(training, batch), **cells}
    return cells


def _cells(training: Training, batch: Batch, *, captions: bool = True) -> Mapping[int, Cell]:
    """A cell for every image of a batch, by sample id; of an image that is there several times, the first."""
    images = _shown(batch.images[STUDENT_VIEW], training.spec)
    names = training.source.class_names
    cells: dict[int, Cell] = {}
    for index, image, target in zip(batch.sample_id.tolist(), images, batch.target, strict=True):
        cells.setdefault(index, Cell(image, _mixture(target, names) if captions and target.ndim else ()))
    return cells


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
