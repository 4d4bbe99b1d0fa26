"""The head that predicts words which change in every step: its weights are made from the words themselves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.bridges.gather import all_rows, num_processes, rank, summed
from crossdistill.losses.inputs import widen


class DynamicHead(nn.Module):
    """Weights ``(K, D)`` from words ``(K, C)``: ``unit(Lin2(ReLU(BN(Lin1(unit(V))))))``, with 2 D in between.

    The statistics of the batch norm are over the K words. Nothing of it grows with K but the time it takes; with
    several processes each makes the weights of its share of the words, and all of them get all weights.

    Args:
        channels: C, of the words.
        width: D, of the student's embedding.
        kappa: factor of the logits.
        learn_kappa: whether that is trained.

    Source: Gidaris et al. 2021, arXiv 2012.11552, section 3.3, in the layers of the released code.
    """

    kappa: Tensor

    def __init__(self, channels: int, width: int, *, kappa: float, learn_kappa: bool = False) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, 2 * width, bias=False)
        self.bn = nn.BatchNorm1d(2 * width)
        self.last_layer = nn.Linear(2 * width, width)
        if learn_kappa:
            self.kappa = nn.Parameter(torch.tensor(float(kappa)))
        else:
            self.register_buffer("kappa", torch.tensor(float(kappa)), persistent=False)

    def forward(self, words: Tensor) -> Tensor:
        """Weights ``(K, D)`` of unit rows in float32 or wider; no gradient reaches the words."""
        words = words.detach()
        num_parts = num_processes() if self.training else 1
        if num_parts == 1:
            return self._rows(words, self.bn)
        parts = words.tensor_split(num_parts)
        own = self._rows(parts[rank()], self._normalised)
        weights: Tensor = all_rows(own, [len(part) for part in parts])
        return weights

    def logits(self, embedding: Tensor, weights: Tensor) -> Tensor:
        """``kappa f W^T`` of embeddings ``(N, D)``, which are not normalised: ``(N, K)``."""
        with torch.autocast(embedding.device.type, enabled=False):  # what a loss is made of is not rounded to 16 bits
            logits: Tensor = self.kappa * F.linear(widen(embedding), weights.to(widen(embedding).dtype))
        return logits

    def _rows(self, words: Tensor, normalised: Callable[[Tensor], Tensor]) -> Tensor:
        hidden = self.fc(F.normalize(widen(words), dim=1))
        hidden = F.relu(normalised(hidden))
        return F.normalize(widen(self.last_layer(hidden)), dim=1)

    def _normalised(self, hidden: Tensor) -> Tensor:
        """Batch normalisation of ``(k, H)`` over the rows of all processes, with gradient to all of them."""
        hidden = widen(hidden)
        count = summed(hidden.new_full((), len(hidden)))
        mean = summed(hidden.sum(dim=0)) / count
        variance = summed((hidden - mean).square().sum(dim=0)) / count
        self._remember(mean.detach(), variance.detach(), count)
        scaled = (hidden - mean) * (variance + self.bn.eps).rsqrt()
        return scaled * self.bn.weight + self.bn.bias

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Running statistics as PyTorch keeps them, the variance without bias."""
        momentum = self.bn.momentum if self.bn.momentum is not None else 0.1
        unbiased = variance * count / (count - 1).clamp(min=1)
        for kept, new in ((self.bn.running_mean, mean), (self.bn.running_var, unbiased)):
            if kept is not None:
                kept.lerp_(new.to(kept.dtype), momentum)
        if self.bn.num_batches_tracked is not None:
            self.bn.num_batches_tracked += 1
