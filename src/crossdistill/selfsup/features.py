"""What a network says of images: embeddings, computed once for every way of measuring them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from crossdistill.contracts import STUDENT_VIEW, Batch
from crossdistill.engine.evaluate import eval_mode
from crossdistill.engine.together import from_all
from crossdistill.errors import InputError


@dataclass(frozen=True, slots=True)
class Features:
    """Embeddings ``(N, D)``, targets ``(N,)`` with -1 for unlabelled, and sample ids ``(N,)``, by growing id."""

    embeddings: Tensor
    targets: Tensor
    sample_ids: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def labelled(self) -> Features:
        """Those that have a label.

        Raises:
            InputError: none has.
        """
        kept = self.targets >= 0
        if not kept.any():
            raise InputError(
                f"{len(self)} images without labels, where labels are asked for",
                "images with classes: representations are measured by them",
                "give labelled images with --data; pretraining alone needs none",
            )
        return self if bool(kept.all()) else self[kept]

    def __getitem__(self, chosen: Tensor) -> Features:
        return Features(self.embeddings[chosen], self.targets[chosen], self.sample_ids[chosen])


@torch.no_grad()
def extract(
    network: nn.Module,
    loader: Iterable[Batch],
    accelerator: Accelerator,
    *,
    view: str = STUDENT_VIEW,
    flip: bool = False,
) -> Features:
    """One pass in eval mode; several processes bring their shares together, each image once.

    Args:
        network: ``images -> Outputs``; it is moved to the device, and its modules get their modes back.
        loader: this process's share of the images, without random changes.
        accelerator: device and precision.
        view: which images of a batch the network sees.
        flip: show it their mirror images.

    Raises:
        InputError: no image, or an embedding that is not finite.
    """
    network.to(accelerator.device)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    with eval_mode(network):
        for batch in loader:
            images = batch.images[view].to(accelerator.device, non_blocking=True)
            with accelerator.autocast():
                embedding = network(images.flip(-1) if flip else images).require("embedding")
            found.append((embedding.float().cpu(), batch.target.cpu(), batch.sample_id.cpu()))
    parts = [part for share in from_all(found) for part in share]
    if not parts:
        raise InputError("no image to measure a representation on", "at least one", "check the data and their splits")
    embeddings, targets, sample_ids = (torch.cat(column) for column in zip(*parts, strict=True))
    order = sample_ids.argsort()
    _check_finite(embeddings, sample_ids, network)
    return Features(embeddings[order], targets[order], sample_ids[order])


def _check_finite(embeddings: Tensor, sample_ids: Tensor, network: nn.Module) -> None:
    broken = ~embeddings.isfinite().all(dim=1)
    if broken.any():
        name = getattr(getattr(network, "spec", None), "name", type(network).__name__)
        raise InputError(
            f"{name}, whose embeddings of {int(broken.sum())} of {len(broken)} images are not finite (first of image "
            f"{int(sample_ids[broken][0])})",
            "finite numbers",
            "use fp32, and look at the weights and at that image",
        )
