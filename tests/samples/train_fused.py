"""FBT on one process or two, with whole and with sharded weights, in both columns of its specification."""

import functools
from copy import deepcopy
from pathlib import Path

import torch
from safetensors.torch import save_file

from crossdistill.contracts import Modules
from crossdistill.engine import fit, process
from crossdistill.methods.fbt import FBT
from crossdistill.models import build
from crossdistill.teachers import FrozenTeacher
from samples.training import Pictures, settings


class Repeating(Pictures):
    """Every image comes twice in an epoch, some in one step, on one process or on two."""

    def _batch(self, ids, epoch):
        return super()._batch(ids % 9, epoch)


BOTH_WAYS = {"nce_symmetric": True, "detach_fusion": False, "projection_dim": 8, "fusion_ce_weight": 0.5}
RUNS = {
    # name -> student, teacher, parallel, options; nine images a step are five on one process and four on the other
    "fbt-cnn-student": ("test_convnext", "test_vit", "ddp", BOTH_WAYS),
    "fbt-cnn-teacher": ("test_vit", "test_convnext", "ddp", {}),
    "fbt-sharded": ("test_convnext", "test_vit", "fsdp", {"logit_loss": "dist"}),
}


@functools.cache
def network(name):
    """Cutting one into stages takes a second."""
    torch.manual_seed(7)
    return build(name, num_classes=4, image_size=32)


def train(name, seed=1):
    """Student and method after two steps of one of ``RUNS``."""
    own, other, parallel, options = RUNS[name]
    rank, world_size = process()
    student, teacher = deepcopy(network(own)), FrozenTeacher(deepcopy(network(other)))
    torch.manual_seed(seed)
    student.net.get_classifier().reset_parameters()
    modules = Modules(student, teacher.model)
    method = FBT.build(student.spec, teacher.spec, num_classes=4, modules=modules, **options)
    loader = Repeating(batch_size=9, num_samples=18, unlabelled=3, rank=rank, world_size=world_size)
    run = settings(steps=2, lr=0.01, optimizer="sgd", clip_grad=1.0, parallel=parallel)
    fit(student, method, teacher, loader, None, settings=run, device="cpu")
    return {f"student.{k}": v for k, v in student.state_dict().items()} | {
        f"method.{k}": v for k, v in method.state_dict().items()
    }


def write(folder: Path) -> None:
    """This rank's end of every run; weights of other ranks than the first are replaced by the first's at the start."""
    rank, _ = process()
    for name in RUNS:
        save_file(train(name, seed=1 + rank), folder / f"{name}-{rank}.safetensors")
