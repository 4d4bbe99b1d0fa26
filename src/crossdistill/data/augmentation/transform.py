"""Seeded augmentation: random parameters as pure functions of (seed, epoch, sample id), shared by all views.

The parameters are drawn for a whole batch at once. Pixels are changed in the loader's processes or, with the same
parameters, on the device that trains: first :meth:`TrainTransform.cut`, then :meth:`TrainTransform.render`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.contracts import InputSpec
from crossdistill.data.augmentation import boxes as crop_boxes
from crossdistill.data.augmentation.boxes import Boxes, Sizes
from crossdistill.data.augmentation.erase import NUM_ERASE_DRAWS, draw_erasures, erase
from crossdistill.data.augmentation.jitter import NUM_JITTER_DRAWS, draw_jitter, jitter
from crossdistill.data.augmentation.rand_augment import (
    DRAWS_A_LAYER,
    MOST_LAYERS,
    Policy,
    apply_layers,
    draw_layers,
    parse_policy,
)
from crossdistill.data.held import Images
from crossdistill.data.philox import uniform_where
from crossdistill.data.pixels import centre_views, cut, mirror, normalise
from crossdistill.data.source import TINY_SIDE, Source
from crossdistill.settings import AugmentSettings

Draws = NDArray[np.float64]
Ids = NDArray[np.int64]

AUGMENTATION_VERSION = 1
"""Raised whenever the same settings, seed and image give other pixels than before: stored answers are to the old."""

# Places among the draws of a sample; later augmentations take places after these, which then stay as they are.
_FLIP = 0
_SHIFT = slice(1, 3)
_RESIZED = slice(4, 4 + crop_boxes.NUM_RESIZED_DRAWS)
_INTERPOLATION = _RESIZED.stop
_JITTER = slice(_INTERPOLATION + 1, _INTERPOLATION + 1 + NUM_JITTER_DRAWS)
_ERASE = slice(_JITTER.stop, _JITTER.stop + NUM_ERASE_DRAWS)
_LAYERS = slice(_ERASE.stop, _ERASE.stop + DRAWS_A_LAYER * MOST_LAYERS)


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


Shape = tuple[tuple[int, int], str]
"""How a view is cut: its (height, width), and the interpolation of its model."""

Cuts = Mapping[Hashable, Tensor]
"""uint8 ``(B, …, C, H, W)`` by what tells them apart: here by shape."""


@dataclass(frozen=True)
class TrainTransform:
    """Random views of a batch; ``settings`` are resolved (no ``None``)."""

    views: Mapping[str, InputSpec]
    settings: AugmentSettings
    seed: int

    def __post_init__(self) -> None:
        self.policy  # noqa: B018, read now, so that a text that is none is refused before training

    def __call__(self, images: Images, sample_id: Ids, epoch: int, occurrence: Ids | None = None) -> dict[str, Tensor]:
        """Views ``(B, C, H, W)``; all show the same part of a sample, changed alike, each as its model wants it.

        Args:
            occurrence: how often each sample came before in this epoch ``(B,)``; by default never.
        """
        draws = self.draw(sample_id, epoch, occurrence)
        return self.render(self.cut(images, draws), draws)

    @cached_property
    def policy(self) -> Policy | None:
        """RandAugment's policy."""
        return None if self.settings.rand_augment is None else parse_policy(self.settings.rand_augment)

    @property
    def changes_colours(self) -> bool:
        """Whether more is done to pixels than to cut, flip, erase and mix them."""
        return self.policy is not None or self.settings.color_jitter > 0

    @property
    def num_values(self) -> int:
        """Channels times pixels of all views of an image."""
        return sum(spec.num_channels * math.prod(spec.image_size) for spec in set(self.views.values()))

    def draw(self, sample_id: Ids, epoch: int, occurrence: Ids | None = None) -> Draws:
        """The uniform draws that decide everything about these samples ``(B, D)``."""
        return uniform_where(self.seed, epoch, sample_id, 0 if occurrence is None else occurrence, self._wanted)

    @cached_property
    def _wanted(self) -> NDArray[np.bool_]:
        """Which draws decide anything with these settings ``(D,)``; making those alone takes a fraction of the time."""
        settings = self.settings
        wanted = np.zeros(_ERASE.stop + (self.policy.num_draws if self.policy else 0), dtype=np.bool_)
        wanted[_FLIP] = bool(settings.flip)
        wanted[_SHIFT] = settings.crop == "pad"
        wanted[_RESIZED] = settings.crop == "resized"
        wanted[_INTERPOLATION] = settings.interpolation == "random"
        wanted[_JITTER] = settings.color_jitter > 0
        wanted[_ERASE] = settings.erase > 0
        wanted[_LAYERS.start :] = True
        return wanted

    def cut(self, images: Images, draws: Draws) -> Cuts:
        """The part of each image that its draws choose, in the size of each view."""
        sizes = sizes_of(images)

        def one(shape: Shape) -> Tensor:
            size, interpolation = shape
            kernels = np.full(len(draws), interpolation)
            if self.settings.interpolation == "random":
                kernels = np.where(draws[:, _INTERPOLATION] < 0.5, "bicubic", "bilinear")
            return cut(images, draw_boxes(self.settings, sizes, size, draws), size, kernels)

        return {shape: one(shape) for shape in dict.fromkeys(map(shape_of_view, self.views.values()))}

    def render(self, cuts: Cuts, draws: Draws) -> dict[str, Tensor]:
        """Views ``(B, C, H, W)`` of what :meth:`cut` gave."""
        mirrored = draws[:, _FLIP] < (self.settings.flip or 0.0)

        def pixels(spec: InputSpec) -> Tensor:
            return self._change(mirror(cuts[shape_of_view(spec)], mirrored), spec, draws)

        views = _render(self.views, pixels, lambda spec: (shape_of_view(spec), self._fill(spec)))
        return self._erase(views, draws)

    def _change(self, images: Tensor, spec: InputSpec, draws: Draws) -> Tensor:
        """RandAugment, then colour jitter, in place."""
        if self.policy is not None:
            layers, fill = draw_layers(self.policy, draws[:, _LAYERS.start :]), self._fill(spec)
            if images.shape[1] < len(fill):  # grey becomes three channels now, since what lies outside is no grey
                images = images.repeat(1, len(fill), 1, 1)
            images = apply_layers(images, layers, fill)
        if self.settings.color_jitter:
            images = jitter(images, *draw_jitter(self.settings.color_jitter, draws[:, _JITTER]))
        return images

    def _fill(self, spec: InputSpec) -> tuple[float, ...]:
        """What lies outside a warped image, where there is one: the model's mean, so that it becomes zero."""
        return tuple(min(255.0, round(255 * mean)) for mean in spec.mean) if self.policy is not None else ()

    def _erase(self, views: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        if self.settings.erase:
            for images in {id(view): view for view in views.values()}.values():
                size = images.shape[-2], images.shape[-1]
                erase(images, *draw_erasures(self.settings.erase, size, draws[:, _ERASE]), self.seed)
        return views


@dataclass(frozen=True, slots=True)
class EvalTransform:
    """The views of a batch that accuracy is measured on: nothing random.

    ``crop_pct`` is the share of the side that is shown; by default as each model says, but tiny images whole.
    """

    views: Mapping[str, InputSpec]
    crop_pct: float | None = None

    def __call__(self, images: Images, sample_id: Ids, epoch: int) -> dict[str, Tensor]:
        """Views ``(B, C, H, W)``; they depend on the images only."""
        return self.normalise(self.prepare(images))

    @property
    def kinds(self) -> tuple[InputSpec, ...]:
        """How the views show an image; several may differ in normalisation only."""
        return tuple(dict.fromkeys(map(_kind, self.views.values())))

    def prepare(self, images: Images) -> dict[InputSpec, Tensor]:
        """uint8 ``(B, C, H, W)`` of each kind of view."""
        return {kind: centre_views(images, kind, self.crop_pct) for kind in self.kinds}

    def normalise(self, prepared: Mapping[InputSpec, Tensor]) -> dict[str, Tensor]:
        """Views of what :meth:`prepare` gave."""
        return _render(self.views, lambda spec: prepared[_kind(spec)], _kind)


def sizes_of(images: Images) -> Sizes:
    """Height and width of each image ``(B, 2)``."""
    if isinstance(images, Tensor):
        return np.tile(np.array(images.shape[-2:], dtype=np.int64), (len(images), 1))
    return np.array([image.shape[-2:] for image in images], dtype=np.int64)


def _kind(spec: InputSpec) -> InputSpec:
    """The spec but for its normalisation."""
    return replace(spec, mean=(), std=(), num_channels=0)


def shape_of_view(spec: InputSpec) -> Shape:
    """How the view of this model is cut."""
    return spec.image_size, spec.interpolation


def draw_boxes(settings: AugmentSettings, sizes: Sizes, target_size: tuple[int, int], draws: Draws) -> Boxes:
    """Crop boxes ``(B, 4)`` in source pixels from the draws of each sample."""
    if settings.crop == "pad":
        return crop_boxes.shifted(sizes, target_size, padding=settings.padding, draws=draws[:, _SHIFT])
    if settings.crop == "resized":
        return crop_boxes.resized(sizes, scale=settings.scale, ratio=settings.ratio, draws=draws[:, _RESIZED])
    return crop_boxes.centred(sizes, target_size)


def _render(
    views: Mapping[str, InputSpec], pixels: Callable[[InputSpec], Tensor], kind: Callable[[InputSpec], Hashable]
) -> dict[str, Tensor]:
    """Equal views share one tensor, and views of one kind, which differ in normalisation only, the work on pixels."""
    changed: dict[Hashable, Tensor] = {}
    rendered: dict[InputSpec, Tensor] = {}
    for spec in views.values():
        if kind(spec) not in changed:
            changed[kind(spec)] = pixels(spec)
        if spec not in rendered:
            rendered[spec] = normalise(changed[kind(spec)], spec)
    return {view: rendered[spec] for view, spec in views.items()}
