"""Run by a test under a launcher of two processes: fits with sharded weights, the final weights written to a folder."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor

from crossdistill.engine import compiled, connect, fit, process
from crossdistill.engine.hold import hold
from crossdistill.errors import InputError, Interrupted
from crossdistill.methods.dist import DIST
from crossdistill.methods.kd import KD
from crossdistill.models import build
from crossdistill.teachers import FrozenTeacher
from samples import train_fused
from samples.training import Alone, Match, Measured, Pictures, SmallNet, Stop, TensorLoader, settings

RUNS = {
    "kd": {"steps": 4, "clip_grad": 1.0, "ema_decay": 0.5},
    "dist": {"steps": 4, "class_weights": "balanced"},
    "small": {"steps": 6, "optimizer": "adamw", "lr": 0.01, "ema_decay": 0.5},
    "measured": {"steps": 8, "optimizer": "adamw", "lr": 0.01, "ema_decay": 0.5},
    "half": {"steps": 6, "precision": "bf16"},
    "compiled": {"steps": 6, "compile_student": True, "compile_teacher": True, "compile_method": True},
    "compiled-copies": {"steps": 6, "compile_student": True, "compile_method": True, "parallel": "ddp"},
}
METHODS = {"kd": KD, "dist": DIST}


def train(name, out=None, reporter=None, seed=1, **changes):
    """A small vision transformer taught by a residual network, or one layer by another; student, method, result."""
    rank, world_size = process()
    share = {"rank": rank, "world_size": world_size, "unlabelled": 3, "soft": True}
    torch.manual_seed(seed)
    if name in METHODS:
        student = build("test_vit", num_classes=4, image_size=32)
        torch.manual_seed(7)
        teacher = FrozenTeacher(build("test_resnet", num_classes=4, image_size=32))
        method = METHODS[name].build(student.spec, teacher.spec, num_classes=4)
        micro_batch = None if method.relates_samples else 6 // world_size
        loader = Pictures(batch_size=12, micro_batch=micro_batch, **share)
    else:
        student, teacher = SmallNet(seed=seed), FrozenTeacher(SmallNet(seed=2))
        method = Measured(student) if name == "measured" else Match()
        loader = TensorLoader(micro_batch=5, **share)
    run = settings(**{"lr": 0.02, "optimizer": "sgd", "parallel": "fsdp", **RUNS[name], **changes})
    where = {"out": out, "reporter": reporter}
    result = fit(student, method, teacher, loader, loader.evaluation(), settings=run, device="cpu", **where)
    return student, method, result


def fused_top1(result):
    """The accuracies of the method's own network, where it has one."""
    return torch.tensor([line["fused_top1"] for line in result.history if "fused_top1" in line], dtype=torch.float64)


def write(folder, name, student, method, result):
    """This rank's end of a run."""
    state = {f"student.{k}": v for k, v in student.state_dict().items()}
    state |= {f"method.{k}": v for k, v in method.state_dict().items()}
    state["loss"] = torch.tensor(result.metrics["loss"], dtype=torch.float64)
    state["fused"] = fused_top1(result)
    save_file(state, folder / f"{name}-{process()[0]}.safetensors")


