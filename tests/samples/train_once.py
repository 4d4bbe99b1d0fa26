"""Run by tests in a process of its own: one fit; arguments are a run folder and what to do to it on the way."""

import os
import resource
import signal
import sys
from pathlib import Path

import torch

from crossdistill.engine import fit
from crossdistill.engine.progress import Quiet
from crossdistill.errors import InputError
from crossdistill.teachers import FrozenTeacher
from samples.training import Match, SmallNet, TensorLoader, settings


class Kill(Quiet):
    """Dies as by ``kill -9`` after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, step: int) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def die_while_writing(step: int) -> None:
    """Die when the checkpoint of that step is on disk in full, but not yet under its name."""
    rename = Path.rename

    def kill_or_rename(self: Path, target: Path) -> Path:
        if self.name.startswith(f"step-{step:08d}.tmp"):
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    Path.rename = kill_or_rename


def main(out: str, action: str, value: int) -> None:
    torch.set_num_threads(1)
    reporter = Kill(value) if action == "kill" else Quiet()
    if action == "kill-writing":
        die_while_writing(value)
    if action == "file-limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (value, value))
    loader = TensorLoader(micro_batch=8, unlabelled=5)
    try:
        fit(
            SmallNet(seed=1, dropout=0.3, batch_norm=True),
            Match(),
            FrozenTeacher(SmallNet(seed=2)),
            loader,
            loader.evaluation(),
            settings=settings(ema_decay=0.9, clip_grad=1.0, schedule="cosine"),
            seed=3,
            device="cpu",
            out=Path(out),
            reporter=reporter,
        )
    except InputError as error:
        print(error)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
