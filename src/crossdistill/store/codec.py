"""Answers in few bytes: logits as fp16 below the row's largest, all of them or the k largest with the mass of the rest.

Subtracting a row's largest logit first spends fp16's digits on the likely classes and makes any offset fit. With
``d = largest - logit``, a logit comes back off by at most

    ``2^-11 d + 2^-25  +  2^-23 (d + |logit|)``

(rounding to fp16, then float32's own when the largest is subtracted and added again), for ``d`` up to 65,504. A logit
further down is kept as that far down: its probability is 0 in float32 either way, at any temperature up to 600.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crossdistill.errors import InputError
from crossdistill.store.manifest import Keep, Manifest, class_dtype

LARGEST = torch.finfo(torch.float16).max


def encode(logits: Tensor, embeddings: Sequence[Tensor], keep: Keep) -> dict[str, Tensor]:
    """The rows to store, on the device of ``logits``: ``shift``, then ``logits`` or ``values``, ``classes``, ``rest``.

    Args:
        logits: ``(B, K)``, finite.
        embeddings: ``(B, D)`` of each teacher, finite.

    Raises:
        InputError: values that are not finite, or embeddings that fp16 cannot hold.
    """
    logits = _finite(logits, "logits")
    shift = logits.amax(dim=1)
    if keep.top_k is None:
        rows = {"shift": shift, "logits": _half(logits - shift.unsqueeze(1))}
    else:
        rows = {"shift": shift} | _largest(logits, shift, keep.top_k)
    return rows | {f"embedding{at}": _embedding(one, at) for at, one in enumerate(embeddings)}


def _largest(logits: Tensor, shift: Tensor, top_k: int) -> dict[str, Tensor]:
    values, classes = logits.topk(top_k, dim=1)  # before the largest is subtracted, which makes equals of neighbours
    # Not 1 - the sum of the largest: that cancels where they hold nearly all of the mass.
    rest = (logits - shift.unsqueeze(1)).scatter_(1, classes, -math.inf).logsumexp(dim=1)
    dtype = getattr(torch, class_dtype(logits.shape[1]))
    return {"values": _half(values - shift.unsqueeze(1)), "classes": classes.to(dtype), "rest": _half(rest)}


def _half(below: Tensor) -> Tensor:
    return below.clamp(min=-LARGEST).half()


def _embedding(embedding: Tensor, at: int) -> Tensor:
    half = _finite(embedding, f"embeddings of teacher {at}").half()
    if not bool(half.isfinite().all()):
        raise InputError(
            f"embeddings of teacher {at} up to {embedding.abs().max().item():.4g}",
            f"values that fp16 can hold, up to {LARGEST:,.0f}",
            "store the logits only, or distil from the live teacher",
        )
    return half


def _finite(values: Tensor, name: str) -> Tensor:
    values = values.detach().float()
    if values.numel() and not bool(torch.stack(values.aminmax()).isfinite().all()):  # one of them is NaN if any is
        unsound = int((~values.isfinite()).sum())
        raise InputError(
            f"{name}, of which {unsound:,} of {values.numel():,} are not finite",
            "finite numbers",
            "check the teacher, or store in another precision (train.precision=fp32)",
        )
    return values


@dataclass(frozen=True, slots=True)
class Answers:
    """Stored rows of some samples, as they lie on disk; they are decoded where they are, so moving them costs little.

    Attributes:
        rows: tensors ``(B, …)`` by name, see :func:`encode`.
        num_classes: classes K of the logits.
    """

    rows: Mapping[str, Tensor]
    num_classes: int

    def __len__(self) -> int:
        return len(self.rows["shift"])

    def to(self, device: torch.device | str) -> Answers:
        """The same on another device; to a CUDA device by way of pinned memory, so that nobody waits."""
        device = torch.device(device)
        pins = device.type == "cuda"
        moved = {
            name: (row.pin_memory() if pins and row.device.type == "cpu" else row).to(device, non_blocking=pins)
            for name, row in self.rows.items()
        }
        return Answers(moved, self.num_classes)

    def logits(self) -> Tensor:
        """``(B, K)`` float32: where k were kept, the others share the remaining mass equally."""
        shift = self.rows["shift"].unsqueeze(1)
        if "logits" in self.rows:
            return self.rows["logits"] + shift  # float32, as the shift is
        values = self.rows["values"] + shift
        num_others = self.num_classes - values.shape[1]
        others = self.rows["rest"].unsqueeze(1) + (shift - math.log(num_others))
        return others.repeat(1, self.num_classes).scatter_(1, self.rows["classes"].long(), values)

    def embeddings(self) -> tuple[Tensor, ...]:
        """``(B, D)`` float32 of each teacher, none if none are kept."""
        count = sum(name.startswith("embedding") for name in self.rows)
        return tuple(self.rows[f"embedding{at}"].float() for at in range(count))


def empty(manifest: Manifest, num_rows: int, *, embeddings: bool) -> dict[str, Tensor]:
    """Room for so many rows on the host, by name; samples' keys are not among them, and embeddings if wanted."""
    return {
        name: torch.empty((num_rows, *field.row), dtype=getattr(torch, field.dtype))
        for name, field in manifest.layout().items()
        if name not in ("id", "occurrence") and (embeddings or not name.startswith("embedding"))
    }
