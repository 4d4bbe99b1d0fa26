"""FBT's losses written out sample by sample, and the specs of its published pairs, by hand."""

import math

from oracles import logit_losses
from oracles import model_specs as specs


def cosine(first, second):
    norms = math.sqrt(sum(a * a for a in first)) * math.sqrt(sum(b * b for b in second))
    return sum(a * b for a, b in zip(first, second, strict=True)) / norms if norms else 0.0


def info_nce(learner, source, *, temperature, offset=0, excluded=None):
    """Minus the logarithm of the share that the own row of the source has, one value a row of the learner."""
    result = []
    for index, row in enumerate(learner):
        own = offset + index
        scores = [math.exp(cosine(row, other) / temperature) for other in source]
        counted = [k for k in range(len(source)) if k == own or not (excluded and excluded[index][k])]
        result.append(-math.log(scores[own] / sum(scores[k] for k in counted)))
    return result


def linear(row, weight, bias):
    return [sum(w * x for w, x in zip(weights, row, strict=True)) + b for weights, b in zip(weight, bias, strict=True)]


def total(features, logits, labels, ids, projectors, *, temperature, gamma, tau):
    """The sum over the three pairs of InfoNCE and the OFA loss in the code's form, each a mean over the batch.

    ``projectors`` gives (weight, bias) where a pair has one. Samples of one id are no negatives of each other.
    """
    result = 0.0
    repeated = [[own == other >= 0 for other in ids] for own in ids]
    for source, learner in (("teacher", "student"), ("teacher", "fusion"), ("fusion", "student")):
        rows = features[learner]
        if (source, learner) in projectors:
            rows = [linear(row, *projectors[source, learner]) for row in rows]
        nce = info_nce(rows, features[source], temperature=temperature, excluded=repeated)
        ofa = logit_losses.ofa(logits[learner], logits[source], labels, gamma=gamma, temperature=tau, form="code")
        result += sum(nce) / len(nce) + sum(ofa) / len(ofa)
    return result


def resnet50():
    return specs.model("resnet50", "cnn", 2048, specs.pyramid((256, 512, 1024, 2048), "NCHW"))


def convnext_tiny():
    return specs.model("convnext_tiny", "cnn", 768, specs.pyramid((96, 192, 384, 768), "NCHW"))


def vit_small():
    return specs.model("vit_small", "transformer", 384, specs.isotropic(384, 1))


def mixer_b16():
    return specs.model("mixer_b16", "mlp", 768, specs.isotropic(768, 0))


# teacher, student, whether the student comes first, parameters of the bridge in millions
PUBLISHED = [
    (specs.swin(96), specs.resnet18(), True, 1.88),
    (vit_small(), specs.resnet18(), True, 1.88),
    (specs.swin(96), specs.mobilenetv2(), True, 1.81),
    (mixer_b16(), specs.resnet18(), True, 7.29),
    (convnext_tiny(), specs.deit_tiny(), False, 0.52),
    (convnext_tiny(), specs.swin(48), False, 0.52),
    (convnext_tiny(), specs.resmlp_s12(), False, 1.93),
    (mixer_b16(), specs.swin(48), True, 7.24),
    (resnet50(), specs.swin(64), False, 1.05),
]
