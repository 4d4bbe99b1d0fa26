"""The command line in processes of its own, and a trained teacher to distil from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import crossdistill

HERE = Path(__file__).resolve().parent
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
ACCELERATE_FSDP = ("-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2", "--num_processes")


def train_teacher(folder: Path) -> Path:
    """A small residual network on the digits, far above chance."""
    quick = ["train.steps=44", "train.batch_size=64", "train.lr=0.01", "train.warmup_epochs=0", "device=cpu"]
    overrides = ["student.image_size=16", *quick]
    results = crossdistill.train("timm/test_resnet", "digits", folder, overrides=overrides, quiet=True)
    assert results["rows"][0]["top1_mean"] > 0.7
    return folder


def start(
    *arguments: object, num_processes: int = 1, script: Path | None = None, by: tuple[str, ...] = TORCHRUN
) -> subprocess.Popen[str]:
    """``crossdistill ARGUMENTS``, one thread a process, or a script that calls it."""
    launcher = [*by, str(num_processes)] if num_processes > 1 else []
    program = [str(script)] if script else ["-m", "crossdistill"]
    return subprocess.Popen(
        [sys.executable, *launcher, *program, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], *, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Wait for the end and keep what was printed."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(*arguments: object, **launch: object) -> subprocess.CompletedProcess[str]:
    """Start and finish."""
    return finish(start(*arguments, **launch))


def stop_at(
    process: subprocess.Popen[str], run_folder: Path, step: int, number: signal.Signals
) -> subprocess.CompletedProcess[str]:
    """Send a signal as soon as the log (of every step) shows that step, and wait for the end."""
    give_up = time.monotonic() + 240
    while last_step(run_folder) < step:
        if process.poll() is not None or time.monotonic() > give_up:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"ended with {process.returncode} before step {step}:\n{out}\n{err}")
        time.sleep(0.003)
    process.send_signal(number)
    return finish(process)


def last_step(run_folder: Path) -> int:
    """The newest step of a run's log, 0 before the first."""
    log = run_folder / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    steps = [int(line.split('"step": ')[1].split(",")[0]) for line in lines if line.endswith("}")]
    return max(steps, default=0)


def outcome(run_folder: Path) -> dict[str, object]:
    """All that a run has come to and that repeats: the student's bytes, accuracies, and every evaluation."""
    results = json.loads((run_folder / "results.json").read_text())
    log = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "student": (run_folder / "student" / "model.safetensors").read_bytes(),
        "rows": [(row["role"], row["method"], row["runs"], row["top1_mean"]) for row in results["rows"]],
        "evaluations": [line for line in log if line["kind"] == "eval"],
        "losses": [(line["step"], line["losses"]) for line in log if line["kind"] == "train"],
    }


def fingerprints(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, tuple[int, bytes]]:
    """Time of change and content of every file below a folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in without
    }
