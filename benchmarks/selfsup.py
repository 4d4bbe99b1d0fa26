"""OBoW beside random weights, labels and three label-free peers, at equal backbone, crops, epochs and batch.

A small CNN on 10,000 images of CIFAR-100 at 32 px, measured by its 20 coarse classes: k-NN (k = 20) and a linear probe
whose rate is chosen on training images. Every arm starts from the same first weights a seed, sees the same two crops of
the same images in the same order, and is trained by the same optimiser. OBoW's teacher sees one more view, and its arm
"with patches" five more, as published; their speed says what that costs. The peers are lightly's own losses and heads
(extra ``peers``).

    python benchmarks/selfsup.py --out runs/selfsup
    python benchmarks/selfsup.py --out runs/selfsup --arms obow,simclr --seeds 0
    python benchmarks/selfsup.py --out runs/selfsup --student resnet18 --images 50000 --epochs 200 --device cuda
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import selfsup_peers  # noqa: F401  (registers the peers)
import torch
from record import origin
from timing import Row, write

from crossdistill.analysis.environment import environment
from crossdistill.contracts import STUDENT_VIEW
from crossdistill.engine import FitResult, connect, fit
from crossdistill.engine.progress import Lines
from crossdistill.report.table import markdown
from crossdistill.runs.compose import compose as compose_supervised
from crossdistill.selfsup.compose import Parts, compose
from crossdistill.selfsup.knn import knn_accuracy
from crossdistill.selfsup.linear import linear_probe, probe_accuracy
from crossdistill.selfsup.settings import load_settings
from crossdistill.settings import load

SMALL = {"name": "timm/resnet10t", "args": {"channels": [16, 32, 64, 128], "stem_width": 16, "output_stride": 8}}
STUDENTS: dict[str, dict[str, Any]] = {
    "small": SMALL,
    "resnet18": {"name": "timm/resnet18", "args": {"output_stride": 8}},
}
COMMON = {"image_size": 32, "stages": ["layer1", "layer2", "layer3", "layer4"]}
TRAIN = {
    "optimizer": "adamw",
    "lr": 2e-3,
    "min_lr": 0.0,
    "weight_decay": 0.05,
    "decay_all": False,
    "warmup_epochs": 1,
    "schedule_per": "step",
}
BOW = {"name": "bow", "num_words": 1024, "inverse_delta": 10, "kappa": 5}
CROPS, PATCHES = {"crops": 2, "patches": 0}, {"crops": 2, "patches": 5}
ARMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "obow": (BOW, CROPS),
    "obow with patches": (BOW, PATCHES),
    "simclr": ({"name": "peer_simclr"}, CROPS),
    "barlow twins": ({"name": "peer_barlow"}, CROPS),
    "vicreg": ({"name": "peer_vicreg"}, CROPS),
}
CONTROLS = ("random", "supervised")
COLUMNS = (
    *("student", "arm", "data", "epochs", "batch_size", "seeds", "knn_mean", "knn_sd", "knn_by_seed"),
    *("linear_mean", "linear_sd", "linear_by_seed", "teacher_knn_mean", "classifier_mean", "images_per_second"),
    *("device", "torch", "commit", "command", "date"),
)
SAME = ("student", "arm", "data", "epochs", "batch_size", "device")


def run(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One arm with one seed: its figures."""
    parts = compose(_settings(arm, seed, options))
    figures: dict[str, Any] = {}
    if arm == "supervised":
        network, result = _supervised(seed, options)
        figures["classifier"] = result.metrics["top1"]
    elif arm == "random":
        network = parts.student
    else:
        network, result = parts.student, _fit(parts, seed, options)
        if arm.startswith("obow"):  # a peer has a moving average as well, but does not use it
            figures["teacher_knn"] = result.metrics["teacher_top1"]
    if arm != "random":
        figures["images_per_second"] = result.images_per_second
    return figures | _measured(parts, network, options)


def _settings(arm: str, seed: int, options: argparse.Namespace) -> Any:
    method, views = ARMS.get(arm, (BOW, CROPS))
    tree = {
        "student": {**STUDENTS[options.student], **COMMON},
        "method": method,
        "views": views,
        "data": _data(options),
        "train": _train(options),
        "probe": {"bank": None},
        "seed": seed,
        "device": options.device,
    }
    return load_settings(tree)


def _data(options: argparse.Namespace) -> dict[str, Any]:
    limit = None if options.images >= 50_000 else options.images
    where = "device" if options.device == "cuda" else "cpu"
    return {"source": "cifar100", "label_column": "coarse_label", "limit_train": limit, "seed": 0, "augment_on": where}


def _train(options: argparse.Namespace) -> dict[str, Any]:
    own = {"epochs": options.epochs, "batch_size": options.batch, "precision": options.precision}
    return {**TRAIN, **own, "eval_every": options.epochs}


