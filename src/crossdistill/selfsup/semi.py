"""Semi-supervised fine-tuning: the whole network, from pretrained weights, with the labels of a few images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crossdistill.data import Stream, open_labelled, select_training
from crossdistill.data.listed import only_listed
from crossdistill.engine import on_main
from crossdistill.engine.log import METRICS, read
from crossdistill.errors import InputError
from crossdistill.runs.inspect import data_settings
from crossdistill.runs.plan import execute, make_plan
from crossdistill.runs.results import Results
from crossdistill.selfsup.evaluation import Subject, start_of
from crossdistill.settings import DataSettings, overridden

SCHEDULES = {0.01: (40, (24.0, 32.0)), 0.1: (20, (12.0, 16.0))}
"""Epochs, and those at which the rate is divided by five, published for 1 % and 10 % of the labels."""

SHARE, BATCH_SIZE = 0.01, 256

TRAIN: dict[str, Any] = {
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
    share: float | None = None,
    images: Path | None = None,
    batch_size: int = BATCH_SIZE,
    seeds: Sequence[int] = (0,),
    resume: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
) -> Results:
    """Fine-tune a pretrained network on a share of the training images, and measure it on the evaluation split.

    Settings are those published for 1 % and for 10 % of ImageNet, whichever is nearer; overrides change any. The
    classifier starts at zero, whatever a run keeps there, since a probe has seen all labels.

    Args:
        subject: the network, by a name that has weights, and the data.
        out: folder of the run, made here.
        share: of the training images that the data settings leave, stratified, at least one a class; default 1 %.
        images: instead, a file that lists them by the ends of their paths, as SimCLR's lists do.
        batch_size: images a step.
        seeds: of the choice and of training; several make one table.
        resume: go on with what is in ``out``.
        dry_run: build everything, run two steps, write nothing.
        quiet: no progress on the terminal.

    Returns:
        What ``results.json`` of any training holds, and as ``semi_supervised`` the number of labels, and means over
        seeds of top-1 and, with more than five classes, of top-5, which is what is published.

    Raises:
        InputError: a share outside 0 to 1 or beside a list, a list that does not fit, a model without weights, or
            whatever training refuses.
    """
    if share is not None and images is not None:
        raise InputError(f"--share {share:g} and --list {images}", "one of them", "drop one")
    chosen = SHARE if share is None else share
    if not 0 < chosen <= 1:
        raise InputError(f"--share {chosen:g}", "a share above 0 and up to 1, such as 0.01", "correct it")
    plan = make_plan(_tree(subject, chosen, images, batch_size), seeds=tuple(seeds))
    results = execute(plan, out, resume=resume, dry_run=dry_run, quiet=quiet)
    return results if dry_run else results | {"semi_supervised": _figures(results, out)}


def _tree(subject: Subject, share: float, images: Path | None, batch_size: int) -> dict[str, Any]:
    """The settings of such a fine-tuning."""
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
    data, share = _few(data_settings(subject.model, subject.data, own), share, images)
    epochs, milestones = SCHEDULES[min(SCHEDULES, key=lambda one: abs(one - share))]
    tree = {
        "student": {**start, "new_classifier": start["init"] is not None},
        "data": data.model_dump(mode="json"),
        "train": {**TRAIN, "batch_size": batch_size, "epochs": epochs, "milestones": list(milestones)},
        "device": subject.device,
        "allow_code": subject.allow_code,
    }
    return overridden(tree, others)


def _few(data: DataSettings, share: float, images: Path | None) -> tuple[DataSettings, float]:
    """Settings that leave a share of the training images, at least one a class, or those of a list; and their share.

    What limits the images anyway is what a share is of; a list is of all of them.
    """
    if images is not None:
        data = data.model_copy(update={"limit_train": None, "first_per_class": None, "train_list": None})
    splits = open_labelled(data)
    if isinstance(splits.train, Stream):
        raise InputError(f"data source {data.source!r}, a stream", "images that can be counted", "copy the shards here")
    if images is not None:
        listed = only_listed(splits.train, images)
        return data.model_copy(update={"train_list": str(images)}), len(listed) / len(splits.train.targets)
    there = select_training(splits.train.targets, data, 0, False, splits.class_names).train_ids
    num_train = max(len(splits.class_names), round(share * len(there)))
    return data.model_copy(update={"limit_train": num_train}), share


def _figures(results: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Means over seeds, of the images and epoch that the table is about."""
    (row,) = results["rows"]
    found: dict[str, Any] = {"num_labels": row["num_labels"], "top1_mean": row["top1_mean"]}
    if results["settings"]["train"]["select"] != "last":  # the log is of the images that select an epoch
        return found
    top5: list[Any] = on_main(lambda: [_last_top5(out / run["folder"]) for run in row["runs"]])
    return found if None in top5 else found | {"top5_mean": sum(top5) / len(top5)}


def _last_top5(folder: Path) -> float | None:
    """Of the last evaluation of a run; five classes or fewer have none."""
    evaluations = [line for line in read(folder / METRICS) if line["kind"] == "eval"]
    return evaluations[-1].get("top5") if evaluations else None


def _split(overrides: Iterable[str]) -> tuple[list[str], list[str]]:
    """Overrides of the data, and all others."""
    given = list(overrides)
    return [one for one in given if one.startswith("data.")], [one for one in given if not one.startswith("data.")]
