"""CIFAR-100 at 32 px on a CPU: a strong CNN teaches a small transformer and a small MLP, in some hundred steps.

The teacher is a ResNet-56 with published weights (72.63 % on the test images); the students are trained alone, by KD
and by OFA, over the same seeds, batches and steps. Each student and method becomes one row of ``results/``.

    python benchmarks/cifar100_small.py --data ../shared/data/cifar100 \
        --weights ../shared/data/weights/cifar100_resnet56.safetensors --out runs/cifar100-small
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import safetensors.torch
import torch
from record import record
from torch import Tensor, nn

from crossdistill.runs import execute, make_plan

STUDENTS = {
    "vit": {
        "name": "timm/vit_tiny_patch16_224",
        "image_size": 32,
        "args": {"patch_size": 4, "embed_dim": 96, "depth": 6, "num_heads": 4},
    },
    "mlp": {"name": "timm/resmlp_tiny", "image_size": 32},
    "cnn": {"name": "timm/resnet10t", "image_size": 32, "args": {"channels": [16, 32, 64, 128], "stem_width": 16}},
}
METHODS = ("kd", "ofa")


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, images: Tensor) -> Tensor:
        shortcut = images if self.downsample is None else self.downsample(images)
        hidden = self.relu(self.bn1(self.conv1(images)))
        return self.relu(self.bn2(self.conv2(hidden)) + shortcut)


class ResNet56(nn.Module):
    """He et al. 2016 for CIFAR: three stages of nine blocks with 16, 32 and 64 channels."""

    pretrained_cfg = {  # noqa: RUF012 - what timm's data configuration is read from
        "input_size": (3, 32, 32),
        "mean": (0.5070, 0.4865, 0.4409),
        "std": (0.2673, 0.2564, 0.2761),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
    }

    def __init__(self, num_classes: int = 100) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(16, 16, stride=1)
        self.layer2 = self._stage(16, 32, stride=2)
        self.layer3 = self._stage(32, 64, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(in_channels: int, channels: int, *, stride: int) -> nn.Sequential:
        return nn.Sequential(Block(in_channels, channels, stride), *(Block(channels, channels, 1) for _ in range(8)))

    def get_classifier(self) -> nn.Module:
        """The classifier, by the name that timm's networks give it."""
        return self.fc

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.relu(self.bn1(self.conv1(images)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        return self.fc(torch.flatten(self.avgpool(hidden), 1))


def main() -> None:
    """Run every student and write the rows."""
    options = _options()
    teacher = ResNet56()
    teacher.load_state_dict(safetensors.torch.load_file(options.weights))
    for student in options.students.split(","):
        by_method = {}
        for method in METHODS:
            plan = make_plan(
                {
                    "student": STUDENTS[student],
                    "teachers": [{"name": "resnet56"}],
                    "method": {"name": method},
                    "data": {"source": f"parquet:{options.data}"},
                    "train": {
                        "steps": options.steps,
                        "batch_size": options.batch_size,
                        "lr": 2e-3,
                        "clip_grad": 5.0,
                        "eval_every": 1000,
                    },
                },
                seeds=tuple(int(seed) for seed in options.seeds.split(",")),
                baseline=method == METHODS[0],
            )
            out = options.out / student / method
            by_method[method] = execute(plan, out, resume=out.exists(), modules={"resnet56": teacher})
        command = f"python {shlex.join(_public_arguments())}"
        for results in by_method.values():
            record(results, options.results, recipe="cifar100_small", command=command, teacher="CIFAR ResNet-56")


def _public_arguments() -> list[str]:
    """The command as it can be repeated: paths that say where this checkout's user keeps things are left to them."""
    kept = ["benchmarks/cifar100_small.py", "--data", "CIFAR100", "--weights", "RESNET56", "--out", "RUN"]
    names = ("--students", "--seeds", "--steps", "--batch-size")
    return kept + [word for name in names if name in sys.argv for word in (name, sys.argv[sys.argv.index(name) + 1])]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-100 as parquet shards")
    parser.add_argument("--weights", type=Path, required=True, help="ResNet-56 weights, safetensors")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--results", type=Path, default=Path("results/cifar100-small.csv"))
    parser.add_argument("--students", default="vit,mlp,cnn")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=64)
    return parser.parse_args()


if __name__ == "__main__":
    main()
