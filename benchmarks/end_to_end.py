"""Whole training steps with the loader: ours beside timm's loader and torchvision's transforms, for the same student.

All read the same image files with the same transforms, and take the same steps (forward, cross-entropy, backward, SGD)
of one network. They run in turn in one process: a round is one epoch of each, in an order that changes from round to
round. A ratio is the median over the rounds of our images a second divided by theirs, with a 95 % bootstrap interval.
Waiting is the share of an epoch that the training process spends in asking for the next batch. Memory is the most that
a process with one loader holds during an epoch: all of its own, and what its workers hold for themselves alone.

The first epoch of each is in no ratio: in it workers start, and ours decodes images that it keeps. Images a second of
that epoch are in ``first_epoch_ours`` and ``first_epoch_peer``. An epoch has 64 steps unless a batch size is given.

    python benchmarks/end_to_end.py --imagenette IMAGENETTE --cifar100 CIFAR100
    python benchmarks/end_to_end.py --imagenette IMAGENETTE --cifar100 CIFAR100 --device cuda --students timm/resnet18 \
        --limit 50000 --batch-size 128

Ours comes in two kinds: "cpu" changes pixels in loader processes, as the others do; "device" (data.augment_on=device)
where the network trains, where sets of one image size and up to 512 MiB then live.
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.connection
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch
from loading import MEAN, STD, TRANSFORMS, timm_epochs, write_files
from timing import MIB, Row, compared, made, rounded, write
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from crossdistill import build
from crossdistill.analysis.turns import order_of
from crossdistill.contracts import InputSpec
from crossdistill.data import TrainLoader, open_source
from crossdistill.report.table import markdown
from crossdistill.settings import AugmentSettings, DataSettings

NUM_STEPS, FEWEST_STEPS = 64, 50
"""Steps of an epoch where no batch size is asked for, and how many it must have, so that its first batch, for which
loaders without prepared ones are waited for, is a small part of it.
"""

MAGNITUDE = 21
"""torchvision's RandAugment counts to 30 where timm's counts to 10: 7 there."""

OURS, PEERS = ("cpu", "device"), ("timm", "torchvision")

COLUMNS = (
    *("images", "transforms", "image_size", "student", "batch_size", "ours_are", "peer", "workers", "our_workers"),
    *("num_images", "rounds", "unit", "peer_speed", "ours", "ratio", "ratio_low", "ratio_high"),
    *("first_epoch_peer", "first_epoch_ours", "peer_waits", "ours_wait", "peer_peak_mib", "ours_peak_mib"),
    *("processor", "threads", "device", "torch", "timm", "commit", "command", "date"),
)
SAME = ("images", "transforms", "image_size", "student", "batch_size", "ours_are", "peer", "workers", "device")

Batches = Iterable[tuple[Tensor, Tensor]]
"""Images and targets (classes or probabilities)."""


@dataclass(frozen=True)
class Case:
    """Which images are read, what is done to them, and by how many processes."""

    images: str
    root: Path
    transforms: str
    image_size: int
    batch_size: int
    workers: int
    device: str
    num_classes: int

    @property
    def augment(self) -> AugmentSettings:
        """The transforms by their settings."""
        return TRANSFORMS[self.transforms]


@dataclass
class Loader:
    """Epochs of one contender, and how many processes help with them."""

    epoch: Callable[[], Batches]
    num_workers: int
    speeds: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)


def ours(case: Case, *, on_device: bool) -> Loader:
    """Our loader; processes help unless all images live in memory, as by default."""
    source = open_source(DataSettings(source=f"folder:{case.root}")).train
    view = {"student": InputSpec((case.image_size,) * 2, 3, MEAN, STD)}
    where = torch.device(case.device) if on_device else None
    in_memory = source.in_memory and (on_device or case.image_size <= 64)
    workers = 0 if in_memory and case.augment.rand_augment is None else case.workers
    ids, sizes = np.arange(len(source.targets)), {"batch_size": case.batch_size, "workers": workers}
    loader = TrainLoader(source, ids, source.targets, view, case.augment, seed=0, augment_device=where, **sizes)
    epochs = iter(range(10**6))

    def epoch() -> Batches:
        for (batch,) in loader.epoch(next(epochs)):
            moved = batch.to(case.device)
            yield moved.images["student"], moved.target

    return Loader(epoch, 0 if in_memory and on_device else workers)


def timms(case: Case) -> Loader:
    """torchvision's ImageFolder through timm's loader, on a GPU with its prefetcher."""
    dataset, where = ImageFolder(str(case.root / "train")), torch.device(case.device)
    epoch = timm_epochs(dataset, case.augment, case.image_size, case.batch_size, case.workers, where)
    return Loader(epoch, case.workers)


def torchvisions(case: Case) -> Loader:
    """torchvision's transforms in PyTorch's loader; mixing is of whole batches, as torchvision does it."""
    augment, size = case.augment, [case.image_size] * 2
    kernels = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)
    steps: list[nn.Module] = [
        v2.RandomChoice([v2.RandomResizedCrop(size, augment.scale, augment.ratio, one) for one in kernels]),
        v2.RandomHorizontalFlip(0.5),
        *([v2.RandAugment(num_ops=2, magnitude=MAGNITUDE, num_magnitude_bins=31)] if augment.rand_augment else []),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
        *([v2.RandomErasing(augment.erase, value="random")] if augment.erase else []),
    ]
    mixes = [v2.MixUp(alpha=augment.mixup or 1.0, num_classes=case.num_classes)]
    mixes.append(v2.CutMix(alpha=augment.cutmix or 1.0, num_classes=case.num_classes))
    mix = v2.RandomChoice(mixes) if augment.mixup else None
    loader = DataLoader(
        ImageFolder(str(case.root / "train"), v2.Compose(steps)),
        batch_size=case.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=case.workers,
        persistent_workers=case.workers > 0,
        pin_memory=case.device != "cpu",
        collate_fn=(lambda samples: mix(*default_collate(samples))) if mix else default_collate,
    )

    def epoch() -> Batches:
        for images, target in loader:
            yield images.to(case.device, non_blocking=True), target.to(case.device, non_blocking=True)

    return Loader(epoch, case.workers)


MAKERS: dict[str, Callable[[Case], Loader]] = {
    "timm": timms,
    "torchvision": torchvisions,
    "cpu": lambda case: ours(case, on_device=False),
    "device": lambda case: ours(case, on_device=True),
}


class Student:
    """The network that all train, and its step; on a GPU in bfloat16 and channels-last."""

    def __init__(self, name: str, case: Case) -> None:
        torch.manual_seed(0)
        self.is_gpu = case.device != "cpu"
        layout = torch.channels_last if self.is_gpu else torch.contiguous_format
        network = build(name, num_classes=case.num_classes, **_size(name, case.image_size)).train()
        self.network = network.to(case.device).to(memory_format=layout)
        self.layout = layout
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-4, momentum=0.9)

    def step(self, images: Tensor, target: Tensor) -> None:
        """Forward, loss, backward, optimiser."""
        with torch.autocast("cuda", torch.bfloat16) if self.is_gpu else nullcontext():
            logits = self.network(images.contiguous(memory_format=self.layout)).require("logits")
        functional.cross_entropy(logits.float(), target).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def train(self, loader: Loader) -> None:
        """One epoch; notes images a second and the share of the time that batches were waited for."""
        num_images, waited, asked = 0, 0.0, time.perf_counter()
        begin = asked
        for images, target in loader.epoch():
            waited += time.perf_counter() - asked
            self.step(images, target)
            num_images += len(images)
            asked = time.perf_counter()
        if self.is_gpu:
            torch.cuda.synchronize()
        taken = time.perf_counter() - begin
        loader.speeds.append(num_images / taken)
        loader.waits.append(waited / taken)


def _size(name: str, image_size: int) -> dict[str, int]:
    """The size for networks that are built for one."""
    return {"image_size": image_size} if any(kind in name for kind in ("vit", "deit", "mixer", "swin")) else {}


def compare(case: Case, student: str, rounds: int, memory: Mapping[str, float]) -> Iterator[Row]:
    """Rows of ours, each kind beside each peer, of the same rounds; ``memory`` is what each of them holds."""
    loaders, trained = {name: make(case) for name, make in MAKERS.items()}, Student(student, case)
    for number in range(1 + rounds):  # in the first, workers start and files come into the page cache
        for index in order_of(number, len(loaders)):
            trained.train(list(loaders.values())[index])
    speeds = {name: np.array(loader.speeds[1:]) for name, loader in loaders.items()}
    first = {name: loader.speeds[0] for name, loader in loaders.items()}
    waits = {name: float(np.median(loader.waits[1:])) for name, loader in loaders.items()}
    num_images = len(open_source(DataSettings(source=f"folder:{case.root}")).train.targets)
    for own in OURS:
        for peer in PEERS:
            yield rounded(
                {
                    **{"images": case.images, "transforms": case.transforms, "image_size": case.image_size},
                    **{"student": student, "batch_size": case.batch_size, "ours_are": own, "peer": peer},
                    **{"workers": case.workers, "our_workers": loaders[own].num_workers, "num_images": num_images},
                    **{"rounds": rounds, "unit": "images/s", "ours": float(np.median(speeds[own]))},
                    **{"peer_speed": float(np.median(speeds[peer])), **compared("ratio", speeds[own] / speeds[peer])},
                    **{"first_epoch_peer": first[peer], "first_epoch_ours": first[own]},
                    **{"peer_waits": waits[peer], "ours_wait": waits[own]},
                    **{"peer_peak_mib": memory[peer], "ours_peak_mib": memory[own]},
                }
            )


def peak_mib(case: Case, student: str, name: str) -> float:
    """The most memory that a process holds in an epoch with this loader, its workers included.

    It is forked, so this one must not have worked with tensors before: the threads for that do not come along.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak, args=(sender, case, student, name))
    process.start()
    sender.close()
    peak: float = receiver.recv()
    process.join()
    return peak


