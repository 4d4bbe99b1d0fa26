"""What makes several processes and several micro-batches equal to one large batch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor

from crossdistill.bridges.gather import all_rows, row_counts
from crossdistill.contracts import Batch, Outputs, Signal
from crossdistill.errors import InputError
from crossdistill.losses.cross_entropy import is_labelled


def loss_weights(
    batches: Sequence[Batch], accelerator: Accelerator, *, gathered: bool = False, together: bool = False
) -> Tensor:
    """How much the mean over one micro-batch counts in the mean over all of them on all processes.

    Args:
        batches: this process's M micro-batches of a step.
        accelerator: the device, and the other processes.
        gathered: the loss is taken over each micro-batch together with those of the other processes.
        together: the processes meet in every micro-batch, so that each must have as many as the others.

    Returns:
        ``(M, 2)`` on the device: share of the samples, share of the labelled ones; times the number of processes,
        because gradients are averaged over these.

    Raises:
        InputError: nothing to train on, or numbers of micro-batches that cannot be matched.
    """
    if not batches:
        raise InputError(
            "a step none of whose images can be read", "at least one image a step", "mend or remove the unreadable ones"
        )
    counts = torch.stack([_counts(batch.target) for batch in batches]).to(accelerator.device, non_blocking=True)
    totals: Tensor = accelerator.reduce(counts.sum(dim=0), "sum").clamp(min=1)
    weights: Tensor = counts * accelerator.num_processes / totals
    if gathered or together:
        _check_equally_many(len(batches), accelerator)
    if gathered:
        weights[:, 0] = accelerator.reduce(counts[:, 0].clone(), "sum") / totals[0]
    return weights


def _counts(target: Tensor) -> Tensor:
    num_labelled = is_labelled(target).sum(dtype=torch.float32)
    return torch.stack([torch.full_like(num_labelled, len(target)), num_labelled])


def _check_equally_many(count: int, accelerator: Accelerator) -> None:
    counts = accelerator.gather(torch.tensor([count], device=accelerator.device)).tolist()
    if len(set(counts)) > 1:
        raise InputError(
            f"a step with {counts} micro-batches on the processes, for a loss that relates samples of all of them",
            "equally many on each",
            "raise train.device_batch_size or give more training images",
        )


def gather_samples(
    student: Outputs, teacher: Outputs, batch: Batch, *, needs: Collection[Signal], reads_stages: bool
) -> tuple[Outputs, Outputs, Batch]:
    """Outputs and targets of all processes in order of rank, with gradient to the process that computed them.

    For losses that relate samples. Processes may bring different numbers of samples. The result holds no images.

    Args:
        student, teacher, batch: this process's own.
        needs: what travels of the teacher's outputs.
        reads_stages: whether the student's stages travel, which are far larger than its logits and embedding.
    """
    student = student if reads_stages else student.only({"logits", "embedding"})
    teacher = teacher.only(needs)
    counts = row_counts(batch.sample_id)
    target, sample_id = all_rows(batch.target, counts), all_rows(batch.sample_id, counts)
    everyone = replace(batch, images={}, target=target, sample_id=sample_id)
    return _gathered(student, counts), _gathered(teacher, counts), everyone


def _gathered(outputs: Outputs, counts: list[int]) -> Outputs:
    return Outputs(
        logits=None if outputs.logits is None else all_rows(outputs.logits, counts),
        embedding=None if outputs.embedding is None else all_rows(outputs.embedding, counts),
        stages=None if outputs.stages is None else tuple(all_rows(stage, counts) for stage in outputs.stages),
        members=None if outputs.members is None else tuple(_gathered(member, counts) for member in outputs.members),
    )
