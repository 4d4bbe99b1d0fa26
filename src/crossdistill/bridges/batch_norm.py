"""Batch normalisation for bridges, which also meet batches of one image."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation of ``(B, C)`` or ``(B, C, H, W)``.

    One value a channel, as of one image at one position, has no spread: it is normalised as in evaluation, and the
    running statistics stay.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The normalised tensor."""
        if self.training and input[:, 0].numel() == 1:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)

    def _check_input_dim(self, input: Tensor) -> None:
        """Both shapes are fine."""
