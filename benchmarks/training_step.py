"""A student and its teachers live in one process, and training steps of them as the loop takes them.

A step is ``Trainer.train_step``: seeds and learning rate of the step, the teacher's signals, the student's forward
pass, the hard-label term and the method's losses, all gradients, the optimiser, and every ``train.log_every`` steps the
losses brought to the host. All steps share the live networks and the batch, so that they can be run in turn.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timing import MIB, Pass, in_turn, peak_bytes
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from crossdistill import build
from crossdistill.contracts import Batch, Signal, Teacher
from crossdistill.engine.compiled import compiled, compiled_teacher
from crossdistill.engine.loop import Trainer
from crossdistill.engine.optimize import build_optimizer
from crossdistill.engine.seeding import deterministic
from crossdistill.registry import METHODS
from crossdistill.runs.objective import build_method, resolve_method
from crossdistill.settings import TrainSettings
from crossdistill.store import Keep, Manifest, Store, StoreWriter
from crossdistill.teachers import EnsembleTeacher, FrozenTeacher, facts_of, stored_teacher

NUM_STORED, SHARD_SIZE = 2048, 512
"""Positions of the store that stored steps read, and of each of its shards."""

TOP_K = 10

PLAIN, PYTORCH, TEACHER = "plain", "pytorch", "teacher"
"""What is timed without a method: the student's step alone by our loop and in plain PyTorch, the teacher's forward."""

ONLINE, STORED, TOP = "online", "stored", "top_k"
"""The steps of a method: with the live teacher, and with two kinds of stores."""

WARMUP_ROUNDS = {"cpu": 1, "cuda": 2}

STEPS_A_PASS = {"cpu": 1, "cuda": 10}
"""Steps between two looks at the clock: on a GPU the host runs ahead of the device, as it does in training."""

WARMING_UP = 10**6
"""Steps of a run that ends in the first steps of its warm-up: weights hardly move, whatever is optimised."""


@dataclass(frozen=True)
class Case:
    """What is built and how it is trained: timm's names, sizes, and the loop's settings."""

    student: str
    teachers: tuple[str, ...]
    num_classes: int
    image_size: int
    batch_size: int
    train: TrainSettings
    device: str

    @property
    def columns(self) -> dict[str, Any]:
        """The columns that say which case a row is of."""
        return {
            **{"teacher": " + ".join(self.teachers), "student": self.student, "num_classes": self.num_classes},
            **{"image_size": self.image_size, "batch_size": self.batch_size, "precision": self.train.precision},
            **{"channels_last": self.train.channels_last, "compile": self.train.compile_student},
        }


def loop_settings(precision: str, *, channels_last: bool, compile_all: bool, batch_size: int) -> TrainSettings:
    """The loop's defaults but for these."""
    tree = {"precision": precision, "channels_last": channels_last, "batch_size": batch_size}
    compiling = dict.fromkeys(("compile_student", "compile_teacher", "compile_method"), compile_all)
    return TrainSettings(**tree, **compiling, steps=WARMING_UP)


class OneBatch:
    """Training data of the same images in every step, under the next sample ids of an epoch that never ends.

    Args:
        batch: on the device already: what loading costs is measured elsewhere.
        order: ``(N,)`` sample ids in the order of the epoch, on the host.
    """

    steps_per_epoch = 1000

    def __init__(self, batch: Batch, order: Tensor) -> None:
        size = len(batch)
        starts = range(0, len(order) - size + 1, size)
        self.steps = [
            replace(batch, samples=torch.stack([ids, torch.zeros_like(ids)], dim=1), sample_id=ids.to(batch.target))
            for ids in (order[start : start + size] for start in starts)
        ]

    def epoch(self, epoch: int = 0, *, start_step: int = 0) -> Iterator[list[Batch]]:
        """One micro-batch a step, without end."""
        return ([batch] for batch in itertools.islice(itertools.cycle(self.steps), start_step, None))


