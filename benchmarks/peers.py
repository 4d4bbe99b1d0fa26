"""A training step of logit distillation beside that of timm and torchdistill: same pair, batch, precision and device.

timm's ``LogitDistillationTask`` and torchdistill's ``DistillationBox`` with its ``KDLoss`` are used unmodified and as
their own training scripts use them: of timm ``task(images, target)``, the gradients and the optimiser's step; of
torchdistill ``forward_process`` and ``post_forward_process``. Ours is the step of the engine's own loop, with the live
teacher and with a store of its answers. Everybody reads the loss every ``train.log_every`` steps, as we do, although
torchdistill's example does so in every step.

On a GPU these, and the plain step, let cuDNN choose the fastest kernels (``cudnn.benchmark``), as both scripts do; our
step stands where it does in training, under deterministic algorithms, so what that costs is in our time.

All minimise 0.3 of cross-entropy and 0.7 of the divergence at temperature 4 with AdamW, in the implementation that our
loop chooses, on the same live networks. Nothing is measured unless the losses of the first steps agree, each time from
the same weights. Then all run in turn in one process, beside the student's plain step in PyTorch and the teacher's
plain forward pass, in changing order. A ratio is the median of the rounds' own, with a 95 % bootstrap interval:

    ratio_parts     this step / (the student's plain step + the teacher's forward pass)
    ratio_ours      our step with the live teacher / this step
    ratio_stored    our step from the store / this step

The goals: level online, so ``ratio_ours`` of both up to 1; ahead by the teacher's whole share with the store, so
``ratio_stored`` of the plain step near 1. Memory is what a step allocates at its peak beyond weights and optimiser
state.

    pip install torchdistill
    python benchmarks/peers.py --threads 2
    python benchmarks/peers.py --device cuda --precision bf16 --channels-last

torchdistill takes mixed precision from accelerate, of whose state it asks an attribute that accelerate 1.15 does not
have; in bf16 its forward pass therefore stands in ``torch.autocast``, like that of timm's script.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from step import add_loop_options
from timing import MIB, Pass, Row, compared, in_turn, made, peak_bytes, rounded, write
from timm.task import LogitDistillationTask
from torch import Tensor, nn
from training_step import Case, Live, Plain, as_scripts_do, autocast, loop_settings

from crossdistill.contracts import Batch, Teacher
from crossdistill.engine.seeding import deterministic
from crossdistill.report.table import markdown
from crossdistill.settings import TrainSettings
from crossdistill.store import Keep

PAIRS = (("deit_tiny_patch16_224", "resnet18", 224), ("deit_tiny_patch16_224", "resnet10t", 32))
"""Teacher, student and image size. Both networks of a pair must ask for the same normalisation: else timm renormalises
the images in its step, and torchdistill shows the teacher images that are not normalised for it.
"""

NUM_CLASSES = 1000
BATCH_SIZE = {"cpu": {224: 8, 32: 64}, "cuda": {224: 128, 32: 128}}
ROUNDS = {"cpu": {224: 21, 32: 60}, "cuda": {224: 60, 32: 60}}
WARMUP_ROUNDS = 2

TEMPERATURE, HARD_WEIGHT, SOFT_WEIGHT = 4.0, 0.3, 0.7
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.0
"""Without decay: timm and we leave it off biases, torchdistill does not."""

NUM_CHECKED, TOLERANCE = 3, {"fp32": 5e-4, "bf16": 2e-2}
"""First steps whose losses are compared, and how far they may lie apart, relative to ours."""

PLAIN, TEACHER = "student, plain step", "teacher, plain forward"
TIMM, TORCHDISTILL, OURS, STORED = "timm", "torchdistill", "crossdistill", "crossdistill, stored"

COLUMNS = (
    *("step", "teacher", "student", "num_classes", "image_size", "batch_size", "precision", "channels_last"),
    *("rounds", "ms", "ratio_parts", "ratio_parts_low", "ratio_parts_high"),
    *("ratio_ours", "ratio_ours_low", "ratio_ours_high", "ratio_stored", "ratio_stored_low", "ratio_stored_high"),
    *("mib", "threads", "processor", "timm", "torchdistill", "device", "torch", "commit", "command", "date"),
)
SAME = (
    *("step", "teacher", "student", "num_classes", "image_size", "batch_size", "precision", "channels_last"),
    *("threads", "device"),
)


class Contender(Protocol):
    """One way to take a training step."""

    def step(self, batch: Batch) -> None:
        """From images on the device to changed weights."""
        ...

    def loss(self) -> float:
        """What the last step minimised; the host waits for it."""
        ...


def plain(live: Live, implementation: Mapping[str, Any]) -> Plain:
    """The student alone in plain PyTorch."""
    return Plain(live, live.student.net, adamw(live.student.net, implementation))


def adamw(network: nn.Module, implementation: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimiser of all."""
    return torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, **implementation)


