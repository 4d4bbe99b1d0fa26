"""Some of the images of a source, as a source."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.data.source import Source


class Subset:
    """The images ``ids`` ``(N,)`` of a source, in that order; what is true of the source's images is true of these."""

    def __init__(self, source: Source, ids: NDArray[np.int64], name: str) -> None:
        self.name, self.targets = f"{source.name} ({name})", source.targets[ids]
        self.class_names, self.mirror_safe = source.class_names, source.mirror_safe
        self.source, self.ids = source, ids

    @property
    def num_channels(self) -> int | None:
        """Channels of the source's images, ``None`` if mixed."""
        return self.source.num_channels

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) if the source's images share it."""
        return self.source.image_size

    def read(self, index: int) -> Tensor:
        """The image as uint8 ``(C, H, W)``; raises :class:`CorruptImage`."""
        return self.source.read(int(self.ids[index]))

    def describe(self, index: int) -> str:
        """Where the image lies."""
        return self.source.describe(int(self.ids[index]))

    def __len__(self) -> int:
        return len(self.ids)