def _send_peak(sender: multiprocessing.connection.Connection, case: Case, student: str, name: str) -> None:
    own, done, peaks = psutil.Process(), threading.Event(), [0.0]

    def watch() -> None:
        while not done.wait(0.05):
            with suppress(psutil.Error):  # a worker may end while it is looked at
                peaks.append(sum(child.memory_full_info().uss for child in own.children(recursive=True)) / MIB)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        Student(student, case).train(MAKERS[name](case))
    finally:
        done.set()
        watcher.join()
    sender.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 + max(peaks))


def table(rows: Iterable[Row]) -> str:
    """The rows for people to read."""
    head = ("Images", "Transforms", "Student", "Ours", "Beside", "Side", "images/s", "Ratio", "95 % interval")
    cells = tuple(
        (
            row["images"],
            row["transforms"],
            row["student"],
            f"{row['ours_are']}, {row['our_workers']} workers",
            f"{row['peer']}, {row['workers']} workers",
            str(row["image_size"]),
            f"{row['ours']:.0f} and {row['peer_speed']:.0f}",
            f"{row['ratio']:.2f}",
            f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}",
            f"{row['ours_wait']:.1%} and {row['peer_waits']:.1%}",
            f"{row['ours_peak_mib']:.0f} and {row['peer_peak_mib']:.0f}",
        )
        for row in rows
    )
    return markdown((*head, "Waiting", "Peak MiB"), cells, num_text_columns=5)


