"""A teacher made of probabilities for given samples: what others said of the transfer set."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from crossdistill.contracts import Batch, ModelSpec, Outputs, Signal
from crossdistill.federated.knowledge import Knowledge

SMALLEST = 1e-8
"""Half precision knows no smaller probability than 6e-8; a class of none is as good as impossible."""


class GivenTeacher:
    """Answers each sample with its row of the fused knowledge, as the logits that give it.

    Args:
        knowledge: probabilities at ``temperature``.
        ids: the sample of each row ``(M,)``, sorted.
        spec: the facts of the student, whose classes these are.
    """

    holds: frozenset[Signal] = frozenset({"logits"})

    def __init__(self, knowledge: Knowledge, ids: NDArray[np.int64], spec: ModelSpec, *, temperature: float) -> None:
        self.spec = replace(spec, name="fused knowledge")
        self._ids, self._soft = ids, knowledge.soft
        self._logits = temperature * torch.from_numpy(np.log(np.maximum(knowledge.soft, SMALLEST)))

    def signals(self, batch: Batch) -> Outputs:
        """The logits ``(B, C)`` of the batch's samples."""
        assert batch.samples is not None  # loaders always give it
        rows = np.searchsorted(self._ids, batch.samples[:, 0].numpy())
        return Outputs(logits=self._logits[rows].to(batch.target.device, non_blocking=True))

    def fingerprint(self) -> str:
        """A hash of the probabilities."""
        return hashlib.sha256(self._soft.tobytes()).hexdigest()