class Live:
    """The networks of a case with random weights, a batch for them, and steps with any method.

    Attributes:
        steps_a_pass: how many training steps, or forward passes of the teachers, one timed pass is.
    """

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        self.case, self.device = case, torch.device(case.device)
        self.steps_a_pass = STEPS_A_PASS[self.device.type]
        made = {"num_classes": case.num_classes, "image_size": case.image_size}
        self.student = build(case.student, **made)  # type: ignore[arg-type]
        self.networks = {
            f"teacher{number}": build(name, **made).to(self.device)  # type: ignore[arg-type]
            for number, name in enumerate(case.teachers)
        }
        images = torch.rand(case.batch_size, 3, case.image_size, case.image_size)
        target = torch.randint(case.num_classes, (case.batch_size,))
        batch = Batch(dict.fromkeys(("student", *self.networks), images), target, torch.arange(case.batch_size))
        batch = batch.to(self.device, channels_last=case.train.channels_last)
        self.loader = OneBatch(batch, torch.randperm(NUM_STORED))

    def teacher(self) -> Teacher:
        """The live teacher, or several with one voice; a new one for each method, which decides what it passes on."""
        frozen = self.frozen()
        return frozen[0] if len(frozen) == 1 else EnsembleTeacher(frozen)

    def frozen(self) -> list[FrozenTeacher]:
        """A teacher around each network that teaches."""
        return [FrozenTeacher(network, view=view) for view, network in self.networks.items()]

    def stored_teacher(self, folder: Path, keep: Keep) -> Teacher:
        """A store of the answers to all samples of the loader, with random embeddings, opened as a teacher."""
        widths = tuple(one.spec.embedding_dim for one in self.networks.values()) if keep.embeddings else ()
        num_classes, facts = self.case.num_classes, {"teacher": facts_of(self.teacher())}
        manifest = Manifest({}, facts, num_classes, NUM_STORED, SHARD_SIZE, keep, widths)
        writer = StoreWriter.open(folder, manifest)
        ids = torch.cat([batch.sample_id.cpu() for batch in self.loader.steps])
        logits = self.teacher().signals(self.loader.steps[0]).require("logits").cpu()
        for epoch, shard in writer.missing(1):
            positions = torch.tensor(manifest.positions(shard))
            samples = ids[positions]
            samples = torch.stack([samples, torch.zeros_like(samples)], dim=1)
            embeddings = [torch.randn(len(samples), width) for width in widths]
            writer.write(epoch, shard, samples, logits[positions % len(logits)], embeddings)
        return stored_teacher(Store.open(folder))

    def needs(self, method: str) -> frozenset[Signal]:
        """What a method with its default options asks of the teacher."""
        needs: frozenset[Signal] = METHODS.get(method).value.needs
        return needs

    def plain_step(self) -> Pass:
        """Training steps of the student alone, by this package's loop."""
        return self.training_step("none", {}, None)

    def training_step(self, method: str, options: Mapping[str, Any], teacher: Teacher | None) -> Pass:
        """Training steps with a method."""
        trainer = self.trainer(method, options, teacher)
        batches, log_every = self.loader.epoch(), self.case.train.log_every

        def run() -> object:
            for _ in range(self.steps_a_pass):
                trainer.train_step(next(batches))
                if trainer.record.step % log_every == 0:
                    trainer.ledger.read(stop=False)
            return None

        return run

    def trainer(self, method: str, options: Mapping[str, Any], teacher: Teacher | None) -> Trainer:
        """The loop with a method, before its first step."""
        case = self.case
        torch.manual_seed(0)
        name, resolved = resolve_method(method, options)
        built = build_method(name, resolved, self.student, teacher, num_classes=case.num_classes)
        return Trainer(
            self.student, built, teacher, self.loader, None, case.train, seed=0, device=case.device, max_steps=None
        )

    def teacher_forward(self) -> Pass:
        """Forward passes of the plain networks that teach, in inference mode, with nothing of this package around."""
        networks: list[nn.Module] = [one.net for one in self.networks.values()]
        calls = [compiled(net.__call__) if self.case.train.compile_teacher else net for net in networks]
        images = self.loader.steps[0].images["student"]
        precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.case.train.precision)

        def run() -> object:
            with torch.inference_mode(), torch.autocast(self.device.type, precision, enabled=precision is not None):
                for _ in range(self.steps_a_pass):
                    answers = [call(images) for call in calls]
            return answers

        return run

    def pytorch_step(self) -> Pass:
        """Training steps of the student alone in plain PyTorch, with the optimiser that the loop builds."""
        network: nn.Module = self.student.net
        plain = Plain(self, network, build_optimizer(network, self.case.train))
        batches, log_every = self.loader.epoch(), self.case.train.log_every
        numbers = itertools.count(1)

        def run() -> object:
            for _ in range(self.steps_a_pass):
                (batch,) = next(batches)
                plain.step(batch)
                if next(numbers) % log_every == 0:
                    plain.loss()
            return None

        return run

    @contextmanager
    def as_in_training(self) -> Iterator[None]:
        """What the loop sets around its steps: deterministic kernels, and the teachers compiled if that is asked for.

        Compiled code is forgotten afterwards.
        """
        with deterministic(self.device), compiled_teacher(EnsembleTeacher(self.frozen()), self.case.train):
            yield


