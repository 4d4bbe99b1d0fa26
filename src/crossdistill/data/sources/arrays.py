"""Images that are read as one array and held in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.errors import InputError


@dataclass(frozen=True)
class ArraySource:
    """Images of one size; ``images`` is uint8 ``(N, C, H, W)`` with one or three channels, in any memory layout."""

    name: str
    images: NDArray[np.uint8]
    targets: NDArray[np.int64]
    class_names: tuple[str, ...]
    mirror_safe: bool = True

    @property
    def num_channels(self) -> int | None:
        """1 or 3."""
        return int(self.images.shape[1])

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width)."""
        height, width = self.images.shape[2:]
        return int(height), int(width)

    def read(self, index: int) -> Tensor:
        """The image as uint8 ``(C, H, W)``."""
        return torch.from_numpy(np.array(self.images[index], order="C"))

    def describe(self, index: int) -> str:
        """Its place in the set."""
        return f"{self.name}, image {index}"

    def __len__(self) -> int:
        return len(self.targets)


def as_images(array: NDArray[np.uint8], where: str) -> NDArray[np.uint8]:
    """A view ``(N, C, H, W)`` of grey images ``(N, H, W)`` or of images whose channels come last or second.

    Raises:
        InputError: another type than uint8, another shape, or no image.
    """
    if array.dtype == np.uint8 and array.size:
        if array.ndim == 3:
            return array[:, None]
        if array.ndim == 4 and array.shape[3] in (1, 3):
            return array.transpose(0, 3, 1, 2)
        if array.ndim == 4 and array.shape[1] in (1, 3):
            return array
    raise InputError(
        f"{where}: images of type {array.dtype} and shape {array.shape}",
        "at least one image, uint8, (N, H, W) for grey or (N, H, W, 3) for colour",
        "convert the images",
    )


def check_counts(num_images: int, num_labels: int, where: str) -> None:
    """Refuse images without a label each."""
    if num_images != num_labels:
        raise InputError(
            f"{where}: {num_images} images and {num_labels} labels", "one label an image", "write them again"
        )
