"""A memory of both networks' latest embeddings, for losses that need more negatives than a batch holds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crossdistill.contracts import UNLABELLED

NOBODY = -1
"""The sample id of an entry that no sample has written yet."""


class ContrastMemory(nn.Module):
    """First in, first out: N rows of student and teacher, with the label and the id of the sample they belong to.

    All of it is buffers, and so state that a checkpoint holds. Rows that nobody has written yet are nobody's negatives.

    Args:
        num_entries: N.
        width: D, of both embeddings.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor
    sample_ids: Tensor
    num_written: Tensor

    def __init__(self, num_entries: int, width: int) -> None:
        super().__init__()
        for name in ("student", "teacher"):
            self.register_buffer(name, torch.zeros(num_entries, width))
        self.register_buffer("labels", torch.full((num_entries,), UNLABELLED))
        self.register_buffer("sample_ids", torch.full((num_entries,), NOBODY))
        self.register_buffer("num_written", torch.zeros((), dtype=torch.int64))

    def negatives_of(self, labels: Tensor, sample_ids: Tensor) -> Tensor:
        """Which entries are of another sample and, where the anchor has a label, of another class: ``(B, N)`` bool.

        Args:
            labels: ``(B,)``, classes of the anchors, -1 for none.
            sample_ids: ``(B,)``.
        """
        same_class = (labels[:, None] == self.labels) & (labels != UNLABELLED)[:, None]
        another = sample_ids[:, None] != self.sample_ids
        return another & ~same_class & (self.sample_ids != NOBODY)

    @torch.no_grad()
    def write(self, student: Tensor, teacher: Tensor, labels: Tensor, sample_ids: Tensor) -> None:
        """Replace the oldest entries, row by row; of more rows than there are entries the last ones stay.

        Nothing is written where a row is not finite: such a step (one that overflowed in float16) is skipped.

        Args:
            student: ``(B, D)``.
            teacher: ``(B, D)``.
            labels: ``(B,)``, -1 for none.
            sample_ids: ``(B,)``.
        """
        sound = student.isfinite().all() & teacher.isfinite().all()  # a tensor: nobody waits for its value
        num_rows, num_entries = len(labels), len(self.labels)
        first = max(num_rows - num_entries, 0)
        rows = torch.arange(first, num_rows, device=self.labels.device)
        places = (self.num_written + rows) % num_entries
        new = {"student": student, "teacher": teacher, "labels": labels, "sample_ids": sample_ids}
        for name, values in new.items():
            buffer = getattr(self, name)
            buffer[places] = torch.where(sound, values[first:].to(buffer.dtype), buffer[places])
        self.num_written += num_rows * sound