class Timm(Plain):
    """timm's task in timm's loop."""

    def __init__(self, live: Live, implementation: Mapping[str, Any], teacher: nn.Module) -> None:
        super().__init__(live, live.student.net, adamw(live.student.net, implementation))
        self.task = LogitDistillationTask(
            student_model=live.student.net,
            teacher_model=teacher,
            criterion=nn.CrossEntropyLoss(),
            task_loss_weight=HARD_WEIGHT,
            distill_loss_weight=SOFT_WEIGHT,
            temperature=TEMPERATURE,
            device=live.device,
            verbose=False,
        ).train()

    def minimised(self, batch: Batch) -> Tensor:
        """What the task returns as its loss."""
        loss: Tensor = self.task(batch.images["student"], batch.target)["loss"]
        return loss


class Torchdistill:
    """torchdistill's box in the loop of its example."""

    last: Tensor

    def __init__(self, live: Live, implementation: Mapping[str, Any], teacher: nn.Module) -> None:
        from torchdistill.core.distillation import get_distillation_box

        self.live = live
        student = live.student.net
        self.box = get_distillation_box(teacher, student, {}, _box(implementation), live.device, None, False, 1.0)
        self.box.pre_epoch_process(epoch=0)

    def step(self, batch: Batch) -> None:
        """The two calls of its example."""
        with as_scripts_do(self.live.device):
            with autocast(self.live):
                loss = self.box.forward_process(batch.images["student"], batch.target, None)
            self.box.post_forward_process(loss=loss)
        self.last = loss.detach()

    def loss(self) -> float:
        """That of the last step."""
        return self.last.item()


def _box(implementation: Mapping[str, Any]) -> dict[str, Any]:
    """What a YAML file says in its example."""
    logits = {"module_path": ".", "module_io": "output"}
    loss = {f"{one}_{key}": value for one in ("student", "teacher") for key, value in logits.items()}
    loss |= {"temperature": TEMPERATURE, "alpha": HARD_WEIGHT, "beta": SOFT_WEIGHT, "reduction": "batchmean"}
    term = {"criterion": {"key": "KDLoss", "kwargs": loss}, "weight": 1.0}
    optimizer = {"lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, **implementation}
    return {
        "num_epochs": 1,
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "requires_grad": True},
        "optimizer": {"key": "AdamW", "kwargs": optimizer},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": term}}},
    }


class Ours:
    """The step of the engine's own loop, with the kernels that it asks for."""

    def __init__(self, live: Live, teacher: Teacher) -> None:
        self.live = live
        self.trainer = live.trainer("kd", {"temperature": TEMPERATURE, "weight": SOFT_WEIGHT}, teacher)

    def implementation(self) -> dict[str, Any]:
        """How the loop has AdamW carried out."""
        return {key: self.trainer.weights.optimizer.defaults[key] for key in ("foreach", "fused")}

    def step(self, batch: Batch) -> None:
        """What the loop does with a batch."""
        with deterministic(self.live.device):
            self.trainer.train_step([batch])

    def loss(self) -> float:
        """The mean over the steps since the last reading, which is one where each is read."""
        losses, _ = self.trainer.ledger.read(stop=False)
        return sum(losses.values())


def contenders(live: Live, folder: Path) -> dict[str, Contender]:
    """All that take training steps.

    Raises:
        ValueError: networks that want their images normalised in different ways.
    """
    teacher = live.networks["teacher0"]
    wanted = [(model.spec.input.mean, model.spec.input.std) for model in (live.student, teacher)]
    if wanted[0] != wanted[1]:
        raise ValueError(f"{live.case.columns}: the networks want images normalised by {wanted}")
    ours = Ours(live, live.teacher())
    how = ours.implementation()
    found: dict[str, Contender] = {PLAIN: plain(live, how), TIMM: Timm(live, how, teacher.net)}
    if _version(TORCHDISTILL):
        found[TORCHDISTILL] = Torchdistill(live, how, teacher.net)
    else:
        print("torchdistill is not installed: left out", flush=True)
    return found | {OURS: ours, STORED: Ours(live, live.stored_teacher(folder, Keep()))}


def check(live: Live, found: Mapping[str, Contender]) -> None:
    """Let each take its first steps from the same weights, which must have the same losses.

    Raises:
        ValueError: they do not, so it is not the same work.
    """
    first = {name: tensor.clone() for name, tensor in live.student.state_dict().items()}
    losses: dict[str, list[float]] = {}
    for name, one in found.items():
        live.student.load_state_dict(first)
        losses[name] = []
        for batch in live.loader.steps[:NUM_CHECKED]:
            one.step(batch)
            losses[name].append(one.loss())
        print(f"first losses of {name}: {', '.join(f'{loss:.6f}' for loss in losses[name])}", flush=True)
    tolerance = TOLERANCE[live.case.train.precision]
    for name in losses.keys() - {PLAIN}:
        if not np.allclose(losses[name], losses[OURS], rtol=tolerance, atol=0):
            raise ValueError(f"{name} does not do the work of {OURS}: {losses[name]}, not {losses[OURS]}")


