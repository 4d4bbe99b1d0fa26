"""OBoW's targets, queue, head and loss, word by word and location by location, from the specification's equations."""

import numpy as np


def nearest_distances(maps, vocabulary, border):
    """Squared distance to the nearest word of each location inside the border, (B, L)."""
    found = []
    for one in maps:
        channels, height, width = one.shape
        row = []
        for y in range(border, height - border):
            for x in range(border, width - border):
                row.append(min(sum((one[c, y, x] - word[c]) ** 2 for c in range(channels)) for word in vocabulary))
        found.append(row)
    return np.array(found)


def bags(maps, vocabulary, scale, pool, border):
    """Bags (B, K); scale is inverse_delta / mean distance, or None for the nearest word alone."""
    result = []
    for one in maps:
        channels, height, width = one.shape
        assignments = []
        for y in range(border, height - border):
            for x in range(border, width - border):
                distances = [sum((one[c, y, x] - word[c]) ** 2 for c in range(channels)) for word in vocabulary]
                if scale is None:
                    nearest = int(np.argmin(distances))
                    assignments.append([float(k == nearest) for k in range(len(vocabulary))])
                else:
                    weights = [np.exp(-scale * (distance - min(distances))) for distance in distances]
                    assignments.append([weight / sum(weights) for weight in weights])
        columns = list(zip(*assignments, strict=True))
        pooled = [max(column) if pool == "max" else sum(column) / len(column) for column in columns]
        result.append([value / sum(pooled) for value in pooled])
    return np.array(result)


def averages(one, border):
    """All 3 x 3 averages inside the border of one map, row by row: (positions, C)."""
    channels, height, width = one.shape
    return np.array(
        [
            [np.mean([one[c, y + dy, x + dx] for dy in range(3) for dx in range(3)]) for c in range(channels)]
            for y in range(border, height - border - 2)
            for x in range(border, width - border - 2)
        ]
    )


def ring_write(words, pointer, new):
    """Rows replaced one by one, and where the next one goes."""
    words = words.copy()
    for row in new:
        words[pointer] = row
        pointer = (pointer + 1) % len(words)
    return words, pointer


def head(words, parameters):
    """Generated weights (K, D): rows of unit length in and out, batch norm over the words."""
    unit = np.array([row / np.sqrt(sum(v * v for v in row)) for row in words])
    hidden = unit @ parameters["fc"].T
    mean, variance = hidden.mean(axis=0), hidden.var(axis=0)
    hidden = (hidden - mean) / np.sqrt(variance + 1e-5) * parameters["bn_weight"] + parameters["bn_bias"]
    made = np.maximum(hidden, 0) @ parameters["last"].T + parameters["last_bias"]
    return np.array([row / np.sqrt(sum(v * v for v in row)) for row in made])


def cross_entropy(logits, targets):
    """Mean over the rows of logits, each with the bag of its image; views of one image follow each other."""
    views = len(logits) // len(targets)
    total = 0.0
    for row, scores in enumerate(logits):
        log_sum = np.log(sum(np.exp(scores - max(scores)))) + max(scores)
        total -= sum(y * (z - log_sum) for y, z in zip(targets[row // views], scores, strict=True))
    return total / len(logits)
