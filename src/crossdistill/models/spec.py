"""The facts of a network, measured by a dry run and read from its own preprocessing configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence

from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from crossdistill.contracts import Family, InputSpec, ModelSpec, Outputs, StageSpec
from crossdistill.models.cutter import Cutter
from crossdistill.models.dry_run import dry_run
from crossdistill.models.unrolls import in_its_order
from crossdistill.models.views import Size

QUERY = re.compile(r"^(to_|in_)?(q|kv|qk|qv|qkv|qkvs|query)(_proj|_conv|_op|s)?(_weight)?$")


def measure(
    net: nn.Module,
    cutter: Cutter,
    *,
    name: str,
    num_classes: int,
    input_spec: InputSpec,
    class_names: Sequence[str] | None,
) -> ModelSpec:
    """The specification of a network that is cut already."""
    outputs = dry_run(net, cutter.whole, (input_spec.num_channels, *input_spec.image_size))
    stages = tuple(in_its_order(net, point.view) for point in cutter.points if point.view is not None)
    return ModelSpec(
        name=name,
        family=family(net, stages),
        num_classes=num_classes,
        embedding_dim=_embedding_dim(outputs),
        stages=stages,
        input=input_spec,
        num_parameters=sum(parameter.numel() for parameter in net.parameters()),
        class_names=tuple(class_names) if class_names is not None else None,
    )


def _embedding_dim(outputs: Outputs) -> int:
    embedding = outputs.require("embedding")
    return (embedding if embedding.ndim == 2 else pooled(embedding)).shape[1]


def pooled(embedding: Tensor) -> Tensor:
    """The mean over positions ``(B, D)`` of a map ``(B, D, H, W)`` or of tokens ``(B, L, D)``."""
    return embedding.mean(dim=1) if embedding.ndim == 3 else embedding.flatten(2).mean(dim=2)


def family(net: nn.Module, stages: Sequence[StageSpec]) -> Family:
    """Transformer: attention among tokens or windows. CNN: convolutions that overlap. MLP: neither."""
    if any(_attends(module) for module in net.modules()):
        return "transformer"
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    overlapping = sum(max(module.kernel_size) > max(module.stride) for module in convolutions)
    channel_first = bool(stages) and all(stage.layout == "NCHW" for stage in stages)
    # one overlapping convolution may be the stem of a network of tokens
    return "cnn" if overlapping > (0 if channel_first else 1) else "mlp"


def _attends(module: nn.Module) -> bool:
    """Attention proper has queries or heads; channel gates and pooling heads do not count."""
    if "Pool" in type(module).__name__:
        return False
    if isinstance(getattr(module, "num_heads", None), int):
        return True
    members = [*dict(module.named_children()), *dict(module.named_parameters(recurse=False))]
    return any(QUERY.match(member) for member in members)


def input_of(net: nn.Module, image_size: Size | None) -> InputSpec:
    """How the network wants its images; a size that is given replaces its own."""
    config = resolve_model_data_config(net)  # type: ignore[no-untyped-call]
    channels = num_channels(net)
    return InputSpec(
        image_size=image_size or tuple(config["input_size"][1:]),
        num_channels=channels,
        mean=_per_channel(config["mean"], channels),
        std=_per_channel(config["std"], channels),
        crop_pct=float(config["crop_pct"]),
        interpolation=str(config["interpolation"]),
    )


def num_channels(net: nn.Module) -> int:
    """Channels of the images, from the network's own attribute or its first convolution."""
    stated = getattr(net, "in_chans", None)
    if isinstance(stated, int):
        return stated
    first = next((module for module in net.modules() if isinstance(module, nn.Conv2d)), None)
    return first.in_channels if first is not None else 3


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Statistics for another number of channels: their mean, so that grey images are prepared like coloured ones."""
    if len(values) == channels:
        return tuple(float(value) for value in values)
    return (sum(values) / len(values),) * channels
