"""Patches: windows of one image on a grid of three by three, each shifted at random, of which some are kept.

Source: Gidaris, Bursuc, Puy, Komodakis, Cord, Pérez, "OBoW: Online bag-of-visual-words generation for self-supervised
learning", 2020, arXiv:2012.11552: windows of 96 in an image of 256, 68 apart, each shifted by 0 to 24 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossdistill.data.augmentation.boxes import Boxes

NUM_WINDOWS = 9
NUM_PATCH_DRAWS = 3 * NUM_WINDOWS

_A_SIDE = 3
_SHIFT_SHARE = 24 / 256


@dataclass(frozen=True, slots=True)
class Grid:
    """Nine windows of ``patch`` pixels in an image of ``base``, ``stride`` apart, shifted by 0 to ``shift`` inclusive.

    >>> Grid.of(base=256, patch=96)
    Grid(base=256, patch=96, shift=24, stride=68)
    """

    base: int
    patch: int
    shift: int
    stride: int

    @classmethod
    def of(cls, *, base: int, patch: int) -> Grid:
        """The published proportions for any sizes, ``patch <= base``; the last window, shifted most, fits.

        The shift is 24/256 of the base, but no more than what a patch leaves of it; the stride is half of the rest.
        """
        shift = min(round(_SHIFT_SHARE * base), base - patch)
        return cls(base, patch, shift, (base - patch - shift) // 2)

    def windows(self, count: int, draws: NDArray[np.float64]) -> NDArray[np.int64]:
        """Boxes ``(B, count, 4)`` of so many of the nine windows, none twice, in random order.

        Args:
            draws: uniform ``(B, 27)``: vertical and horizontal shift of each window, then what puts them in order.
        """
        kept = draws[:, 2 * NUM_WINDOWS :].argsort(axis=1, kind="stable")[:, :count]
        shifts = np.floor(draws[:, : 2 * NUM_WINDOWS].reshape(-1, NUM_WINDOWS, 2) * (self.shift + 1)).astype(np.int64)
        places = np.stack([kept // _A_SIDE, kept % _A_SIDE], axis=-1)
        corners: Boxes = places * self.stride + np.take_along_axis(shifts, kept[:, :, None], axis=1)
        return np.concatenate([corners, np.full_like(corners, self.patch)], axis=-1)
