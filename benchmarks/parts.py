"""Parts of a training step in two forms each, in turn: which form is the faster one here.

    optimizer    the update of all weights by PyTorch's plain loop, and by its fused kernel (train.fused_optimizer)
    ofa losses   OFA's losses of four branches and the head, by one call each, and by one call for all
    branches     the exit branches of a transformer student forward and backward, one after the other as the method runs
                 them, and as one batch with stacked weights (which the method does not: see the rows)

A ratio is the median over the rounds of second / first form, with a 95 % bootstrap interval. Rows in
``results/speed/parts.csv``.

    python benchmarks/parts.py --threads 2
    python benchmarks/parts.py --device cuda
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from timing import Pass, Row, compared, in_turn, made, rounded, write
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from crossdistill import build, losses
from crossdistill.bridges.exit_branch import exit_branch
from crossdistill.losses.ofa import ofa_of_each

SAME = ("part", "case", "batch_size", "device", "threads")
COLUMNS = (
    *("part", "case", "batch_size", "first", "second", "first_ms", "second_ms"),
    *("ratio", "ratio_low", "ratio_high", "rounds"),
    *("device", "threads", "processor", "torch", "timm", "crossdistill", "commit", "command"),
)
Pair = tuple[Row, Pass, Pass]


def main() -> None:
    """Measure every part and write its row as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=None, help="of PyTorch; default: its own choice")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("results/speed/parts.csv"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    command = shlex.join(["python", "benchmarks/parts.py", *sys.argv[1:]])
    torch.manual_seed(0)
    for facts, first, second in (*_optimizers(device), *_losses(device), *_branches(device)):
        taken = in_turn([first, second], options.rounds, device, warmup=2)
        first_ms, second_ms = (1000 * float(one) for one in _medians(taken))
        row = facts | {"first_ms": first_ms, "second_ms": second_ms, "rounds": options.rounds}
        row |= compared("ratio", taken[:, 1] / taken[:, 0]) | made(command, device)
        write(options.out, [rounded(row)], COLUMNS, SAME)
        print(f"{facts['part']}, {facts['case']}: {row['ratio']:.3f}", flush=True)


def _medians(taken: object) -> tuple[float, float]:
    """The median of each column, in the order of the columns."""
    first, second = torch.as_tensor(taken).median(dim=0).values.tolist()
    return first, second


def _optimizers(device: torch.device) -> Iterator[Pair]:
    """One update of AdamW and SGD with all gradients at hand."""
    makers = {"adamw": torch.optim.AdamW, "sgd": lambda weights, **how: torch.optim.SGD(weights, momentum=0.9, **how)}
    for name in ("resnet18", "deit_tiny_patch16_224", "mobilenetv2_100"):
        for kind, maker in makers.items():
            updates = []
            for fused in (False, True):
                weights = [nn.Parameter(one.detach().to(device)) for one in timm.create_model(name).parameters()]
                for weight in weights:
                    weight.grad = torch.randn_like(weight)
                updates.append(maker(weights, lr=1e-4, fused=fused).step)
            case = {"part": "optimizer", "case": f"{kind}, {name}", "first": "plain", "second": "fused"}
            yield case, *updates


def _losses(device: torch.device) -> Iterator[Pair]:
    """Forward and backward of OFA's five losses."""
    for batch_size, num_classes in (
        (8, 100),
        (8, 1000),
        (64, 100),
        (64, 1000),
        (128, 10),
        (128, 100),
        (128, 1000),
        (64, 21_000),
    ):
        heads = [torch.randn(batch_size, num_classes, device=device, requires_grad=True) for _ in range(5)]
        teacher = torch.randn(batch_size, num_classes, device=device)
        labels = torch.randint(num_classes, (batch_size,), device=device)

        def each(heads: list[Tensor] = heads, teacher: Tensor = teacher, labels: Tensor = labels) -> object:
            found = [losses.ofa(head, teacher, labels, gamma=1.5, temperature=1.0) for head in heads]
            return torch.autograd.grad(torch.stack(found).sum(), heads)

        def at_once(heads: list[Tensor] = heads, teacher: Tensor = teacher, labels: Tensor = labels) -> object:
            found = ofa_of_each(heads, teacher, labels, gammas=[1.5] * 5, temperature=1.0)
            return torch.autograd.grad(torch.stack(found).sum(), heads)

        case = {"part": "ofa losses", "case": f"{num_classes} classes", "batch_size": batch_size}
        yield case | {"first": "one call each", "second": "one call for all"}, each, at_once


def _branches(device: torch.device) -> Iterator[Pair]:
    """Forward and backward of two exit branches of equal shapes, those of the last two stages of a transformer."""
    for name, batch_size in (("deit_tiny_patch16_224", 8), ("deit_tiny_patch16_224", 32), ("mixer_s32_224", 16)):
        student = build(f"timm/{name}", num_classes=100).spec
        count = len(student.stages)
        branches = [exit_branch(student, student, number, num_classes=100).to(device) for number in (count - 1, count)]
        stage = student.stages[-1]
        tokens = stage.num_prefix_tokens + stage.grid[0] * stage.grid[1]
        features = [torch.randn(batch_size, tokens, stage.channels, device=device) for _ in branches]
        weights = [list(branch.parameters()) for branch in branches]

        def each(
            branches: list[nn.Module] = branches, features: list[Tensor] = features, weights: list[list] = weights
        ) -> object:
            found = [branch(feature).sum() for branch, feature in zip(branches, features, strict=True)]
            return torch.autograd.grad(torch.stack(found).sum(), [one for own in weights for one in own])

        def at_once(
            branches: list[nn.Module] = branches, features: list[Tensor] = features, weights: list[list] = weights
        ) -> object:
            names = [key for key, _ in branches[0].named_parameters()]
            stacked = {key: torch.stack(own) for key, own in zip(names, zip(*weights, strict=True), strict=True)}
            _, buffers = stack_module_state(branches)

            def one(own: dict[str, Tensor], state: dict[str, Tensor], feature: Tensor) -> Tensor:
                logits: Tensor = functional_call(branches[0], (own, state), (feature,))
                return logits

            found = vmap(one)(stacked, buffers, torch.stack(features)).sum()
            return torch.autograd.grad(found, [one for own in weights for one in own])

        case = {"part": "branches", "case": name, "batch_size": batch_size}
        yield case | {"first": "one after the other", "second": "as one batch"}, each, at_once


if __name__ == "__main__":
    main()
