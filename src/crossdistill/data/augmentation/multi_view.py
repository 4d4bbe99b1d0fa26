"""The views of pretraining: one mild view of an image for the teacher, crops and patches of it for the student.

Source: Gidaris, Bursuc, Puy, Komodakis, Cord, Pérez, "OBoW: Online bag-of-visual-words generation for self-supervised
learning", 2020, arXiv:2012.11552.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.contracts import STUDENT_VIEW, InputSpec
from crossdistill.data.augmentation import boxes as crop_boxes
from crossdistill.data.augmentation.blur import blur, radius_of
from crossdistill.data.augmentation.boxes import Sizes
from crossdistill.data.augmentation.colour import greyscale
from crossdistill.data.augmentation.jitter import NUM_HUE_JITTER_DRAWS, draw_changes, jitter
from crossdistill.data.augmentation.patches import NUM_PATCH_DRAWS, Grid
from crossdistill.data.augmentation.transform import Cuts, Draws, Ids, sizes_of
from crossdistill.data.held import Images
from crossdistill.data.philox import uniform_where
from crossdistill.data.pixels import centre_views, cut, mirror, normalise
from crossdistill.data.placing import placed
from crossdistill.settings import AugmentSettings, ViewSettings

TEACHER_VIEW = "teacher0"

_CROPS, _BASE = "crops", "base"
"""What is cut beside the teacher's view: what the student sees of crops, and what patches are cut from."""

_TEACHER_SHARE = 224 / 256
_RATIO = (3 / 4, 4 / 3)
_BLURRED_SIDE = 160
"""Standard deviations of the blur are in pixels of a crop of this side."""

# Places among the draws of a sample. After those of its own, each crop and what patches are cut from have a look each,
# so that the number of crops and patches decides nothing of the others; later changes take places at a look's end.
_TEACHER_FLIP = 0
_PATCHES = slice(4, 4 + NUM_PATCH_DRAWS)
_FIRST_LOOK, _A_LOOK = 32, 56

# Places among the draws of a look.
_RESIZED = slice(0, crop_boxes.NUM_RESIZED_DRAWS)
_JITTER = slice(_RESIZED.stop, _RESIZED.stop + NUM_HUE_JITTER_DRAWS)
_JITTERED, _GREY, _BLURRED, _SIGMA, _FLIP = range(_JITTER.stop, _JITTER.stop + 5)


