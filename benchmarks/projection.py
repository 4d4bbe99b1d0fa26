"""What distilling on ImageNet would cost, with a live teacher and with a store: a projection from measured parts.

Nothing here was run on ImageNet. Every line says what it was projected from: multiply-adds counted by a dry run, bytes
of a store's layout, rates in ``results/speed/store.csv`` and steps in ``results/speed/step.csv``. Hours are given only
for pairs whose step was measured on a GPU. The pairs and epochs are those of OFA's ImageNet tables, as far as timm has
the networks.

By multiply-adds a training step of the student is three of its forward passes, and a teacher's answer one of the
teacher's; loading, losses and how well a device is used are left out. A store is made by one pass of the teacher over
as many epochs as are stored. So one run costs the same either way, and each further run of the same epochs (another
student, method or seed of first weights) is spared the teacher; with ``data.cycle_epochs`` fewer epochs are stored.

    python benchmarks/projection.py
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import torch
from store_rates import MANY_SHARDS, manifest_of, name_of
from timing import Row, made, read, rounded, write

from crossdistill import build
from crossdistill.analysis.cost import count_macs
from crossdistill.report.table import markdown
from crossdistill.store import Keep

NUM_IMAGES, NUM_CLASSES, IMAGE_SIZE = 1_281_167, 1000, 224

PAIRS = {
    ("resnet18", 100): ("deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_b16_224"),
    ("mobilenetv2_100", 100): ("deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_b16_224"),
    ("deit_tiny_patch16_224", 300): ("resnet50", "convnext_tiny", "mixer_b16_224"),
    ("resmlp_12_224", 300): ("resnet50", "convnext_tiny", "swin_tiny_patch4_window7_224"),
}
"""Student and epochs: teachers."""

PASSES_A_STEP = 3
"""Forward passes that a training step costs: the backward pass is about two."""

RUNS, CYCLES = (1, 2, 10), (None, 30)
"""How often one store is used, and how many epochs are stored and shown again and again; ``None``: all."""

KEPT = (Keep(), Keep(10), Keep(50), Keep(embeddings=True), Keep(10, embeddings=True))
EMBEDDING_DIM, STORED_EPOCHS = 768, (1, 30, 100, 300)
GB, HOUR = 10**9, 3600

COLUMNS = (
    *("quantity", "teacher", "student", "method", "keep", "epochs", "stored_epochs", "runs", "value", "unit"),
    *("status", "basis", "inputs", "timm", "torch", "commit", "command", "date"),
)
SAME = ("quantity", "teacher", "student", "method", "keep", "epochs", "stored_epochs", "runs", "basis")

BY_COUNT = "multiply-adds"
STEPS, ALL_RUNS = "step with the live teacher / plain step", "all runs from one store / with live teachers"


@cache
def gmacs(name: str) -> float:
    """10^9 multiply-adds of one image."""
    model = build(name, num_classes=NUM_CLASSES)
    return count_macs(model.net, torch.zeros(1, 3, *model.spec.input.image_size)) / 10**9


def pairs() -> Iterator[tuple[str, str, int]]:
    """Teacher, student and epochs."""
    return ((teacher, student, epochs) for (student, epochs), teachers in PAIRS.items() for teacher in teachers)


def shares() -> Iterator[Row]:
    """What the teacher adds to a step, and what a store leaves of the cost of several runs, by multiply-adds."""
    for teacher, student, epochs in pairs():
        answer, step = gmacs(teacher), PASSES_A_STEP * gmacs(student)
        counted = f"{answer:.3g} G of {teacher}, {PASSES_A_STEP} x {gmacs(student):.3g} G of {student}"
        about = {"teacher": teacher, "student": student, "unit": "times", "basis": BY_COUNT, "inputs": counted}
        yield about | {"quantity": STEPS, "epochs": epochs, "value": (step + answer) / step}
        for runs, cycle in itertools.product(RUNS, CYCLES):
            stored = cycle or epochs
            live = runs * epochs * (step + answer)
            yield about | {
                **{"quantity": ALL_RUNS, "epochs": epochs, "runs": runs, "stored_epochs": stored},
                "value": (runs * epochs * step + stored * answer) / live,
            }


def sizes() -> Iterator[Row]:
    """Gigabytes of a store, by the formula of its layout."""
    for keep in KEPT:
        num_bytes = manifest_of(NUM_CLASSES, keep, NUM_IMAGES, NUM_IMAGES, EMBEDDING_DIM).bytes_per_sample()
        for epochs in STORED_EPOCHS:
            yield {
                **{"quantity": "size of a store", "keep": _kept(keep), "stored_epochs": epochs, "unit": "GB"},
                **{"value": num_bytes * NUM_IMAGES * epochs / GB, "basis": "bytes of the layout"},
                "inputs": f"{num_bytes} bytes an image, {NUM_IMAGES:,} images",
            }


def _kept(keep: Keep) -> str:
    return name_of(keep) + (f", embeddings of {EMBEDDING_DIM}" if keep.embeddings else "")


def passes(path: Path) -> Iterator[Row]:
    """Minutes that one process needs to read or write the answers of an epoch, by the rates of ``store_rates.py``."""
    for row in read(path):
        if int(row["num_classes"]) != NUM_CLASSES or int(row["embedding_dim"]) or int(row["num_shards"]) == MANY_SHARDS:
            continue
        for quantity, name in (("reading an epoch's answers", "ordered"), ("writing an epoch's answers", "write")):
            rate = float(row[f"{name}_images_s"])
            place = f"{row['device']}, {row['processor']}, {row['threads']} threads"
            yield {
                **{"quantity": f"{quantity}, one process", "keep": row["keep"], "stored_epochs": 1, "unit": "minutes"},
                **{"value": NUM_IMAGES / rate / 60, "basis": f"rate measured on {place}"},
                "inputs": f"{path}: {rate:,.0f} images/s, commit {row['commit']}",
            }


def steps(path: Path) -> Iterator[Row]:
    """Of pairs whose steps were measured: what the teacher adds, and on a GPU the hours of a whole run."""
    epochs_of = {(teacher, student): epochs for teacher, student, epochs in pairs()}
    for row in read(path):
        pair = row["teacher"], row["student"]
        fits = int(row["image_size"]) == IMAGE_SIZE and int(row["num_classes"]) == NUM_CLASSES
        if pair not in epochs_of or not fits:
            continue
        batch_size, epochs = int(row["batch_size"]), epochs_of[pair]
        how = f"{row['precision']}{', compiled' if row['compile'] == 'True' else ''}, batches of {batch_size}"
        about = {
            **{"teacher": pair[0], "student": pair[1], "method": row["method"]},
            "basis": f"step measured on {row['device']}, {row['threads']} threads, {how}",
        }
        kinds = {"plain step": "plain_ms", "live teacher": "online_ms", "store": "stored_ms", "top 10": "top_k_ms"}
        measured = {kind: float(row[column]) for kind, column in kinds.items() if row.get(column)}
        inputs = f"{path}: " + ", ".join(f"{kind} {ms:g} ms" for kind, ms in measured.items())
        about["inputs"] = f"{inputs}, teacher {float(row['teacher_ms']):g} ms, commit {row['commit']}"
        ratio = measured["live teacher"] / measured["plain step"]
        yield about | {"quantity": STEPS, "epochs": epochs, "value": ratio, "unit": "times"}
        if row["device"] == "CPU":
            continue
        measured["the teacher's pass for a store"] = float(row["teacher_ms"])
        for kind, ms in measured.items():
            hours = ms / 1000 * NUM_IMAGES * epochs / batch_size / HOUR
            yield about | {"quantity": f"a run: {kind}", "epochs": epochs, "value": hours, "unit": "GPU hours"}


def share_table(found: Sequence[Row]) -> str:
    """A line a pair, by multiply-adds."""
    lines: dict[tuple[str, str], Row] = {}
    for row in (one for one in found if one["basis"] == BY_COUNT):
        runs, whole = row.get("runs"), row.get("stored_epochs") == row["epochs"]
        key = "step" if runs is None else f"{runs}, {None if whole else row['stored_epochs']}"
        lines.setdefault((row["teacher"], row["student"]), {"epochs": row["epochs"]})[key] = row["value"]
    kinds = list(itertools.product(RUNS, CYCLES))
    keys = ["step", *(f"{runs}, {cycle}" for runs, cycle in kinds)]
    named = [f"{runs} run{'s' * (runs > 1)}, {cycle or 'all'} epochs stored" for runs, cycle in kinds]
    columns = ("Teacher", "Student", "Epochs", "Live / plain step", *named)
    cells = tuple((*pair, str(one["epochs"]), *(f"{one[key]:.2f}" for key in keys)) for pair, one in lines.items())
    return markdown(columns, cells, num_text_columns=2)


def table(found: Sequence[Row]) -> str:
    """The other rows for people to read."""
    columns = ("Quantity", "Teacher", "Student", "Method, kept", "Epochs, stored", "Runs", "Value", "Unit", "From")
    cells = tuple(
        (
            *(str(row.get(key) or "") for key in ("quantity", "teacher", "student")),
            ", ".join(str(row[key]) for key in ("method", "keep") if row.get(key)),
            ", ".join(str(row[key]) for key in ("epochs", "stored_epochs") if row.get(key)),
            *(str(row.get("runs") or ""), f"{row['value']:.3g}", row["unit"], row["inputs"]),
        )
        for row in found
        if row["basis"] != BY_COUNT
    )
    return markdown(columns, cells, num_text_columns=4)


def main() -> None:
    """Project, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=Path, default=Path("results/speed/step.csv"), help="rows of step.py")
    parser.add_argument("--store", type=Path, default=Path("results/speed/store.csv"), help="rows of store_rates.py")
    parser.add_argument("--out", type=Path, default=Path("results/speed/projection.csv"))
    options = parser.parse_args()
    for path in (options.steps, options.store):
        if not read(path):
            print(f"{path} holds no rows: nothing is projected from it")
    if all(row["device"] == "CPU" for row in read(options.steps)):
        print("no step was measured on a GPU: no hours, only multiply-adds")
    place = made("python benchmarks/projection.py", torch.device("cpu")) | {"status": "projection"}
    projected = [*shares(), *steps(options.steps), *sizes(), *passes(options.store)]
    found = [rounded(row | place) for row in projected]
    options.out.unlink(missing_ok=True)  # all of it is made anew
    write(options.out, found, COLUMNS, SAME)
    print(f"Projection, by multiply-adds, for {NUM_IMAGES:,} images an epoch:\n\n{share_table(found)}")
    print(f"\nProjection, from what each line names:\n\n{table(found)}")


if __name__ == "__main__":
    main()
