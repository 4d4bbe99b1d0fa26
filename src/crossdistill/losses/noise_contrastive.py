"""Noise-contrastive estimation: tell the pair that belongs together from pairs that do not, by their scores."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from crossdistill.errors import InputError
from crossdistill.losses.inputs import widen


def noise_contrastive(positive: Tensor, negatives: Tensor, allowed: Tensor, *, log_mean: Tensor | float) -> Tensor:
    """Binary cross-entropy of an anchor's one true partner against its K others, ``-log D(1) - sum log(1 - D)``.

    A score s, a cosine over a temperature, becomes ``P = exp(s - log_mean)``, and the probability that it belongs to
    the true partner ``D = P / (P + K)``, where K counts the negatives that this anchor may have. In logarithms that is
    a logistic function, ``log D = -softplus(log K + log_mean - s)``, which no score overflows. An anchor without any
    negative has nothing to tell apart: its loss is 0.

    >>> positive, negatives = torch.tensor([2.0, 2.0]), torch.tensor([[0.0, -1.0], [0.0, -1.0]])
    >>> allowed = torch.tensor([[True, True], [False, True]])
    >>> round(noise_contrastive(positive, negatives, allowed, log_mean=0.0).item(), 4)
    0.627

    Args:
        positive: ``(B,)``, scores of the true pairs.
        negatives: ``(B, N)``, scores of each anchor with N others.
        allowed: ``(B, N)`` bool, which of these count.
        log_mean: logarithm of the mean of ``exp(s)`` that is taken for the normaliser (see :func:`log_mean_exp`).

    Raises:
        InputError: shapes that do not fit each other.

    Source: Tian, Krishnan, Isola, ICLR 2020, arXiv 1910.10699, in the form of the released code. That compares
    ``P = exp(s) / Z`` with ``K / n``, n being the number of training samples, and takes for Z n times a mean of
    ``exp(s)``: so n cancels.
    """
    _check_shapes(positive, negatives, allowed)
    positive, negatives = widen(positive), widen(negatives)
    num_negatives = allowed.sum(dim=1)
    shift = num_negatives.clamp(min=1).to(positive.dtype).log() + log_mean
    missed = F.softplus(shift - positive)
    mistaken = torch.where(allowed, F.softplus(negatives - shift[:, None]), 0.0).sum(dim=1)
    # A product, not a choice: a score that is not a number shall show, also where it does not count.
    return ((missed + mistaken) * (num_negatives > 0)).mean()


def log_mean_exp(positive: Tensor, negatives: Tensor, allowed: Tensor) -> Tensor:
    """Logarithm of the mean of ``exp(s)`` over all true pairs and all negatives that count, a scalar.

    >>> scores = torch.tensor([1.0]), torch.tensor([[3.0, 9.0]]), torch.tensor([[True, False]])
    >>> round(log_mean_exp(*scores).exp().item(), 4)  # (e + e³) / 2
    11.4019

    Args:
        positive: ``(B,)``.
        negatives: ``(B, N)``.
        allowed: ``(B, N)`` bool.

    Raises:
        InputError: shapes that do not fit each other.
    """
    _check_shapes(positive, negatives, allowed)
    positive, negatives = widen(positive), widen(negatives).masked_fill(~allowed, -torch.inf)
    count = allowed.sum() + len(positive)
    total = torch.logaddexp(positive.logsumexp(dim=0), negatives.flatten().logsumexp(dim=0))
    return total - count.to(total.dtype).log()


def _check_shapes(positive: Tensor, negatives: Tensor, allowed: Tensor) -> None:
    if positive.ndim != 1 or negatives.ndim != 2 or len(negatives) != len(positive) or allowed.shape != negatives.shape:
        raise InputError(
            f"scores {tuple(positive.shape)} of true pairs, {tuple(negatives.shape)} of others, of which "
            f"{tuple(allowed.shape)} may count",
            "(B,), (B, N) and (B, N)",
            "give each anchor one score and one row",
        )
