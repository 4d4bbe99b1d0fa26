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
from cifar_resnet import build
from record import record

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


def main() -> None:
    """Run every student and write the rows."""
    options = _options()
    teacher = build(num_classes=100, depth=56)
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
