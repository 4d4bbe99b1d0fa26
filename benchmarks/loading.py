"""Images a second of our loader beside torchvision's ImageFolder with timm's loader, for the same transforms.

Both read the same image files, with the same number of worker processes, and run in turn: a round is one epoch of each,
and the order changes from round to round. The ratio is the median over the rounds of ours divided by theirs, with a
95 % bootstrap interval. Memory is what the worker processes hold for themselves alone at the end of an epoch.

    python benchmarks/loading.py --imagenette IMAGENETTE --cifar100 CIFAR100

RandAugment has magnitude 7 on both sides: at 9 a magnitude of 10 turns up now and then, for which timm asks Pillow to
posterise to no bits at all, and Pillow 13 refuses.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
from PIL import Image
from record import origin
from timing import interval, write
from timm.data import Mixup, create_loader
from torchvision.datasets import ImageFolder

from crossdistill.analysis.environment import environment
from crossdistill.contracts import InputSpec
from crossdistill.data import HeldSource, TrainLoader, open_source
from crossdistill.report.table import markdown
from crossdistill.settings import AugmentSettings, DataSettings

BATCH_SIZE, ROUNDS, MIB = 64, 5, 2**20
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RAND_AUGMENT = "rand-m7-mstd0.5-inc1"

COLUMNS = (
    *("images", "transforms", "image_size", "ours_are", "workers", "rounds", "unit"),
    *("timm", "ours", "ratio", "ratio_low", "ratio_high", "timm_worker_mib", "ours_worker_mib", "ours_main_mib"),
    *("processor", "device", "torch", "commit", "command", "date"),
)
SAME = ("images", "transforms", "image_size", "ours_are", "workers")

TRANSFORMS = {
    "crop, flip": AugmentSettings(crop="resized", flip=0.5, interpolation="random"),
    "crop, flip, RandAugment, erasing, mixup, cutmix": AugmentSettings(
        crop="resized", flip=0.5, interpolation="random", rand_augment=RAND_AUGMENT, erase=0.25, mixup=0.8, cutmix=1.0
    ),
}
"""Those of OFA's recipes for CNN students, and for transformers and MLPs."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """One loader: an epoch of batches, and how many images that is."""

    epoch: Callable[[], Iterable[Any]]
    num_images: int

    def images_per_second(self) -> float:
        """Of a whole epoch."""
        start = time.perf_counter()
        for _ in self.epoch():
            pass
        return self.num_images / (time.perf_counter() - start)

    def memory(self) -> tuple[float, float]:
        """MiB that each worker, on average, and the main process hold for themselves while an epoch ends."""
        for _ in self.epoch():
            pass
        workers = [child.memory_full_info().uss / MIB for child in psutil.Process().children(recursive=True)]
        return (float(np.mean(workers)) if workers else 0.0), psutil.Process().memory_full_info().uss / MIB


