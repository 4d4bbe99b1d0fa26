"""A run folder as the runs room writes it, filled with plausible numbers, for tests of what reads it."""

import json
import math
from pathlib import Path

import numpy

SEEDS = (0, 1, 2)
STUDENT, TEACHER = "timm/test_vit3", "timm/resnet18"
METHODS = {"student_alone": (None, 0.906, 0.018), "kd": ("kd", 0.986, 0.004), "ofa": ("ofa", 0.988, 0.003)}
TERMS = {
    None: ("cross_entropy",),
    "kd": ("cross_entropy", "kd"),
    "ofa": ("cross_entropy", "head", "stage_1", "stage_2", "stage_3", "stage_4"),
}


def sample_results(**changes):
    """The mapping of ``results.json``: a student alone, two methods on three seeds, a teacher; keys can be replaced."""
    generator = numpy.random.default_rng(0)
    rows = [_row(generator, *METHODS[key]) for key in METHODS]
    costs = {"num_parameters": 11_181_642, "gmacs": 0.0331, "latency_ms": 3.214}
    run = {"seed": 0, "top1": 0.9944, "folder": "teacher"}
    mean = {"top1_mean": 0.9944, "top1_sd": None, "num_labels": 1437}
    rows.append({"role": "teacher", "name": TEACHER, "method": None, "runs": [run], **mean, **costs})
    tree = {
        "schema": 1,
        "kind": "quickstart",
        "headline": None,
        "warnings": ["The teacher was trained with 1437 labels, the students with 50: the comparison shows what the "
                     "teacher's labels are worth, not a better loss."],
        "data": {"source": "digits", "num_classes": 10, "num_train": 1437, "num_labelled": 50,
                 "evaluation_split": "test", "num_evaluation": 360},
        "rows": rows,
        "settings": {"student": {"name": STUDENT}, "seed": 0},
        "environment": {"python": "3.11.7", "torch": "2.11.0", "commit": "0" * 40, "dirty": False,
                        "cpu": "Some Processor 9000", "num_cores": 2, "gpus": [], "platform": "Linux x86_64"},
        "seconds": 142.0,
        "command": "crossdistill quickstart",
    }  # fmt: skip
    return tree | changes


def _row(generator, method, mean, sd):
    accuracies = [round(360 * min(1, value)) / 360 for value in generator.normal(mean, sd, len(SEEDS))]
    return {
        "role": "distilled" if method else "student_alone",
        "name": STUDENT,
        "method": method,
        "runs": [
            {"seed": seed, "top1": top1, "folder": f"{method or 'none'}-{seed}"}
            for seed, top1 in zip(SEEDS, accuracies, strict=True)
        ],
        "top1_mean": float(numpy.mean(accuracies)),
        "top1_sd": float(numpy.std(accuracies, ddof=1)),
        "num_parameters": 213_450,
        "gmacs": 0.00721,
        "latency_ms": 1.872,
        "num_labels": 50,
    }


def write_metrics(folder: Path, *, top1=0.95, method=None, epochs=40, steps_per_epoch=12, seed=0):
    """``metrics.jsonl`` of one run that approaches an accuracy."""
    generator = numpy.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for epoch in range(1, epochs + 1):
        decay = math.exp(-6 * epoch / epochs)
        losses = {
            term: float((index + 0.4) * (0.1 + 2 * decay) * generator.uniform(0.9, 1.1))
            for index, term in enumerate(TERMS.get(method, ("cross_entropy",)))
        }
        common = {"epoch": epoch, "step": epoch * steps_per_epoch}
        lines.append({"kind": "train", **common, "lr": 1e-3, "losses": losses,
                      "images_per_second": 2150.0 + 10 * epoch, "data_wait_share": 0.03})  # fmt: skip
        reached = top1 * (1 - 0.9 * decay) + generator.normal(0, 0.006)
        lines.append({"kind": "eval", **common, "top1": float(min(1, max(0, reached))), "loss": 0.1 + 2 * decay})
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")


def write_run(folder: Path, results=None):
    """A whole run folder: results, settings, and the metrics of each single run."""
    results = sample_results() if results is None else results
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (folder / "config.yaml").write_text(
        f"student:\n  name: {STUDENT}\n  image_size: 16\nteachers:\n- name: {TEACHER}\n  weight: 1.0\n"
        "method:\n  name: ofa\n  gamma: 1.4\ndata:\n  source: digits\n  labels_per_class: 5\n"
        "train:\n  steps: 480\n  batch_size: 128\n  optimizer: adamw\n  lr: 0.001\nseed: 0\n",
        encoding="utf-8",
    )
    for row in results["rows"]:
        for run in row["runs"]:
            if run["folder"] is not None:
                where = folder / run["folder"]
                write_metrics(where, top1=run["top1"], method=row["method"], seed=run["seed"])
    return folder
