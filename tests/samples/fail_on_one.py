"""Run by a test under a launcher of two processes: the command line, with a method that breaks on the second."""

import atexit
import os
import sys

import torch.distributed

from crossdistill import cli
from crossdistill.methods.kd import KD
from crossdistill.registry import METHODS


@METHODS.register("breaks-on-one", title="", paper="", summary="", pick_when="")
class BreaksOnOne(KD):
    """KD for three steps."""

    calls = 0

    def forward(self, student, teacher, batch):
        self.calls += 1
        if self.calls > 3 and os.environ["RANK"] == "1":
            raise RuntimeError("the second process broke")
        return super().forward(student, teacher, batch)


def report() -> None:
    """Said last of all that the process does, since it is registered first."""
    print(f"process group open at exit: {torch.distributed.is_initialized()}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    atexit.register(report)
    cli.main(sys.argv[1:])
