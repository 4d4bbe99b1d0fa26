"""Patch merging and the transformer block against references that go position by position."""

import pytest
import torch

from crossdistill.bridges.token_layers import Block, PatchMerging
from oracles import token_layers as oracle


@pytest.mark.parametrize("grid", [(4, 6), (2, 2), (3, 4), (5, 3), (1, 1)])
def test_merging_agrees_with_the_slow_reference(grid):
    torch.manual_seed(0)
    layer = PatchMerging(3, 5).double()
    feature = torch.randn(2, *grid, 3, dtype=torch.float64)
    expected = torch.stack([oracle.merge(image, *layer.project) for image in feature])
    torch.testing.assert_close(layer(feature), expected, rtol=1e-12, atol=1e-12)
    assert expected.shape == (2, (grid[0] + 1) // 2, (grid[1] + 1) // 2, 5)


@pytest.mark.parametrize(("width", "num_heads"), [(8, 4), (6, 2), (5, 1)])
def test_block_agrees_with_the_slow_reference(width, num_heads):
    torch.manual_seed(0)
    block = Block(width).double()
    assert block.num_heads == num_heads
    tokens = torch.randn(2, 7, width, dtype=torch.float64)
    expected = torch.stack([oracle.block(sample, block) for sample in tokens])
    torch.testing.assert_close(block(tokens), expected, rtol=1e-10, atol=1e-12)


def test_block_has_no_position():
    torch.manual_seed(0)
    block, tokens, order = (
        Block(8).double(),
        torch.randn(1, 6, 8, dtype=torch.float64),
        torch.tensor([3, 1, 5, 0, 2, 4]),
    )
    torch.testing.assert_close(block(tokens[:, order]), block(tokens)[:, order])