def go_on(folder, name, **changes):
    """Take up the run in a folder; what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write(folder, name, *train("small", folder / name, **changes))
    return [str(one.message) for one in caught if "resumed elsewhere" in str(one.message)]


def other_kinds_go_on(folder):
    """Shards from shards, from DDP and from one process; DDP from shards."""
    for name, kind in {
        "fsdp-to-fsdp": "fsdp",
        "fsdp-to-ddp": "fsdp",
        "fsdp-to-one": "fsdp",
        "ddp-to-fsdp": "ddp",
    }.items():
        with pytest.raises(Interrupted):
            train("small", folder / name, Stop(3), parallel=kind)
    assert go_on(folder, "fsdp-to-fsdp") == []
    for name, kind, words in (
        ("fsdp-to-ddp", "ddp", "parallel fsdp -> ddp"),
        ("ddp-to-fsdp", "fsdp", "parallel ddp -> fsdp"),
        ("one-to-fsdp", "fsdp", "processes 1 -> 2, parallel ddp -> fsdp"),
    ):
        (warning,) = go_on(folder, name, parallel=kind)
        assert words in warning


class HoldsTeacher(Match):
    """Keeps the teacher and a memory that every process would fill with something else."""

    def __init__(self, teacher):
        super().__init__()
        self.teacher = teacher
        self.unused = nn.Linear(3, 5)
        self.register_buffer("memory", torch.zeros(3))

    def forward(self, student, teacher, batch):
        seen.append(
            (self.teacher, next(self.teacher.parameters()), next(self.projector.parameters()), self.memory[0].item())
        )
        self.memory += batch.sample_id.sum()
        return super().forward(student, teacher, batch)


seen = []


def what_is_sharded_and_what_is_not(rank, folder):
    """Weights, optimiser and average are; the teacher is whole and the very same, and buffers are the first rank's."""
    teacher = FrozenTeacher(SmallNet(seed=2))
    student, method = SmallNet(seed=1 + rank, batch_norm=True), HoldsTeacher(teacher)
    loader = TensorLoader(rank=rank, world_size=2)
    run = settings(steps=2, ema_decay=0.5, parallel="fsdp", weight_decay=0.1)
    weights = hold(student, method, teacher, loader, run, connect("cpu"))
    trained = {name: p for name, p in weights.learner.named_parameters() if "teacher" not in name}
    assert all(isinstance(p, DTensor) and p.to_local().numel() < p.numel() for p in trained.values())
    assert all(isinstance(p, DTensor) for p in weights.ema.module.parameters())
    assert not any(isinstance(p, DTensor) for p in teacher.parameters())
    assert {id(p) for group in weights.optimizer.param_groups for p in group["params"]} == set(
        map(id, trained.values())
    )
    fit(student, method, teacher, loader, loader.evaluation(), settings=run, device="cpu")
    assert len(seen) == 2
    for held, of_teacher, of_method, _ in seen:
        assert held is teacher
        assert not isinstance(of_teacher, DTensor)
        assert not isinstance(of_method, DTensor)  # gathered
    memories = [None, None]
    torch.distributed.all_gather_object(memories, [memory for *_, memory in seen])
    assert memories[0] == memories[1]
    assert memories[0][1] > 0
    save_file(student.state_dict(), folder / f"norm-{rank}.safetensors")
    student, run = SmallNet(seed=1 + rank, batch_norm=True), settings(steps=2)
    fit(student, Match(), teacher, loader, loader.evaluation(), settings=run, device="cpu")
    save_file(student.state_dict(), folder / f"norm-ddp-{rank}.safetensors")


def an_optimiser_that_fails_on_shards_is_refused():
    with pytest.raises(InputError, match=r"optimizer 'adamp' with sharded weights, on which it fails: aten"):
        train("small", optimizer="adamp")
    with pytest.raises(InputError, match=r"fused_optimizer with optimizer 'sgd' and shards of weights on cpu"):
        train("small", optimizer="sgd", fused_optimizer=True)


def one_broken_shard_ends_both(rank):
    """Only one process holds the weight that is not finite."""
    student = SmallNet(seed=1)

    class Breaks(Alone):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 1))

        def forward(self, answer, teacher, batch):
            return {"root": (self.weight[1] - 1).abs().sqrt().sum()}

    loader = TensorLoader(rank=rank, world_size=2)
    run = settings(steps=1, parallel="fsdp", optimizer="sgd")
    with pytest.raises(InputError, match=r"method\.weight holds values that are not finite after step 1"):
        fit(student, Breaks(), None, loader, None, settings=run, device="cpu")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank, _ = process()
    connect("cpu")
    compiled.BACKEND = "aot_eager"
    for name in RUNS:
        write(folder, name, *train(name, folder / name, seed=1 + rank))  # all start with the first one's weights
    other_kinds_go_on(folder)
    what_is_sharded_and_what_is_not(rank, folder)
    one_broken_shard_ends_both(rank)
    an_optimiser_that_fails_on_shards_is_refused()
    train_fused.write(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
