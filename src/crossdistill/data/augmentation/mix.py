"""Mixup and cutmix between neighbours: image 2j and 2j + 1 of a step become two mixtures of both.

Sources: Zhang, Cisse, Dauphin, Lopez-Paz, "mixup", 2017, arXiv:1710.09412; Yun et al., "CutMix", 2019,
arXiv:1905.04899. Each pair has a mode and a mixing share of its own, as in timm's ``Mixup(mode="pair")``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv
from torch import Tensor

from crossdistill.contracts import UNLABELLED
from crossdistill.data.augmentation.boxes import Boxes
from crossdistill.data.philox import Purpose, uniform
from crossdistill.data.placing import placed
from crossdistill.settings import AugmentSettings

Ids = NDArray[np.int64]

_NUM_DRAWS = 5


def mixes(settings: AugmentSettings) -> bool:
    """Whether these settings mix images, so that targets become class probabilities."""
    return settings.mix_probability > 0 and (settings.mixup > 0 or settings.cutmix > 0)


@dataclass(frozen=True, slots=True)
class Mixing:
    """What is done to P pairs: their places ``(P, 2)`` in the batch, and by pair whether it is mixed, and how.

    ``share`` is drawn from the Beta distribution: what an image keeps of itself. ``centre`` (P, 2) is that of
    cutmix's box, as shares of height and width.
    """

    places: Ids
    cut: NDArray[np.bool_]
    share: NDArray[np.float64]
    centre: NDArray[np.float64]

    def alike(self, labelled: NDArray[np.bool_]) -> Mixing:
        """Only pairs of two labelled images or of two unlabelled ones: a mixture with neither label would teach less.

        Args:
            labelled: mask ``(B,)`` over the batch.
        """
        kept = labelled[self.places[:, 0]] == labelled[self.places[:, 1]]
        return Mixing(self.places[kept], self.cut[kept], self.share[kept], self.centre[kept])


def draw_mixing(
    settings: AugmentSettings, seed: int, epoch: int, samples: Ids, present: Ids, sizes: Sequence[int] | None = None
) -> Mixing:
    """How the pairs of a micro-batch are mixed: a pure function of (seed, epoch, the pair's first sample).

    Args:
        samples: id and occurrence of what was asked for ``(B, 2)``; neighbours are pairs, a single last one stays as
            it is.
        present: positions of those that could be read; an image whose partner could not be stays as it is.
        sizes: of several micro-batches, whose samples follow each other; default one of all samples.
    """
    place = np.full(len(samples), -1, dtype=np.int64)
    place[present] = np.arange(len(present))
    sizes = [len(samples)] if sizes is None else sizes
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    firsts = np.concatenate([np.arange(start, start + size - 1, 2) for start, size in zip(starts, sizes, strict=True)])
    ids, occurrence = samples[firsts].T
    draws = uniform(seed, epoch, ids, occurrence, _NUM_DRAWS, purpose=Purpose.MIX)
    whole = (place[firsts] >= 0) & (place[firsts + 1] >= 0) & (draws[:, 0] < settings.mix_probability)
    firsts, draws = firsts[whole], draws[whole]
    both = settings.mixup > 0 and settings.cutmix > 0
    cut = draws[:, 1] < settings.cutmix_share if both else np.full(len(firsts), settings.cutmix > 0)
    alpha = np.where(cut, settings.cutmix, settings.mixup)
    share = betaincinv(alpha, alpha, draws[:, 2])
    return Mixing(place[np.stack([firsts, firsts + 1], axis=1)], cut, share, draws[:, 3:])


def cut_boxes(mixing: Mixing, size: tuple[int, int]) -> Boxes:
    """The box ``(P, 4)`` of each pair in images of this (height, width): 1 - share of the area, cut at edges."""
    sides = np.array(size)
    half = np.floor(sides * np.sqrt(1 - mixing.share)[:, None]).astype(np.int64) // 2
    centre = np.floor(mixing.centre * sides).astype(np.int64)
    low, high = (centre - half).clip(min=0), np.minimum(centre + half, sides)
    return np.concatenate([low, high - low], axis=1)


def kept_shares(mixing: Mixing, size: tuple[int, int]) -> NDArray[np.float64]:
    """What an image of each pair keeps of itself ``(P,)``, with the area that cutmix's box really has."""
    boxes = cut_boxes(mixing, size)
    return np.where(mixing.cut, 1 - boxes[:, 2] * boxes[:, 3] / (size[0] * size[1]), mixing.share)


def mix_images(images: Tensor, mixing: Mixing) -> Tensor:
    """Mix the pairs of float images ``(B, C, H, W)``, in place."""
    boxes = cut_boxes(mixing, (images.shape[-2], images.shape[-1]))
    return (_mix_in_turn if images.device.type == "cpu" else _mix_together)(images, mixing, boxes)


def _mix_in_turn(images: Tensor, mixing: Mixing, boxes: Boxes) -> Tensor:
    for (first, second), cut, share, box in zip(
        mixing.places.tolist(), mixing.cut, mixing.share.tolist(), boxes.tolist(), strict=True
    ):
        one, other = images[first], images[second]
        if cut:
            top, left, height, width = box
            window = slice(None), slice(top, top + height), slice(left, left + width)
            kept = one[window].clone()
            one[window] = other[window]
            other[window] = kept
        else:
            mixed = torch.lerp(other, one, share)
            other.lerp_(one, 1 - share)
            one.copy_(mixed)
    return images


def _mix_together(images: Tensor, mixing: Mixing, boxes: Boxes) -> Tensor:
    """The same without a step for each pair."""
    device = images.device
    for where, cut in ((np.flatnonzero(mixing.cut), True), (np.flatnonzero(~mixing.cut), False)):
        if not len(where):
            continue
        first, second = placed(mixing.places[where], device).unbind(1)
        one, other = images[first], images[second]
        if cut:
            inside = _inside(placed(boxes[where], device), (images.shape[-2], images.shape[-1]))[:, None]
            images[first], images[second] = torch.where(inside, other, one), torch.where(inside, one, other)
        else:
            shares = placed(np.stack([mixing.share[where], 1 - mixing.share[where]]), device).to(images.dtype)
            share, rest = shares[:, :, None, None, None]
            images[first], images[second] = torch.lerp(other, one, share), torch.lerp(other, one, rest)
    return images


def _inside(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Which pixels of an image of this (height, width) lie in each box: ``(P, H, W)``."""
    top, left, height, width = boxes[:, :, None].unbind(1)
    rows, columns = (torch.arange(side, device=boxes.device) for side in size)
    within = (rows >= top) & (rows < top + height)
    return within[:, :, None] & ((columns >= left) & (columns < left + width))[:, None]


def mix_views(views: Mapping[str, Tensor], mixing: Mixing) -> None:
    """Mix all views of a batch, in place; views that share a tensor are mixed once."""
    for images in {id(view): view for view in views.values()}.values():
        mix_images(images, mixing)


def mix_targets(target: Tensor, mixing: Mixing, size: tuple[int, int], num_classes: int) -> Tensor:
    """Class probabilities ``(B, K)`` of the mixed images; zeros where there is no label (see :meth:`Mixing.alike`).

    Args:
        target: classes ``(B,)``, -1 for unlabelled.
        size: (height, width) of the view whose box counts.
    """
    labelled = (target != UNLABELLED)[:, None].float()
    plain = torch.zeros(len(target), num_classes, device=target.device)
    plain.scatter_(1, target.clamp(min=0)[:, None], labelled)
    mixed = plain.clone()
    first, second = placed(mixing.places, target.device).T
    share = placed(kept_shares(mixing, size), target.device).float()[:, None]
    mixed[first] = share * plain[first] + (1 - share) * plain[second]
    mixed[second] = share * plain[second] + (1 - share) * plain[first]
    return mixed
