"""Patch merging and attention position by position, in float64."""

import torch


def merge(grid, norm, linear):
    """``grid`` (H, W, C): each 2x2 neighbourhood in the order (0,0), (1,0), (0,1), (1,1), zeros outside."""
    height, width, channels = grid.shape
    rows = []
    for top in range(0, height, 2):
        row = []
        for left in range(0, width, 2):
            parts = []
            for down, right in [(0, 0), (1, 0), (0, 1), (1, 1)]:
                inside = top + down < height and left + right < width
                parts.append(grid[top + down, left + right] if inside else torch.zeros(channels, dtype=grid.dtype))
            row.append(linear(norm(torch.cat(parts))))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def block(tokens, layer):
    """Pre-norm attention and MLP on ``tokens`` (L, C), head by head and query by query."""
    normed = layer.norm1(tokens)
    width = tokens.shape[1]
    query, key, value = (normed @ layer.qkv.weight[i * width : (i + 1) * width].T for i in range(3))
    size = width // layer.num_heads
    attended = torch.zeros_like(tokens)
    for head in range(layer.num_heads):
        part = slice(head * size, (head + 1) * size)
        for position in range(len(tokens)):
            scores = torch.stack([query[position, part] @ other[part] / size**0.5 for other in key])
            shares = scores.exp() / scores.exp().sum()
            attended[position, part] = sum(share * other[part] for share, other in zip(shares, value, strict=True))
    tokens = tokens + layer.attention_projection(attended)
    expand, activation, contract = layer.mlp
    return tokens + contract(activation(expand(layer.norm2(tokens))))
