"""Small real pretraining set-ups: a folder of textured images, networks of every family, and the parts of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from crossdistill.engine import fit
from crossdistill.engine.progress import Quiet
from crossdistill.selfsup.compose import compose
from crossdistill.selfsup.settings import load_settings

SIDE = 32
QUICK = (
    "method.num_words=48",
    "train.batch_size=16",
    "train.epochs=2",
    "train.lr=0.02",
    "device=cpu",
    "train.log_every=1",
)
FAMILIES = {
    "cnn": ("timm/test_resnet", 32, ()),
    "hierarchical transformer": (
        "timm/swin_tiny_patch4_window7_224",
        32,
        ("student.args={embed_dim: 12, depths: [1, 1, 1, 1], num_heads: [1, 1, 2, 2], patch_size: 2, window_size: 2}",),
    ),
    "transformer": ("timm/test_vit", 48, ("views.crop_size=32", "views.patch_size=16")),
    "mlp": ("timm/mixer_tiny", 32, ()),
}


def textures(root: Path, *, num_images: int = 24, labelled: bool = True, side: int = SIDE) -> Path:
    """Stripes, dots and noise of random colours: three classes that differ in their local structure alone."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side]
    patterns = {
        "dots": lambda: ((rows % 6 < 2) & (columns % 6 < 2)).astype(float),
        "noise": lambda: generator.random((side, side)),
        "stripes": lambda: ((rows + generator.integers(6)) % 6 < 3).astype(float),
    }
    for split in ("train", "test") if labelled else ("",):
        for name, pattern in patterns.items():
            folder = root / split / name if labelled else root
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(num_images if split != "test" else num_images // 2):
                low, high = sorted(generator.uniform(0, 255, (2, 3)).tolist())
                pixels = np.array(low) + pattern()[..., None] * (np.array(high) - np.array(low))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}-{index}.png")
    return root


def settings_of(data: Path, *overrides: str, model: str = "timm/test_resnet", image_size: int = SIDE, **tree):
    return load_settings(
        {"student": {"name": model, "image_size": image_size}, "data": {"source": f"folder:{data}"}, **tree},
        [*QUICK, *overrides],
    )


def train(settings, *, out=None, reporter=None, max_steps=None, examine=True, modules=None, device="cpu"):
    """Build and train; the parts and the result."""
    parts = compose(settings, modules)
    result = fit(
        parts.student,
        parts.method,
        parts.teacher,
        parts.train_loader,
        parts.exam if examine else None,
        settings=parts.settings.train,
        seed=settings.seed,
        device=device,
        out=out,
        reporter=reporter or Quiet(),
        max_steps=max_steps,
    )
    return parts, result


def state_of(parts) -> dict:
    """Everything that training changed, by name."""
    networks = {"student": parts.student, "teacher": parts.teacher, "method": parts.method}
    return {f"{role}.{name}": value for role, one in networks.items() for name, value in one.state_dict().items()}
