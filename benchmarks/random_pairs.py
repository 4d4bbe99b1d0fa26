"""Does any network teach any other? ``distill --dry-run`` over random pairs of timm's families, two steps each.

The zoo's networks (the smallest variant of every file of timm) stand in a random circle, and each teaches the next:
no pair is of one file, and after a round every network has been a teacher and a student. The methods take turns.
Teachers have random weights, of which a dry run only warns. Pairs with an "ok" in the CSV file are not run again.

    python benchmarks/random_pairs.py --seed 0
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from record import origin

from crossdistill import cli
from crossdistill.analysis.environment import environment
from crossdistill.models.sizes import construct, own_size
from crossdistill.models.zoo import smallest_variants
from crossdistill.registry import METHODS

COLUMNS = (
    *("teacher", "student", "teacher_family", "student_family", "method", "teacher_size", "student_size", "seed"),
    *("seconds", "outcome", "device", "torch", "commit", "command", "date"),
)
SIDES = (64, 96, 128, 160)
"""Image sizes in pixels that are tried before a network's own, which costs more."""


class Pair(NamedTuple):
    """Who teaches whom, and how."""

    teacher: str
    student: str
    method: str


def draw(names: Sequence[str], methods: Sequence[str], *, count: int, seed: int) -> list[Pair]:
    """So many pairs: round after round a new random circle in which each network teaches the next."""
    generator = random.Random(seed)
    pairs: list[Pair] = []
    while len(pairs) < count:
        circle = generator.sample(names, len(names))
        for teacher, student in zip(circle, circle[1:] + circle[:1], strict=True):
            pairs.append(Pair(teacher, student, methods[len(pairs) % len(methods)]))
    return pairs[:count]


def networks(most_parameters: int) -> list[str]:
    """The zoo without networks that have more parameters than that."""
    return [name for name in smallest_variants().values() if num_parameters(name) <= most_parameters]


def num_parameters(name: str) -> int:
    """Of a network with ten classes."""
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=10)
    return sum(parameter.numel() for parameter in net.parameters())


def smallest_side(name: str) -> int:
    """The first of ``SIDES`` at which timm's network can be built and run, else its own size."""
    for side in SIDES:
        with contextlib.suppress(Exception), torch.device("meta"), torch.no_grad():
            net = construct(name, {"num_classes": 10}, (side, side))
            net.eval()(torch.zeros(2, 3, side, side))
            return side
    own = own_size(name)
    return own[0] if own is not None else 224


def arguments(pair: Pair, teacher_size: int, student_size: int, seed: int) -> list[str]:
    """The command line."""
    return [
        *("distill", "--dry-run", "--teacher", f"timm/{pair.teacher}", "--student", f"timm/{pair.student}"),
        *("--method", pair.method, "--data", "digits", "--image-size", str(student_size), "--batch-size", "4"),
        *("--limit-train", "16", "--device", "cpu", "--seeds", str(seed), "--out", "runs/random-pair"),
        f"teachers.0.image_size={teacher_size}",
    ]


def run(line: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Run a dry run in this process: "ok" or what it says on failure, and what it built."""
    printed, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        code = cli.run([*line, "--json"])
    answer: dict[str, Any] = json.loads(printed.getvalue())
    if code:
        return "; ".join(f"{key}: {value}" for key, value in answer["error"].items()), {}
    (trial,) = answer["dry_run"].values()
    return "ok", trial


def row_of(pair: Pair, seed: int) -> dict[str, Any]:
    """Run one pair; its row without the columns of origin."""
    started = time.perf_counter()
    sizes = smallest_side(pair.teacher), smallest_side(pair.student)
    line = arguments(pair, *sizes, seed)
    outcome, trial = run(line)
    return {
        **pair._asdict(),
        "teacher_family": trial["teacher"]["family"] if trial else "",
        "student_family": trial["student"]["family"] if trial else "",
        "teacher_size": sizes[0],
        "student_size": sizes[1],
        "seed": seed,
        "seconds": round(time.perf_counter() - started, 1),
        "outcome": outcome,
        "command": " ".join(["crossdistill", *line]),
    }


def read(path: Path) -> list[dict[str, str]]:
    """The rows of the CSV file; none where there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write the CSV file anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def mark(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What a pair's row is known by."""
    return tuple(str(row[key]) for key in (*Pair._fields, "seed"))


def told(row: Mapping[str, Any]) -> str:
    """One line about a pair."""
    families = f"{row['teacher_family'] or '?'} -> {row['student_family'] or '?'}"
    return f"{row['teacher']} -> {row['student']}, {families}, {row['method']}, {row['seconds']} s: {row['outcome']}"


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """How many pairs worked, and what took part in them."""
    fine = [row for row in rows if row["outcome"] == "ok"]
    lines = [f"{len(fine)} of {len(rows)} pairs ok"]
    for column in ("method", "teacher_family", "student_family"):
        counts = Counter(row[column] for row in fine)
        lines.append(f"{column}: {', '.join(f'{key} {counts[key]}' for key in sorted(counts))}")
    return "\n".join(lines)


def main() -> None:
    """Draw, run and write; exit code 1 if a pair failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, help="pairs; default: one round, in which each network teaches once")
    parser.add_argument("--seed", type=int, default=0, help="of the draw and of the runs")
    parser.add_argument("--methods", help="which take turns, such as fbt,rsd; default: all")
    parser.add_argument("--most-parameters", type=int, default=30_000_000, help="larger networks are left out")
    parser.add_argument("--results", type=Path, default=Path("results/checks/random-pairs.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = networks(options.most_parameters)
    every = [record.name for record in METHODS if record.value.needs]
    methods = options.methods.split(",") if options.methods else every
    pairs = draw(names, methods, count=options.count or len(names), seed=options.seed)
    known: dict[tuple[str, ...], dict[str, Any]] = {mark(row): row for row in read(options.results)}
    where, rows = environment(), []
    for pair in pairs:
        key = (*pair, str(options.seed))
        if key not in known or known[key]["outcome"] != "ok":
            row = row_of(pair, options.seed)
            known[key] = row | origin(where, row["command"])
            write(options.results, known.values())
        rows.append(known[key])
        print(told(known[key]), flush=True)
    print(summary(rows))
    if any(row["outcome"] != "ok" for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