class Plain:
    """A network alone in a loop of plain PyTorch: cross-entropy, its gradients, the optimiser.

    On a GPU cuDNN chooses the fastest kernels, deterministic or not, as training scripts have it do.
    """

    last: Tensor

    def __init__(self, live: Live, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.live, self.optimizer = live, optimizer
        self.net = compiled(network.__call__) if live.case.train.compile_student else network
        self.scaler = torch.amp.GradScaler(live.case.device, enabled=live.case.train.precision == "fp16")

    def minimised(self, batch: Batch) -> Tensor:
        """The loss of one batch."""
        return functional.cross_entropy(self.net(batch.images["student"]), batch.target)

    def step(self, batch: Batch) -> None:
        """As timm's training script does it."""
        with as_scripts_do(self.live.device):
            with autocast(self.live):
                loss = self.minimised(batch)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
        self.last = loss.detach()

    def loss(self) -> float:
        """That of the last step; the host waits for it."""
        return self.last.item()


def autocast(live: Live) -> AbstractContextManager[object]:
    """What the forward pass of a plain loop stands in."""
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(live.case.train.precision)
    return torch.autocast(live.device.type, precision) if precision else nullcontext()


@contextmanager
def as_scripts_do(device: torch.device) -> Iterator[None]:
    """On CUDA, the fastest kernels that cuDNN finds (``cudnn.benchmark``), none of them asked to be deterministic."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.benchmark
    strict = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.backends.cudnn.benchmark = True
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
        torch.use_deterministic_algorithms(strict[0], warn_only=strict[1])


Key = tuple[str, str]
"""A method and one of the kinds of steps; what runs without a method has the name ``""``."""


@dataclass(frozen=True)
class Measured:
    """What all passes of a case took.

    Attributes:
        seconds: ``(rounds,)`` for one step or forward pass.
        mib: what one allocates at its peak, beyond weights and optimiser state.
        flops: floating-point operations of one, those that PyTorch counts; none of compiled code.
    """

    seconds: Mapping[Key, NDArray[np.float64]]
    mib: Mapping[Key, float]
    flops: Mapping[Key, int]

    def of(self, method: str) -> dict[str, Key]:
        """The keys of a method by kind, with those of the student alone and of the teacher."""
        return {kind: (name, kind) for name, kind in self.seconds if name in ("", method)}


def measure(live: Live, methods: Mapping[str, Mapping[str, Any]], rounds: int, *, with_costs: bool = True) -> Measured:
    """Time all steps of a case in turn, then count memory and operations of one pass each.

    Args:
        methods: options by method.
        with_costs: whether memory and operations are wanted.
    """
    with tempfile.TemporaryDirectory() as folder, live.as_in_training():
        passes = passes_of(live, methods, Path(folder))
        warmup = WARMUP_ROUNDS[live.device.type]
        taken = in_turn(list(passes.values()), rounds, live.device, warmup=warmup) / live.steps_a_pass
        costly = passes if with_costs else {}
        counted = {} if live.case.train.compile_student else costly
        return Measured(
            dict(zip(passes, taken.T, strict=True)),
            {key: peak_bytes(run, live.device) / MIB for key, run in costly.items()},
            {key: operations(run) // live.steps_a_pass for key, run in counted.items()},
        )


def passes_of(live: Live, methods: Mapping[str, Mapping[str, Any]], folder: Path) -> dict[Key, Pass]:
    """Everything that runs in a round; stores are written below ``folder``."""
    passes = {("", PLAIN): live.plain_step()}  # first: it brings the student to the device and into its layout
    passes |= {("", PYTORCH): live.pytorch_step(), ("", TEACHER): live.teacher_forward()}
    for method, options in methods.items():
        passes[method, ONLINE] = live.training_step(method, options, live.teacher())
        embeddings = "embedding" in live.needs(method)
        if not live.needs(method) <= {"logits", "embedding"}:
            continue  # stages and live networks are not stored
        for kind, top_k in ((STORED, None), (TOP, min(TOP_K, live.case.num_classes))):
            stored = live.stored_teacher(folder / f"{kind}-{embeddings}", Keep(top_k, embeddings))
            passes[method, kind] = live.training_step(method, options, stored)
    return passes


def operations(run: Pass) -> int:
    """Floating-point operations of a pass, forward and backward."""
    convolutions = {torch.ops.aten.convolution_backward: _backward_of_convolution}
    with FlopCounterMode(display=False, custom_mapping=convolutions) as counter:
        run()
    total: int = counter.get_total_flops()
    return total


def _backward_of_convolution(  # PyTorch's own count takes the weight's gradient as if there were no groups
    gradient: list[int], images: list[int], weight: list[int], *rest: Any, **named: Any
) -> int:
    _, _, _, _, is_transposed, _, _, (to_images, to_weight, _) = rest
    once = conv_flop_count(images, weight, gradient, transposed=is_transposed)
    both: int = once * (to_images + to_weight)
    return both


def add_loop_options(parser: argparse.ArgumentParser) -> None:
    """The options of every benchmark that takes training steps."""
    parser.add_argument("--device", choices=tuple(STEPS_A_PASS), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the processor")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true", help="student, teacher and method")
