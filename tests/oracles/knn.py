"""Weighted nearest neighbours, query by query and vote by vote."""

import math


def votes(bank, targets, queries, num_classes, neighbours, temperature):
    def length(vector):
        return math.sqrt(sum(value * value for value in vector))

    result = []
    for query in queries:
        cosines = [sum(a * b for a, b in zip(query, row, strict=True)) / (length(query) * length(row)) for row in bank]
        nearest = sorted(range(len(bank)), key=lambda index: -cosines[index])[:neighbours]
        row = [0.0] * num_classes
        for index in nearest:
            row[targets[index]] += math.exp(cosines[index] / temperature)
        result.append(row)
    return result
