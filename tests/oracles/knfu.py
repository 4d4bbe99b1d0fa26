"""Knowledge fusion, client by client and class by class, from the specification's equations; lists in, lists out."""

import math

SMOOTHING = 1e-6


def estimated_distribution(knowledge):
    """The mean prediction over all samples, of one client's (M, C)."""
    return [sum(row[c] for row in knowledge) / len(knowledge) for c in range(len(knowledge[0]))]


def relative(distributions):
    """Each class divided by what all clients predict of it on average, and normalised again."""
    num_classes = len(distributions[0])
    means = [sum(one[c] for one in distributions) / len(distributions) for c in range(num_classes)]
    shares = [[one[c] / max(means[c], SMOOTHING) for c in range(num_classes)] for one in distributions]
    return [[value / sum(share) for value in share] for share in shares]


def smooth(distribution, smoothing=SMOOTHING):
    """A little of every class."""
    return [(value + smoothing) / (1 + len(distribution) * smoothing) for value in distribution]


def divergence(receiver, teacher):
    """KL(receiver || teacher) in nats; a class that the receiver lacks adds nothing."""
    return sum(q * math.log(q / r) for q, r in zip(receiver, teacher, strict=True) if q > 0)


def divergences(distributions):
    """Of every pair, receivers in rows."""
    return [[divergence(receiver, teacher) for teacher in distributions] for receiver in distributions]


def fusion_weights(between, beta):
    """exp(-beta d) of a row over their sum, with the sum's logarithm taken first."""
    found = []
    for row in between:
        largest = max(-beta * d for d in row)
        log_sum = largest + math.log(sum(math.exp(-beta * d - largest) for d in row))
        found.append([math.exp(-beta * d - log_sum) for d in row])
    return found


def cut(weights, threshold):
    """Teachers below threshold / N are left out, but not the receiver itself."""
    found = []
    for receiver, row in enumerate(weights):
        kept = [w if w >= threshold / len(row) or teacher == receiver else 0.0 for teacher, w in enumerate(row)]
        found.append([w / sum(kept) for w in kept])
    return found


def fuse(knowledge, weights):
    """One weight a pair, the same for all samples and classes."""
    num_samples, num_classes = len(knowledge[0]), len(knowledge[0][0])
    return [
        [
            [sum(w * answers[i][c] for w, answers in zip(row, knowledge, strict=True)) for c in range(num_classes)]
            for i in range(num_samples)
        ]
        for row in weights
    ]


def weights_of(knowledge, beta, threshold=0.0, smoothing=SMOOTHING):
    """From the answers of all clients to whom each listens."""
    distributions = [smooth(estimated_distribution(one), smoothing) for one in knowledge]
    return cut(fusion_weights(divergences(distributions), beta), threshold)


def cosine(one, other):
    """Of two rows."""
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / math.sqrt(sum(a * a for a in one)) / math.sqrt(sum(b * b for b in other))


def agreement(one, other):
    """The mean cosine of equal rows less that of all pairs of rows, which is what shuffling gives, scaled to [0, 1]."""
    num_samples = len(one)
    equal = sum(cosine(a, b) for a, b in zip(one, other, strict=True)) / num_samples
    shuffled = sum(cosine(a, b) for a in one for b in other) / num_samples**2
    return min(max((equal - shuffled) / (1 - shuffled), 0.0), 1.0)


def heard(weights, agreed, least):
    """Teachers that a receiver does not agree with are left out, but not the receiver itself."""
    found = []
    for receiver, row in enumerate(weights):
        kept = [w if agreed[receiver][m] >= least or m == receiver else 0.0 for m, w in enumerate(row)]
        found.append([w / sum(kept) for w in kept])
    return found
