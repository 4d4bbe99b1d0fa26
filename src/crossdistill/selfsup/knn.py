"""Nearest neighbours: the class of an image by the classes of those that a network finds most alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from crossdistill.errors import InputError
from crossdistill.selfsup.features import Features

NEIGHBOURS, TEMPERATURE = 20, 0.07

_CHUNK_VALUES = 2**24
"""Similarities that are held at once."""

_TOP = 5


def weighted_knn(
    bank: Tensor,
    bank_targets: Tensor,
    queries: Tensor,
    *,
    num_classes: int,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Votes ``(M, K)`` for each class: the nearest images by cosine, each with ``exp(cosine / temperature)``.

    >>> bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> votes = weighted_knn(bank, torch.tensor([0, 1]), torch.tensor([[3.0, 1.0]]), num_classes=2, neighbours=1)
    >>> votes.argmax(dim=1)
    tensor([0])

    Args:
        bank: ``(N, D)``, of any length; directions count.
        bank_targets: ``(N,)``, classes from 0.
        queries: ``(M, D)``.
        num_classes: K.
        neighbours: how many vote.
        temperature: the lower, the more the nearest count.

    Raises:
        InputError: more neighbours than images in the bank, or a temperature that is not above 0.

    Source: Wu, Xiong, Yu, Lin 2018, arXiv 1805.01978, section 3.4.
    """
    if not 1 <= neighbours <= len(bank):
        raise InputError(
            f"{neighbours} neighbours of {len(bank)} images in the bank",
            f"a number from 1 to {len(bank)}",
            "ask for fewer neighbours, or give more training images",
        )
    if not temperature > 0:
        raise InputError(f"temperature={temperature}", "a temperature above 0", "0.07 is usual")
    directions = F.normalize(bank, dim=1).T
    size = max(1, _CHUNK_VALUES // len(bank))
    votes = [
        _votes(F.normalize(part, dim=1) @ directions, bank_targets, num_classes, neighbours, temperature)
        for part in queries.split(size)  # type: ignore[no-untyped-call]
    ]
    return torch.cat(votes) if votes else queries.new_zeros(0, num_classes)


def _votes(similarity: Tensor, bank_targets: Tensor, num_classes: int, neighbours: int, temperature: float) -> Tensor:
    nearest = similarity.topk(neighbours, dim=1)
    # Only ratios of a query's votes count: relative to its nearest neighbour nothing overflows.
    weights = ((nearest.values - nearest.values[:, :1]) / temperature).exp()
    return similarity.new_zeros(len(similarity), num_classes).scatter_add_(1, bank_targets[nearest.indices], weights)


def knn_accuracy(
    bank: Features,
    queries: Features,
    *,
    num_classes: int,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> dict[str, Any]:
    """``top1`` (and ``top5`` with more than five classes) as shares, and ``num_samples``, of labelled images alone."""
    bank, queries = bank.labelled(), queries.labelled()
    votes = weighted_knn(
        bank.embeddings,
        bank.targets,
        queries.embeddings,
        num_classes=num_classes,
        neighbours=neighbours,
        temperature=temperature,
    )
    return accuracy(votes, queries.targets)


def accuracy(scores: Tensor, targets: Tensor) -> dict[str, Any]:
    """``top1`` (and ``top5`` with more than five classes) of scores ``(M, K)``, and ``num_samples``."""
    right = scores.topk(min(_TOP, scores.shape[1]), dim=1).indices == targets[:, None]
    top5 = {"top5": right.any(dim=1).double().mean().item()} if scores.shape[1] > _TOP else {}
    return {"top1": right[:, 0].double().mean().item(), **top5, "num_samples": len(targets)}