def theirs(root: Path, augment: AugmentSettings, size: int, workers: int) -> Contender:
    """torchvision's ImageFolder through timm's loader, prepared on the CPU."""
    dataset = ImageFolder(str(root))
    epoch = timm_epochs(dataset, augment, size, BATCH_SIZE, workers, torch.device("cpu"))
    return Contender(epoch, len(dataset) // BATCH_SIZE * BATCH_SIZE)


def timm_epochs(
    dataset: ImageFolder, augment: AugmentSettings, size: int, batch_size: int, workers: int, device: torch.device
) -> Callable[[], Iterator[Any]]:
    """Epochs of timm's loader with timm's mixing; on a GPU with its prefetcher."""
    is_gpu = device.type != "cpu"
    loader = create_loader(
        dataset,
        input_size=(3, size, size),
        batch_size=batch_size,
        is_training=True,
        use_prefetcher=is_gpu,
        re_prob=augment.erase,
        re_mode="pixel",
        color_jitter=0.0,
        auto_augment=augment.rand_augment,
        interpolation="random",
        mean=MEAN,
        std=STD,
        num_workers=workers,
        pin_memory=is_gpu,
        device=device,
    )
    num_classes = len(dataset.classes)
    mixup = Mixup(augment.mixup, augment.cutmix, mode="pair", num_classes=num_classes) if augment.mixup else None

    def epoch() -> Iterator[Any]:
        for images, target in loader:
            yield mixup(images, target) if mixup else (images, target)

    return epoch


def ours(root: Path, augment: AugmentSettings, size: int, workers: int, *, in_memory: bool) -> Contender:
    """Our loader on the same files; ``in_memory``: decoded once, as it does with sets of up to 512 MiB."""
    source = open_source(DataSettings(source=f"folder:{root}")).train
    held = HeldSource(source.source, limit_bytes=512 * MIB if in_memory else 0)
    ids = np.arange(len(held.targets))
    view = {"student": InputSpec((size, size), 3, MEAN, STD)}
    loader = TrainLoader(held, ids, held.targets, view, augment, seed=0, batch_size=BATCH_SIZE, workers=workers)
    epochs = iter(range(10**6))
    return Contender(lambda: loader.epoch(next(epochs)), len(ids) // BATCH_SIZE * BATCH_SIZE)


def compare(root: Path, images: str, transforms: str, size: int, workers: int, rounds: int) -> Iterator[Row]:
    """Rows for reading files each epoch and for keeping them in memory, each beside timm in the same rounds."""
    augment = TRANSFORMS[transforms]
    held = open_source(DataSettings(source=f"folder:{root}")).train
    kinds = (("read each epoch", False), ("decoded once", True))
    for kind, in_memory in kinds if held.in_memory else kinds[:1]:
        pair = theirs(root / "train", augment, size, workers), ours(root, augment, size, workers, in_memory=in_memory)
        for one in pair:
            one.images_per_second()  # workers start, files come into the page cache, and ours are decoded once
        speeds = np.zeros((rounds, 2))
        for round_ in range(rounds):
            for index in (0, 1) if round_ % 2 else (1, 0):
                speeds[round_, index] = pair[index].images_per_second()
        ratios = speeds[:, 1] / speeds[:, 0]
        low, high = interval(ratios)
        del pair
        memory = [
            make().memory()
            for make in (
                lambda: theirs(root / "train", augment, size, workers),
                lambda kept=in_memory: ours(root, augment, size, workers, in_memory=kept),
            )
        ]
        timm, own = np.median(speeds, axis=0)
        numbers = {"timm": timm, "ours": own, "ratio": float(np.median(ratios)), "ratio_low": low, "ratio_high": high}
        numbers |= {"timm_worker_mib": memory[0][0], "ours_worker_mib": memory[1][0], "ours_main_mib": memory[1][1]}
        yield {
            **{"images": images, "transforms": transforms, "image_size": size, "ours_are": kind, "workers": workers},
            **{"rounds": rounds, "unit": "images/s"},
            **{key: float(f"{value:.4g}") for key, value in numbers.items()},
        }


def write_files(parquet: Path, root: Path, *, limit: int, suffix: str) -> None:
    """The images of the parquet files as files in class folders: JPEG as it is, others as PNG."""
    for split, pattern in (("train", "train-*.parquet"), ("val", "[tv][ea][sl]*-*.parquet")):
        rows = [row for file in sorted(parquet.glob(pattern)) for row in pq.read_table(file).to_pylist()]
        chosen = np.linspace(0, len(rows) - 1, min(limit, len(rows)) if split == "train" else 1000).astype(int)
        for index, row in ((index, rows[index]) for index in chosen):
            folder = root / split / f"{row['label']:03d}"
            folder.mkdir(parents=True, exist_ok=True)
            content = row["image"]["bytes"]
            if suffix == "png":
                buffer = io.BytesIO()
                Image.open(io.BytesIO(content)).save(buffer, "PNG")
                content = buffer.getvalue()
            (folder / f"{index:06d}.{suffix}").write_bytes(content)


def table(rows: Iterable[Row]) -> str:
    """The rows for people to read."""
    columns = (
        "Images",
        "Transforms",
        "Side",
        "Ours are",
        "timm, images/s",
        "Ours",
        "Ratio",
        "95 % interval",
        "MiB a worker",
    )
    cells = tuple(
        (
            row["images"],
            row["transforms"],
            str(row["image_size"]),
            row["ours_are"],
            f"{row['timm']:.0f}",
            f"{row['ours']:.0f}",
            f"{row['ratio']:.2f}",
            f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}",
            f"{row['timm_worker_mib']:.0f}, ours {row['ours_worker_mib']:.0f}",
        )
        for row in rows
    )
    return markdown(columns, cells, num_text_columns=4)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imagenette", type=Path, required=True, help="folder of parquet files, about 128 px")
    parser.add_argument("--cifar100", type=Path, required=True, help="folder of parquet files")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--limit", type=int, default=5000, help="training images of a set")
    parser.add_argument("--out", type=Path, default=Path("results/speed/loading.csv"))
    options = parser.parse_args()
    facts = environment()
    command = f"python benchmarks/loading.py --imagenette IMAGENETTE --cifar100 CIFAR100 --workers {options.workers}"
    made = origin(facts, command) | {"processor": facts["cpu"], "device": "CPU"}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sets = (("imagenette", options.imagenette, "jpg", 128), ("CIFAR-100", options.cifar100, "png", 224))
        for name, parquet, suffix, size in sets:
            root = Path(folder, name)
            write_files(parquet, root, limit=options.limit, suffix=suffix)
            for transforms in TRANSFORMS:
                rows += [row | made for row in compare(root, name, transforms, size, options.workers, options.rounds)]
                print(f"measured {name}: {transforms}", flush=True)
    write(options.out, rows, COLUMNS, SAME)
    print(table(rows))


if __name__ == "__main__":
    main()
