"""The losses on maps entry by entry, from the papers' equations, on nested lists ``[sample][channel][row][column]``."""

import math
from itertools import product


def size(maps):
    return len(maps), len(maps[0]), len(maps[0][0]), len(maps[0][0][0])


def average(maps, rows, columns):
    """The mean over each cell of a coarser grid: cell i of n covers floor(i size / n) up to ceil((i + 1) size / n)."""
    _, _, height, width = size(maps)

    def cell(channel, row, column):
        down = range(row * height // rows, -(-(row + 1) * height // rows))
        right = range(column * width // columns, -(-(column + 1) * width // columns))
        values = [channel[i][j] for i in down for j in right]
        return sum(values) / len(values)

    return [[[[cell(c, i, j) for j in range(columns)] for i in range(rows)] for c in sample] for sample in maps]


def squares(student, teacher):
    """Every squared difference."""
    places = product(*map(range, size(student)))
    return [(student[b][c][i][j] - teacher[b][c][i][j]) ** 2 for b, c, i, j in places]


def map_error(student, teacher):
    errors = squares(student, teacher)
    return sum(errors) / len(errors)


def generation_error(generated, teacher):
    return sum(squares(generated, teacher)) / len(generated)


def attention_map(maps, power):
    """Zagoruyko and Komodakis, section 3.1: one row of positions per sample."""
    _, channels, height, width = size(maps)
    return [
        [sum(abs(sample[c][i][j]) ** power for c in range(channels)) for i in range(height) for j in range(width)]
        for sample in maps
    ]


def attention_transfer(student, teacher, power=2):
    """Mean of squared differences of the maps divided by their norms; a map of zeros stays as it is."""
    errors = []
    for own, other in zip(attention_map(student, power), attention_map(teacher, power), strict=True):
        own_norm, other_norm = (math.hypot(*one) or 1.0 for one in (own, other))
        errors += [(a / own_norm - b / other_norm) ** 2 for a, b in zip(own, other, strict=True)]
    return sum(errors) / len(errors)


def hierarchical_context(student, teacher):
    """Chen et al.: the whole map, then what remains of 4, 2 and 1, each with half the weight of the one before."""
    _, _, height, width = size(student)
    losses, weights = [map_error(student, teacher)], [1.0]
    for side in (4, 2, 1):
        rows, columns = min(side, height), min(side, width)
        if (rows, columns) != (height, width):
            losses.append(map_error(average(student, rows, columns), average(teacher, rows, columns)))
            weights.append(weights[-1] / 2)
    return sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / sum(weights)


def convolve(maps, kernel, bias=None):
    """Stride 1, zeros around; ``kernel[out][in][row][column]``."""
    num_samples, channels, height, width = size(maps)
    side = len(kernel[0][0])
    reach = range(-(side // 2), side // 2 + 1)

    def value(sample, out, row, column):
        total = bias[out] if bias else 0.0
        for c, down, right in product(range(channels), reach, reach):
            i, j = row + down, column + right
            if 0 <= i < height and 0 <= j < width:
                total += kernel[out][c][down + side // 2][right + side // 2] * maps[sample][c][i][j]
        return total

    return [
        [[[value(b, out, i, j) for j in range(width)] for i in range(height)] for out in range(len(kernel))]
        for b in range(num_samples)
    ]


def normalise(maps, eps=1e-5):
    """Batch normalisation in training, with a scale of 1 and no shift."""
    num_samples, channels, height, width = size(maps)
    result = [[[[0.0] * width for _ in range(height)] for _ in range(channels)] for _ in range(num_samples)]
    for c in range(channels):
        values = [maps[b][c][i][j] for b, i, j in product(range(num_samples), range(height), range(width))]
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) + eps)
        for b, i, j in product(range(num_samples), range(height), range(width)):
            result[b][c][i][j] = (maps[b][c][i][j] - mean) / deviation
    return result


def fuse(level, deeper, kernel, bias):
    """Chen et al., attention-based fusion: two sigmoid maps weigh a level and the enlarged deeper one."""
    num_samples, channels, height, width = size(level)
    _, _, rows, columns = size(deeper)
    result = [[[[0.0] * width for _ in range(height)] for _ in range(channels)] for _ in range(num_samples)]
    for b, i, j in product(range(num_samples), range(height), range(width)):
        own = [level[b][c][i][j] for c in range(channels)]
        other = [deeper[b][c][i * rows // height][j * columns // width] for c in range(channels)]
        shares = []
        for out in range(2):
            total = bias[out] + sum(kernel[out][c][0][0] * value for c, value in enumerate(own + other))
            shares.append(1 / (1 + math.exp(-total)))
        for c in range(channels):
            result[b][c][i][j] = shares[0] * own[c] + shares[1] * other[c]
    return result
