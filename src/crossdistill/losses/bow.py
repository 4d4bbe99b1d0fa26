"""Bags of visual words: what an image's local features say in words, and how far a prediction is from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from crossdistill.errors import InputError
from crossdistill.losses.inputs import Reduction, check_positive, reduce, widen

Pool = Literal["max", "mean"]

CHUNK_BYTES = {"cpu": 16 * 2**20}
"""Distances that are looked at together, by kind of device: on a CPU, what its caches hold (measured: 1.4 times as fast
as all at once, on 16 images of 12 x 12 locations and 8,192 words)."""

OTHER_CHUNK_BYTES = 256 * 2**20
"""The same on any other device, where few large kernels are better."""


def bow_targets(
    features: Tensor,
    vocabulary: Tensor,
    *,
    inverse_delta: float | None,
    mean_min_distance: float | Tensor,
    pool: Pool = "max",
    border: int = 1,
) -> Tensor:
    """Soft bags of words ``(B, V)`` of feature maps: every row adds up to 1.

    Each location u is assigned to all words, ``softmax_k(- inverse_delta / mean_min_distance * |f_u - v_k|^2)``; the
    image's bag is the largest (or mean) assignment of each word over its locations, divided by the sum over words.

    >>> features = torch.zeros(1, 1, 3, 3)
    >>> bow_targets(features, torch.tensor([[0.0], [1.0]]), inverse_delta=1.0, mean_min_distance=0.5, border=0)
    tensor([[0.8808, 0.1192]])

    Args:
        features: ``(B, C, H, W)``, before its border is left out.
        vocabulary: ``(V, C)``, one word a row.
        inverse_delta: how sharply locations choose; ``None`` assigns each to its nearest word alone.
        mean_min_distance: squared distance of a location to its nearest word, on average; a tensor of one element's
            value is not read.
        pool: ``"max"`` or ``"mean"`` over locations.
        border: rows and columns at each edge that do not count.

    Raises:
        InputError: shapes that do not fit, a map that is all border, options out of range.

    Source: Gidaris et al. 2021, arXiv 2012.11552, section 3.2, in the form of the released code.
    """
    _check(features, vocabulary, inverse_delta, mean_min_distance, pool)
    locations = inner(features, border)
    words = widen(vocabulary).to(torch.promote_types(widen(features).dtype, widen(vocabulary).dtype))
    scale = None if inverse_delta is None else inverse_delta / mean_min_distance
    bags = [
        bag_of(squared_distances(part, words), scale, pool)
        for part in chunks(locations, num_words=len(vocabulary), itemsize=words.element_size())
    ]
    return torch.cat(bags) if bags else words.new_zeros(0, len(words))


def inner(features: Tensor, border: int) -> Tensor:
    """Locations ``(B, L, C)`` of maps ``(B, C, H, W)`` without ``border`` rows and columns at each edge.

    Raises:
        InputError: nothing is left.
    """
    height, width = features.shape[-2:]
    if border < 0 or min(height, width) <= 2 * border:
        raise InputError(
            f"a map of {height}x{width} locations with border={border}",
            f"at least {2 * max(border, 0) + 1} locations a side, and a border of 0 or more",
            "show the network larger images, take a level of finer grid, or lower the border",
        )
    return features[..., border : height - border, border : width - border].flatten(2).transpose(1, 2)


def squared_distances(locations: Tensor, vocabulary: Tensor) -> Tensor:
    """``|f - v|^2`` of every location ``(..., L, C)`` to every word ``(V, C)``: ``(..., L, V)``, in float32 or wider.

    By ``|f|^2 + |v|^2 - 2 f v``, never below 0. Autocast would multiply in 16 bits, in which a quarter of the
    locations choose another nearest word (measured on random features of a ResNet-50, bfloat16).
    """
    with torch.autocast(locations.device.type, enabled=False):
        locations = locations.to(vocabulary.dtype)
        flat = locations.reshape(-1, locations.shape[-1])
        distances = torch.addmm(vocabulary.square().sum(dim=1), flat, vocabulary.T, alpha=-2)
        distances.add_(flat.square().sum(dim=1, keepdim=True)).clamp_(min=0)
        return distances.reshape(*locations.shape[:-1], len(vocabulary))


def chunks(locations: Tensor, *, num_words: int, itemsize: int) -> Iterator[Tensor]:
    """Images ``(b, L, C)`` in runs whose distances to all words fit in :data:`CHUNK_BYTES`, at least one at a time."""
    of_one = locations.shape[1] * num_words * itemsize
    size = max(1, CHUNK_BYTES.get(locations.device.type, OTHER_CHUNK_BYTES) // max(1, of_one))
    for start in range(0, len(locations), size):
        yield locations[start : start + size]


def bag_of(distances: Tensor, scale: float | Tensor | None, pool: Pool) -> Tensor:
    """Bags ``(B, V)`` from squared distances ``(B, L, V)``, which are overwritten: fresh memory costs more than sums.

    ``scale`` None assigns to the nearest word alone.
    """
    if scale is None:
        assigned = torch.zeros_like(distances).scatter_(2, distances.argmin(dim=2, keepdim=True), 1)
    else:
        assigned = distances.mul_(-scale).softmax(dim=2)
    pooled = assigned.amax(dim=1) if pool == "max" else assigned.mean(dim=1)
    return pooled / pooled.sum(dim=1, keepdim=True)


def bow_cross_entropy(logits: Tensor, target: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Cross-entropy in nats of predicted words with bags: ``- sum_k y_k log softmax(z)_k``.

    It differs from the KL divergence of the paper by :func:`entropy` of the target, which has no gradient.

    >>> round(bow_cross_entropy(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, 0.5, 0.0]])).item(), 5)
    1.90761

    Args:
        logits: ``(N, V)``.
        target: ``(B, V)``, N being a multiple of B: the same bag for ``N / B`` views of an image, which follow each
            other.
        reduction: ``"mean"``, or ``"none"`` for ``(N,)``.

    Raises:
        InputError: shapes that do not fit.
    """
    if logits.ndim != 2 or target.ndim != 2 or logits.shape[1] != target.shape[1] or _uneven(logits, target):
        raise InputError(
            f"logits {tuple(logits.shape)} for bags {tuple(target.shape)}",
            "(N, V) and (B, V), with N a multiple of B: whole numbers of views of each image",
            "give every image equally many views, and predict as many words as there are",
        )
    logits = widen(logits).log_softmax(dim=1)
    views = logits.reshape(len(target), -1, logits.shape[1])
    return reduce(-(views * target.to(logits.dtype)[:, None]).sum(dim=2).flatten(), reduction)


