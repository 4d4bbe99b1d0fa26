"""MGD's generation block: make the teacher's map from what a random mask leaves of the student's.

Source: Yang, Li, Shao, Shi, Yuan, Yuan, ECCV 2022, arXiv 2205.01529, in the layers of the released code.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Masked = Literal["channels", "positions"]
"""What a mask hides: whole channels of an image's map, or all channels of a position."""


class MaskedGeneration(nn.Module):
    """``(B, student_channels, H, W) -> (B, teacher_channels, H, W)``: project, mask, two 3x3 convolutions with ReLU.

    Without a difference in channels there is no projection.

    Args:
        student_channels: channels of the student's stage.
        teacher_channels: channels of the teacher's, at which the block works.
        mask_ratio: probability with which a channel or a position is set to zero.
        masked: which of the two.
    """

    def __init__(self, student_channels: int, teacher_channels: int, *, mask_ratio: float, masked: Masked) -> None:
        super().__init__()
        self.mask_ratio, self.masked = mask_ratio, masked
        same = student_channels == teacher_channels
        self.projection = nn.Identity() if same else nn.Conv2d(student_channels, teacher_channels, kernel_size=1)
        self.generation = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(teacher_channels, teacher_channels, kernel_size=3, padding=1),
        )

    def forward(self, feature: Tensor) -> Tensor:
        """The generated map; another mask is drawn for every image at every call."""
        projected: Tensor = self.projection(feature)
        return self.generation(projected * self._mask(projected))  # type: ignore[no-any-return]

    def _mask(self, feature: Tensor) -> Tensor:
        """Zeros and ones ``(B, C, 1, 1)`` or ``(B, 1, H, W)``."""
        num_samples, channels, height, width = feature.shape
        shape = (num_samples, channels, 1, 1) if self.masked == "channels" else (num_samples, 1, height, width)
        return (torch.rand(shape, device=feature.device) >= self.mask_ratio).to(feature.dtype)
