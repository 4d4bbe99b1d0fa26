"""The moving average of the student's weights."""

from __future__ import annotations

from timm.utils.model_ema import ModelEmaV3
from torch import nn

WARMUP = 10.0


def moving_average(student: nn.Module, decay: float | None) -> ModelEmaV3 | None:
    """timm's average of parameters and buffers with this decay, or ``None`` without one.

    The first update copies the student, and update t + 1 uses the decay ``min(decay, t / (t + 10))``: an average
    that starts at random weights with a decay of 0.9999 would still hold them after thousands of steps.
    """
    if decay is None:
        return None
    return ModelEmaV3(student, decay, use_warmup=True, warmup_gamma=WARMUP, warmup_power=1.0)
