"""Handwritten digits that come with scikit-learn: 1,797 real grey images of 8 x 8 pixels, no download."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.data.source import Splits
from crossdistill.data.splits import fixed_split

_NUM_TEST = 360


@dataclass(frozen=True)
class DigitsSource:
    """Part of the digits; ``images`` is uint8 ``(N, 1, 8, 8)``.

    A mirrored digit is another sign, so flips are off by default.

    Source: E. Alpaydin, C. Kaynak, "Optical recognition of handwritten digits", UCI, 1998 (its test part).
    """

    name: str
    images: NDArray[np.uint8]
    targets: NDArray[np.int64]
    class_names: tuple[str, ...] = tuple("0123456789")
    mirror_safe: bool = False
    num_channels: int | None = 1
    image_size: tuple[int, int] | None = (8, 8)

    def read(self, index: int) -> Tensor:
        """The image as uint8 ``(1, 8, 8)``."""
        return torch.from_numpy(self.images[index].copy())

    def describe(self, index: int) -> str:
        """Its place in this part of the set."""
        return f"{self.name}, image {index}"


def open_digits() -> Splits:
    """The digits in a fixed stratified split of 1,437 training and 360 test images."""
    from sklearn.datasets import load_digits  # slow to import, and needed here only

    digits = load_digits()
    images = np.rint(digits.images[:, None] * (255 / 16)).astype(np.uint8)
    targets = digits.target.astype(np.int64)
    train_ids, test_ids = fixed_split(targets, _NUM_TEST)
    train, test = (
        DigitsSource(f"digits {part}", images[ids], targets[ids])
        for part, ids in (("train", train_ids), ("test", test_ids))
    )
    return Splits(train, test, "test")
