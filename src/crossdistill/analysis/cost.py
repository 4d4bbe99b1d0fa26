"""What a network costs to use: parameters, multiply-accumulates and CPU latency of one image."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from crossdistill.contracts import InputSpec
from crossdistill.models import StagedModel

_NUM_WARMUP_PASSES = 3
_FLOPS_PER_MAC = 2


@dataclass(frozen=True, slots=True)
class Cost:
    """The price of one image: counts, and times in milliseconds (median, 10th and 90th percentile).

    ``gmacs`` are 10⁹ multiply-accumulates of convolutions and matrix products, attention included; norms,
    activations and pooling are not counted, as is usual. Times hold for ``num_threads`` threads of this machine.
    """

    num_parameters: int
    gmacs: float
    latency_ms: float
    latency_p10_ms: float
    latency_p90_ms: float
    num_passes: int
    batch_size: int
    num_threads: int


def cost(model: nn.Module, input: InputSpec, *, num_passes: int = 50, max_seconds: float = 2.0) -> Cost:
    """Count and time one image ``(1, C, H, W)`` through a float32 CPU copy of the model, in eval mode.

    A ``StagedModel`` is measured by its plain network, which is what gets deployed. The model itself keeps its
    device, mode and weights. After ``max_seconds`` the timing stops, with at least three passes.
    """
    network = copy.deepcopy(model.net if isinstance(model, StagedModel) else model).to("cpu", torch.float32).eval()
    image = torch.zeros(1, input.num_channels, *input.image_size)
    gmacs = count_macs(network, image) / 1e9
    times = torch.tensor(_time(network, image, num_passes, max_seconds), dtype=torch.float64) * 1e3
    p10, median, p90 = torch.quantile(times, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
    return Cost(
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        gmacs=gmacs,
        latency_ms=median,
        latency_p10_ms=p10,
        latency_p90_ms=p90,
        num_passes=len(times),
        batch_size=1,
        num_threads=torch.get_num_threads(),
    )


@torch.inference_mode()
def count_macs(network: nn.Module, images: Tensor) -> int:
    """Multiply-accumulates of one forward pass on ``images`` ``(B, C, H, W)``; one is two floating-point operations."""
    # fused attention kernels are counted or not depending on torch's version; plain matrix products always are
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(images)
    return int(counter.get_total_flops()) // _FLOPS_PER_MAC


@torch.inference_mode()
def _time(network: nn.Module, images: Tensor, num_passes: int, max_seconds: float) -> list[float]:
    start = time.perf_counter()
    for _ in range(_NUM_WARMUP_PASSES):
        network(images)
        if time.perf_counter() - start > max_seconds / 4:
            break
    seconds: list[float] = []
    while len(seconds) < max(3, num_passes) and (len(seconds) < 3 or time.perf_counter() - start < max_seconds):
        before = time.perf_counter()
        network(images)
        seconds.append(time.perf_counter() - before)
    return seconds
