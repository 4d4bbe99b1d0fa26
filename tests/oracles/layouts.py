"""Where each position of a grid lies in a stage's raw tensor, looked up one by one."""

from itertools import product

import torch


def positions(rows, columns, num_unrolls):
    """(row, column) of each patch token, in the tokens' order; the recursion deals out the grid as Hiera does."""
    if num_unrolls == 0:
        return list(product(range(rows), range(columns)))
    heap = positions(rows // 2, columns // 2, num_unrolls - 1)
    return [(2 * row + down, 2 * column + right) for down, right in product(range(2), range(2)) for row, column in heap]


def at(feature, stage, sample, row, column):
    """The vector ``(C,)`` of one position."""
    if stage.layout == "NCHW":
        return feature[sample, :, row, column]
    if stage.layout == "NHWC":
        return feature[sample, row, column]
    token = positions(*stage.grid, stage.num_unrolls).index((row, column))
    return feature[sample, stage.num_prefix_tokens + token]


def as_map(feature, stage):
    """``(B, C, H, W)``, position by position."""
    rows, columns = stage.grid
    result = torch.empty(len(feature), stage.channels, rows, columns, dtype=feature.dtype)
    for sample, row, column in product(range(len(feature)), range(rows), range(columns)):
        result[sample, :, row, column] = at(feature, stage, sample, row, column)
    return result


def as_tokens(feature, stage, *, keep_prefix):
    """``(B, L, C)``, position by position, after the prefix tokens if these are kept."""
    rows, columns = stage.grid
    samples = []
    for sample in range(len(feature)):
        prefix = [feature[sample, token] for token in range(stage.num_prefix_tokens)] if keep_prefix else []
        grid = [at(feature, stage, sample, row, column) for row, column in product(range(rows), range(columns))]
        samples.append(torch.stack(prefix + grid))
    return torch.stack(samples)
