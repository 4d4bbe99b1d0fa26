"""What distilling adds to a training step: online beside student step + teacher forward, stored beside student step.

Every step of a pair (the student alone, the teacher's forward pass, each method with the live teacher and with a stored
one) runs once a round on the same live networks, in changing order. A ratio is the median over the rounds, with a 95 %
bootstrap interval:

    ratio_loop      the student's step alone in our loop / the same in plain PyTorch: what the loop itself adds
    ratio_online    online step / (the student's step alone + the teacher's forward pass in inference mode)
    ratio_stored    step from a store of all logits in fp16 / the student's step alone
    ratio_top_k     the same from a store of the 10 largest logits

The step in plain PyTorch is of the same network with the same optimiser (``training_step.Plain``); on a GPU it may take
kernels that are not deterministic, which the loop's may not. Everything else stands beside the loop's own plain step.
Stored steps look up, decode and move the answers. The store holds answers to 2,048 samples; what reading a shard
for the first time in an epoch costs is in ``store_rates.py``. A goal is met ("yes") or missed ("no") where the whole
interval says so, and "open" between. ``flops_online`` and ``flops_stored`` are the same two quotients of floating-point
operations: what the method's own arithmetic would cost at the speed of all other. Memory is what a step allocates at
its peak beyond weights and optimiser state. Rows are written pair by pair, and those of this commit are not measured
again.

    python benchmarks/step.py --threads 2
    python benchmarks/step.py --pairs small --rounds 6
    python benchmarks/step.py --device cuda --precision bf16 --channels-last --compile
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from timing import Row, compared, is_finished, made, rounded, write
from training_step import (
    ONLINE,
    PLAIN,
    PYTORCH,
    STORED,
    TEACHER,
    TOP,
    Case,
    Live,
    add_loop_options,
    loop_settings,
    measure,
)

from crossdistill.report.table import markdown

PAIRS = {
    "published": (
        ("swin_tiny_patch4_window7_224", "resnet18"),
        ("mixer_b16_224", "deit_tiny_patch16_224"),
        ("deit_tiny_patch16_224", "resnet18"),
        ("swin_tiny_patch4_window7_224", "mobilenetv2_100"),
    ),
    "small": (("vit_tiny_patch16_224", "resnet10t"), ("resnet10t", "vit_tiny_patch16_224")),
}
"""Teacher and student: pairs of OFA's tables at their size, and a quick look."""

IMAGE_SIZE = {"published": 224, "small": 96}
METHODS = ("kd", "dkd", "dist", "ofa", "fbt")
NUM_CLASSES = 1000
BATCH_SIZE = {"cpu": 8, "cuda": 128}
ROUNDS = {"cpu": 10, "cuda": 40}

ONLINE_GOALS = {"logit": 1.02, "ofa": 1.08, "fbt": 1.4}
STORED_GOALS = {"logit": 1.03, "ofa": 1.10}

COLUMNS = (
    *("teacher", "student", "method", "num_classes", "image_size", "batch_size", "precision", "channels_last"),
    *("compile", "rounds", "pytorch_ms", "plain_ms", "teacher_ms", "online_ms", "stored_ms", "top_k_ms"),
    *("ratio_loop", "ratio_loop_low", "ratio_loop_high"),
    *("ratio_online", "ratio_online_low", "ratio_online_high", "goal_online", "met_online"),
    *("ratio_stored", "ratio_stored_low", "ratio_stored_high", "goal_stored", "met_stored"),
    *("ratio_top_k", "ratio_top_k_low", "ratio_top_k_high", "met_top_k"),
    *("pytorch_mib", "plain_mib", "teacher_mib", "online_mib", "stored_mib", "top_k_mib"),
    *("flops_online", "flops_stored"),
    *("threads", "processor", "timm", "device", "torch", "commit", "command", "date"),
)
SAME = (
    *("teacher", "student", "method", "num_classes", "image_size", "batch_size", "precision", "channels_last"),
    *("compile", "threads", "device"),
)


def group_of(live: Live, method: str) -> str:
    """Which goals a method is measured by: logit methods have the same, some their own, the others none."""
    return "logit" if method != "ofa" and live.needs(method) == {"logits"} else method


def measured_rows(live: Live, methods: Sequence[str], rounds: int) -> Iterator[Row]:
    """One row a method, after all of them have run in turn."""
    found = measure(live, {method: {} for method in methods}, rounds)
    for method in methods:
        keys = found.of(method)
        row = {**live.case.columns, "method": method, "rounds": rounds}
        row |= {f"{kind}_ms": 1000 * float(np.median(found.seconds[key])) for kind, key in keys.items()}
        row |= {f"{kind}_mib": found.mib[key] for kind, key in keys.items()}
        row |= _ratios({kind: found.seconds[key] for kind, key in keys.items()}, group_of(live, method))
        if found.flops:
            flops = {kind: found.flops[key] for kind, key in keys.items()}
            row["flops_online"] = flops[ONLINE] / (flops[PLAIN] + flops[TEACHER])
            row["flops_stored"] = flops[STORED] / flops[PLAIN] if STORED in flops else None
        yield row


