"""A teacher's probabilities conditioned on groups of its classes, sample by sample and class by class, in float64."""

import math


def conditioned(logits, groups):
    """Softmax over all classes first; then sums over each group, divided by what all groups have together."""
    rows = []
    for row in logits:
        exponentials = [math.exp(value - max(row)) for value in row]
        probabilities = [value / sum(exponentials) for value in exponentials]
        summed = [sum(probabilities[c] for c in group) for group in groups]
        rows.append([one / sum(summed) for one in summed])
    return rows
