"""A network that can be run as a whole, as far as a stage, and from a stage on."""

from __future__ import annotations

from torch import Tensor, nn

from crossdistill.contracts import ModelSpec, Outputs
from crossdistill.errors import InputError
from crossdistill.models.cutter import Cutter
from crossdistill.models.spec import pooled


class StagedModel(nn.Module):
    """The plain network ``net`` with the facts in ``spec``; calling it gives logits, embedding and stages at once.

    The network's weights, modes and outputs are its own: ``model.net(images)`` equals ``model(images).logits``, and
    ``model.net.state_dict()`` is what is exported.
    """

    def __init__(
        self, net: nn.Module, spec: ModelSpec, cutter: Cutter, stage_names: tuple[str, ...] | None = None
    ) -> None:
        super().__init__()
        self.net = net
        self.spec = spec
        self.stage_names = stage_names
        self._cutter = cutter

    def forward(self, images: Tensor) -> Outputs:
        """Images ``(B, C, H, W)`` to logits ``(B, K)``, embedding ``(B, D)`` and the raw tensor of each stage."""
        return _flat(self._cutter.whole(self.net, images))

    def forward_until(self, images: Tensor, stage: int) -> Tensor:
        """The raw tensor that ends stage 1, 2, … of images ``(B, C, H, W)``.

        Raises:
            InputError: the network has no such stage.
        """
        return self._cutter.until(self.net, images, self._checked(stage))

    def forward_from(self, feature: Tensor, stage: int) -> Outputs:
        """The rest of the forward pass from the raw tensor that ends a stage, as ``forward_until`` returns it.

        ``stages`` of the result begins with ``feature`` itself and goes on with the later stages.

        Raises:
            InputError: the network has no such stage.
        """
        return _flat(self._cutter.resume(self.net, feature, self._checked(stage)))

    def _checked(self, stage: int) -> int:
        count = len(self.spec.stages)
        if not 1 <= stage <= count:
            raise InputError(
                f"stage {stage} of {self.spec.name}",
                f"a stage from 1 to {count}" if count else "no stage: this network cannot be cut",
                "choose another stage",
            )
        return stage

    def extra_repr(self) -> str:
        """What ``print`` adds: the stages."""
        return f"{self.spec.name}, {len(self.spec.stages)} stages"


def _flat(outputs: Outputs) -> Outputs:
    """Where a classifier takes a map or tokens and what it makes of them is pooled, the embedding is pooled too."""
    if outputs.embedding is None or outputs.embedding.ndim == 2:
        return outputs
    return Outputs(outputs.logits, pooled(outputs.embedding), outputs.stages)