@dataclass(frozen=True)
class MultiViewTransform:
    """Random views of a batch for pretraining; ``looks`` are resolved (no ``None``).

    They are images by view, as float32:

    - "teacher0" ``(B, C, S, S)``: the centre, flipped or not. It is 224/256 of the shorter side, of tiny images all.
    - "student" ``(B, N, C, s, s)``: N crops, each with a part of the image, colours, blur and flip of its own.
    - "student1" ``(B, N, C, s, s)``: N patches of one more crop, which has one change of colours and one flip, and no
      blur. Without crops, "student" are the patches.

    Everything is drawn apart for every view and crop.
    """

    teacher: InputSpec
    student: InputSpec
    looks: ViewSettings
    seed: int

    settings: ClassVar[AugmentSettings] = AugmentSettings(crop="none", flip=0.0)
    """What other training has for random changes has no part in these views: nothing is changed or mixed by it."""
    changes_colours: ClassVar[bool] = True

    def __call__(self, images: Images, sample_id: Ids, epoch: int, occurrence: Ids | None = None) -> dict[str, Tensor]:
        """The views.

        Args:
            occurrence: how often each sample came before in this epoch ``(B,)``; by default never.
        """
        draws = self.draw(sample_id, epoch, occurrence)
        return self.render(self.cut(images, draws), draws)

    @cached_property
    def views(self) -> dict[str, InputSpec]:
        """What one image of each view is like."""
        shown = [
            size
            for count, size in ((self.looks.crops, self.looks.crop_size), (self.looks.patches, self.looks.patch_size))
            if count
        ]
        student = {
            f"{STUDENT_VIEW}{index or ''}": replace(self.student, image_size=_square(size))
            for index, size in enumerate(shown)
        }
        return {TEACHER_VIEW: self.teacher, **student}

    @property
    def num_values(self) -> int:
        """Channels times pixels of all views of an image, and of what patches are cut from."""
        looks, channels = self.looks, self.student.num_channels
        pixels = looks.crops * math.prod(_square(looks.crop_size))
        if looks.patches:
            pixels += looks.patches * self.grid.patch**2 + self.grid.base**2
        return self.teacher.num_channels * math.prod(self.teacher.image_size) + channels * pixels

    @cached_property
    def grid(self) -> Grid:
        """Where patches are cut."""
        return Grid.of(base=_square(self.looks.patch_base)[0], patch=_square(self.looks.patch_size)[0])

    def draw(self, sample_id: Ids, epoch: int, occurrence: Ids | None = None) -> Draws:
        """The uniform draws that decide everything about these samples ``(B, D)``."""
        return uniform_where(self.seed, epoch, sample_id, 0 if occurrence is None else occurrence, self._wanted)

    @cached_property
    def _wanted(self) -> NDArray[np.bool_]:
        """Which draws decide anything ``(D,)``: those of patches need not be made where there are none."""
        wanted = np.zeros(_FIRST_LOOK + _A_LOOK * (1 + self.looks.crops), dtype=np.bool_)
        wanted[_TEACHER_FLIP] = True
        wanted[_PATCHES] = wanted[_FIRST_LOOK:][:_A_LOOK] = self.looks.patches > 0
        wanted[_FIRST_LOOK + _A_LOOK :] = True
        return wanted

    def cut(self, images: Images, draws: Draws) -> Cuts:
        """The parts of each image that its draws choose, uint8 in the size of each view; crops ``(B, N, C, s, s)``."""
        looks, sizes, centre = self.looks, sizes_of(images), replace(self.teacher, crop_pct=_TEACHER_SHARE)
        cuts: dict[Hashable, Tensor] = {TEACHER_VIEW: centre_views(images, centre)}
        if looks.crops:
            crops = [
                self._part(images, sizes, look, looks.crop_scale, _square(looks.crop_size))
                for look in self._crop_draws(draws).swapaxes(0, 1)
            ]
            cuts[_CROPS] = torch.stack(crops, dim=1)
        if looks.patches:
            cuts[_BASE] = self._part(images, sizes, _base_draws(draws), looks.patch_scale, _square(looks.patch_base))
        return cuts

    def _part(
        self, images: Images, sizes: Sizes, look: Draws, scale: tuple[float, float], size: tuple[int, int]
    ) -> Tensor:
        boxes = crop_boxes.resized(sizes, scale=scale, ratio=_RATIO, draws=look[:, _RESIZED])
        return cut(images, boxes, size, np.full(len(look), self.student.interpolation))

    def render(self, cuts: Cuts, draws: Draws) -> dict[str, Tensor]:
        """The views of what :meth:`cut` gave."""
        teacher = mirror(cuts[TEACHER_VIEW], draws[:, _TEACHER_FLIP] < self._flip)
        shown = []
        if self.looks.crops:
            looks = self._crop_draws(draws).reshape(-1, _A_LOOK)
            crops = self._blur(self._change(cuts[_CROPS].flatten(0, 1), looks), looks)
            shown.append((crops, self.looks.crops))
        if self.looks.patches:
            base = self._change(cuts[_BASE], _base_draws(draws))
            shown.append((self._patches(base, draws[:, _PATCHES]), self.looks.patches))
        rendered = {TEACHER_VIEW: normalise(teacher, self.teacher)}
        (_, *students) = self.views.items()
        for (view, spec), (images, count) in zip(students, shown, strict=True):
            pixels = normalise(images, spec)  # as single images, which is how loader processes send them best
            rendered[view] = pixels.view(len(draws), count, *pixels.shape[1:])
        return rendered

    def _change(self, images: Tensor, looks: Draws) -> Tensor:
        """Flip, colour jitter and grey of each image's look; the flip first, which copies and changes nothing else."""
        chosen = self.looks
        images = mirror(images, looks[:, _FLIP] < self._flip)
        amounts, orders = draw_changes(chosen.color_jitter, looks[:, _JITTER])
        _change_some(
            images,
            looks[:, _JITTERED] < chosen.jitter_probability,
            lambda some, rows: jitter(some, amounts[rows], orders[rows]),
        )
        _change_some(images, looks[:, _GREY] < chosen.grey_probability, lambda some, _: greyscale(some))
        return images

    def _blur(self, images: Tensor, looks: Draws) -> Tensor:
        low, high = (images.shape[-1] / _BLURRED_SIDE * limit for limit in self.looks.blur_sigma)
        sigma = low + (high - low) * looks[:, _SIGMA]
        _change_some(
            images,
            looks[:, _BLURRED] < self.looks.blur_probability,
            lambda some, rows: blur(some, sigma[rows], radius_of(high)),
        )
        return images

    def _patches(self, base: Tensor, draws: Draws) -> Tensor:
        """``(B * N, C, s, s)``: the patches of the first image, then those of the next."""
        windows, size = self.grid.windows(self.looks.patches, draws), (self.grid.patch, self.grid.patch)
        kernels = np.full(len(base), self.student.interpolation)
        patches = [cut(base, boxes, size, kernels) for boxes in windows.swapaxes(0, 1)]
        return torch.stack(patches, dim=1).flatten(0, 1)

    def _crop_draws(self, draws: Draws) -> Draws:
        """The draws of each crop ``(B, N, D)``."""
        return draws[:, _FIRST_LOOK + _A_LOOK :].reshape(len(draws), self.looks.crops, _A_LOOK)

    @property
    def _flip(self) -> float:
        assert self.looks.flip is not None  # resolved
        return self.looks.flip


def _base_draws(draws: Draws) -> Draws:
    """The draws of what patches are cut from ``(B, D)``."""
    return draws[:, _FIRST_LOOK : _FIRST_LOOK + _A_LOOK]


def _square(size: int | None) -> tuple[int, int]:
    """(height, width) of a size that is resolved."""
    assert size is not None
    return size, size


def _change_some(images: Tensor, where: NDArray[np.bool_], change: Callable[[Tensor, Ids], Tensor]) -> None:
    """Change those of the images in place that the mask ``(B,)`` marks; ``change`` gets their rows, too."""
    rows = np.flatnonzero(where)
    if len(rows):
        index = placed(rows, images.device)
        images[index] = change(images[index], rows)
