"""The logit losses written out class by class and sample by sample, from the papers' equations, in float64."""

import math

import numpy as np


def softmax(logits, temperature=1.0):
    exponentials = [math.exp((value - max(logits)) / temperature) for value in logits]
    return [value / sum(exponentials) for value in exponentials]


def kl(teacher, student):
    return sum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True) if t > 0)


def kd(student_logits, teacher_logits, *, temperature):
    """Hinton et al.: T² KL(teacher || student), one value per sample."""
    return [
        temperature**2 * kl(softmax(teacher, temperature), softmax(student, temperature))
        for student, teacher in zip(student_logits, teacher_logits, strict=True)
    ]


def dkd(student_logits, teacher_logits, labels, *, alpha, beta, temperature):
    """Zhao et al., equation 7: probabilities split by hand into target, rest, and shares within the rest."""
    losses = []
    for student, teacher, label in zip(student_logits, teacher_logits, labels, strict=True):
        p_student, p_teacher = softmax(student, temperature), softmax(teacher, temperature)
        rest = [c for c in range(len(student)) if c != label]
        rest_student, rest_teacher = sum(p_student[c] for c in rest), sum(p_teacher[c] for c in rest)
        target_part = kl([p_teacher[label], rest_teacher], [p_student[label], rest_student])
        rest_part = kl([p_teacher[c] / rest_teacher for c in rest], [p_student[c] / rest_student for c in rest])
        losses.append(temperature**2 * (alpha * target_part + beta * rest_part))
    return losses


def pearson(first, second):
    first = [value - sum(first) / len(first) for value in first]
    second = [value - sum(second) / len(second) for value in second]
    covariance = sum(a * b for a, b in zip(first, second, strict=True))
    return covariance / (math.sqrt(sum(a * a for a in first)) * math.sqrt(sum(b * b for b in second)) + 1e-8)


def dist(student_logits, teacher_logits, *, beta, gamma, temperature):
    """Huang et al., equations 8 to 10: one minus Pearson over rows, and over columns."""
    student = [softmax(row, temperature) for row in student_logits]
    teacher = [softmax(row, temperature) for row in teacher_logits]
    inter = sum(1 - pearson(s, t) for s, t in zip(student, teacher, strict=True)) / len(student)
    columns = range(len(student[0]))
    intra = sum(1 - pearson([s[c] for s in student], [t[c] for t in teacher]) for c in columns) / len(columns)
    return temperature**2 * (beta * inter + gamma * intra)


def ofa(student_logits, teacher_logits, labels, *, gamma, temperature, form):
    """Hao et al.: weights per class as in the released code, or as in the paper (hard-label term inside)."""
    losses = []
    for student, teacher, label in zip(student_logits, teacher_logits, labels, strict=True):
        p_student, p_teacher = softmax(student, temperature), softmax(teacher, temperature)
        loss = 0.0
        for c, (s, t) in enumerate(zip(p_student, p_teacher, strict=True)):
            if form == "code":
                weight = (1 + t) ** gamma - 1 if c == label else t**gamma
            else:
                weight = (1 + t) ** gamma if c == label else t
            loss -= weight * math.log(s)
        losses.append(loss)
    return losses


def cross_entropy(logits, targets, *, label_smoothing, class_weights=None):
    """Mean over labelled samples of -sum_c w_c target_c log p_c, the target smoothed over the classes.

    A target is a class, -1 for none, or a list of class probabilities, all zero for none.
    """
    losses = []
    for row, target in zip(logits, targets, strict=True):
        classes = range(len(row))
        given = target if isinstance(target, list) else [float(c == target) for c in classes]
        if not any(given):
            continue
        weights = class_weights or [1.0 for _ in classes]
        smoothed = [label_smoothing / len(row) + (1 - label_smoothing) * share for share in given]
        losses.append(-sum(w * t * math.log(p) for w, t, p in zip(weights, smoothed, softmax(row), strict=True)))
    return sum(losses) / len(losses)


def standardize(logits):
    """Sun et al., algorithm 1: z-score over the classes, population deviation."""
    rows = []
    for row in np.asarray(logits):
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in row) / len(row))
        rows.append([(value - mean) / deviation for value in row])
    return rows
