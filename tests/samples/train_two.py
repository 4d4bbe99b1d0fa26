"""Run by a test under a launcher of several processes: several fits, each rank's final weights written to a folder."""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from crossdistill.engine import connect, evaluate, fit, from_all, on_main, process
from crossdistill.errors import InputError, Interrupted
from crossdistill.methods.crd import CRD
from crossdistill.methods.rsd import RSD
from crossdistill.runs.objective import build_method, resolve_method
from crossdistill.teachers import EnsembleTeacher, FrozenTeacher
from samples.training import (
    NUM_CLASSES,
    Match,
    Measured,
    Relate,
    RelateNoStages,
    RelateStages,
    SmallNet,
    TensorLoader,
    settings,
)


def on_embeddings(method_class, **options):
    """A method of the package for two small networks, with the same first weights each time."""
    spec = SmallNet().spec
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return method_class.build(spec, spec, num_classes=spec.num_classes, **options)


def of_two(name, **options):
    """A method for two teachers as a run builds it, with the same first weights each time; and the teachers."""
    views = ("teacher0", "teacher1")
    both = [FrozenTeacher(SmallNet(seed=seed), view=view) for seed, view in enumerate(views, start=2)]
    teacher = EnsembleTeacher(both, [1, 3])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        method = build_method(*resolve_method(name, options), SmallNet(), teacher, num_classes=NUM_CLASSES)
    return method, teacher


RUNS = {
    "two-teachers": (partial(of_two, "crd", num_negatives=40, embedding_dim=4), {"batch_size": 15}, {}),
    "hybrid": (
        partial(of_two, "hybrid", methods={"kd": {"temperature": 2}, "rsd": {}}, weights={"kd": 0.5}),
        {"batch_size": 15, "unlabelled": 4},
        {},
    ),
    "crd": (partial(on_embeddings, CRD, num_negatives=40, embedding_dim=4), {"batch_size": 15, "unlabelled": 4}, {}),
    "rsd": (partial(on_embeddings, RSD), {"batch_size": 15}, {}),
    "match": (Match, {}, {}),
    "accumulated": (Match, {"micro_batch": 4, "unlabelled": 3}, {"ema_decay": 0.5, "clip_grad": 1.0}),
    "relate": (Relate, {}, {}),
    "relate-uneven": (Relate, {"batch_size": 15}, {}),
    "soft": (
        Match,
        {"soft": True, "micro_batch": 5, "unlabelled": 3},
        {"label_smoothing": 0.1, "class_weights": "balanced"},
    ),
    "relate-stages": (RelateStages, {"batch_size": 15}, {}),
    "relate-no-stages": (RelateNoStages, {}, {}),
    "measured": (Measured, {}, {"ema_decay": 0.5}),
    "relate-soft": (Relate, {"soft": True, "unlabelled": 4}, {"class_weights": (0.5, 3.0, 1.0, 2.0)}),
}


class Stops(Match):
    """Signals its own process amid the fifth step of its life."""

    calls = 0

    def forward(self, student, teacher, batch):
        self.calls += 1
        if self.calls == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(student, teacher, batch)


def train(name, *, rank=0, world_size=1, out=None):
    """One run of ``RUNS``; its student, method and result."""
    method_class, loader_changes, changes = RUNS[name]
    loader = TensorLoader(rank=rank, world_size=world_size, **loader_changes)
    # Weights of other ranks than the first are replaced by the first's before training.
    student = SmallNet(seed=1 + rank, stages="stages" in name)
    made = method_class(student) if method_class is Measured else method_class()
    alone = FrozenTeacher(SmallNet(seed=2, stages="stages" in name))
    method, teacher = made if isinstance(made, tuple) else (made, alone)
    result = fit(
        student,
        method,
        teacher,
        loader,
        loader.evaluation(),
        settings=settings(**changes),
        device="cpu",
        out=out,
    )
    return student, method, result


