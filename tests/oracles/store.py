"""Stored answers one number at a time: what is kept of a row of logits, and what comes back."""

import math

import numpy as np

LARGEST = 65504.0


def half(value):
    """The fp16 nearest to a number, no lower than fp16 goes."""
    return float(np.float16(max(value, -LARGEST)))


def full(logits):
    """A row that was kept whole, as it comes back."""
    largest = max(logits)
    return [half(logit - largest) + largest for logit in logits]


def top_k(logits, k):
    """A row of which k logits were kept, as it comes back: the classes kept, and all K logits."""
    largest = max(logits)
    kept = sorted(range(len(logits)), key=lambda c: -logits[c])[:k]
    mass = 0.0
    others = [c for c in range(len(logits)) if c not in kept]
    highest = max(logits[c] for c in others)
    for c in others:
        mass += math.exp(logits[c] - highest)
    rest = half(highest - largest + math.log(mass))
    answer = []
    for c, logit in enumerate(logits):
        if c in kept:
            answer.append(half(logit - largest) + largest)
        else:
            answer.append(largest + rest - math.log(len(others)))
    return set(kept), answer


def softmax(logits):
    """Probabilities of a row."""
    largest = max(logits)
    powers = [math.exp(logit - largest) for logit in logits]
    return [power / sum(powers) for power in powers]


def bytes_per_sample(num_classes, k, dims):
    """What one answer takes on disk."""
    size = 4 + 2 + 4  # id, occurrence, shift
    if k is None or k >= num_classes:
        size += 2 * num_classes
    else:
        for _ in range(k):
            size += 2 + (1 if num_classes <= 256 else 2 if num_classes <= 65536 else 4)
        size += 2
    for dim in dims:
        size += 2 * dim
    return size
