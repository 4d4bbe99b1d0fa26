"""Semi-supervised fine-tuning: the whole network, from pretrained weights, with the labels of a few images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from crossdistill.data import Stream, open_labelled
from crossdistill.errors import InputError
from crossdistill.runs.inspect import data_settings
from crossdistill.runs.plan import execute, make_plan
from crossdistill.runs.results import Results
from crossdistill.selfsup.evaluation import Subject, start_of
from crossdistill.settings import overridden

SCHEDULES = {0.01: (40, (24.0, 32.0)), 0.1: (20, (12.0, 16.0))}
"""Epochs, and those at which the rate is divided by five, published for 1 % and 10 % of the labels."""

TRAIN: dict[str, Any] = {
    "batch_size": 256,
    "optimizer": "momentum",
    "lr": 2e-4,
    "classifier_lr": 0.5,
    "weight_decay": 0.0,
    "warmup_epochs": 0,
    "schedule": "step",
    "schedule_per": "epoch",
    "decay_rate": 0.2,
}


def semi_supervised(
    subject: Subject,
    out: Path,
    *,
    share: float = 0.01,
    seeds: Sequence[int] = (0,),
    resume: bool = False,
    quiet: bool = False,
) -> Results:
    """Fine-tune a pretrained network on a share of the training images, and measure it on the evaluation split.

    Settings are those published for 1 % and for 10 % of ImageNet, whichever is nearer; overrides change any. The
    classifier starts at zero, whatever a run keeps there, since a probe has seen all labels.

    Args:
        subject: the network, by a name that has weights, and the data.
        out: folder of the run, made here.
        share: of the training images, stratified, at least one a class.
        seeds: of the choice and of training; several make one table.
        resume: go on with what is in ``out``.
        quiet: no progress on the terminal.

    Returns:
        What ``results.json`` of any training holds.

    Raises:
        InputError: a share outside 0 to 1, a model without weights, or whatever training refuses.
    """
    if not 0 < share <= 1:
        raise InputError(f"--share {share:g}", "a share above 0 and up to 1, such as 0.01", "correct it")
    start = start_of(subject.model)
    if subject.image_size is not None:
        start["image_size"] = subject.image_size
    if start["init"] is None and not subject.allow_random:
        raise InputError(
            f"model {subject.model!r}, whose weights would be random",
            "a pretrained network: a run folder, NAME@PATH or NAME@pretrained",
            "pretrain it first, or compare with it by --allow-random",
        )
    own, others = _split(subject.overrides)
    data = data_settings(subject.model, subject.data, own)
    splits = open_labelled(data)
    if isinstance(splits.train, Stream):
        raise InputError(f"data source {data.source!r}, a stream", "images that can be counted", "copy the shards here")
    num_train = max(len(splits.class_names), round(share * len(splits.train.targets)))
    nearest = min(SCHEDULES, key=lambda one: abs(one - share))
    epochs, milestones = SCHEDULES[nearest]
    tree = {
        "student": {**start, "new_classifier": start["init"] is not None},
        "data": {**data.model_dump(mode="json"), "limit_train": num_train},
        "train": {**TRAIN, "epochs": epochs, "milestones": list(milestones)},
        "device": subject.device,
        "allow_code": subject.allow_code,
    }
    tree = overridden(tree, others)
    return execute(make_plan(tree, seeds=tuple(seeds)), out, resume=resume, quiet=quiet)


def _split(overrides: Iterable[str]) -> tuple[list[str], list[str]]:
    """Overrides of the data, and all others."""
    given = list(overrides)
    return [one for one in given if one.startswith("data.")], [one for one in given if not one.startswith("data.")]
