"""Many simulated clients on this machine: time and memory of whole processes, Flower's simulation beside one process.

export CROSSDISTILL_DATA=DATA     # with mnist
python benchmarks/federated_simulation.py --clients 10,100
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch
from timing import Row, made, write

from crossdistill.report.table import markdown

COLUMNS = (
    *("data", "clients", "samples", "rounds", "workers", "seconds", "seconds_a_client_round", "peak_mib"),
    *("answers", "device", "torch", "commit", "command", "date"),
)
SAME = ("data", "clients", "samples", "rounds", "workers", "device")


def measure(clients: int, workers: int, options: argparse.Namespace) -> Row:
    """One whole run as a process of its own, with all that it starts."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "crossdistill", "federate", "--data", options.data, "--clients", str(clients)),
            *("--samples", str(options.samples), "--rounds", str(options.rounds), "--workers", str(workers)),
            *("--out", folder + "/run", "--json", "train.epochs=2", "tune.epochs=1", "transfer.limit=500"),
            *("partition.test_limit=1000", f"eval_every={options.rounds}"),
        ]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        peak = Peak(process.pid)
        code = process.wait()
        seconds = time.perf_counter() - start
        peak.stop()
        if code:
            raise SystemExit(f"{' '.join(command)} ended with {code}")
        answers = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").count('"status": "ok"')
    return {
        "data": options.data,
        "clients": clients,
        "samples": options.samples,
        "rounds": options.rounds,
        "workers": workers,
        "seconds": round(seconds, 1),
        "seconds_a_client_round": round(seconds / clients / options.rounds, 3),
        "peak_mib": round(peak.bytes / 2**20),
        "answers": answers,
        **made(_command(options), torch.device("cpu")),
    }


class Peak(threading.Thread):
    """The most memory that a process and its children held together, looked at several times a second.

    Memory that processes share counts once for each (it is resident in each), so this is an upper bound.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.root, self.bytes, self._going = psutil.Process(pid), 0, True
        self.start()

    def run(self) -> None:
        """Look until stopped."""
        while self._going:
            try:
                every = [self.root, *self.root.children(recursive=True)]
                self.bytes = max(self.bytes, sum(one.memory_info().rss for one in every))
            except psutil.Error:  # one of them has just ended
                pass
            time.sleep(0.3)

    def stop(self) -> None:
        """Look no more."""
        self._going = False
        self.join()


def _command(options: argparse.Namespace) -> str:
    how = f"--data {options.data} --samples {options.samples} --rounds {options.rounds}"
    return f"python benchmarks/federated_simulation.py {how}"


def main() -> None:
    """Measure each number of clients with each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--clients", type=lambda text: [int(one) for one in text.split(",")], default=[10, 100])
    parser.add_argument("--workers", type=lambda text: [int(one) for one in text.split(",")], default=[0, 2])
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("results/federated/simulation.csv"))
    options = parser.parse_args()
    found = []
    for clients in options.clients:
        for workers in options.workers:
            found.append(measure(clients, workers, options))
            print(found[-1], flush=True)
            write(options.results, found, COLUMNS, SAME)
    columns = ("clients", "workers", "seconds", "seconds_a_client_round", "peak_mib")
    print(markdown(columns, tuple(tuple(str(row[one]) for one in columns) for row in found), num_text_columns=1))


if __name__ == "__main__":
    main()
