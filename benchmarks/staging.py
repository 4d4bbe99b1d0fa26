"""What staging costs: time and memory of a plain network beside the same network staged, and seconds of ``build``.

Plain and staged are the same live network, run in turn in one process: a round runs each once, and the order changes
from round to round. The ratio is the median over the rounds of staged divided by plain, with a 95 % bootstrap
interval. Memory is what one pass allocates beyond weights and images at its peak, its outputs held to the end.

    python benchmarks/staging.py --threads 2
    python benchmarks/staging.py --device cuda
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timing import MIB, Pass, Row, interval, made, peak_bytes, seconds, write
from torch import Tensor, nn
from torch.nn import functional

from crossdistill import build
from crossdistill.contracts import Outputs
from crossdistill.report.table import markdown, significant

NETWORKS = (
    "resnet18",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "mixer_s32_224",
)
BUILT = (
    "resnet18",
    "resnet50",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "regnety_016",
    "convnext_tiny",
    "vit_tiny_patch16_224",
    "deit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "mixer_b16_224",
)
IMAGE_SIZE, NUM_CLASSES = 224, 10
BATCH_SIZE = {"cpu": 8, "cuda": 128}
ROUNDS = {"cpu": 12, "cuda": 60}
WARMUP_ROUNDS = 2
NUM_BUILDS = 5

COLUMNS = (
    *("measure", "network", "batch_size", "image_size", "rounds", "unit"),
    *("plain", "staged", "ratio", "ratio_low", "ratio_high"),
    *("threads", "processor", "timm", "device", "torch", "commit", "command", "date"),
)
SAME = ("measure", "network", "batch_size", "image_size", "threads", "device")


def forward(network: nn.Module, images: Tensor) -> Pass:
    """A forward pass that keeps nothing for gradients."""

    def run() -> object:
        with torch.inference_mode():
            return network(images)

    return run


def forward_backward(network: nn.Module, images: Tensor) -> Pass:
    """A forward pass and the gradients of a loss on the logits alone, so that both variants compute the same."""
    target = torch.arange(len(images), device=images.device) % NUM_CLASSES

    def run() -> object:
        outputs = network(images)
        logits = outputs.require("logits") if isinstance(outputs, Outputs) else outputs
        functional.cross_entropy(logits, target).backward()
        return outputs

    return run


PASSES = {"forward": (forward, False), "forward and backward": (forward_backward, True)}
"""Each pass, and whether the network is in train mode."""


def in_turn(network: nn.Module, plain: Pass, staged: Pass, rounds: int, device: torch.device) -> NDArray[np.float64]:
    """Seconds ``(rounds, 2)`` of both variants, each first in every other round."""
    taken = np.zeros((rounds, 2))
    for number in range(-WARMUP_ROUNDS, rounds):
        for variant in (0, 1) if number % 2 == 0 else (1, 0):
            network.zero_grad(set_to_none=True)
            spent = seconds((plain, staged)[variant], device)
            if number >= 0:
                taken[number, variant] = spent
    return taken


def measure(name: str, device: torch.device, rounds: int) -> Iterator[Row]:
    """Time and memory of both passes of one network."""
    model = build(name, num_classes=NUM_CLASSES).to(device)
    batch_size = BATCH_SIZE[device.type]
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch_size, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator).to(device)
    about = {"network": name, "batch_size": batch_size, "image_size": IMAGE_SIZE}
    for measured, (make, training) in PASSES.items():
        model.train(training)
        plain, staged = make(model.net, images), make(model, images)
        taken = in_turn(model.net, plain, staged, rounds, device)
        ratios = taken[:, 1] / taken[:, 0]
        milliseconds = 1000 * np.median(taken, axis=0)
        yield (
            about
            | {"measure": f"{measured}, time", "rounds": rounds, "unit": "ms"}
            | _compared(milliseconds[0], milliseconds[1], float(np.median(ratios)), interval(ratios))
        )
        peaks = []
        for run in (plain, staged):
            model.net.zero_grad(set_to_none=True)
            peaks.append(peak_bytes(run, device) / MIB)
        model.net.zero_grad(set_to_none=True)
        yield about | {"measure": f"{measured}, memory", "rounds": 1, "unit": "MiB"} | _compared(*peaks)


def build_times(name: str) -> Iterator[Row]:
    """Seconds of ``build`` beside ``timm.create_model``: the first of each, then the median of the next ones."""
    about = {"network": name, "image_size": IMAGE_SIZE, "unit": "s"}
    ways = (
        lambda: timm.create_model(name, num_classes=NUM_CLASSES),
        lambda: build(name, num_classes=NUM_CLASSES),
    )
    cpu = torch.device("cpu")
    first = [seconds(way, cpu) for way in ways]
    taken = np.array([[seconds(way, cpu) for way in ways] for _ in range(NUM_BUILDS)])
    plain, staged = np.median(taken, axis=0)
    yield about | {"measure": "build, first", "rounds": 1} | _compared(*first)
    yield about | {"measure": "build", "rounds": NUM_BUILDS} | _compared(plain, staged)


def _compared(
    plain: float, staged: float, ratio: float | None = None, around: tuple[float, float] | None = None
) -> Row:
    low, high = around or (None, None)
    values = {"plain": plain, "staged": staged, "ratio": ratio or staged / plain, "ratio_low": low, "ratio_high": high}
    return {key: None if value is None else float(f"{value:.4g}") for key, value in values.items()}


def table(rows: Sequence[Row]) -> str:
    """The rows for people to read."""
    columns = ("Measure", "Network", "Plain", "Staged", "Ratio", "95 % interval")
    cells = tuple(
        (
            row["measure"],
            row["network"],
            f"{significant(row['plain'])} {row['unit']}",
            f"{significant(row['staged'])} {row['unit']}",
            f"{row['ratio']:.3f}",
            "" if row["ratio_low"] is None else f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}",
        )
        for row in rows
    )
    return markdown(columns, cells, num_text_columns=2)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=tuple(BATCH_SIZE), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the processor")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS['cpu']} on a CPU, {ROUNDS['cuda']} on a GPU")
    parser.add_argument("--out", type=Path, default=Path("results/speed/staging.csv"))
    parser.add_argument("--builds", action="store_true", help="only the seconds of build")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, rounds = torch.device(options.device), options.rounds or ROUNDS[options.device]
    command = f"python benchmarks/staging.py --device {device.type} --threads {options.threads}"
    place = made(command + " --builds" * options.builds, device)
    rows = []
    for name in BUILT:
        rows += [row | place | {"device": "CPU"} for row in build_times(name)]  # built there in any case
        print(f"built {name}", flush=True)
    for name in () if options.builds else NETWORKS:
        rows += [row | place for row in measure(name, device, rounds)]
        print(f"measured {name}", flush=True)
    write(options.out, rows, COLUMNS, SAME)
    print(table(rows))


if __name__ == "__main__":
    main()
