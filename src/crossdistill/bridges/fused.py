"""The network fused from two: the first stages of one, a bridge, and the last stage, norm and classifier of the other.

Source: Li, Wang, Yan, Ding, Gao, Xia, ICCV 2025, arXiv 2410.12342: convolutions first, attention or MLPs after them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crossdistill.bridges.level_bridge import LevelBridge
from crossdistill.bridges.stage_pairs import stage_count
from crossdistill.contracts import ModelSpec, Modules, Outputs
from crossdistill.errors import UnsuitablePair
from crossdistill.models.dry_run import BATCH_SIZE, forked, left_alone, mode
from crossdistill.models.staged import StagedModel

Order = Literal["rule", "student_first", "teacher_first"]
"""Which network gives the first stages; the rule takes the CNN where exactly one is, else the student."""


def student_is_first(student: ModelSpec, teacher: ModelSpec, order: Order) -> bool:
    """Whether the student gives the first stages and the teacher the last one."""
    if order != "rule":
        return order == "student_first"
    return not (teacher.family == "cnn" and student.family != "cnn")


class FusedNetwork(nn.Module):
    """All parts of the fused network in one module: images ``(B, C, H, W)`` to its outputs.

    Args:
        first: gives every stage but its last.
        bridge: leads from there to the last stage of ``last``.
        last: gives its last stage, norm and classifier.
        view: which of a batch's images ``first`` sees.
    """

    def __init__(self, first: StagedModel, bridge: LevelBridge, last: StagedModel, *, view: str) -> None:
        super().__init__()
        self.first, self.bridge, self.last, self.view = first, bridge, last, view

    def forward(self, images: Tensor) -> Outputs:
        """Logits and embedding of the fused network."""
        feature = self.first.forward_until(images, len(self.first.spec.stages) - 1)
        return from_bridge(self.last, self.bridge(feature))


def from_bridge(last: StagedModel, feature: Tensor) -> Outputs:
    """The last stage, norm and classifier of a network on what a bridge gives."""
    return last.forward_from(feature, len(last.spec.stages) - 1)


class Fusion:
    """Student and teacher, and which comes first. It is no module: it owns neither.

    Args:
        student: the network that learns.
        teacher: the network that teaches; its weights stop requiring gradients, and it is put in eval mode.
        student_first: whether the student gives the first stages.
        teacher_view: which of a batch's images the teacher sees.
    """

    def __init__(self, student: StagedModel, teacher: StagedModel, *, student_first: bool, teacher_view: str) -> None:
        self.student, self.teacher = student, teacher.requires_grad_(False).eval()
        self.student_first = student_first
        self.view = "student" if student_first else teacher_view

    @property
    def first(self) -> StagedModel:
        """The network of the first stages."""
        return self.student if self.student_first else self.teacher

    @property
    def last(self) -> StagedModel:
        """The network of the last stage and the classifier."""
        return self.teacher if self.student_first else self.student

    def outputs(self, bridge: LevelBridge, student: Outputs, teacher: Outputs) -> Outputs:
        """The fused network's outputs, from the stages that both networks have computed already.

        The teacher's part is differentiable: what trains the bridge and the student's stages comes through it. Batch
        norms of the student's last stage, which runs a second time, keep the statistics of its own pass.
        """
        self.teacher.eval()  # whoever switched it on: batch statistics and dropout would change what is taught
        stages = (student if self.student_first else teacher).require_stages()
        with statistics_kept(self.last):
            return from_bridge(self.last, bridge(stages[-2]))

    def network(self, bridge: LevelBridge) -> FusedNetwork:
        """The same as a module of its own, which computes everything from images."""
        return FusedNetwork(self.first, bridge, self.last, view=self.view)


def fusion_of(student: ModelSpec, teacher: ModelSpec, modules: Modules | None, order: Order) -> Fusion:
    """The two networks, ready to be fused.

    Raises:
        UnsuitablePair: networks that are not at hand, or that cannot be cut before their last stage.
    """
    networks = (modules.student, modules.teacher) if modules is not None else (None, None)
    own, other = networks
    if modules is None or not isinstance(own, StagedModel) or not isinstance(other, StagedModel):
        raise UnsuitablePair(
            f"teacher {teacher.name!r} without a live network of the data's classes",
            "a live teacher and a live student, since parts of both are fused",
            "use one network as the teacher, neither stored outputs nor one with a class map",
        )
    for role, spec in (("student", student), ("teacher", teacher)):
        if len(spec.stages) < 2:
            raise UnsuitablePair(
                f"{role} {spec.name!r} with {stage_count(len(spec.stages))}",
                "two stages or more: the networks are joined before the last one",
                f"name the ends of its stages ({role}.stages), or choose another {role}",
            )
    first = student_is_first(student, teacher, order)
    return Fusion(own, other, student_first=first, teacher_view=modules.teacher_view)


def level_bridge(fusion: Fusion, *, mlp_ratio: float) -> LevelBridge:
    """The bridge of two networks, after the fused network has been tried on two images.

    Raises:
        UnsuitablePair: it does not run.
    """
    source, target = fusion.first.spec.stages[-2], fusion.last.spec.stages[-2]
    bridge = LevelBridge(source, target, mlp_ratio=mlp_ratio)
    device, dtype = _place(fusion.student)
    network = fusion.network(bridge.to(device, dtype))
    try:
        outputs = try_out(network)
        expected = (BATCH_SIZE, fusion.last.spec.num_classes), (BATCH_SIZE, fusion.last.spec.embedding_dim)
        found = tuple(outputs.require("logits").shape), tuple(outputs.require("embedding").shape)
        if found != expected:
            raise RuntimeError(f"it gives logits and embeddings of shapes {found}, not {expected}")
    except Exception as error:  # each network fails in its own way
        first, last = fusion.first.spec, fusion.last.spec
        raise UnsuitablePair(
            f"the fused network of the first {stage_count(len(first.stages) - 1)} of {first.name!r} (ending in "
            f"{source.describe()} on a {source.grid[0]}x{source.grid[1]} grid) and stage {len(last.stages)} of "
            f"{last.name!r} (expecting {target.describe()} on {target.grid[0]}x{target.grid[1]}), which fails: {error}",
            "networks of which one can go on from the other's stage",
            "turn it round with method.order=student_first or teacher_first, or name other stages of either network",
        ) from error
    return bridge.float()


def try_out(network: FusedNetwork) -> Outputs:
    """One pass of two random images in eval mode; weights, statistics, modes and generators stay as they are."""
    spec = network.first.spec.input
    device, dtype = _place(network.first)
    images = torch.randn(BATCH_SIZE, spec.num_channels, *spec.image_size, generator=torch.Generator().manual_seed(0))
    with mode(network, False), torch.no_grad(), left_alone(network), forked(device):
        outputs: Outputs = network(images.to(device, dtype))
    return outputs


def _place(net: nn.Module) -> tuple[torch.device, torch.dtype]:
    parameter = next(net.parameters(), torch.empty(0))
    return parameter.device, parameter.dtype


@contextmanager
def statistics_kept(net: nn.Module) -> Iterator[None]:
    """Norms in train mode go on normalising by the batch but do not take it into their running statistics."""
    norms: list[Any] = [m for m in net.modules() if m.training and getattr(m, "track_running_stats", False)]
    for module in norms:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in norms:
            module.track_running_stats = True
