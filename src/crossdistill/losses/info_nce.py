"""InfoNCE: each sample's feature must find its own among the features of all samples in another network."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from crossdistill.errors import InputError
from crossdistill.losses.direction import unit
from crossdistill.losses.inputs import Reduction, check_positive, reduce, widen


def info_nce(
    learner: Tensor,
    source: Tensor,
    *,
    temperature: float | Tensor,
    offset: int = 0,
    excluded: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of picking row ``offset + b`` of ``source`` for row b of ``learner``, by cosine / temperature.

    ``- log(exp(cos(z_b, f_b) / tau) / sum_k exp(cos(z_b, f_k) / tau))``; a single row has nothing to be told from
    and gives 0. A feature shorter than 1e-6 has no direction: its cosines are 0, without gradient. Gradients go to both
    sides: detach the one that is not to learn.

    >>> learner, source = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    >>> round(info_nce(learner, source, temperature=0.5).item(), 4)
    0.3301

    Args:
        learner: ``(B, D)``.
        source: ``(N, D)``, N at least ``offset + B``: with several processes, the rows of all of them.
        temperature: above 0; a tensor of one element may be learnt.
        offset: where in ``source`` the positives begin.
        excluded: ``(B, N)`` bool, rows of ``source`` that do not count for a row of ``learner``, such as those of the
            same image; its positive always counts.
        reduction: ``"mean"`` over the B rows, or ``"none"`` for ``(B,)``.

    Raises:
        InputError: features that are no matrices of one width, too few rows, ``excluded`` of another shape, a
            temperature that is not above 0.

    Source: van den Oord, Li, Vinyals 2018, arXiv 1807.03748, equation 4, with cosines as the scores.
    """
    _check_rows(learner, source, offset, excluded)
    if isinstance(temperature, Tensor):
        temperature = widen(temperature).reshape(())  # its value is not read: that would wait for the device
    else:
        check_positive({"temperature": temperature})
    learner, source = widen(learner), widen(source)
    shared = torch.promote_types(learner.dtype, source.dtype)
    # Autocast would run the matrix product in 16 bits.
    with torch.autocast(learner.device.type, enabled=False):
        scores = unit(learner.to(shared)) @ unit(source.to(shared)).T / temperature
        positive = torch.arange(offset, offset + len(learner), device=learner.device)
        if excluded is not None:
            scores = scores.masked_fill(excluded.scatter(1, positive[:, None], False), -torch.inf)
        return reduce(F.cross_entropy(scores, positive, reduction="none"), reduction)


def _check_rows(learner: Tensor, source: Tensor, offset: int, excluded: Tensor | None) -> None:
    matrices = learner.ndim == source.ndim == 2 and learner.shape[1] == source.shape[1]
    if not matrices or not 0 <= offset <= len(source) - len(learner):
        raise InputError(
            f"learner {tuple(learner.shape)} and source {tuple(source.shape)} with offset {offset}",
            "(B, D) and (N, D) of one width, with the B positives among the N rows",
            "project both to one width, and give both networks the same batch",
        )
    if excluded is not None and (excluded.shape != (len(learner), len(source)) or excluded.dtype != torch.bool):
        raise InputError(
            f"excluded {tuple(excluded.shape)} of {excluded.dtype} for {len(learner)} rows and {len(source)} sources",
            f"({len(learner)}, {len(source)}) bool",
            "say for each row of the learner which rows of the source do not count",
        )
