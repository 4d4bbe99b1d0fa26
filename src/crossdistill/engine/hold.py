"""Networks onto their device, in the memory format and in the way of several processes that the settings ask for."""

from __future__ import annotations

import itertools

import torch
from accelerate import Accelerator
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn

from crossdistill.contracts import Follower, Method, Teacher
from crossdistill.engine.compiled import check_compiler
from crossdistill.engine.copies import Copies
from crossdistill.engine.devices import shards_wanted
from crossdistill.engine.learner import TrainLoader, build_learner
from crossdistill.engine.shards import Shards
from crossdistill.errors import InputError
from crossdistill.settings import TrainSettings


def hold(
    student: nn.Module,
    method: Method,
    teacher: Teacher | None,
    loader: TrainLoader,
    settings: TrainSettings,
    accelerator: Accelerator,
) -> Copies:
    """Student and method ready to be trained, and the teacher beside them.

    Raises:
        InputError: what the settings ask for cannot be done with these networks or on this machine.
    """
    sharded = shards_wanted(settings, accelerator)
    if sharded and isinstance(teacher, Follower):
        raise InputError(
            f"train.parallel=fsdp with a teacher that follows its student ({teacher.fingerprint()})",
            "whole copies of the student, which the teacher is made of",
            "set train.parallel=ddp, or launch with `torchrun`",
        )
    check_compiler(settings, accelerator.device, sharded=sharded)
    learner = build_learner(student, method, loader, settings, accelerator)
    if isinstance(teacher, nn.Module):
        teacher.to(accelerator.device)
        if isinstance(teacher, Follower) and accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            convert_sync_batchnorm(teacher).train()  # as the student, by the statistics of all processes
        if settings.channels_last:
            to_channels_last(teacher)
    if sharded:
        # FSDP2 gathers weights in PyTorch's own order; convolutions follow the images, which are channel-last.
        return Shards(learner, teacher, settings, accelerator)
    if settings.channels_last:
        to_channels_last(learner)
    return Copies(learner, settings, accelerator)


def to_channels_last(module: nn.Module) -> None:
    """Change the memory format of every four-dimensional parameter and buffer in place; no value changes."""
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if tensor.ndim == 4:  # `module.to(memory_format=…)` would refuse those with five
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
