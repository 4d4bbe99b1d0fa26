"""Evaluation is decoded once: views as the networks see them, kept as uint8 from the first pass on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.contracts import InputSpec
from crossdistill.data.assemble import EvalAssembly
from crossdistill.data.augmentation.transform import EvalTransform
from crossdistill.data.feed import Answer, Batches
from crossdistill.data.held import HeldSource, Memory

Ids = NDArray[np.int64]


class PreparedViews:
    """Room for the views of some images after decoding, resizing and cropping, which forked processes share.

    An image counts as there once all its views are; so a pass that is broken off leaves nothing that is wrong.

    Args:
        ids: the images, sorted.
        shapes: ``(C, h, w)`` of each kind of view.
    """

    def __init__(self, ids: Ids, shapes: Mapping[InputSpec, tuple[int, int, int]]) -> None:
        self._ids = ids
        self._memories = {kind: Memory.of((len(ids), *shape)) for kind, shape in shapes.items()}

    @classmethod
    def fitting(cls, source: HeldSource, transform: EvalTransform, ids: Ids) -> PreparedViews | None:
        """Room for these images, if it fits within the source's limit beside what the source itself keeps."""
        is_grey = any(spec.num_channels == 1 for spec in transform.views.values())
        channels = 1 if is_grey else source.num_channels or 3
        shapes = {kind: (channels, *kind.image_size) for kind in transform.kinds}
        num_bytes = len(ids) * sum(int(np.prod(shape)) for shape in shapes.values())
        return cls(ids, shapes) if len(ids) and num_bytes + source.held_bytes <= source.limit_bytes else None

    def has(self, ids: Ids) -> NDArray[np.bool_]:
        """Which of these images are there ``(B,)``."""
        rows = self._rows(ids)
        there: NDArray[np.bool_] = np.logical_and.reduce([memory.held[rows] for memory in self._memories.values()])
        return there

    @property
    def complete(self) -> bool:
        """Whether all images are there that could be read."""
        return all(bool(memory.tried.all()) for memory in self._memories.values())

    def give_up(self, ids: Ids) -> None:
        """Count these images as tried: they cannot be read. Every pass tries them again all the same."""
        for memory in self._memories.values():
            memory.give_up(self._rows(ids))

    def keep(self, ids: Ids, views: Mapping[InputSpec, Tensor]) -> bool:
        """Keep the views ``(B, C, h, w)`` of these images; ``False`` where they have more channels than expected."""
        if any(views[kind].shape[1] not in (1, memory.pixels.shape[1]) for kind, memory in self._memories.items()):
            return False
        for kind, memory in self._memories.items():
            memory.keep(self._rows(ids), views[kind].numpy())
        return True

    def pick(self, ids: Ids) -> dict[InputSpec, Tensor]:
        """Copies of the views of these images, which must be there."""
        rows = self._rows(ids)
        return {kind: torch.from_numpy(memory.pixels[rows]) for kind, memory in self._memories.items()}

    def _rows(self, ids: Ids) -> Ids:
        return np.searchsorted(self._ids, ids)


class PreparedBatches(Batches):
    """Batches for evaluation whose images are read only while they are not among the prepared ones."""

    assembly: EvalAssembly

    def __init__(self, source: HeldSource, assembly: EvalAssembly, views: PreparedViews | None) -> None:
        super().__init__(source, assembly)
        self.views = views

    def answer(self, epoch: int, samples: Ids) -> Answer:
        """As if all images were read now."""
        ids, corrupt = samples[:, 0], dict[str, str]()
        if self.views is None:
            return super().answer(epoch, samples)
        missing = ids[~self.views.has(ids)]
        if len(missing):
            reading = self.source.read_batch(missing)
            corrupt = {image.where: image.reason for image in reading.corrupt}
            found = missing[reading.positions]
            self.views.give_up(np.setdiff1d(missing, found))
            if len(found) and not self.views.keep(found, self.assembly.prepare(reading, found, self.source.describe)):
                return super().answer(epoch, samples)
        there = self.views.has(ids)
        if not there.any():
            return Answer(None, corrupt)
        return Answer(self.assembly.finish(self.views.pick(ids[there]), samples[there], epoch), corrupt)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"views": None}  # pixels do not travel; a process that is not forked reads each time
