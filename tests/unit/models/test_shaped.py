"""Tracing with shapes: control flow on sizes, tensors made of numbers, and parts that are computed again."""

import pytest
import torch
from torch import nn

from crossdistill.errors import InputError
from crossdistill.models import build
from crossdistill.models.cuts import recomputable, single_tensor_cuts
from crossdistill.models.cutter import opened_at
from crossdistill.models.shaped import ShapedTracer
from crossdistill.models.trace import trace


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layer = nn.Linear(channels, channels)

    def forward(self, tokens, rotation):
        return tokens + torch.tanh(self.layer(tokens)) * rotation


class Rotary(nn.Module):
    """Every block reads one table that follows from the size of the grid, and a class token joins half-way."""

    def __init__(self, depth=4, channels=8):
        super().__init__()
        self.patches = nn.Conv2d(3, channels, 4, 4)
        self.bands = nn.Buffer(torch.linspace(1, 2, channels))
        self.token = nn.Parameter(torch.randn(1, 1, channels))
        self.blocks = nn.ModuleList(Block(channels) for _ in range(depth))
        self.fc = nn.Linear(channels, 5)

    def forward(self, images):
        assert isinstance(images, torch.Tensor)
        maps = self.patches(images)
        batch, _, height, width = maps.shape
        if height * width > 10_000:
            raise ValueError("too large")
        angles = torch.arange(height * width, device=images.device, dtype=images.dtype)[:, None] * self.bands
        tokens = maps.flatten(2).transpose(1, 2).reshape(batch, height * width, -1)
        for index, block in enumerate(self.blocks):
            if index == 2:
                tokens = torch.cat([self.token.expand(batch, -1, -1), tokens], dim=1)
                angles = torch.cat([torch.zeros(1, len(self.bands), device=images.device), angles])
            tokens = block(tokens, angles.cos())
        return self.fc(tokens[:, 0])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build(Rotary(), num_classes=5, image_size=16)


def test_a_network_that_computes_with_sizes_is_cut_exactly(model):
    assert [stage.num_prefix_tokens for stage in model.spec.stages] == [0, 0, 1, 1]
    assert [stage.grid for stage in model.spec.stages] == [(4, 4)] * 4
    for batch_size in (1, 2, 5):
        images = torch.rand(batch_size, 3, 16, 16)
        expected = model.net(images)
        for stage in range(1, 5):
            assert torch.equal(model.forward_from(model.forward_until(images, stage), stage).logits, expected)


def test_a_size_other_than_the_traced_one_is_refused_with_both(model):
    with pytest.raises(InputError, match=r"(?s)2, 3, 24, 24.*B, 3, 16, 16.*image_size"):
        model(torch.rand(2, 3, 24, 24))
    with pytest.raises(InputError, match="staged for that size"):
        model.forward_until(torch.rand(2, 3, 24, 24), 1)


def test_what_is_computed_again_moves_with_the_network(model):
    model = model.double()
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    assert torch.equal(model.forward_from(model.forward_until(images, 3), 3).logits, model.net(images))


def test_tables_of_positions_do_not_count_as_alive():
    graph = trace(Rotary(), ShapedTracer(opened_at(Rotary(), 0), (3, 16, 16), torch.float32), training=False)
    again = {node.name for node in recomputable(graph)}
    assert any(name.startswith("arange") for name in again)
    assert any(name.startswith("expand") for name in again)
    assert "patches" not in again
    cuts = [node.name for node, _ in single_tensor_cuts(graph)]
    assert {"patches", "blocks_0", "blocks_1", "blocks_2", "blocks_3"} <= set(cuts)


class TwoBranches(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(3, 4, 2, 2)
        self.more_left, self.more_right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, images):
        left, right = self.left(images), self.right(images)
        left, right = self.more_left(left), self.more_right(right)
        return self.fc(torch.cat([left.mean((2, 3)), right.mean((2, 3))], dim=1))


def test_a_network_without_a_single_tensor_has_no_stages_and_still_answers():
    model = build(TwoBranches(), num_classes=5, image_size=16)
    assert model.spec.stages == ()
    outputs = model(torch.rand(2, 3, 16, 16))
    assert outputs.logits.shape == (2, 5)
    assert outputs.embedding.shape == (2, 8)
    with pytest.raises(InputError, match="cannot be cut"):
        model.forward_until(torch.rand(2, 3, 16, 16), 1)


class Windows(nn.Module):
    """Between its stages the batch holds windows, which are no images."""

    def __init__(self):
        super().__init__()
        self.stem, self.mix, self.last = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 8, 2, 2)
        self.fc = nn.Linear(8, 5)

    def forward(self, images):
        maps = self.stem(images)
        batch, channels, height, width = maps.shape
        windows = maps.reshape(batch, channels, 2, height // 2, 2, width // 2).permute(0, 2, 4, 1, 3, 5)
        windows = self.mix(windows.reshape(-1, channels, height // 2, width // 2))
        maps = windows.reshape(batch, 2, 2, channels, height // 2, width // 2).permute(0, 3, 1, 4, 2, 5)
        return self.fc(self.last(maps.reshape(batch, channels, height, width)).mean((2, 3)))


def test_windows_are_not_taken_for_images():
    model = build(Windows(), num_classes=5, image_size=32)
    outputs = model(torch.rand(3, 3, 32, 32))
    assert all(len(tensor) == 3 for tensor in outputs.stages)
    assert [stage.stride for stage in model.spec.stages] == [4, 8]