def _fit(parts: Parts, seed: int, options: argparse.Namespace) -> FitResult:
    return fit(
        parts.student,
        parts.method,
        parts.teacher,
        parts.train_loader,
        parts.exam,
        settings=parts.settings.train,
        seed=seed,
        device=options.device,
        reporter=Lines(min_seconds=60),
    )


def _supervised(seed: int, options: argparse.Namespace) -> tuple[Any, FitResult]:
    """The same network on the labels, with the library's own augmentation for such images."""
    tree = {
        "student": {**STUDENTS[options.student], **COMMON},
        "data": _data(options),
        "train": _train(options),
        "seed": seed,
        "device": options.device,
    }
    parts = compose_supervised(load(tree))
    how: dict[str, Any] = {"settings": parts.train, "seed": seed, "device": options.device}
    result = fit(parts.student, parts.method, None, parts.train_loader, parts.test_loader, **how)
    return parts.student, result


def _measured(parts: Parts, network: Any, options: argparse.Namespace) -> dict[str, Any]:
    assert parts.exam is not None  # the data have labels
    bank, queries = parts.exam.features(network, connect(options.device, options.precision))
    num_classes = len(parts.class_names)
    probe = linear_probe(bank, num_classes=num_classes, seed=parts.settings.seed)
    return {
        "knn": knn_accuracy(bank, queries, num_classes=num_classes)["top1"],
        "linear": probe_accuracy(probe, queries)["top1"],
        "linear_rate": probe.rate,
        "view": STUDENT_VIEW,
        "environment": environment(),
    }


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """One row an arm that has been run with all seeds."""
    for arm in (*CONTROLS, *ARMS):
        paths = [_path(arm, seed, options) for seed in options.seeds]
        if all(path.exists() for path in paths):
            yield _row(arm, [json.loads(path.read_text(encoding="utf-8")) for path in paths], options)


def _row(arm: str, found: list[Mapping[str, Any]], options: argparse.Namespace) -> Row:
    row: Row = {
        "student": options.student,
        "arm": arm,
        "data": f"cifar100 coarse, {options.images} images",
        "epochs": options.epochs,
        "batch_size": options.batch,
        "seeds": len(found),
    }
    for name in ("knn", "linear"):
        values = [one[name] for one in found]
        row[f"{name}_mean"] = round(float(np.mean(values)), 5)
        row[f"{name}_sd"] = round(float(np.std(values, ddof=1)), 5) if len(values) > 1 else None
        row[f"{name}_by_seed"] = " ".join(f"{s}:{round(v, 5)}" for s, v in zip(options.seeds, values, strict=True))
    for name, column in (("teacher_knn", "teacher_knn_mean"), ("classifier", "classifier_mean")):
        if name in found[0]:
            row[column] = round(float(np.mean([one[name] for one in found])), 5)
    if "images_per_second" in found[0]:
        row["images_per_second"] = round(float(np.mean([one["images_per_second"] for one in found])))
    return row | origin(found[-1]["environment"], _command(options))


def _path(arm: str, seed: int, options: argparse.Namespace) -> Path:
    folder: Path = options.out / f"{options.student}-{options.images}-{options.epochs}"
    return folder / arm.replace(" ", "-") / f"seed-{seed}.json"


def _command(options: argparse.Namespace) -> str:
    sizes = f"--student {options.student} --images {options.images} --epochs {options.epochs} --batch {options.batch}"
    return f"python benchmarks/selfsup.py --out runs/selfsup {sizes} --device {options.device}"


def main() -> None:
    """Run what is asked for and not yet there, and write the rows that are complete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the figures of single runs")
    parser.add_argument("--results", type=Path, default=Path("results/selfsup/cifar100-coarse.csv"))
    parser.add_argument("--arms", type=lambda text: text.split(","), default=[*CONTROLS, *ARMS])
    parser.add_argument("--seeds", type=lambda text: [int(one) for one in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--student", default="small", choices=STUDENTS)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for seed in options.seeds:
        for arm in options.arms:
            path = _path(arm, seed, options)
            if path.exists():
                continue
            print(f"{arm}, seed {seed}", flush=True)
            figures = run(arm, seed, options)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(figures, indent=1), encoding="utf-8")
            print({name: value for name, value in figures.items() if isinstance(value, float)}, flush=True)
    found = list(rows(options))
    if found:
        write(options.results, found, COLUMNS, SAME)
        columns = ("arm", "knn_mean", "knn_sd", "linear_mean", "linear_sd", "images_per_second")
        cells = tuple(tuple(str(row.get(one)) for one in columns) for row in found)
        print(markdown(columns, cells, num_text_columns=1))


if __name__ == "__main__":
    main()
