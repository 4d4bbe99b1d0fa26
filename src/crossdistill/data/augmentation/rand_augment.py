"""RandAugment: a few operations drawn for each image, with magnitudes about one value, in timm's dialect.

Source: Cubuk, Zoph, Shlens, Le, "RandAugment", 2019, arXiv:1909.13719; operations, ranges and the words of the
policy as in timm's ``rand_augment_transform``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from crossdistill.data.augmentation import colour
from crossdistill.data.augmentation.affine import Matrices, rotation, shear, translation, warp
from crossdistill.data.placing import placed
from crossdistill.errors import InputError

Draws = NDArray[np.float64]
Amounts = NDArray[np.float64]

DRAWS_A_LAYER = 5
MOST_LAYERS = 8

_MOST_DEGREES, _MOST_SHEAR, _MOST_SHIFT, _MOST_ADDED = 30.0, 0.3, 0.45, 110
_LARGEST = 10.0
_SMALLEST_FACTOR = 0.1


class Op(IntEnum):
    """The operations, in the order in which they are drawn."""

    AUTO_CONTRAST = 0
    EQUALISE = 1
    INVERT = 2
    ROTATE = 3
    POSTERISE = 4
    SOLARISE = 5
    SOLARISE_ADD = 6
    SATURATION = 7
    CONTRAST = 8
    BRIGHTNESS = 9
    SHARPNESS = 10
    SHEAR_X = 11
    SHEAR_Y = 12
    TRANSLATE_X = 13
    TRANSLATE_Y = 14


_NOTHING = -1

_SMALL = 3 * 64 * 64
"""Values of an image; up to this the CPU, too, spends more on calls than on pixels."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How many layers, how often and how strongly.

    ``magnitude_std`` spreads magnitudes about ``magnitude`` (infinite: uniform from 0 up to it), cut off at 0 and
    ``largest_magnitude``. ``increasing`` lets every operation grow with the magnitude.
    """

    magnitude: float = _LARGEST
    num_layers: int = 2
    probability: float = 0.5
    magnitude_std: float = 0.0
    largest_magnitude: float = _LARGEST
    increasing: bool = False

    @property
    def num_draws(self) -> int:
        """Uniform draws for each image."""
        return DRAWS_A_LAYER * self.num_layers


@dataclass(frozen=True, slots=True)
class Layer:
    """One operation for each image: which (-1 for none), how much in its own unit, and how it is interpolated."""

    op: NDArray[np.int64]
    amount: Amounts
    bicubic: NDArray[np.bool_]

    def only(self, where: NDArray[np.int64]) -> Layer:
        """What is done to these images."""
        return Layer(self.op[where], self.amount[where], self.bicubic[where])


_FIELDS: dict[str, tuple[str, Callable[[str], float]]] = {
    "m": ("magnitude", int),
    "n": ("num_layers", int),
    "p": ("probability", float),
    "mstd": ("magnitude_std", float),
    "mmax": ("largest_magnitude", int),
    "inc": ("increasing", lambda text: bool(int(text))),
}


def parse_policy(text: str) -> Policy:
    """The policy that a text such as ``rand-m9-mstd0.5-inc1`` names.

    >>> parse_policy("rand-m9-mstd0.5-inc1")
    Policy(magnitude=9, num_layers=2, probability=0.5, magnitude_std=0.5, largest_magnitude=10.0, increasing=True)

    Raises:
        InputError: another text.
    """
    head, *words = text.split("-")
    policy = Policy()
    for word in words if head == "rand" else [text]:
        key, value = re.fullmatch(r"([a-z]+)([0-9.]+)|.*", word).group(1, 2)  # type: ignore[union-attr]
        if key not in _FIELDS:
            raise _unknown(text, word)
        name, convert = _FIELDS[key]
        try:
            policy = replace(policy, **{name: convert(value)})  # type: ignore[arg-type]
        except ValueError:
            raise _unknown(text, word) from None
    if not (1 <= policy.num_layers <= MOST_LAYERS and 0 <= policy.probability <= 1 and policy.largest_magnitude > 0):
        raise _unknown(text, f"n{policy.num_layers} with p{policy.probability:g} and mmax{policy.largest_magnitude:g}")
    return replace(policy, magnitude_std=np.inf) if policy.magnitude_std > 100 else policy


def _unknown(text: str, word: str) -> InputError:
    return InputError(
        f"data.augment.rand_augment={text!r}, where {word!r} is not understood",
        f"rand- with m (magnitude), n (layers, 1 to {MOST_LAYERS}), p (probability), mstd, mmax and inc (0 or 1)",
        "write it like rand-m9-mstd0.5-inc1",
    )


def draw_layers(policy: Policy, draws: Draws) -> list[Layer]:
    """The layers of each image from uniform draws ``(B, policy.num_draws)``."""
    return [_layer(policy, draws[:, at : at + DRAWS_A_LAYER]) for at in range(0, policy.num_draws, DRAWS_A_LAYER)]


def _layer(policy: Policy, draws: Draws) -> Layer:
    chosen, applied, strength, sign, interpolation = draws.T
    op = np.where(applied < policy.probability, (chosen * len(Op)).astype(np.int64), _NOTHING)
    if np.isinf(policy.magnitude_std):
        magnitude = policy.magnitude * strength
    else:
        # The middle of each of the 2^32 steps, so that the quantile is finite.
        magnitude = policy.magnitude + policy.magnitude_std * ndtri(strength + 2.0**-33)
    level = magnitude.clip(0, policy.largest_magnitude) / _LARGEST
    amounts = _amounts(level, np.where(sign < 0.5, -1.0, 1.0), increasing=policy.increasing)
    amount = np.choose(op.clip(min=0), [amounts.get(one, np.zeros_like(level)) for one in Op])
    return Layer(op, amount, interpolation < 0.5)


def _amounts(level: Amounts, sign: Amounts, *, increasing: bool) -> dict[Op, Amounts]:
    """What each operation makes of the level (1 is magnitude 10): degrees, bits, thresholds, factors, shares."""
    bits, threshold = np.floor(level * 4), np.floor(level * 256).clip(max=256)
    factor = (1 + sign * level * 0.9).clip(min=_SMALLEST_FACTOR) if increasing else level * 1.8 + _SMALLEST_FACTOR
    return {
        Op.ROTATE: sign * level * _MOST_DEGREES,
        Op.POSTERISE: (4 - bits if increasing else bits).clip(0, 8),
        Op.SOLARISE: 256 - threshold if increasing else threshold,
        Op.SOLARISE_ADD: np.floor(level * _MOST_ADDED).clip(max=128),
        **dict.fromkeys((Op.SATURATION, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS), factor),
        **dict.fromkeys((Op.SHEAR_X, Op.SHEAR_Y), sign * level * _MOST_SHEAR),
        **dict.fromkeys((Op.TRANSLATE_X, Op.TRANSLATE_Y), sign * level * _MOST_SHIFT),
    }


def apply_layers(images: Tensor, layers: Sequence[Layer], fill: Sequence[float]) -> Tensor:
    """Change uint8 images ``(B, C, H, W)`` in place, layer after layer; ``fill`` (C values) lies outside warped images.

    Images of one operation are changed together, but large ones on the CPU one by one, which stays in its cache.
    """
    one_by_one = images.device.type == "cpu" and images[:1].numel() > _SMALL
    for layer in layers:
        for where in _groups(layer, one_by_one=one_by_one):
            index = slice(where[0], where[0] + 1) if one_by_one else placed(where, images.device)
            images[index] = _change(images[index], layer.only(where), fill)
    return images


def _groups(layer: Layer, *, one_by_one: bool) -> Iterator[NDArray[np.int64]]:
    """Places of images that are changed together: by one operation, or all by warps of one interpolation."""
    kinds = np.where(np.isin(layer.op, list(_WARPS)), len(Op) + layer.bicubic, layer.op)
    if one_by_one:
        yield from np.flatnonzero(kinds != _NOTHING)[:, None]
        return
    for kind in np.unique(kinds[kinds != _NOTHING]):
        yield np.flatnonzero(kinds == kind)


_WITHOUT_AMOUNT: dict[Op, Callable[[Tensor], Tensor]] = {
    Op.AUTO_CONTRAST: F.autocontrast,
    Op.EQUALISE: F.equalize,
    Op.INVERT: F.invert,
}

_COLOURS: dict[Op, Callable[[Tensor, Tensor], Tensor]] = {
    Op.POSTERISE: colour.posterise,
    Op.SOLARISE: colour.solarise,
    Op.SOLARISE_ADD: colour.solarise_add,
    Op.SATURATION: colour.saturation,
    Op.CONTRAST: colour.contrast,
    Op.BRIGHTNESS: colour.brightness,
    Op.SHARPNESS: colour.sharpness,
}

_WARPS: dict[Op, Callable[[Amounts, tuple[int, int]], Matrices]] = {
    Op.ROTATE: rotation,
    Op.SHEAR_X: lambda amount, _: shear(amount, np.zeros_like(amount)),
    Op.SHEAR_Y: lambda amount, _: shear(np.zeros_like(amount), amount),
    Op.TRANSLATE_X: lambda amount, size: translation(amount * size[1], np.zeros_like(amount)),
    Op.TRANSLATE_Y: lambda amount, size: translation(np.zeros_like(amount), amount * size[0]),
}


def _change(images: Tensor, layer: Layer, fill: Sequence[float]) -> Tensor:
    """Images of one of the groups, of which ``layer`` tells alone."""
    op = Op(layer.op[0])
    if op in _WITHOUT_AMOUNT:
        return _WITHOUT_AMOUNT[op](images)
    if op in _COLOURS:
        return _COLOURS[op](images, placed(layer.amount, images.device))
    matrices = np.empty((len(images), 2, 3))
    for warped in np.unique(layer.op):
        own = layer.op == warped
        matrices[own] = _WARPS[Op(warped)](layer.amount[own], (images.shape[-2], images.shape[-1]))
    return warp(images, matrices, bicubic=bool(layer.bicubic[0]), fill=fill)