def cases(options: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """CIFAR-100 at 32 px with both kinds of transforms, imagenette at 128 and 224 px with crops and flips."""
    plain, everything = TRANSFORMS
    sets = (
        ("CIFAR-100", options.cifar100, "png", 100, ((32, plain), (32, everything))),
        ("imagenette", options.imagenette, "jpg", 10, ((128, plain), (224, plain))),
    )
    for images, parquet, suffix, num_classes, kinds in sets:
        for size, transforms in kinds:
            share = options.limit if size == 32 else options.limit * 2 // 5 if size == 128 else options.limit // 5
            root = folder / f"{images}-{size}"
            if not root.exists():
                write_files(parquet, root, limit=share, suffix=suffix)
            how = {"workers": options.workers, "device": options.device}
            size_of_batch = batch_size(root, options.batch_size)
            yield Case(images, root, transforms, size, size_of_batch, num_classes=num_classes, **how)


def batch_size(root: Path, wanted: int | None) -> int:
    """As asked for, or what makes an epoch of these files :data:`NUM_STEPS` long.

    Raises:
        ValueError: too few steps to say anything.
    """
    num_images = sum(1 for _ in (root / "train").glob("*/*"))
    size = wanted or num_images // NUM_STEPS
    if not size or num_images // size < FEWEST_STEPS:
        raise ValueError(f"{num_images} images in batches of {size} are fewer than {FEWEST_STEPS} steps: raise --limit")
    return size


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imagenette", type=Path, required=True, help="folder of parquet files, about 128 px")
    parser.add_argument("--cifar100", type=Path, required=True, help="folder of parquet files")
    parser.add_argument("--students", nargs="+", default=["timm/mobilenetv3_small_050"], help="such as timm/resnet18")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batch-size", type=int, help=f"default: an epoch has {NUM_STEPS} steps")
    parser.add_argument(
        "--limit", type=int, default=1280, help="CIFAR's images; of imagenette two fifths, one at 224 px"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=Path("results/speed/end_to_end.csv"))
    options = parser.parse_args()
    command = "python benchmarks/end_to_end.py --imagenette IMAGENETTE --cifar100 CIFAR100"
    for name in ("students", "workers", "batch_size", "limit", "rounds", "device"):
        value = getattr(options, name)
        if value != parser.get_default(name):
            command += f" --{name.replace('_', '-')} {' '.join(value) if isinstance(value, list) else value}"
    rows = list[Row]()
    with tempfile.TemporaryDirectory() as folder:
        pairs = [(case, student) for case in cases(options, Path(folder)) for student in options.students]
        memory = [{name: peak_mib(*pair, name) for name in MAKERS} for pair in pairs]
        facts = made(command, torch.device(options.device))
        for (case, student), peaks in zip(pairs, memory, strict=True):
            rows += [row | facts for row in compare(case, student, options.rounds, peaks)]
            print(f"measured {case.images} at {case.image_size} px: {case.transforms}, {student}", flush=True)
    write(options.out, rows, COLUMNS, SAME)
    print(table(rows))


if __name__ == "__main__":
    main()