def stop_one_of_two(rank: int, folder: Path) -> None:
    """Only rank 1 is told to stop; both must, at the same step, and go on from the same checkpoint."""
    loader = TensorLoader(rank=rank, world_size=2)
    for attempt in (1, 2):
        student, method = SmallNet(seed=1), Stops() if rank == 1 and attempt == 1 else Match()
        try:
            fit(
                student,
                method,
                FrozenTeacher(SmallNet(seed=2)),
                loader,
                loader.evaluation(),
                settings=settings(),
                device="cpu",
                out=folder / "stopped",
            )
        except Interrupted as stopped:
            (folder / f"stopped-{rank}.txt").write_text(str(stopped))
        else:
            assert attempt == 2
    save_file(student.state_dict(), folder / f"stopped-{rank}.safetensors")


class Fetches(Match):
    """Meets the other processes in its forward pass."""

    gathers_itself = True

    def forward(self, student, teacher, batch):
        torch.distributed.barrier()
        return super().forward(student, teacher, batch)


class Both(Fetches):
    """Is given all outputs, and fetches them as well."""

    relates_samples = True


def who_meets_the_others_does_so_equally_often(rank: int) -> None:
    """Otherwise one process would wait for ever; and nobody is given what it also fetches."""
    for method, micro_batch, words in (
        (Fetches(), 8 if rank == 0 else 4, r"a step with \[1, 2\] micro-batches on the processes"),
        (Both(), 8, "method Both on several processes, one part of which must be given"),
    ):
        loader = TensorLoader(rank=rank, world_size=2, micro_batch=micro_batch)
        teacher = FrozenTeacher(SmallNet(seed=2))
        with pytest.raises(InputError, match=words):
            fit(SmallNet(), method, teacher, loader, None, settings=settings(steps=1), device="cpu")
    loader = TensorLoader(rank=rank, world_size=2, micro_batch=4)
    teacher = FrozenTeacher(SmallNet(seed=2))
    fit(SmallNet(), Fetches(), teacher, loader, None, settings=settings(steps=1), device="cpu")


def one_for_all(rank: int) -> None:
    """What the main process finds, both get; what it raises, both raise."""

    def fail(error: Exception) -> None:
        raise error

    assert on_main(lambda: {"from": process()[0], "exact": 0.1}) == {"from": 0, "exact": 0.1}
    with pytest.raises(InputError, match="given: nothing"):
        on_main(lambda: fail(InputError("nothing", "something", "give it")))
    with pytest.raises(OSError if rank == 0 else RuntimeError, match="no such disk"):
        on_main(lambda: fail(OSError("no such disk")))
    assert from_all({"rank": rank}) == [{"rank": 0}, {"rank": 1}]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank, world_size = process()
    accelerator = connect("cpu")
    assert (rank, world_size) == (accelerator.process_index, accelerator.num_processes) == (int(os.environ["RANK"]), 2)
    one_for_all(rank)
    who_meets_the_others_does_so_equally_often(rank)
    for name in RUNS:
        student, method, result = train(name, rank=rank, world_size=world_size, out=folder / name)
        state = {f"student.{k}": v for k, v in student.state_dict().items()}
        state |= {f"method.{k}": v for k, v in method.state_dict().items()}
        state["top1"] = torch.tensor(result.metrics["top1"], dtype=torch.float64)
        fused = [line["fused_top1"] for line in result.history if "fused_top1" in line]
        state["fused"] = torch.tensor(fused, dtype=torch.float64)
        save_file(state, folder / f"{name}-{rank}.safetensors")
    loader = TensorLoader(num_samples=21, rank=rank, world_size=world_size)
    # One process has nothing at all to evaluate.
    batches = loader.evaluation() if rank == 0 else []
    counted = evaluate(SmallNet(seed=1), batches, accelerator=accelerator)
    assert counted["num_samples"] == 11
    stop_one_of_two(rank, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
