"""How the server's fusion grows with the number of clients, and what a round moves beside sending whole networks.

``fusion``: a fresh process holds the answers of all clients in memory, as a server does that has received them, and the
strategy makes every client's own teacher of them, a block of samples at a time. Seconds are medians over the rounds, of
``fuse`` alone; ``cpu_seconds`` is the processor's time, which other load on the machine hardly changes. ``peak_mib`` is
the most that the process ever held in memory, answers and teachers included, ``start_mib`` what imports and answers
took. The goal is 1,000 clients in a minute and in 8 GiB.

``bytes``: what one client sends in a round, which is also what it gets, by ``pack`` for random answers, beside FedAvg's
network in single precision. ``ratio`` is FedAvg's bytes / ours.

    python benchmarks/federated_scale.py --threads 2
    python benchmarks/federated_scale.py --clients 1000 --guard --folder DISK
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from timing import Row, is_finished, made, read, rounded, write

from crossdistill.federated.knowledge import Knowledge, Transport, num_bytes, pack
from crossdistill.report.table import markdown

GOAL_CLIENTS, GOAL_SECONDS, GOAL_MIB = 1000, 60, 8 * 1024
CLIENTS = (10, 30, 100, 300, 1000)
SIZES = ((2000, 10), (5000, 10), (5000, 100))
"""Transfer samples and classes of which bytes are counted."""
TRANSPORTS: tuple[tuple[Transport, int | None], ...] = (("fp32", None), ("fp16", None), ("top_k", 5))
NETWORKS = ("mobilenetv3_small_100", "resnet18", "resnet50", "deit_tiny_patch16_224", "vit_base_patch16_224")

COLUMNS = (
    *("measure", "clients", "samples", "classes", "beta", "threshold", "guard", "rounds", "seed"),
    *("seconds", "seconds_low", "seconds_high", "cpu_seconds", "peak_mib", "start_mib", "neighbours"),
    *(
        "goal_seconds",
        "goal_mib",
        "met",
        "transport",
        "top_k",
        "network",
        "parameters",
        "bytes",
        "fedavg_bytes",
        "ratio",
    ),
    *("threads", "processor", "timm", "device", "torch", "commit", "command", "date"),
)
SAME = (
    *("measure", "clients", "samples", "classes", "beta", "threshold", "guard", "seed"),
    *("transport", "top_k", "network", "threads", "processor"),
)

CHILD = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
from crossdistill.federated.fusion import effective_neighbours
from crossdistill.federated.knowledge import unpack
from crossdistill.federated.settings import load_settings
from crossdistill.federated.strategy import STRATEGIES, Answer

def peak():
    status = Path("/proc/self/status")  # the system's own count starts with what the parent held when it forked
    lines = status.read_text().splitlines() if status.exists() else []
    found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return (found or [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])[0] / 1024

def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

given = json.loads(sys.argv[1])
settings = load_settings({"data": {"source": "digits"}, "clients": len(given["paths"])}, given["how"])
strategy = STRATEGIES.get("knfu").value(settings)
answers = []
for client, path in enumerate(given["paths"]):
    soft = np.load(path)
    knowledge = unpack({"soft": soft}, num_samples=soft.shape[0], num_classes=soft.shape[1])
    answers.append(Answer(client, "any", 1, knowledge))
start, before, begin = peak(), cpu(), time.perf_counter()
fused = strategy.fuse(answers, 1)
print(json.dumps({
    "seconds": time.perf_counter() - begin, "cpu_seconds": cpu() - before, "start_mib": start, "peak_mib": peak(),
    "neighbours": float(effective_neighbours(fused.matrix).mean()),
}))
"""


def write_knowledge(folder: Path, num_clients: int, num_samples: int, num_classes: int, seed: int) -> list[Path]:
    """A file a client: the same images seen through the client's own mix of classes (Dirichlet, 0.5)."""
    generator = np.random.default_rng(seed)
    images = np.exp(2 * generator.normal(size=(num_samples, num_classes))).astype(np.float32)
    paths = [folder / f"{client}.npy" for client in range(num_clients)]
    for path in paths:
        mix = generator.dirichlet(np.full(num_classes, 0.5)).astype(np.float32)
        answers = images * (mix + 1e-4)
        np.save(path, (answers / answers.sum(axis=1, keepdims=True)).astype(np.float16))
    return paths


def fused(paths: Sequence[Path], how: Sequence[str], threads: int) -> Row:
    """One fusion in a process of its own."""
    given = json.dumps({"paths": [str(path) for path in paths], "how": how})
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, given], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    answer: Row = json.loads(done.stdout)
    return answer


