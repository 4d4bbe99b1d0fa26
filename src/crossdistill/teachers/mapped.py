"""A teacher of other classes, which answers in the student's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from crossdistill.contracts import Batch, Outputs, Signal
from crossdistill.teachers.class_map import ClassMap
from crossdistill.teachers.frozen import FrozenTeacher


class MappedTeacher(FrozenTeacher):
    """A frozen teacher whose logits ``(B, K)`` are those of the student's K classes.

    The logit of a class is the log-sum-exp over the teacher's classes that stand for it. Their softmax (at
    temperature 1) therefore is the teacher's probability of each class of the student, given that the image shows one
    of them: ``sum_{c in group k} p_c / sum_{c in all groups} p_c``. A method's temperature acts on these K logits, so
    that several teacher classes are softened as the one class that they stand for.

    Embedding and stages are the teacher's own. The network itself (``modules``) is not held: what a method builds out
    of its parts would end in the teacher's classifier, whose classes are not the student's.

    Args:
        model: as for :class:`FrozenTeacher`, with its own classes.
        class_map: which of them stand for each class of the student.
        view: which of a batch's images it sees.
    """

    holds: frozenset[Signal] = frozenset({"logits", "embedding", "stages"})

    def __init__(self, model: nn.Module, class_map: ClassMap, *, view: str = "teacher0") -> None:
        super().__init__(model, view=view)
        self.class_map = class_map
        self.spec = replace(self.spec, num_classes=len(class_map.groups), class_names=class_map.class_names)
        self.group_logits = GroupLogits(class_map.groups)

    @torch.no_grad()
    def answer(self, batch: Batch, signals: Collection[Signal]) -> Outputs:
        """The logits ``(B, K)`` of the student's classes and these signals."""
        return self.in_student_classes(super().answer(batch, signals))

    def in_student_classes(self, outputs: Outputs) -> Outputs:
        """The same outputs with logits ``(B, K)`` instead of those of the teacher's own classes ``(B, C)``."""
        return replace(outputs, logits=self.group_logits(outputs.require("logits")))

    def fingerprint(self) -> str:
        """The hash that names the weights and the map, class names of the student included."""
        mapping = json.dumps([self.class_map.class_names, self.class_map.groups])
        return hashlib.sha256(f"{super().fingerprint()} {mapping}".encode()).hexdigest()


class GroupLogits(nn.Module):
    """Log-sum-exp over groups of columns: ``(B, C)`` to ``(B, K)`` in float32 or wider.

    Groups of one size are summed at once, so that the work is that of the columns in use, and the order of the sums
    does not depend on the device.

    >>> GroupLogits([(2,), (0, 1)])(torch.log(torch.tensor([[1.0, 2.0, 4.0]]))).exp()
    tensor([[4., 3.]])
    """

    def __init__(self, groups: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.sizes = sorted({len(group) for group in groups})
        by_size = {size: [k for k, group in enumerate(groups) if len(group) == size] for size in self.sizes}
        for size, members in by_size.items():
            columns = torch.tensor([list(groups[k]) for k in members])
            self.register_buffer(f"columns{size}", columns, persistent=False)
        order = torch.tensor([k for size in self.sizes for k in by_size[size]])
        self.register_buffer("position", order.argsort(), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        summed = [wide[:, self.get_buffer(f"columns{size}")].logsumexp(dim=2) for size in self.sizes]
        return torch.cat(summed, dim=1)[:, self.get_buffer("position")]
