"""Counts against closed forms and published figures; times against the clock."""

import time

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from crossdistill.analysis.cost import cost, count_macs
from crossdistill.contracts import InputSpec
from crossdistill.models import build


def spec(size, num_channels=3):
    return InputSpec((size, size), num_channels, (0.5,) * num_channels, (0.5,) * num_channels)


class Attention(nn.Module):
    """One attention block without projections: only the two products of queries, keys and values count."""

    def __init__(self, masked):
        super().__init__()
        self.masked = masked

    def forward(self, tokens):
        mask = tokens.new_zeros(tokens.shape[-2], tokens.shape[-2]) if self.masked else None
        return functional.scaled_dot_product_attention(tokens, tokens, tokens, attn_mask=mask)


@pytest.mark.parametrize(
    ("network", "shape", "expected"),
    [
        (nn.Linear(7, 5), (2, 7), 2 * 7 * 5),
        (nn.Linear(7, 5, bias=False), (2, 3, 7), 2 * 3 * 7 * 5),
        (nn.Conv2d(3, 8, 3, padding=1), (1, 3, 6, 6), 3 * 8 * 9 * 36),
        (nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8), (1, 8, 6, 6), 8 * 25 * 9),
        (Attention(masked=False), (1, 2, 5, 4), 2 * (5 * 5 * 4) * 2),
        (Attention(masked=True), (3, 2, 5, 4), 3 * 2 * (5 * 5 * 4) * 2),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2)), (1, 3, 6, 6), 0),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_macs_are_those_counted_by_hand(network, shape, expected, device):
    assert count_macs(network.eval().to(device), torch.zeros(shape, device=device)) == expected


def vit_macs(tokens, dim, depth, mlp, patch_inputs, num_patches, num_classes):
    attention = tokens * dim * 3 * dim + 2 * tokens * tokens * dim + tokens * dim * dim
    return num_patches * patch_inputs * dim + depth * (attention + 2 * tokens * dim * mlp * dim) + dim * num_classes


def test_macs_of_published_networks():
    with torch.device("meta"):
        images = torch.zeros(1, 3, 224, 224)
        resnet, deit = timm.create_model("resnet18").eval(), timm.create_model("deit_tiny_patch16_224").eval()
    assert count_macs(resnet, images) / 1e9 == pytest.approx(1.82, abs=0.01)  # torchvision's documentation: 1.81
    assert count_macs(deit, images) == vit_macs(197, 192, 12, 4, 3 * 16 * 16, 196, 1000)
    assert count_macs(deit, images) / 1e9 == pytest.approx(1.26, abs=0.01)


def test_macs_grow_in_step_with_the_batch():
    network = timm.create_model("test_vit", img_size=32, num_classes=3).eval()
    assert count_macs(network, torch.zeros(4, 3, 32, 32)) == 4 * count_macs(network, torch.zeros(1, 3, 32, 32))


def test_cost_of_a_network_leaves_it_as_it_was():
    network = timm.create_model("test_resnet", num_classes=3).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    measured = cost(network, spec(32), num_passes=7)
    assert measured.num_parameters == sum(parameter.numel() for parameter in network.parameters())
    assert measured.gmacs == count_macs(network.eval(), torch.zeros(1, 3, 32, 32)) / 1e9
    assert 0 < measured.latency_p10_ms <= measured.latency_ms <= measured.latency_p90_ms
    assert (measured.num_passes, measured.batch_size, measured.num_threads) == (7, 1, torch.get_num_threads())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_cost_keeps_mode_device_and_precision():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(), nn.BatchNorm2d(2)).to(torch.bfloat16)
    assert cost(network, spec(8, num_channels=1), num_passes=3).gmacs == 9 * 2 * 36 / 1e9
    assert network.training
    assert network[0].weight.dtype == torch.bfloat16


def test_a_staged_model_is_measured_by_its_plain_network():
    staged = build("timm/test_resnet", num_classes=3, image_size=32)
    assert cost(staged, staged.spec.input, num_passes=3).num_parameters == staged.spec.num_parameters
    assert cost(staged, spec(32), num_passes=3).gmacs == cost(staged.net, spec(32), num_passes=3).gmacs


class Slow(nn.Module):
    """A network whose every pass takes 50 ms."""

    def forward(self, images):
        time.sleep(0.05)
        return images


def test_time_is_the_median_and_stops_at_its_limit():
    start = time.perf_counter()
    measured = cost(Slow(), spec(4), num_passes=1000, max_seconds=0.5)
    assert time.perf_counter() - start < 4
    assert 50 <= measured.latency_ms < 500
    assert 3 <= measured.num_passes < 12


def test_three_passes_are_timed_even_past_the_limit():
    assert cost(Slow(), spec(4), num_passes=1, max_seconds=0.0).num_passes == 3
