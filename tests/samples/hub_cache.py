"""Repositories of the Hugging Face hub as its library caches them, so that its own loading code finds them offline."""

import transformers
from transformers import (
    BeitConfig,
    ConvNextConfig,
    DeiTConfig,
    Dinov2Config,
    EfficientNetConfig,
    MobileViTConfig,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
)

HASH = "0123456789abcdef0123456789abcdef01234567"
SIZE = 64
CLASSES = {0: "ant", 1: "bee", 2: "cat"}

TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48}
PATCHES = {"image_size": SIZE, "patch_size": 16, **TRANSFORMER}
CONFIGS = {
    "vit": lambda **more: ViTConfig(**PATCHES, **more),
    "deit": lambda **more: DeiTConfig(**PATCHES, architectures=["DeiTForImageClassification"], **more),
    "deit_distilled": lambda **more: DeiTConfig(
        **PATCHES, architectures=["DeiTForImageClassificationWithTeacher"], **more
    ),
    "beit": lambda **more: BeitConfig(**PATCHES, **more),
    "dinov2": lambda **more: Dinov2Config(**PATCHES, **more),
    "swin": lambda **more: SwinConfig(
        image_size=SIZE, patch_size=4, embed_dim=16, depths=[1, 1, 1], num_heads=[1, 2, 2], window_size=4, **more
    ),
    "convnext": lambda **more: ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], **more),
    "resnet": lambda **more: ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic", **more
    ),
    "mobilevit": lambda **more: MobileViTConfig(
        image_size=SIZE,
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 12, 16, 24, 32, 48],
        num_attention_heads=2,
        **more,
    ),
    "efficientnet": lambda **more: EfficientNetConfig(
        image_size=SIZE, width_coefficient=0.25, depth_coefficient=0.25, hidden_dim=320, **more
    ),
}
SQUARE = {"height": SIZE, "width": SIZE}
PROCESSORS = {
    "swin": lambda: transformers.ViTImageProcessor(size=SQUARE, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]),
    "beit": lambda: transformers.BeitImageProcessor(size=SQUARE, do_center_crop=False),
    "convnext": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": SIZE}),
    "resnet": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": SIZE}, crop_pct=0.8),
    "dinov2": lambda: transformers.BitImageProcessor(size={"shortest_edge": 80}, crop_size=SQUARE),
    "mobilevit": lambda: transformers.MobileViTImageProcessor(size={"shortest_edge": 80}, crop_size=SQUARE),
    "efficientnet": lambda: transformers.EfficientNetImageProcessor(size=SQUARE, rescale_offset=True, resample=2),
}


def save(folder, kind, *, id2label=CLASSES, **more):
    """A tiny classifier of transformers with random weights, as it saves one itself."""
    labels = {"id2label": id2label, "label2id": {label: index for index, label in id2label.items()}}
    model = transformers.AutoModelForImageClassification.from_config(CONFIGS[kind](**labels, **more)).eval()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    PROCESSORS.get(kind, lambda: transformers.ViTImageProcessor(size=SQUARE))().save_pretrained(folder)
    return model


def repository(cache, name):
    """The folder of a repository's only snapshot."""
    root = cache / f"models--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(HASH)
    folder = root / "snapshots" / HASH
    folder.mkdir(parents=True)
    return folder
