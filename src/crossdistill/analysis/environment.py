"""Where a run took place: versions, commit and hardware, without host or user names."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import crossdistill

_PACKAGES = ("crossdistill", "torch", "torchvision", "timm")


def environment() -> dict[str, Any]:
    """Facts that explain a number: package versions, commit, processor, threads, accelerators, platform."""
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        **checkout(Path(crossdistill.__file__).resolve().parents[2]),
        "cpu": _cpu_model(),
        "num_cores": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "platform": " ".join((platform.system(), platform.machine(), *platform.libc_ver())).strip(),
    }


def checkout(root: Path) -> dict[str, Any]:
    """``commit`` and ``dirty`` (tracked files differ from it) of the git checkout at ``root``; ``None`` elsewhere.

    An installed copy that happens to lie inside another project's checkout is not mistaken for it.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    commit = _git(root, "rev-parse", "HEAD")
    if top is None or commit is None or Path(top).resolve() != root.resolve():
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no"))}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
