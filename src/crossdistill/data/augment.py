"""Seeded augmentation: random parameters as pure functions of (seed, epoch, sample id, view), shared by all views."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.contracts import InputSpec
from crossdistill.data import boxes as crop_boxes
from crossdistill.data.boxes import Boxes, Sizes
from crossdistill.data.held import Images
from crossdistill.data.philox import uniform
from crossdistill.data.pixels import centre_views, cut, mirror, normalise
from crossdistill.data.source import TINY_SIDE, Source
from crossdistill.settings import AugmentSettings

# Places among the draws of a sample; later augmentations take places after these, which then stay as they are.
_FLIP = 0
_SHIFT = slice(1, 3)
_RESIZED = slice(4, 4 + crop_boxes.NUM_RESIZED_DRAWS)
_NUM_DRAWS = _RESIZED.stop

_ALL_VIEWS = 0


def resolve_augment(settings: AugmentSettings, source: Source) -> AugmentSettings:
    """Fill in what the settings leave to the source: pad tiny images, resize others; flip where a mirror is safe."""
    size = source.image_size
    crop = "pad" if size is not None and max(size) <= TINY_SIDE else "resized"
    flip = 0.5 if source.mirror_safe else 0.0
    return settings.model_copy(
        update={
            "crop": settings.crop if settings.crop is not None else crop,
            "flip": settings.flip if settings.flip is not None else flip,
        }
    )


@dataclass(frozen=True, slots=True)
class TrainTransform:
    """Random views of a batch; ``settings`` are resolved (no ``None``)."""

    views: Mapping[str, InputSpec]
    settings: AugmentSettings
    seed: int

    def __call__(self, images: Images, sample_id: NDArray[np.int64], epoch: int) -> dict[str, Tensor]:
        """Views ``(B, C, H, W)``; all show the same part of a sample, mirrored alike, each as its model wants it."""
        sizes = np.array([image.shape[-2:] for image in images], dtype=np.int64)
        draws = uniform(self.seed, epoch, sample_id, _ALL_VIEWS, _NUM_DRAWS)
        mirrored = torch.from_numpy(draws[:, _FLIP] < (self.settings.flip or 0.0))

        def pixels(spec: InputSpec) -> Tensor:
            boxes = draw_boxes(self.settings, sizes, spec.image_size, draws)
            return mirror(cut(images, boxes, spec.image_size, spec.interpolation), mirrored)

        return _render({view: replace(spec, crop_pct=1.0) for view, spec in self.views.items()}, pixels)


@dataclass(frozen=True, slots=True)
class EvalTransform:
    """The views of a batch that accuracy is measured on: nothing random."""

    views: Mapping[str, InputSpec]

    def __call__(self, images: Images, sample_id: NDArray[np.int64], epoch: int) -> dict[str, Tensor]:
        """Views ``(B, C, H, W)``; they depend on the images only."""
        return _render(self.views, lambda spec: centre_views(images, spec))


def draw_boxes(
    settings: AugmentSettings, sizes: Sizes, target_size: tuple[int, int], draws: NDArray[np.float64]
) -> Boxes:
    """Crop boxes ``(B, 4)`` in source pixels from the draws of each sample."""
    if settings.crop == "pad":
        return crop_boxes.shifted(sizes, target_size, padding=settings.padding, draws=draws[:, _SHIFT])
    if settings.crop == "resized":
        return crop_boxes.resized(sizes, scale=settings.scale, ratio=settings.ratio, draws=draws[:, _RESIZED])
    return crop_boxes.centred(sizes, target_size)


def _render(views: Mapping[str, InputSpec], pixels: Callable[[InputSpec], Tensor]) -> dict[str, Tensor]:
    """Equal views share one tensor, and views that differ in normalisation only share the work on pixels."""
    cut_out: dict[InputSpec, Tensor] = {}
    rendered: dict[InputSpec, Tensor] = {}
    for spec in views.values():
        geometry = replace(spec, mean=(), std=(), num_channels=0)
        if geometry not in cut_out:
            cut_out[geometry] = pixels(spec)
        if spec not in rendered:
            rendered[spec] = normalise(cut_out[geometry], spec)
    return {view: rendered[spec] for view, spec in views.items()}
