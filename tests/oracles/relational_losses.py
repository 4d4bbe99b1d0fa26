"""The relational losses pair by pair and triplet by triplet, from the papers' equations, in float64."""

import math


def smooth_l1(difference):
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def distance(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def relative_distances(points, squared):
    table = [[distance(a, b) ** (2 if squared else 1) for b in points] for a in points]
    positive = [value for row in table for value in row if value > 0]
    mean = sum(positive) / len(positive)
    return [value / mean for row in table for value in row]


def rkd_distance(student, teacher, *, squared=False):
    """Park et al., equations 5 to 8."""
    pairs = list(zip(relative_distances(student, squared), relative_distances(teacher, squared), strict=True))
    return sum(smooth_l1(s - t) for s, t in pairs) / len(pairs)


def cosine_at(points, i, j, k):
    """Cosine of the angle at point i between points j and k; 0 where two of them are one."""
    if i in (j, k):
        return 0.0
    to_j = [a - b for a, b in zip(points[j], points[i], strict=True)]
    to_k = [a - b for a, b in zip(points[k], points[i], strict=True)]
    product = sum(a * b for a, b in zip(to_j, to_k, strict=True))
    return product / (distance(points[j], points[i]) * distance(points[k], points[i]))


def rkd_angle(student, teacher):
    """Park et al., equations 9 and 10, averaged over all ordered triplets."""
    n = range(len(student))
    errors = [cosine_at(student, i, j, k) - cosine_at(teacher, i, j, k) for i in n for j in n for k in n]
    return sum(smooth_l1(error) for error in errors) / len(errors)


def correlation(student, teacher):
    """Mean over neighbouring rows of sum_d |delta_i||delta_{i+1}|."""
    delta = [[abs(a - b) for a, b in zip(s, t, strict=True)] for s, t in zip(student, teacher, strict=True)]
    products = [sum(a * b for a, b in zip(delta[i], delta[i + 1], strict=True)) for i in range(len(delta) - 1)]
    return sum(products) / len(products)
