"""Strategies that send networks: FedAvg, and FedDF, which fuses by distillation on top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.federated.knowledge import Knowledge
from crossdistill.federated.strategies.knfu import knowledge_of
from crossdistill.federated.strategy import STRATEGIES, Answer, Fused, Strategy, Told, Want
from crossdistill.federated.teacher import SMALLEST


def mean_weights(answers: Sequence[Answer]) -> dict[str, NDArray[Any]]:
    """Weights of one architecture, averaged by the clients' numbers of images; counters are the largest."""
    given = [one for one in answers if one.weights is not None]
    shares = np.array([one.num_train for one in given], dtype=float)
    shares /= shares.sum()
    mean = {}
    for name in given[0].weights or {}:
        tensors = [one.weights[name] for one in given if one.weights is not None]
        if tensors[0].dtype.kind == "f":
            summed = sum(share * one.astype(np.float64) for share, one in zip(shares, tensors, strict=True))
            mean[name] = np.asarray(summed).astype(tensors[0].dtype)
        else:
            mean[name] = np.max(tensors, axis=0)
    return mean


@STRATEGIES.register(
    "fedavg",
    title="FedAvg",
    paper="McMahan et al. 2017, arXiv 1602.05629",
    summary="One network for all, the mean of everybody's weights; one architecture only.",
)
class FedAvg(Strategy):
    """Nothing is distilled; batch statistics are averaged like weights."""

    wants: frozenset[Want] = frozenset({"weights"})
    one_architecture = common = True

    def fuse(self, answers: Sequence[Answer], round_: int) -> Fused:
        """The same network for all."""
        mean = mean_weights(answers)
        return Fused({one.client: Told(weights=mean) for one in answers}, tuple(one.client for one in answers))


@STRATEGIES.register(
    "feddf",
    title="FedDF (style)",
    paper="Lin, Kong, Stich, Jaggi 2020, arXiv 2006.07242",
    summary="The mean network of each architecture, fine-tuned on the mean of everybody's logits.",
)
class FedDF(Strategy):
    """The paper's server distils; here each client of an architecture does so, from the same weights and answers."""

    wants: frozenset[Want] = frozenset({"knowledge", "weights"})
    common = True

    def fuse(self, answers: Sequence[Answer], round_: int) -> Fused:
        """The mean weights of each architecture, and one teacher for all: the softmax of mean logits."""
        given = knowledge_of(answers)
        logs = np.zeros(given[0].shape)
        for soft in given:
            logs += np.log(np.maximum(soft, SMALLEST, dtype=np.float64)) / len(given)
        soft = np.exp(logs - logs.max(axis=1, keepdims=True))
        teacher = Knowledge.of(soft / soft.sum(axis=1, keepdims=True))
        means = {
            model: mean_weights([one for one in answers if one.model == model])
            for model in {one.model for one in answers}
        }
        told = {one.client: Told(teacher, means[one.model]) for one in answers}
        return Fused(told, tuple(one.client for one in answers))
