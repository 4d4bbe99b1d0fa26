"""Handwritten digits that come with scikit-learn: 1,797 real grey images of 8 x 8 pixels, no download."""

from __future__ import annotations

import numpy as np

from crossdistill.data.source import Splits
from crossdistill.data.sources.arrays import ArraySource
from crossdistill.data.sources.split_names import choose_splits
from crossdistill.data.splits import fixed_split
from crossdistill.settings import DataSettings

_NUM_TEST = 360


def open_digits(settings: DataSettings) -> Splits:
    """The digits in a fixed stratified split of 1,437 training and 360 test images.

    A mirrored digit is another sign, so flips are off by default.

    Source: E. Alpaydin, C. Kaynak, "Optical recognition of handwritten digits", UCI, 1998 (its test part).
    """
    from sklearn.datasets import load_digits  # slow to import, and needed here only

    digits = load_digits()
    images = np.rint(digits.images[:, None] * (255 / 16)).astype(np.uint8)
    targets = digits.target.astype(np.int64)
    ids = dict(zip(("train", "test"), fixed_split(targets, _NUM_TEST), strict=True))

    def open_split(split: str) -> ArraySource:
        names = tuple("0123456789")
        return ArraySource(f"digits {split}", images[ids[split]], targets[ids[split]], names, mirror_safe=False)

    return choose_splits(ids, settings, "digits").open(open_split)
