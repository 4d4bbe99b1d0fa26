"""What a teacher's pass over the images of a run is made of: its networks, the images in their order, the store."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from crossdistill.analysis.environment import environment
from crossdistill.contracts import UNLABELLED, Signal
from crossdistill.data import (
    EvalLoader,
    Splits,
    Stream,
    StreamEvalLoader,
    TrainLoader,
    eval_loader,
    open_labelled,
    select_training,
)
from crossdistill.data.augmentation.mix import mixes
from crossdistill.data.sampler import most_often
from crossdistill.engine import connect, process
from crossdistill.errors import InputError
from crossdistill.runs.compose import data_seed, is_balanced, live_teacher, teacher_views
from crossdistill.runs.identity import evaluation_protocol, plain, source_sha256, views_section
from crossdistill.runs.store_settings import StoreSettings
from crossdistill.runs.stores import refuse_as_model, sections_of, stream_refused
from crossdistill.store import Keep, Manifest
from crossdistill.store.manifest import LARGEST_ID, LARGEST_OCCURRENCE
from crossdistill.teachers import EnsembleTeacher, FrozenTeacher, are_several, facts_of

Order = NDArray[np.int64]

_SHARD_BYTES = 16 * 2**20
_MOST_POSITIONS = 2**14


@dataclass(frozen=True)
class StorePass:
    """Everything that is needed to ask, built and checked before the first image.

    Attributes:
        loader: makes the batches of any epoch as runs with these settings see them, in the views of the teacher.
        test_loader: this process's share of the images that the teacher is measured on.
        shard_size: whole pairs of images that are mixed, if any are.
    """

    settings: StoreSettings
    splits: Splits
    teacher: FrozenTeacher | EnsembleTeacher
    loader: TrainLoader
    test_loader: EvalLoader | StreamEvalLoader
    keep: Keep
    shard_size: int
    warnings: list[str] = field(default_factory=list)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes the answers what they are: whose they are, to which images, and in which order these come."""
        teacher = {
            "sha256": self.teacher.fingerprint(),
            "precision": self.settings.train.precision,
            "views": views_section(teacher_views(self.teacher)),
            "networks": self._networks(),
        }
        images = sections_of(self.splits.train, self.loader, self.settings.data.image_column, every=True)
        return {"teacher": plain(teacher), **images}

    def _networks(self) -> list[dict[str, Any]]:
        """What decides, beside its weights, what each teacher answers; where its weights lie does not."""
        members = self.teacher.teachers if are_several(self.teacher) else (self.teacher,)
        return [
            {
                "name": member.spec.name,
                "args": given.args,
                "class_map": given.class_map,
                "image_size": list(member.spec.input.image_size),
                "stages": given.stages,
            }
            for member, given in zip(members, self.settings.teachers, strict=True)
        ]

    def manifest(self, facts: Mapping[str, Any]) -> Manifest:
        """What the store is: whose answers to which images, and what is kept of them."""
        return Manifest(
            self.identity,
            facts,
            self.teacher.spec.num_classes,
            len(self.loader.ids),
            self.shard_size,
            self.keep,
            _embedding_dims(self.teacher) if self.keep.embeddings else (),
        )

    def facts(self) -> dict[str, Any]:
        """What readers need or may want to know."""
        settings = self.settings.model_dump(mode="json")
        return {"teacher": facts_of(self.teacher), "settings": settings, "environment": environment()}

    def described(self, evaluation: Mapping[str, Any]) -> dict[str, Any]:
        """Teacher and images, for whoever asked for the store."""
        return {
            "teacher": self.teacher.spec.name,
            "teacher_top1": evaluation["top1"],
            "evaluation_split": evaluation["split"],
            "data": self.settings.data.source,
            "num_images": len(self.loader.ids),
            "num_classes": self.teacher.spec.num_classes,
        }

    @property
    def evaluation_sha256(self) -> str:
        """Which images the teacher is measured on."""
        return source_sha256(self.splits.evaluation)

    @property
    def protocol(self) -> dict[str, Any]:
        """How the teacher is measured on them."""
        return evaluation_protocol(self.settings.data, self.settings.train.precision)

    @property
    def corrupt(self) -> dict[str, str]:
        """Images that could not be read so far: path or row -> reason."""
        return self.loader.corrupt | self.test_loader.corrupt

    def order(self, epoch: int) -> Order:
        """The samples of an epoch ``(N, 2)`` in their order, all of them."""
        return np.concatenate([part for step in self.loader.plan(epoch, drop_last=False) for part in step])

    def chunks(self, order: Order, positions: range) -> list[Order]:
        """The samples at these positions in batches: whole pairs, as a step of a run has them."""
        size = self.loader.batch_size
        return [
            order[start : min(start + size, positions.stop)] for start in range(positions.start, positions.stop, size)
        ]

    def warn(self, text: str, say: Callable[[str], None]) -> None:
        """Keep a warning for the report, and say it at once."""
        self.warnings.append(text)
        say(f"warning: {text}")


