"""Networks that timm lacks, registered under timm's own names so that ``timm.create_model`` builds and reloads them.

Swin-Nano and Swin-Pico are the students of OFA-KD (Hao et al. 2023, arXiv 2310.19444); no weights were published.
The tiny MLPs are for images from 16 px; their patch grows with the image, so they stay under 0.5 M
parameters up to 224 px.
"""

from __future__ import annotations

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock
from timm.models.swin_transformer import SwinTransformer
from torch import nn

LARGEST_GRID = 14
"""Most patches a side of the tiny MLPs: token-mixing weights grow with the fourth power of it."""


def _config(**facts: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        **facts,
    }


_SWIN = _config(input_size=(3, 224, 224), pool_size=(7, 7), first_conv="patch_embed.proj", classifier="head.fc")
_MLP = _config(input_size=(3, 32, 32), pool_size=None, first_conv="stem.proj", classifier="head")

default_cfgs = generate_default_cfgs(
    {"swin_nano": _SWIN, "swin_pico": _SWIN, "mixer_tiny": _MLP, "resmlp_tiny": _MLP},
)


def patch_size_for(image_size: int | tuple[int, int]) -> int:
    """The smallest power of two from 4 that leaves at most 14 patches a side.

    >>> [patch_size_for(size) for size in (16, 32, 56, 64, 224)]
    [4, 4, 4, 8, 16]
    """
    side = image_size if isinstance(image_size, int) else max(image_size)
    patch_size = 4
    while side // patch_size > LARGEST_GRID:
        patch_size *= 2
    return patch_size


def _swin(variant: str, pretrained: bool, **options: Any) -> nn.Module:
    shape = {
        "patch_size": 4,
        "window_size": 7,
        "depths": (2, 2, 2, 2),
        "num_heads": (2, 4, 8, 16),
        "feature_cfg": {"flatten_sequential": True, "out_indices": (0, 1, 2, 3)},
    }
    net: nn.Module = build_model_with_cfg(SwinTransformer, variant, pretrained, **{**shape, **options})
    return net


def _mlp(variant: str, pretrained: bool, **options: Any) -> nn.Module:
    image_size = options.get("img_size") or _MLP["input_size"][1:]
    options = {"patch_size": patch_size_for(image_size), "feature_cfg": {"feature_cls": "getter"}, **options}
    net: nn.Module = build_model_with_cfg(MlpMixer, variant, pretrained, **options)
    return net


@register_model
def swin_nano(pretrained: bool = False, **options: Any) -> nn.Module:
    """Swin with width 64 and two blocks a stage: 9.60 M parameters with 1,000 classes at 224 px."""
    return _swin("swin_nano", pretrained, **{"embed_dim": 64, **options})


@register_model
def swin_pico(pretrained: bool = False, **options: Any) -> nn.Module:
    """Swin with width 48 and two blocks a stage: 5.16 M parameters with 100 classes at 224 px."""
    return _swin("swin_pico", pretrained, **{"embed_dim": 48, **options})


@register_model
def mixer_tiny(pretrained: bool = False, **options: Any) -> nn.Module:
    """MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601) with 8 blocks of width 64."""
    return _mlp("mixer_tiny", pretrained, **{"num_blocks": 8, "embed_dim": 64, **options})


@register_model
def resmlp_tiny(pretrained: bool = False, **options: Any) -> nn.Module:
    """ResMLP (Touvron et al. 2021, arXiv 2105.03404) with 6 blocks of width 56."""
    shape = {"num_blocks": 6, "embed_dim": 56, "mlp_ratio": 4, "block_layer": ResBlock, "norm_layer": Affine}
    return _mlp("resmlp_tiny", pretrained, **{**shape, **options})
