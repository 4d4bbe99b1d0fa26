"""A data set in figures: classes and their balance, sizes, channels, formats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossdistill.data.scan import Scan
from crossdistill.data.source import CorruptImage, Source


@dataclass(frozen=True, slots=True)
class Spread:
    """Smallest, middle and largest of some values."""

    minimum: float
    median: float
    maximum: float


@dataclass(frozen=True, slots=True)
class Summary:
    """One split in figures; what concerns pixels leaves out the images that cannot be read.

    ``class_counts`` has one entry a class. ``sizes`` are (height, width) and ``channels`` 1 or 3, each with the number
    of images, most frequent first. ``height``, ``width`` (pixels) and ``aspect`` (width / height) are ``None`` where no
    image can be read.
    """

    num_images: int
    num_labelled: int
    class_counts: tuple[int, ...]
    sizes: dict[tuple[int, int], int]
    height: Spread | None
    width: Spread | None
    aspect: Spread | None
    channels: dict[int, int]
    formats: dict[str, int]
    unreadable: tuple[CorruptImage, ...]

    @property
    def smallest(self) -> int:
        """The class of fewest images; the first of several."""
        return int(np.argmin(self.class_counts))

    @property
    def largest(self) -> int:
        """The class of most images; the first of several."""
        return int(np.argmax(self.class_counts))

    @property
    def imbalance(self) -> float | None:
        """Images of the largest class for one of the smallest; ``None`` where a class has none."""
        fewest = self.class_counts[self.smallest]
        return self.class_counts[self.largest] / fewest if fewest else None


def summarise(source: Source, scan: Scan) -> Summary:
    """The figures of a source from a pass over its images."""
    readable = scan.shapes[scan.shapes[:, 0] > 0]
    heights, widths = readable[:, 1], readable[:, 2]
    labels = source.targets[source.targets >= 0]
    sizes: Counter[tuple[int, int]] = Counter(zip(heights.tolist(), widths.tolist(), strict=True))
    return Summary(
        num_images=len(source.targets),
        num_labelled=len(labels),
        class_counts=tuple(np.bincount(labels, minlength=len(source.class_names)).tolist()),
        sizes=dict(sizes.most_common()),
        height=_spread(heights),
        width=_spread(widths),
        aspect=_spread(widths / heights),
        channels=dict(Counter(readable[:, 0].tolist()).most_common()),
        formats=scan.formats,
        unreadable=scan.unreadable,
    )


def _spread(values: NDArray[np.int64] | NDArray[np.float64] | Sequence[float]) -> Spread | None:
    if not len(values):
        return None
    return Spread(float(np.min(values)), float(np.median(values)), float(np.max(values)))
