"""One trained network as a teacher: never trained, never out of eval mode."""

from __future__ import annotations

from collections.abc import Collection
from typing import Self

import torch
from torch import nn

from crossdistill.contracts import Batch, ModelSpec, Outputs, Signal
from crossdistill.teachers.fingerprint import fingerprint


class FrozenTeacher(nn.Module):
    """A live network that answers with what is asked of it.

    Args:
        model: a :class:`~crossdistill.models.StagedModel`, or any module with a ``spec`` that returns
            :class:`~crossdistill.contracts.Outputs`; its parameters stop requiring gradients.
        view: which of a batch's images it sees, prepared as its own ``spec.input`` asks.

    Attributes:
        passes_on: which signals its answers hold, beside the logits; all of them until somebody says what a method
            needs. What is left out is freed as soon as the network has answered: no stage waits for the end of a step.
    """

    holds: frozenset[Signal] = frozenset({"logits", "embedding", "stages", "modules"})

    def __init__(self, model: nn.Module, *, view: str = "teacher0") -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.spec: ModelSpec = model.spec  # type: ignore[assignment]
        self.view = view
        self.passes_on: frozenset[Signal] = self.holds
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever is asked: batch statistics and dropout would change what is taught."""
        return super().train(False)

    def signals(self, batch: Batch) -> Outputs:
        """What is passed on of the network's outputs for this teacher's view of the batch, without gradient."""
        return self.answer(batch, self.passes_on)

    def answer(self, batch: Batch, signals: Collection[Signal]) -> Outputs:
        """The logits and these signals.

        Tensors of inference mode may take no part in what is differentiated. Logits and embedding are small and handed
        out as ordinary copies; stages are not, and a method that computes with the network's own modules must find
        there what PyTorch can save. Where these are asked for, the network only runs without gradient.
        """
        # A method that fuses parts of both networks may hold this one too and switch it along with itself.
        if any(module.training for module in self.model.modules()):
            self.model.eval()
        needs_ordinary = not {"stages", "modules"}.isdisjoint(signals)
        with torch.no_grad() if needs_ordinary else torch.inference_mode():
            outputs: Outputs = self.model(batch.images[self.view])
        outputs = outputs.only({"logits", *signals})
        return outputs if needs_ordinary else _copied(outputs)

    def fingerprint(self) -> str:
        """The hash that names these weights."""
        return fingerprint(self.model)


@torch.no_grad()
def _copied(outputs: Outputs) -> Outputs:
    """Logits and embedding as tensors of the mode that is on here."""
    return Outputs(
        logits=None if outputs.logits is None else outputs.logits.clone(),
        embedding=None if outputs.embedding is None else outputs.embedding.clone(),
    )