def compose_pass(
    settings: StoreSettings,
    keep: Keep,
    shard_size: int | None,
    begun: Manifest | None = None,
    modules: Mapping[str, nn.Module] | None = None,
) -> StorePass:
    """Build the parts of a pass.

    Args:
        begun: what the store holds that is gone on with.

    Raises:
        InputError: parts that do not exist or do not fit together, a remote stream, or a store given as a teacher.
    """
    splits = open_labelled(settings.data)
    if isinstance(splits.train, Stream):
        raise stream_refused(splits.train)
    for one in settings.teachers:
        if one.name not in (modules or {}):
            refuse_as_model(one.name)
    torch.manual_seed(settings.seed)
    teacher = live_teacher(settings.teachers, splits.class_names, modules or {}, allow_code=settings.allow_code)
    wanted: frozenset[Signal] = frozenset({"logits", "embedding"} if keep.embeddings else {"logits"})
    teacher.passes_on = wanted - {"logits"} if are_several(teacher) else wanted
    loader, test_loader = _loaders(settings, splits, teacher)
    _check_occurrences(loader)
    _check_top_k(keep.top_k, teacher.spec.num_classes)
    dims = _embedding_dims(teacher) if keep.embeddings else ()
    row = Manifest({}, {}, teacher.spec.num_classes, 1, 1, keep, dims)
    size = _shard_size(shard_size, row.bytes_per_sample(), loader)
    if begun is not None and shard_size is None:
        size = begun.shard_size
    return StorePass(settings, splits, teacher, loader, test_loader, keep, size)


def _check_top_k(top_k: int | None, num_classes: int) -> None:
    if top_k is not None and not 1 <= top_k < num_classes:
        raise InputError(
            f"--top-k {top_k} for {num_classes} classes",
            f"1 to {num_classes - 1}",
            "leave it out to keep all logits, or give fewer classes than there are",
        )


def _check_occurrences(loader: TrainLoader) -> None:
    """An answer is found by its image and how often that came before, of which a store counts so many."""
    most = most_often(loader.targets[loader.ids]) if loader.balanced else 1
    if most > LARGEST_OCCURRENCE + 1:
        raise InputError(
            f"classes so unequal that data.sampling=class_balanced shows an image {most:,} times an epoch",
            f"at most {LARGEST_OCCURRENCE + 1:,} times, which a store can tell apart",
            "give more images of the rarest class, leave it out, or store with data.sampling=shuffled",
        )


def _loaders(
    settings: StoreSettings, splits: Splits, teacher: FrozenTeacher | EnsembleTeacher
) -> tuple[TrainLoader, EvalLoader | StreamEvalLoader]:
    data, source = settings.data, splits.train
    seed = data_seed(data, settings.seed)
    hold_out = settings.train.select == "best" and splits.validation is None
    chosen = select_training(source.targets, data, seed, hold_out, splits.class_names)
    if len(source.targets) - 1 > LARGEST_ID:
        raise InputError(f"{len(source.targets):,} images", f"at most {LARGEST_ID + 1:,}", "store parts of them")
    views = teacher_views(teacher)
    on_device = data.augment_on == "device"
    common: dict[str, Any] = {"workers": data.workers, "max_corrupt_share": data.max_corrupt_share}
    loader = TrainLoader(
        source,
        chosen.train_ids,
        np.where(chosen.labelled, source.targets, UNLABELLED),
        views,
        data.augment,
        seed=seed,
        batch_size=settings.train.batch_size,
        balanced=is_balanced(data, chosen, chosen.train_ids),
        augment_device=connect(settings.device, settings.train.precision).device if on_device else None,
        **common,
    )
    rank, world_size = process()
    common |= {"rank": rank, "world_size": world_size, "crop_pct": data.eval_crop_pct}
    return loader, eval_loader(splits.evaluation, views, batch_size=settings.train.batch_size, **common)


def _shard_size(asked: int | None, row_bytes: int, loader: TrainLoader) -> int:
    """Positions of a shard: what was asked for, or some MB, in whole pairs of images and no more than there are."""
    if asked is not None and asked < 1:
        raise InputError(f"--shard-size {asked}", "at least 1", "leave it out")
    size = asked or min(_MOST_POSITIONS, max(1, _SHARD_BYTES // row_bytes))
    batch_size = loader.batch_size
    # Pairs are counted from the first image of a step, so a shard begins where a step does.
    unit = batch_size if mixes(loader.augment) and batch_size % 2 else 2
    return math.ceil(size / unit) * unit


def _embedding_dims(teacher: FrozenTeacher | EnsembleTeacher) -> tuple[int, ...]:
    members = teacher.teachers if are_several(teacher) else (teacher,)
    return tuple(one.spec.embedding_dim for one in members)