def entropy(probabilities: Tensor, *, offset: float = 0.0) -> Tensor:
    """``- sum p log(p + offset)`` of the last dimension, in nats; zeros count nothing.

    The released code adds 1e-5 inside the logarithm, which makes entropies over thousands of words too small.
    """
    summands: Tensor = torch.special.xlogy(probabilities, probabilities + offset)
    return -summands.sum(dim=-1)


def perplexities(bags: Tensor, *, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """How many words a bag holds on average, and how many all bags ``(B, V)`` together: scalars from 1 to V.

    The mean over images of ``exp(entropy)``, and ``exp(entropy)`` of the mean bag.
    """
    return entropy(bags, offset=offset).exp().mean(), entropy(bags.mean(dim=0), offset=offset).exp()


def _uneven(logits: Tensor, target: Tensor) -> bool:
    return len(target) == 0 or len(logits) == 0 or len(logits) % len(target) != 0


def _check(
    features: Tensor, vocabulary: Tensor, inverse_delta: float | None, distance: float | Tensor, pool: str
) -> None:
    if features.ndim != 4 or vocabulary.ndim != 2 or features.shape[1] != vocabulary.shape[1] or not len(vocabulary):
        raise InputError(
            f"features {tuple(features.shape)} and vocabulary {tuple(vocabulary.shape)}",
            "(B, C, H, W) and (V, C) of one width, and at least one word",
            "take features of the level that the words were taken from",
        )
    check_pool(pool)
    if inverse_delta is not None:
        check_positive({"inverse_delta": inverse_delta})
    if not isinstance(distance, Tensor) and not 0 < distance < math.inf:
        raise InputError(f"mean_min_distance={distance}", "a finite number above 0", "measure it on features and words")


def check_pool(pool: str) -> None:
    """Refuse a way to pool that does not exist.

    Raises:
        InputError: neither of the two.
    """
    if pool not in get_args(Pool):
        raise InputError(f"pool={pool!r}", "'max' or 'mean'", "choose one of them")
