"""Three label-free methods with lightly's own losses and heads, on the student's crops as OBoW sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from lightly.loss import BarlowTwinsLoss, NTXentLoss, VICRegLoss
from lightly.models.modules.heads import BarlowTwinsProjectionHead, SimCLRProjectionHead, VICRegProjectionHead
from torch import Tensor, nn

from crossdistill.contracts import Batch, Method, Outputs
from crossdistill.registry import METHODS

HIDDEN, SHORT = 512, 128


class Peer(Method):
    """A loss of two views of each image, on projections of the student's embedding; there is no teacher."""

    needs = frozenset()
    takes_views = True

    make: Callable[[int], tuple[nn.Module, nn.Module]]

    def __init__(self, projection: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.projection, self.loss = projection, loss

    @classmethod
    def build(cls, student_spec: Any, teacher_spec: Any, *, num_classes: int, modules: Any = None) -> Self:
        """Head and loss with the sizes of a small network."""
        return cls(*cls.make(student_spec.embedding_dim))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """The mean over all pairs of neighbouring views; with two crops, their one pair."""
        assert student.members is not None
        embedding = student.members[0].require("embedding")
        projected = self.projection(embedding).unflatten(0, (len(batch), -1))
        return {"peer": self.loss(projected[:, 0], projected[:, 1])}


@METHODS.register("peer_simclr", title="SimCLR", paper="arXiv 2002.05709", summary="lightly's", pick_when="compared")
class SimCLR(Peer):
    """NT-Xent at lightly's temperature of 0.5."""

    @staticmethod
    def make(width: int) -> tuple[nn.Module, nn.Module]:
        return SimCLRProjectionHead(width, HIDDEN, SHORT), NTXentLoss()


@METHODS.register(
    "peer_barlow", title="Barlow Twins", paper="arXiv 2103.03230", summary="lightly's", pick_when="compared"
)
class BarlowTwins(Peer):
    """Redundancy reduction with lightly's weight of 5e-3."""

    @staticmethod
    def make(width: int) -> tuple[nn.Module, nn.Module]:
        return BarlowTwinsProjectionHead(width, HIDDEN, HIDDEN), BarlowTwinsLoss()


@METHODS.register("peer_vicreg", title="VICReg", paper="arXiv 2105.04906", summary="lightly's", pick_when="compared")
class VICReg(Peer):
    """Variance, invariance and covariance with lightly's weights of 25, 25 and 1."""

    @staticmethod
    def make(width: int) -> tuple[nn.Module, nn.Module]:
        return VICRegProjectionHead(width, HIDDEN, HIDDEN, num_layers=2), VICRegLoss()
