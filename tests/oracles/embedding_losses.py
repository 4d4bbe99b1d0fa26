"""RSD and noise-contrastive estimation entry by entry and pair by pair, from the papers' equations, in float64."""

import math


def standardized(column):
    mean = sum(column) / len(column)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in column) / len(column))
    return [(value - mean) / (deviation + 1e-5) for value in column]


def rsd(student, teacher, *, kappa):
    """Zhang et al., as released: squared distance of the correlations from the identity, kappa off the diagonal."""
    student, teacher = ([standardized(column) for column in zip(*rows, strict=True)] for rows in (student, teacher))
    total = 0.0
    for i, theirs in enumerate(teacher):
        for j, mine in enumerate(student):
            correlation = sum(a * b for a, b in zip(theirs, mine, strict=True)) / len(mine)
            total += (correlation - 1) ** 2 if i == j else kappa * correlation**2
    return total


def normalizer(positive, negatives, allowed, *, num_samples):
    """The released code's Z: the mean of exp(s) over a batch's pairs, times the number of training samples."""
    terms = [math.exp(score) for score in positive]
    for scores, counted in zip(negatives, allowed, strict=True):
        terms += [math.exp(score) for score, counts in zip(scores, counted, strict=True) if counts]
    return sum(terms) / len(terms) * num_samples


def noise_contrastive(positive, negatives, allowed, *, normalizer, num_samples):
    """Tian et al., as released but for its small constant: the noise has probability 1 / num_samples everywhere."""
    losses = []
    for true, scores, counted in zip(positive, negatives, allowed, strict=True):
        others = [score for score, counts in zip(scores, counted, strict=True) if counts]
        if not others:
            losses.append(0.0)
            continue
        noise = len(others) / num_samples
        likelihood = math.exp(true) / normalizer
        loss = -math.log(likelihood / (likelihood + noise))
        for other in others:
            likelihood = math.exp(other) / normalizer
            loss -= math.log(noise / (likelihood + noise))
        losses.append(loss)
    return sum(losses) / len(losses)


class Queue:
    """Rows in order of arrival: writing one more forgets the oldest."""

    def __init__(self, rows):
        self.rows, self.place = list(rows), 0

    def write(self, rows):
        for row in rows:
            self.rows[self.place] = row
            self.place = (self.place + 1) % len(self.rows)