def _ratios(seconds: dict[str, NDArray[np.float64]], group: str) -> Row:
    """The ratios of one method beside their goals."""
    plain, both = seconds[PLAIN], seconds[PLAIN] + seconds[TEACHER]
    row: Row = compared("ratio_loop", plain / seconds[PYTORCH])
    for kind, beside, goals in (
        (ONLINE, both, ONLINE_GOALS),
        (STORED, plain, STORED_GOALS),
        (TOP, plain, STORED_GOALS),
    ):
        if kind not in seconds:
            continue
        row |= compared(f"ratio_{kind}", seconds[kind] / beside)
        goal = goals.get(group)
        row |= {f"goal_{kind}": goal, f"met_{kind}": _met(row[f"ratio_{kind}_low"], row[f"ratio_{kind}_high"], goal)}
    return row


def _met(low: float, high: float, goal: float | None) -> str | None:
    """Whether an interval lies on the right side of a goal."""
    if goal is None:
        return None
    return "yes" if high <= goal else "no" if low > goal else "open"


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """The pairs that are asked for, by group or by the two names ``TEACHER:STUDENT``."""
    train = loop_settings(
        options.precision,
        channels_last=options.channels_last,
        compile_all=options.compile,
        batch_size=options.batch,
    )
    for given in options.pairs:
        pairs = PAIRS.get(given) or (tuple(given.split(":")),)
        for teacher, student in pairs:
            size = options.image_size or IMAGE_SIZE.get(given, IMAGE_SIZE["published"])
            yield Case(student, (teacher,), options.classes, size, options.batch, train, options.device)


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """The rows of all pairs and methods, written as soon as a pair is measured."""
    place = made(command_of(options), torch.device(options.device))
    for case in cases(options):
        wanted = [{**case.columns, "method": method} | place for method in options.methods]
        left = [row["method"] for row in wanted if not is_finished(row, options.out, SAME)]
        print(f"{case.columns['teacher']} -> {case.student}: {', '.join(left) or 'all measured'}", flush=True)
        if not left:
            continue
        found = [rounded(row | place) for row in measured_rows(Live(case), left, options.rounds)]
        write(options.out, found, COLUMNS, SAME)
        yield from found


def command_of(options: argparse.Namespace) -> str:
    """The command that measures such rows again."""
    flags = " --channels-last" * options.channels_last + " --compile" * options.compile
    sizes = f"--precision {options.precision} --batch {options.batch} --rounds {options.rounds}"
    return f"python benchmarks/step.py --device {options.device} --threads {options.threads} {sizes}{flags}"


def table(found: Sequence[Row]) -> str:
    """The rows for people to read."""
    goals = ("Online", "Goal", "Met", "Stored", "Goal", "Met")
    columns = ("Teacher", "Student", "Method", "Loop", *goals, "Top 10", "Memory")
    cells = tuple(
        (
            *(row["teacher"], row["student"], row["method"], _shown(row, "loop")),
            *(_shown(row, "online"), str(row["goal_online"] or ""), row["met_online"] or ""),
            *(_shown(row, "stored"), str(row.get("goal_stored") or ""), row.get("met_stored") or ""),
            *(_shown(row, "top_k"), f"{row['online_mib'] / row['plain_mib']:.2f}"),
        )
        for row in found
    )
    return markdown(columns, cells, num_text_columns=3)


def _shown(row: Row, kind: str) -> str:
    name = f"ratio_{kind}"
    return f"{row[name]:.3f} ({row[name + '_low']:.3f} to {row[name + '_high']:.3f})" if name in row else ""


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_loop_options(parser)
    parser.add_argument("--batch", type=int, help=f"default: {BATCH_SIZE['cpu']}, or {BATCH_SIZE['cuda']} on a GPU")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS['cpu']}, or {ROUNDS['cuda']} on a GPU")
    parser.add_argument("--pairs", nargs="+", default=["published"], help="published, small, or TEACHER:STUDENT")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--classes", type=int, default=NUM_CLASSES)
    parser.add_argument("--image-size", type=int, help="default: that of the pairs")
    parser.add_argument("--out", type=Path, default=Path("results/speed/step.csv"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.batch = options.batch or BATCH_SIZE[options.device]
    options.rounds = options.rounds or ROUNDS[options.device]
    found = list(rows(options))
    if found:
        print(table(found))


if __name__ == "__main__":
    main()
