"""Published weights through our own evaluation: does a network reach the accuracy that it is published with?

EfficientNet-Lite0 (ImageNet) on the ten classes of Imagenette, among these ten and among all 1,000; ResNet-56 on
CIFAR-100; ResNet-20 and 56 on CIFAR-10. What is not given is skipped, and said to be.

    python benchmarks/real_weights.py --weights WEIGHTS --imagenette IMAGENETTE --cifar100 CIFAR100 --cifar10 CIFAR10
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cifar_resnet
import safetensors.torch
from record import origin, replace_row
from torch import nn

from crossdistill import build, evaluate
from crossdistill.analysis import cost
from crossdistill.analysis.environment import environment
from crossdistill.models import StagedModel

EFFICIENTNET = "tf_efficientnet_lite0"
COMMAND = "python benchmarks/real_weights.py --weights WEIGHTS"
BATCH_SIZE = 20


class CifarWeights(NamedTuple):
    """Published weights of one ResNet, and the accuracy that was stated with them on the 10,000 test images."""

    file: str
    num_classes: int
    depth: int
    shortcut: cifar_resnet.Shortcut
    stated: float


CIFAR = {
    "cifar100": (CifarWeights("cifar100_resnet56", 100, 56, "convolution", 0.7263),),
    "cifar10": (
        CifarWeights("cifar10_resnet20", 10, 20, "padding", 0.9173),
        CifarWeights("cifar10_resnet56", 10, 56, "padding", 0.9339),
    ),
}
STATED_OF_IMAGENETTE = {"top1": 0.974, "top1_of_all_classes": 0.638}
"""On the 900 validation images at 128 px, among their ten classes and among all 1,000."""


def load(weights: CifarWeights, folder: Path) -> nn.Module:
    """The network with these weights; every saved tensor has its place, and only counters of batches may be missing."""
    net = cifar_resnet.build(weights.num_classes, depth=weights.depth, shortcut=weights.shortcut)
    counters = {key: tensor for key, tensor in net.state_dict().items() if key.endswith("num_batches_tracked")}
    net.load_state_dict(counters | safetensors.torch.load_file(folder / f"{weights.file}.safetensors"))
    return net


def imagenet_rows(weights: Path, images: Path) -> Iterator[dict[str, Any]]:
    """EfficientNet-Lite0 on Imagenette, whose classes are found among ImageNet's by their names."""
    name = f"timm/{EFFICIENTNET}@{weights / f'{EFFICIENTNET}_in1k_fp16.safetensors'}"
    measured = evaluate(name, f"parquet:{images}", class_map="names", batch_size=BATCH_SIZE)
    model = build(name)
    for key, stated in STATED_OF_IMAGENETTE.items():
        all_classes = key == "top1_of_all_classes"
        num_classes = measured["num_model_classes"] if all_classes else len(measured["per_class"])
        yield _row(model, EFFICIENTNET, images, measured, measured[key], num_classes, stated)


def cifar_rows(data: str, weights: Path, images: Path) -> Iterator[dict[str, Any]]:
    """The ResNets of one of the two CIFAR data sets."""
    for one in CIFAR[data]:
        model = build(load(one, weights), num_classes=one.num_classes)
        measured = evaluate(model.net, f"parquet:{images}", batch_size=BATCH_SIZE)
        yield _row(model, f"CIFAR ResNet-{one.depth}", images, measured, measured["top1"], one.num_classes, one.stated)


def _row(
    model: StagedModel,
    name: str,
    images: Path,
    measured: dict[str, Any],
    top1: float,
    num_classes: int,
    stated: float,
) -> dict[str, Any]:
    print(f"{name}: {top1:.2%} of {measured['num_samples']} images, among {num_classes} classes; stated {stated:.2%}")
    price = cost(model, model.spec.input)
    return {
        "recipe": "real_weights",
        "student": name,
        "method": f"published weights, {num_classes:,} classes (stated {100 * stated:.2f} %)",
        "data": f"{images.name}, {measured['split']}",
        "image_size": model.spec.input.image_size[0],
        "top1_mean": round(top1, 5),
        "num_parameters": price.num_parameters,
        "gmacs": float(f"{price.gmacs:.4g}"),
    }


def main() -> None:
    """Evaluate what there is, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="folder of the safetensors files")
    parser.add_argument("--imagenette", type=Path, help="folder with Imagenette as parquet")
    parser.add_argument("--cifar100", type=Path, help="folder with CIFAR-100 as parquet")
    parser.add_argument("--cifar10", type=Path, help="folder with CIFAR-10 as parquet")
    parser.add_argument("--results", type=Path, default=Path("results/real-weights.csv"))
    options = parser.parse_args()
    for data in ("imagenette", *CIFAR):
        images: Path | None = getattr(options, data)
        if images is None:
            print(f"{data}: skipped, --{data} is not given")
            continue
        found = imagenet_rows if data == "imagenette" else lambda *paths, data=data: cifar_rows(data, *paths)
        for row in found(options.weights, images):
            replace_row(options.results, row | origin(environment(), f"{COMMAND} --{data} {data.upper()}"))


if __name__ == "__main__":
    main()