def as_pass(live: Live, one: Contender) -> Pass:
    """So many steps as are timed at once; every so often the loss is read."""
    batches, log_every = live.loader.epoch(), live.case.train.log_every
    taken = 0

    def run() -> object:
        nonlocal taken
        for _ in range(live.steps_a_pass):
            (batch,) = next(batches)
            one.step(batch)
            taken += 1
            if taken % log_every == 0:
                one.loss()
        return None

    return run


def measure(live: Live, rounds: int) -> Iterator[Row]:
    """A row for each contender of one pair, and for the teacher alone."""
    with tempfile.TemporaryDirectory() as folder:
        found = contenders(live, Path(folder))
        check(live, found)
        passes = {TEACHER: live.teacher_forward()} | {name: as_pass(live, one) for name, one in found.items()}
        taken = in_turn(list(passes.values()), rounds, live.device, warmup=WARMUP_ROUNDS)
        seconds = dict(zip(passes, taken.T / live.steps_a_pass, strict=True))
        peaks = {name: peak_bytes(run, live.device) / MIB for name, run in passes.items()}
    for name, spent in seconds.items():
        yield (
            {"step": name, **live.case.columns, "rounds": rounds, "ms": 1000 * float(np.median(spent))}
            | compared("ratio_parts", spent / (seconds[PLAIN] + seconds[TEACHER]))
            | compared("ratio_ours", seconds[OURS] / spent)
            | compared("ratio_stored", seconds[STORED] / spent)
            | {"mib": peaks[name]}
        )


def pair(teacher: str, student: str, image_size: int, options: argparse.Namespace) -> Live:
    """Two live networks. The teacher's logits spread like a trained one's, so that a wrong temperature would show."""
    batch_size = options.batch or BATCH_SIZE[options.device][image_size]
    case = Case(student, (teacher,), NUM_CLASSES, image_size, batch_size, settings(options, batch_size), options.device)
    live = Live(case)
    nn.init.normal_(live.networks["teacher0"].net.get_classifier().weight, std=0.25)
    return live


def settings(options: argparse.Namespace, batch_size: int) -> TrainSettings:
    """Those of our loop; a constant rate is the same for all."""
    loop = loop_settings(
        options.precision, channels_last=options.channels_last, compile_all=False, batch_size=batch_size
    )
    rate = {"lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "schedule": "constant", "warmup_epochs": 0.0}
    return loop.model_copy(update={**rate, "cross_entropy_weight": HARD_WEIGHT})


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """The rows of every pair, written as soon as it is measured."""
    flags = " --channels-last" * options.channels_last
    command = f"python benchmarks/peers.py --device {options.device} --threads {options.threads} "
    place = made(f"{command}--precision {options.precision}{flags}", torch.device(options.device))
    place["torchdistill"] = _version(TORCHDISTILL)
    for teacher, student, image_size in PAIRS:
        print(f"{teacher} -> {student} at {image_size} px", flush=True)
        live = pair(teacher, student, image_size, options)
        rounds = options.rounds or ROUNDS[options.device][image_size]
        found = [rounded(row | place) for row in measure(live, rounds)]
        write(options.out, found, COLUMNS, SAME)
        yield from found


def _version(package: str) -> str | None:
    return importlib.metadata.version(package) if importlib.util.find_spec(package) else None


def table(found: Sequence[Row]) -> str:
    """The rows for people to read."""
    columns = ("Pair", "Step", "ms", "Of student + teacher", "Ours / it", "Stored / it", "MiB")
    names = ("ratio_parts", "ratio_ours", "ratio_stored")
    cells = tuple(
        (
            f"{row['teacher']} to {row['student']}, {row['image_size']} px, {row['batch_size']} images",
            *(row["step"], f"{row['ms']:.4g}"),
            *(f"{row[name]:.3f} ({row[name + '_low']:.3f} to {row[name + '_high']:.3f})" for name in names),
            f"{row['mib']:.0f}",
        )
        for row in found
    )
    return markdown(columns, cells, num_text_columns=2)


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_loop_options(parser)
    parser.add_argument("--batch", type=int, help=f"images a step; default: {BATCH_SIZE}")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}")
    parser.add_argument("--out", type=Path, default=Path("results/speed/peers.csv"))
    options = parser.parse_args()
    if options.compile or options.precision not in TOLERANCE:
        parser.error("no --compile and no fp16 here")
    torch.set_num_threads(options.threads)
    logging.getLogger().setLevel(logging.WARNING)  # torchdistill tells the root logger what it is made of
    print(table(list(rows(options))))


if __name__ == "__main__":
    main()
