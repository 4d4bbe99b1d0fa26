"""What storing answers costs: images a second written and read, bytes an image, and what decoding loses.

Rates are of stores with random logits of 100, 1,000 and 21,000 classes, all of them or the 10 or 50 largest, with and
without embeddings. Writing is a whole epoch, encoded, hashed and flushed to disk shard by shard. Reading is a whole
epoch in batches of 128, looked up, moved to the device and decoded: in the order in which a training reads it, and in
random order. What was just written is still in memory, so rates of reading are those of the code, not of a disk. Rates
are medians over the rounds, with a 95 % bootstrap interval; MB are 10^6 bytes. ``open_ms`` is the table of an epoch,
which each process makes once. ``first_ms`` and ``again_ms`` read one sample of every shard, first with the check of the
shard's hash that this brings about, then without; ``hash_share`` is the difference as a part of one pass over an epoch,
which therefore is what that check takes of a training that shows the epoch once.

With ``--cifar100`` or ``--imagenette`` also what is lost of real answers: the divergence of the decoded from the live
answers of a trained network to the evaluation images, mean and largest, at temperatures 1 and 4; ``uniform_…`` is that
of an answer that says nothing, for comparison. TEACHER is a run folder of the coarse classes, such as those of
``recipes/pilot``; WEIGHTS the folder of ``real_weights.py``.

    python benchmarks/store_rates.py --threads 2 --cifar100 CIFAR100 --imagenette IMAGENETTE --weights WEIGHTS \
        --teachers TEACHER ...
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from real_weights import CIFAR, EFFICIENTNET, load
from timing import Pass, Row, compared, in_turn, made, rounded, seconds, write
from torch import Tensor

from crossdistill import build
from crossdistill.data import EvalLoader, open_source
from crossdistill.losses.kd import kl_divergence
from crossdistill.models import StagedModel
from crossdistill.report.table import markdown
from crossdistill.settings import DataSettings
from crossdistill.store import Keep, Manifest, Store, StoreWriter

MANY_SHARDS = 160
SIZES = ((100, 50_000, 4), (1000, 40_960, 5), (1000, 10_240, MANY_SHARDS), (21_000, 2048, 6))
"""Classes, positions of an epoch, shards. Shards are of 16 MB for all logits, as ``crossdistill store`` makes them. In
one case they are small, but as many as an epoch of ImageNet has, which is more than a reader keeps mapped: reading at
random then maps shards again and again.
"""

TOP_K = (None, 10, 50)
EMBEDDING_DIM, BATCH_SIZE, ROUNDS, MB = 384, 128, 5, 10**6
ERROR_TOP_K, TEMPERATURES, NUM_IMAGES = (None, 1, 5, 10, 50), (1, 4), 2000

COLUMNS = (
    *("num_classes", "keep", "embedding_dim", "num_samples", "num_shards", "rounds", "bytes_formula", "bytes_file"),
    *("write_images_s", "write_images_s_low", "write_images_s_high", "write_mb_s"),
    *("ordered_images_s", "ordered_images_s_low", "ordered_images_s_high", "ordered_mb_s"),
    *("random_images_s", "random_images_s_low", "random_images_s_high", "random_mb_s"),
    *("open_ms", "first_ms", "again_ms", "hash_share"),
    *("threads", "processor", "device", "torch", "commit", "command", "date"),
)
SAME = ("num_classes", "keep", "embedding_dim", "num_samples", "num_shards", "threads", "device")

ERROR_COLUMNS = (
    *("network", "data", "num_classes", "keep", "num_images", "bytes_formula"),
    *itertools.chain(*((f"mean_t{t}", f"largest_t{t}", f"uniform_t{t}") for t in TEMPERATURES)),
    *("device", "torch", "commit", "command", "date"),
)
ERROR_SAME = ("network", "data", "keep", "num_images")


class Epoch:
    """One epoch of random answers to random samples, written and read again.

    Args:
        manifest: classes, positions, and what is kept.
        folder: where the store is made.
        device: where a training would want the answers.
    """

    def __init__(self, manifest: Manifest, folder: Path, device: torch.device) -> None:
        torch.manual_seed(0)
        self.manifest, self.folder, self.device = manifest, folder, device
        ids = torch.randperm(manifest.num_samples)
        self.samples = torch.stack([ids, torch.zeros_like(ids)], dim=1)
        self.logits = 3 * torch.randn(manifest.shard_size, manifest.num_classes, device=device)
        self.embeddings = [torch.randn(manifest.shard_size, dim, device=device) for dim in manifest.embedding_dims]

    def write(self) -> None:
        """All shards, in the place of those that are there."""
        writer = StoreWriter.open(self.folder, self.manifest)
        for shard in range(self.manifest.num_shards):
            writer.write(0, shard, self._samples(shard), self.logits, self.embeddings)

    def reader(self, samples: Tensor) -> Pass:
        """A pass over these samples ``(N, 2)`` in batches."""
        store = Store.open(self.folder)

        def run() -> None:
            for batch in samples.split(BATCH_SIZE):
                answers = store.read(0, batch).to(self.device)
                answers.logits()
                answers.embeddings()

        return run

    def first_look(self) -> tuple[float, float, float]:
        """Seconds of the epoch's table, of a first look into every shard, and of another."""
        store, cpu = Store.open(self.folder), torch.device("cpu")
        one_of_each = [self._samples(shard)[:1] for shard in range(self.manifest.num_shards)]

        def look() -> None:
            for sample in one_of_each:
                store.read(0, sample)

        return seconds(lambda: store.ids(0), cpu), seconds(look, cpu), seconds(look, cpu)

    def file_bytes(self) -> int:
        """Of all shards as files."""
        return sum(path.stat().st_size for path in self.folder.rglob("*.safetensors"))

    def _samples(self, shard: int) -> Tensor:
        positions = self.manifest.positions(shard)
        return self.samples[positions.start : positions.stop]


