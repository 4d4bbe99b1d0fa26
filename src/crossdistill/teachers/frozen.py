"""One trained network as a teacher: never trained, never out of eval mode."""

from __future__ import annotations

from typing import Self

import torch
from torch import nn

from crossdistill.contracts import Batch, ModelSpec, Outputs, Signal
from crossdistill.teachers.fingerprint import fingerprint


class FrozenTeacher(nn.Module):
    """A live network that answers with everything it computes.

    Args:
        model: a :class:`~crossdistill.models.StagedModel`, or any module with a ``spec`` that returns
            :class:`~crossdistill.contracts.Outputs`; its parameters stop requiring gradients.
        view: which of a batch's images it sees, prepared as its own ``spec.input`` asks.
    """

    holds: frozenset[Signal] = frozenset({"logits", "embedding", "stages", "modules"})

    def __init__(self, model: nn.Module, *, view: str = "teacher0") -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.spec: ModelSpec = model.spec  # type: ignore[assignment]
        self.view = view
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever is asked: batch statistics and dropout would change what is taught."""
        return super().train(False)

    @torch.no_grad()
    def signals(self, batch: Batch) -> Outputs:
        """The network's outputs for this teacher's view of the batch, without gradient."""
        # A method that fuses parts of both networks may hold this one too and switch it along with itself.
        if any(module.training for module in self.model.modules()):
            self.model.eval()
        outputs: Outputs = self.model(batch.images[self.view])
        return outputs

    def fingerprint(self) -> str:
        """The hash that names these weights."""
        return fingerprint(self.model)
