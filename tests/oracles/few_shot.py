"""One few-shot episode in plain loops: which class each question gets."""

import math


def direction(vector):
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length for value in vector]


def answers(examples, questions):
    """``examples`` by class and shot, ``questions`` in a row; the number of the nearest class mean of each."""
    means = []
    for shots in examples:
        directions = [direction(one) for one in shots]
        means.append(direction([sum(values) / len(values) for values in zip(*directions, strict=True)]))
    found = []
    for question in questions:
        cosines = [sum(a * b for a, b in zip(direction(question), mean, strict=True)) for mean in means]
        found.append(cosines.index(max(cosines)))
    return found