def name_of(keep: Keep) -> str:
    """What is kept, in words."""
    return "all logits" if keep.top_k is None else f"top {keep.top_k}"


def manifest_of(num_classes: int, keep: Keep, num_samples: int, shard_size: int, dim: int = EMBEDDING_DIM) -> Manifest:
    """A store with one teacher."""
    return Manifest({}, {}, num_classes, num_samples, shard_size, keep, (dim,) if keep.embeddings else ())


def rates(epoch: Epoch, rounds: int) -> Row:
    """Writing, reading in order and reading at random, in turn."""
    manifest, num = epoch.manifest, epoch.manifest.num_samples
    epoch.write()
    at_random = epoch.samples[torch.randperm(num)]
    passes = {"write": epoch.write, "ordered": epoch.reader(epoch.samples), "random": epoch.reader(at_random)}
    taken = in_turn(list(passes.values()), rounds, epoch.device)
    opening, first, again = np.median([epoch.first_look() for _ in range(rounds)], axis=0).tolist()
    by_formula, by_file = manifest.bytes_per_sample(), epoch.file_bytes() / num
    row: Row = {
        **{"num_classes": manifest.num_classes, "keep": name_of(manifest.keep), "rounds": rounds},
        **{"embedding_dim": sum(manifest.embedding_dims), "num_samples": num, "num_shards": manifest.num_shards},
        **{"bytes_formula": by_formula, "bytes_file": by_file},
    }
    for name, spent in zip(passes, taken.T, strict=True):
        row |= compared(f"{name}_images_s", num / spent)
        row[f"{name}_mb_s"] = row[f"{name}_images_s"] * by_file / MB
    ordered = num / row["ordered_images_s"]
    row["hash_share"] = (first - again) / (ordered + first - again)
    return row | {"open_ms": 1000 * opening, "first_ms": 1000 * first, "again_ms": 1000 * again}


def all_rates(options: argparse.Namespace) -> Iterator[Row]:
    """A row for each number of classes and each way of keeping answers."""
    sizes = [one for one in SIZES if one[0] in options.classes]
    for (num_classes, num_samples, num_shards), top_k, embeddings in itertools.product(sizes, TOP_K, (False, True)):
        keep, shard_size = Keep(top_k, embeddings), num_samples // num_shards // options.shrink
        manifest = manifest_of(num_classes, keep, shard_size * num_shards, shard_size)
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            row = rates(Epoch(manifest, Path(folder) / "store", torch.device(options.device)), options.rounds)
        print(f"measured {num_classes} classes, {name_of(keep)}{' and embeddings' * embeddings}", flush=True)
        yield row


def networks(options: argparse.Namespace) -> Iterator[tuple[StagedModel, DataSettings]]:
    """The trained networks there are, each with images that it was trained for."""
    if options.cifar100:
        fine = DataSettings(source=f"parquet:{options.cifar100}")
        coarse = fine.model_copy(update={"label_column": "coarse_label"})
        for folder in options.teachers:
            yield build(str(folder)), coarse
        if options.weights:
            (published,) = CIFAR["cifar100"]
            yield build(load(published, options.weights), num_classes=published.num_classes), fine
    if options.imagenette and options.weights:
        weights = options.weights / f"{EFFICIENTNET}_in1k_fp16.safetensors"
        yield build(f"timm/{EFFICIENTNET}@{weights}"), DataSettings(source=f"parquet:{options.imagenette}")


@torch.inference_mode()
def answers(model: StagedModel, data: DataSettings, num_images: int) -> Tensor:
    """Logits ``(N, K)`` to evenly spread images of the evaluation split."""
    source = open_source(data).evaluation
    ids = np.unique(np.linspace(0, len(source.targets) - 1, num_images).astype(int))
    loader = EvalLoader(source, {"student": model.spec.input}, batch_size=50, workers=0, ids=ids)
    return torch.cat([model.eval()(batch.images["student"]).require("logits") for batch in loader])


