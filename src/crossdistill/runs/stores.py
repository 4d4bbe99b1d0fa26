"""A store of answers as the teacher of a run: opened by name, and refused where the run's images are not those."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.contracts import UNLABELLED
from crossdistill.data import Source, Splits, Stream, StreamLoader, TrainLoader
from crossdistill.data.augmentation.mix import mixes
from crossdistill.data.source import CorruptImage
from crossdistill.engine import total_steps
from crossdistill.errors import InputError
from crossdistill.runs.identity import WORDS, evaluation_protocol, images_section, order_section, source_sha256
from crossdistill.settings import DataSettings, Settings, TeacherSettings, TrainSettings
from crossdistill.store import Store, is_store
from crossdistill.store.manifest import check_manifest
from crossdistill.store.shard import shard_path
from crossdistill.teachers import StoredTeacher, stored_teacher

Ids = NDArray[np.int64]

_SHOWN_IMAGES = 3


def store_of(teachers: Collection[TeacherSettings], given: Collection[str] = ()) -> Path | None:
    """The store among these teachers, if one is named; ``given`` are names that stand for objects.

    Raises:
        InputError: a store beside other teachers, or with settings that only a network has.
    """
    stores = [one for one in teachers if one.name not in given and is_store(Path(one.name))]
    if not stores:
        return None
    first = stores[0]
    if len(teachers) > 1:
        raise InputError(
            f"store {first.name} as one of {len(teachers)} teachers",
            "a store alone: it holds one answer an image",
            "store the answers of all of them together: `crossdistill store --teacher ONE --teacher OTHER …`",
        )
    own = {"name": first.name, "weight": first.weight}
    extra = {key: value for key, value in first.model_dump(mode="json").items() if value not in (None, False, {}, [])}
    extra = {key: value for key, value in extra.items() if key not in own}
    if extra:
        shown = ", ".join(f"{key}={value!r}" for key, value in extra.items())
        raise InputError(
            f"store {first.name} as a teacher with {shown}",
            "a store without settings of a network: its answers are there already",
            f"leave out {', '.join(extra)} here, and give it where the answers are made (`crossdistill store`)",
        )
    return Path(first.name)


def open_stored(path: Path, class_names: tuple[str, ...], train: TrainSettings) -> StoredTeacher:
    """The teacher of a store, if it answers in so many classes.

    Raises:
        InputError: no store that can be read, one of other classes, or a network to compile where there is none.
    """
    store = Store.open(path)
    if store.manifest.num_classes != len(class_names):
        raise InputError(
            f"store {path} of {store.manifest.num_classes} classes for data of {len(class_names)}",
            "the answers to these data",
            "store the teacher's answers to these data, or give the data that are stored",
        )
    if train.compile_teacher:
        raise InputError(
            f"train.compile_teacher with store {path}, which runs no network",
            "a live teacher",
            "set train.compile_teacher=false",
        )
    return stored_teacher(store)


def refuse_as_model(name: str | Path) -> None:
    """Refuse a store where a network is wanted."""
    check_manifest(Path(name))
    if is_store(Path(name)):
        raise InputError(
            f"{name}, which is a store of a teacher's answers and no network",
            "a trained model: a run folder, an exported student, NAME@PATH or NAME@pretrained",
            "give the network whose answers these are; a store is only good for `crossdistill distill --teacher`",
        )


def check_seeds(settings: Settings, seeds: Collection[int], given: Collection[str] = ()) -> None:
    """Refuse seeds whose images a store does not have, before anything is trained.

    Raises:
        InputError: naming the seed that was stored.
    """
    path = store_of(settings.teachers, given)
    if path is None:
        return
    stored = Store.open(path).fact("the seed of its images", lambda manifest: manifest.identity["images"]["seed"])
    wanted = set(seeds) if settings.data.seed is None else {settings.data.seed}
    if wanted != {stored}:
        shown = ", ".join(map(str, sorted(wanted)))
        raise InputError(
            f"images of {'seed' if len(wanted) == 1 else 'seeds'} {shown} with store {path}, which holds the answers "
            f"to those of seed {stored}",
            "the images of that seed, in all runs: their choice, order and random changes",
            f"set data.seed={stored}; --seeds then changes first weights only",
        )


def check_stored(
    teacher: StoredTeacher,
    splits: Splits,
    loader: TrainLoader | StreamLoader,
    train: TrainSettings,
    data: DataSettings,
) -> list[str]:
    """Refuse a run to whose images the store has no answers; warnings about what differs otherwise.

    Args:
        train: the loop, with its length counted in the loader's epochs.
        data: up to ``max_corrupt_share`` of the images may be unreadable, and are then neither stored nor shown.

    Raises:
        InputError: other images, another order where that matters, or fewer epochs than are needed; each with what
            differs and what to do.
    """
    if isinstance(loader, StreamLoader) or isinstance(splits.train, Stream):
        raise stream_refused(splits.train)
    store = teacher.store
    store.check_same(sections_of(splits.train, loader, data.image_column), WORDS)
    rows = _check_epochs(store, train, loader)
    _check_images(store, splits.train, loader, data.max_corrupt_share, rows)
    return _other_evaluation(store, splits, evaluation_protocol(data, train.precision))


def stream_refused(source: Source) -> InputError:
    """Of a stream, whose samples come in another order with every number of processes."""
    return InputError(
        f"{source.name}, a remote stream, with stored answers",
        "images that can be read by index: an answer is found by the image and the epoch that it belongs to, and a "
        "stream never shows the same epoch twice",
        "copy the shards to a local disk, or give the live teacher",
    )


def epochs_shown(train: TrainSettings, steps_per_epoch: int, cycle_epochs: int | None) -> int:
    """How many different epochs a run shows."""
    epochs = -(-total_steps(train, steps_per_epoch) // steps_per_epoch)
    return epochs if cycle_epochs is None else min(epochs, cycle_epochs)


def sections_of(
    source: Source, loader: TrainLoader, image_column: str | None, *, every: bool = False
) -> dict[str, Any]:
    """What must be as it was stored.

    Args:
        image_column: as the data's settings have it.
        every: also the order of images that are shown one by one; who reads answers finds them in any order.
    """
    mixed = mixes(loader.augment)
    images = images_section(
        source, loader.augment, seed=loader.seed, balanced=loader.balanced, image_column=image_column
    )
    sections = {"images": images}
    if every or mixed or loader.balanced:  # which images there are then decides what is seen of each
        labelled = loader.targets != UNLABELLED
        sections["order"] = order_section(loader.ids, labelled, batch_size=loader.batch_size, mixed=mixed)
    return sections


def evaluation_of(store: Store) -> dict[str, Any]:
    """How good the teacher was when its answers were stored, and on which images."""
    names = ("split", "source_sha256", "crop_pct", "precision", "top1", "loss", "num_samples")
    return store.fact(
        "how good its teacher is", lambda manifest: {name: manifest.facts["evaluation"][name] for name in names}
    )


def _check_epochs(store: Store, train: TrainSettings, loader: TrainLoader) -> list[list[int]]:
    """How many answers each shard of each epoch holds that the run shows."""
    needed = epochs_shown(train, loader.steps_per_epoch, loader.cycle_epochs)
    rows = store.rows(needed)
    stored = len(rows)
    if 0 < stored < needed:
        whole = "1 epoch is" if stored == 1 else f"{stored} epochs are"
        default = " (the default of --epochs)" if train.epochs is None and train.steps is None else ""
        raise InputError(
            f"{needed} epochs{default} with store {store.path}, of which {whole} whole",
            f"answers to {needed} epochs, or images that come again",
            f"append with {store.manifest.made_by(needed)} (--verify lists what is missing "
            f"or damaged), or show the same epochs again and again with data.cycle_epochs={stored}",
        )
    if not stored:
        store.check_complete(needed)
    return rows


def _check_images(
    store: Store, source: Source, loader: TrainLoader, max_corrupt_share: float, rows: list[list[int]]
) -> None:
    """All images of each epoch have an answer, but for those that cannot be read.

    Looking at the ids of every epoch would take minutes for large sets: as many answers as the first epoch has are
    taken for answers to the same images.
    """
    can_be_read = cache(partial(_can_be_read, source))
    for epoch, each in enumerate(rows):
        if epoch and sum(each) == sum(rows[0]):
            continue
        missing = np.setdiff1d(loader.shown(epoch), store.ids(epoch))
        few = len(missing) <= max_corrupt_share * len(loader.ids)
        readable = [one for one in missing.tolist() if not few or can_be_read(one)]
        if readable:
            raise _without_answer(store, source, readable, loader, epoch, each)


def _without_answer(
    store: Store, source: Source, ids: list[int], loader: TrainLoader, epoch: int, rows: list[int]
) -> InputError:
    """Of images that are not stored, or that could not be read when their shards were written."""
    manifest = store.manifest
    named = ", ".join(map(source.describe, ids[:_SHOWN_IMAGES])) + (", …" if len(ids) > _SHOWN_IMAGES else "")
    given = (
        f"{len(loader.ids)} training images, {len(ids)} of them without an answer in "
        f"{f'epoch {epoch} of ' if epoch else ''}store {store.path} ({named})"
    )
    if len(loader.ids) > manifest.num_samples or len(ids) > manifest.num_samples - sum(rows):
        return InputError(
            given,
            f"some or all of the {sum(rows)} images that are stored",
            "store the answers to all images of these data, without data.limit_train and train.select=best",
        )
    short = [shard for shard, count in enumerate(rows) if count < len(manifest.positions(shard))]
    files = ", ".join(shard_path(store.path, epoch, shard).relative_to(store.path).as_posix() for shard in short)
    return InputError(
        given,
        "an answer to every image that can be read",
        f"{_shards(short)} of epoch {epoch} {'was' if len(short) == 1 else 'were'} written while "
        f"{'this image' if len(ids) == 1 else 'these images'} could not be read: remove {files} of the store, and "
        "give the `crossdistill store` command that made it again",
    )


def _shards(numbers: list[int]) -> str:
    return f"shard {numbers[0]}" if len(numbers) == 1 else f"shards {', '.join(map(str, numbers))}"


def _can_be_read(source: Source, index: int) -> bool:
    try:
        source.read(index)
    except CorruptImage:
        return False
    return True


def _other_evaluation(store: Store, splits: Splits, protocol: dict[str, Any]) -> list[str]:
    """Words for how the teacher was measured otherwise than the student is."""
    measured = evaluation_of(store)
    start, warnings = "the teacher's accuracy was measured when its answers were stored, ", []
    if measured["source_sha256"] != source_sha256(splits.evaluation):
        warnings.append(
            f"{start}on {measured['num_samples']} images of split {measured['split']}, which are not those that the "
            "student is measured on"
        )
    names = {"crop_pct": "data.eval_crop_pct", "precision": "train.precision"}
    other = [
        f"{name}={_as_given(measured[key])} and not {_as_given(protocol[key])}"
        for key, name in names.items()
        if measured[key] != protocol[key]
    ]
    if other:
        warnings.append(f"{start}with {' and '.join(other)} as the student's is")
    return warnings


def _as_given(value: Any) -> str:
    return "null" if value is None else str(value)