def fusion_row(options: argparse.Namespace, paths: Sequence[Path], num_clients: int) -> Row:
    """The fusion of the first so many clients, measured over the rounds."""
    how = [f"fusion.beta={options.beta}", f"fusion.threshold={options.threshold}", f"fusion.guard={options.guard}"]
    found = [fused(paths[:num_clients], how, options.threads) for _ in range(options.rounds)]
    taken = [one["seconds"] for one in found]
    row = {
        **named(options, num_clients),
        "rounds": options.rounds,
        **{key: float(np.median([one[key] for one in found])) for key in ("seconds", "cpu_seconds", "neighbours")},
        "seconds_low": min(taken),
        "seconds_high": max(taken),
        "peak_mib": max(one["peak_mib"] for one in found),
        "start_mib": max(one["start_mib"] for one in found),
    }
    if num_clients == GOAL_CLIENTS:
        met = max(taken) <= GOAL_SECONDS and row["peak_mib"] <= GOAL_MIB
        row |= {"goal_seconds": GOAL_SECONDS, "goal_mib": GOAL_MIB, "met": "yes" if met else "no"}
    return row


def named(options: argparse.Namespace, num_clients: int) -> Row:
    """The columns that say which fusion was measured."""
    return {
        "measure": "fusion",
        "clients": num_clients,
        "samples": options.samples,
        "classes": options.classes,
        "beta": options.beta,
        "threshold": options.threshold,
        "guard": options.guard,
        "seed": options.seed,
    }


def byte_rows(seed: int) -> Iterator[Row]:
    """Bytes each way, of every size and transport beside every network."""
    for num_samples, num_classes in SIZES:
        answers = np.random.default_rng(seed).dirichlet(np.ones(num_classes), num_samples)
        for network in NETWORKS:
            parameters, whole = size_of(network, num_classes)
            for transport, top_k in TRANSPORTS:
                sent = num_bytes(pack(Knowledge.of(answers), transport, top_k=top_k or 0))
                yield {
                    "measure": "bytes",
                    "samples": num_samples,
                    "classes": num_classes,
                    "seed": seed,
                    "transport": transport,
                    "top_k": top_k,
                    "network": network,
                    "parameters": parameters,
                    "bytes": sent,
                    "fedavg_bytes": whole,
                    "ratio": whole / sent,
                }


def size_of(network: str, num_classes: int) -> tuple[int, int]:
    """Parameters, and bytes of all that FedAvg averages: parameters and running statistics, in single precision."""
    with torch.device("meta"):
        net = timm.create_model(network, num_classes=num_classes)
    averaged = [value.numel() for value in net.state_dict().values() if value.is_floating_point()]
    return sum(one.numel() for one in net.parameters()), 4 * sum(averaged)


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """All rows that this commit has not measured yet; each is written at once."""
    place = made(_command(options), torch.device("cpu"))
    fresh = [rounded(row | place) for row in byte_rows(options.seed)]
    write(options.out, fresh, COLUMNS, SAME)
    yield from fresh
    missing = [
        number for number in options.clients if not is_finished(named(options, number) | place, options.out, SAME)
    ]
    if not missing:
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        paths = write_knowledge(Path(folder), max(missing), options.samples, options.classes, options.seed)
        for number in missing:
            row = rounded(fusion_row(options, paths, number) | place)
            write(options.out, [row], COLUMNS, SAME)
            print(f"{number:,} clients: {row['seconds']} s, {row['peak_mib']} MiB", flush=True)
            yield row


def tables(found: Sequence[dict[str, str]]) -> str:
    """The rows for people to read."""
    fusion = [row for row in found if row["measure"] == "fusion"]
    growth = ("clients", "samples", "classes", "seconds", "cpu_seconds", "peak_mib", "start_mib", "met")
    sent = ("network", "transport", "samples", "classes", "bytes", "fedavg_bytes", "ratio")
    moved = [row for row in found if row["measure"] == "bytes"]
    return "\n\n".join(
        markdown(columns, tuple(tuple(row[one] or "–" for one in columns) for row in some), num_text_columns=texts)
        for columns, some, texts in ((growth, fusion, 0), (sent, moved, 2))
        if some
    )


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--beta", type=float, default=10.0)
    parser.add_argument("--threshold", type=float, default=0.0, help="cut of neighbours")
    parser.add_argument("--guard", action="store_true", help="with the guard, which compares all pairs row by row")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the answers")
    parser.add_argument("--folder", type=Path, help="where knowledge and teachers lie meanwhile; default: the system's")
    parser.add_argument("--out", type=Path, default=Path("results/federated/scale.csv"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for _ in rows(options):
        pass
    print(tables(read(options.out)))


def _command(options: argparse.Namespace) -> str:
    sizes = f"--samples {options.samples} --classes {options.classes} --beta {options.beta}"
    how = f"--threshold {options.threshold} --rounds {options.rounds}{' --guard' if options.guard else ''}"
    clients = " ".join(str(number) for number in options.clients)
    tail = f"--threads {options.threads} --seed {options.seed}"
    return f"python benchmarks/federated_scale.py --clients {clients} {sizes} {how} {tail}"


if __name__ == "__main__":
    main()