def errors(options: argparse.Namespace) -> Iterator[Row]:
    """A row for each trained network and each way of keeping its logits."""
    for model, data in networks(options):
        live = answers(model, data, options.images).clone()
        for top_k in ERROR_TOP_K:
            if top_k is None or top_k < live.shape[1]:
                yield {
                    **{"network": model.spec.name, "data": Path(data.source.partition(":")[2]).name},
                    **error(live, Keep(top_k)),
                }
        print(f"{model.spec.name}: {len(live)} answers in {live.shape[1]} classes", flush=True)


def error(live: Tensor, keep: Keep) -> Row:
    """What storing these logits ``(N, K)`` loses, by way of a file."""
    samples = torch.stack([torch.arange(len(live)), torch.zeros(len(live), dtype=torch.int64)], dim=1)
    manifest = manifest_of(live.shape[1], keep, len(live), len(live))
    with tempfile.TemporaryDirectory() as folder:
        StoreWriter.open(Path(folder) / "store", manifest).write(0, 0, samples, live)
        decoded = Store.open(Path(folder) / "store").read(0, samples).logits()
    row: Row = {"num_classes": manifest.num_classes, "keep": name_of(keep), "num_images": len(live)}
    row["bytes_formula"] = manifest.bytes_per_sample()
    for temperature in TEMPERATURES:
        lost = divergence(decoded, live, temperature)
        row |= {f"mean_t{temperature}": float(lost.mean()), f"largest_t{temperature}": float(lost.max())}
        row[f"uniform_t{temperature}"] = float(divergence(torch.zeros_like(live), live, temperature).mean())
    return row


def divergence(decoded: Tensor, live: Tensor, temperature: float) -> NDArray[np.float64]:
    """``KL(live || decoded)`` of each image in nats, computed in float64."""
    return kl_divergence(decoded.double() / temperature, live.double() / temperature).numpy()


def rate_table(found: Sequence[Row]) -> str:
    """The rates for people to read."""
    columns = (
        "Classes",
        "Kept",
        "Embedding",
        "Shards",
        "Bytes",
        "Written/s",
        "Read/s",
        "At random/s",
        "First ms",
        "Hash",
    )
    cells = tuple(
        (
            *(f"{row['num_classes']:,}", row["keep"], str(row["embedding_dim"] or ""), str(row["num_shards"])),
            f"{row['bytes_file']:.0f}",
            *(f"{row[name + '_images_s']:,.0f}" for name in ("write", "ordered", "random")),
            *(f"{row['first_ms']:.3g}", f"{row['hash_share']:.0%}"),
        )
        for row in found
    )
    return markdown(columns, cells, num_text_columns=2)


def error_table(found: Sequence[Row]) -> str:
    """The errors for people to read."""
    columns = ("Network", "Classes", "Kept", "Bytes", "Mean, T 1", "Largest, T 1", "Mean, T 4", "Largest, T 4")
    cells = tuple(
        (
            *(row["network"], str(row["num_classes"]), row["keep"], str(row["bytes_formula"])),
            *(f"{row[name]:.2g}" for name in ("mean_t1", "largest_t1", "mean_t4", "largest_t4")),
        )
        for row in found
    )
    return markdown(columns, cells, num_text_columns=3)


def command_of(options: argparse.Namespace) -> str:
    """The command that measures such rows again; paths are left to whoever repeats it."""
    given = {"--cifar100 CIFAR100": options.cifar100, "--imagenette IMAGENETTE": options.imagenette}
    given |= {"--weights WEIGHTS": options.weights, "--teachers TEACHER ...": options.teachers}
    kept = [text for text, value in given.items() if value]
    start = f"python benchmarks/store_rates.py --device {options.device} --threads {options.threads}"
    return " ".join([start, *kept])


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where answers are wanted")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the processor")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--classes", type=int, nargs="*", default=[100, 1000, 21_000], help="only these")
    parser.add_argument("--shrink", type=int, default=1, help="divides the positions of an epoch, for a quick look")
    parser.add_argument("--folder", type=Path, help="where stores are made; default: the system's temporary folder")
    parser.add_argument("--cifar100", type=Path, help="folder with CIFAR-100 as parquet")
    parser.add_argument("--imagenette", type=Path, help="folder with Imagenette as parquet")
    parser.add_argument("--weights", type=Path, help="folder of the safetensors files")
    parser.add_argument("--teachers", type=Path, nargs="*", default=[], help="run folders on the coarse classes")
    parser.add_argument("--images", type=int, default=NUM_IMAGES, help="most images of a network")
    parser.add_argument("--out", type=Path, default=Path("results/speed/store.csv"))
    parser.add_argument("--errors-out", type=Path, default=Path("results/checks/store-error.csv"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    place = made(command_of(options), torch.device(options.device))
    found = [rounded(row | place) for row in all_rates(options)]
    if found:
        write(options.out, found, COLUMNS, SAME)
        print(rate_table(found))
    lost = [rounded(row | place | {"device": "CPU"}) for row in errors(options)]
    if lost:
        write(options.errors_out, lost, ERROR_COLUMNS, ERROR_SAME)
        print(error_table(lost))


if __name__ == "__main__":
    main()
