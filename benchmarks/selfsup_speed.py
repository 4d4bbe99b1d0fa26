"""What OBoW adds to the passes that it cannot do without, and how that grows with words and views.

A step of our loop (views at hand, no loading) runs in turn with the plain cost of the same passes: the teacher's
forward pass, the student's forward and backward passes on the same views with a trivial loss, and its optimiser. A
ratio is the median over the rounds, with a 95 % bootstrap interval; the goal is 1.15 at 8,192 words. ``flops_ratio``
is the same quotient of floating-point operations. Memory is what a step allocates at its peak beyond weights and
optimiser state. What the dynamic head and the vocabulary cost does not depend on the batch, so a small batch shows more
of it than the published one.

    python benchmarks/selfsup_speed.py --threads 2
    python benchmarks/selfsup_speed.py --growth --batch 16 --rounds 5
    python benchmarks/selfsup_speed.py --model resnet50 --batch 256 --device cuda --precision bf16 --channels-last
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from timing import MIB, Row, compared, in_turn, is_finished, made, peak_bytes, rounded, write
from torch.utils.flop_counter import FlopCounterMode

from crossdistill.contracts import Batch
from crossdistill.engine.loop import Trainer
from crossdistill.engine.progress import Quiet
from crossdistill.methods.bow import BagOfWords
from crossdistill.models import build
from crossdistill.report.table import markdown
from crossdistill.selfsup.settings import TRAIN_DEFAULTS
from crossdistill.settings import TrainSettings
from crossdistill.teachers import MovingAverageTeacher

GOAL = 1.15
VIEWS = {
    "2x160 + 5x96": ((2, 160), (5, 96)),
    "1x160": ((1, 160),),
    "2x160": ((2, 160),),
    "2x160 + 9x96": ((2, 160), (9, 96)),
}
WORDS = (1024, 4096, 8192, 32768)

COLUMNS = (
    *("model", "views", "num_words", "batch_size", "precision", "channels_last", "rounds", "step_ms", "plain_ms"),
    *("images_per_second", "ratio", "ratio_low", "ratio_high", "goal", "met", "flops_ratio", "step_mib", "plain_mib"),
    *("threads", "processor", "timm", "device", "torch", "commit", "command", "date"),
)
SAME = ("model", "views", "num_words", "batch_size", "precision", "channels_last", "threads", "device")


class OneBatch:
    """A loader whose every step is the same batch."""

    steps_per_epoch = 10**6

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[list[Batch]]:
        raise NotImplementedError  # steps are taken one by one


class Case:
    """Networks and a batch on a device, and the two passes that are compared."""

    def __init__(self, options: argparse.Namespace, views: str, num_words: int) -> None:
        torch.manual_seed(0)
        self.device = torch.device(options.device)
        train = TrainSettings(
            **{**TRAIN_DEFAULTS, "precision": options.precision, "channels_last": options.channels_last, "epochs": 1}
        )
        student = build(f"timm/{options.model}", num_classes=10)
        teacher = MovingAverageTeacher(student)
        teacher.passes_on = frozenset({"stages"})
        method = BagOfWords.build(student.spec, student.spec, num_classes=10, num_words=num_words)
        self.trainer = Trainer(student, method, teacher, OneBatch(), None, train, 0, options.device, None)
        self.trainer.reporter, self.trainer.out, self.trainer.log = Quiet(), None, None
        self.batch = self._batch(options.batch, VIEWS[views])

    def _batch(self, size: int, views: tuple[tuple[int, int], ...]) -> Batch:
        images = {"teacher0": torch.randn(size, 3, 224, 224)}
        for index, (count, side) in enumerate(views):
            images[f"student{index or ''}"] = torch.randn(size, count, 3, side, side)
        ids = torch.arange(size)
        return Batch(images, torch.full((size,), -1), ids).to(self.device)

    def step(self) -> object:
        """One step of the loop; its losses are not read, as in most steps."""
        self.trainer.train_step([self.batch])
        self.trainer.ledger._pending.clear()
        return None

    def plain(self) -> object:
        """The same passes with nothing to compare."""
        trainer, accelerator = self.trainer, self.trainer.accelerator
        batch = self.batch.to(self.device, channels_last=trainer.settings.channels_last)
        with torch.no_grad(), accelerator.autocast():
            trainer.teacher.model(batch.images["teacher0"])
        with accelerator.autocast():
            answers = [
                trainer.weights.learner._answer(batch.images[view].flatten(0, 1)).require("embedding")
                for view in batch.student_views
            ]
            loss = torch.stack([answer.float().square().mean() for answer in answers]).sum()
        accelerator.backward(loss)
        trainer.weights.optimizer.step()
        trainer.weights.optimizer.zero_grad()
        return None


def row_of(options: argparse.Namespace, views: str, num_words: int) -> Row:
    """One case, measured."""
    case = Case(options, views, num_words)
    passes = [case.step, case.plain]
    taken = in_turn(passes, options.rounds, case.device)
    flops = []
    for one in passes:
        with FlopCounterMode(display=False) as counter:
            one()
        flops.append(counter.get_total_flops())
    step, plain = (torch.tensor(taken[:, index]).median().item() for index in (0, 1))
    ratio = compared("ratio", taken[:, 0] / taken[:, 1])
    low, high = ratio["ratio_low"], ratio["ratio_high"]
    is_goal = num_words == 8192
    return {
        **named(options, views, num_words),
        "rounds": options.rounds,
        "step_ms": 1000 * step,
        "plain_ms": 1000 * plain,
        "images_per_second": options.batch / step,
        **ratio,
        "goal": GOAL if is_goal else None,
        "met": ("yes" if high <= GOAL else "no" if low > GOAL else "open") if is_goal else None,
        "flops_ratio": flops[0] / flops[1],
        "step_mib": peak_bytes(case.step, case.device) / MIB,
        "plain_mib": peak_bytes(case.plain, case.device) / MIB,
    }


def named(options: argparse.Namespace, views: str, num_words: int) -> Row:
    """The columns that say what was measured."""
    return {
        "model": options.model,
        "views": views,
        "num_words": num_words,
        "batch_size": options.batch,
        "precision": options.precision,
        "channels_last": options.channels_last,
        "threads": options.threads,
    }


def cases(options: argparse.Namespace) -> list[tuple[str, int]]:
    """Views and numbers of words: the published ones, or all that show growth."""
    published = next(iter(VIEWS))
    if not options.growth:
        return [(published, 8192)]
    return [(published, words) for words in WORDS] + [(views, 8192) for views in list(VIEWS)[1:]]


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--growth", action="store_true", help="more words and other views as well")
    parser.add_argument("--out", type=Path, default=Path("results/speed/pretraining.csv"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    place = made(_command(options), torch.device(options.device))
    found: list[dict[str, Any]] = []
    for views, num_words in cases(options):
        if is_finished(named(options, views, num_words) | place, options.out, SAME):
            continue
        found.append(rounded(row_of(options, views, num_words) | place))
        write(options.out, found[-1:], COLUMNS, SAME)
        print(found[-1], flush=True)
    columns = ("views", "num_words", "step_ms", "plain_ms", "ratio", "flops_ratio", "step_mib", "plain_mib")
    print(markdown(columns, tuple(tuple(str(row[one]) for one in columns) for row in found), num_text_columns=2))


def _command(options: argparse.Namespace) -> str:
    flags = " --channels-last" * options.channels_last + " --growth" * options.growth
    sizes = f"--model {options.model} --batch {options.batch} --rounds {options.rounds} --threads {options.threads}"
    return (
        f"python benchmarks/selfsup_speed.py {sizes} --device {options.device} --precision {options.precision}{flags}"
    )


if __name__ == "__main__":
    main()
