"""Remote shards as a source: known by their addresses and by what the settings say of them, and never indexed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.data.philox import Purpose, random_order
from crossdistill.data.shards.labels import ShardClasses
from crossdistill.data.splits import Selection
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings, StreamSettings

_HELD_OUT_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Stream:
    """Remote shards in a fixed order, with the classes that their labels stand for.

    It has what every source has, but whoever asks for its labels or for one of its images is told that these are not
    there before they are read. ``num_train`` is the number of images of an epoch, for training.
    """

    name: str
    shards: tuple[str, ...]
    classes: ShardClasses
    num_train: int | None = None
    mirror_safe: bool = True
    num_channels: int | None = None
    image_size: tuple[int, int] | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of the targets."""
        return self.classes.names

    @property
    def targets(self) -> NDArray[np.int64]:
        """Unknown."""
        self._refuse("labels")

    def read(self, index: int) -> Tensor:
        """Impossible."""
        self._refuse(f"image {index}")

    def describe(self, index: int) -> str:
        """Impossible."""
        self._refuse(f"image {index}")

    def identity(self) -> bytes:
        """What tells this stream from others, in the place of labels."""
        return "\n".join([*self.shards, str(self.num_train)]).encode("utf-8")

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(
            f"{what} of {self.name}: remote shards, which are read once, in their own order",
            "data that can be counted and indexed, such as local shards",
            "fetch the shards and give their path, or do without what needs all labels or single images",
        )


def check_stream(settings: DataSettings, where: str, shards: Sequence[str]) -> StreamSettings:
    """What the settings say of remote training shards.

    Raises:
        InputError: they say nothing, or name a class twice.
    """
    if settings.stream is not None:
        names = settings.stream.class_names
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"data.stream.class_names with {twice!r} twice", "every name once", "correct the names")
        return settings.stream
    raise InputError(
        f"{where}: {len(shards)} remote training shard(s) without data.stream",
        "data.stream={num_train: 50000, class_names: [cat, dog]}, since a stream cannot be counted before it is read",
        "give the number of training images and the classes, or fetch the shards and give their path",
    )


def hold_out_shards(shards: Sequence[str], where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training shards and a fixed fifth to report on, the same in every run, of shards that bring no other split.

    Raises:
        InputError: a single shard.
    """
    if len(shards) < 2:
        raise InputError(
            f"{where}: one remote shard, and none to report on",
            "two shards or more, of which some are held out, or shards named val or test",
            "add shards after '::', also local ones",
        )
    num_held_out = max(1, round(len(shards) * _HELD_OUT_SHARE))
    held_out = set(random_order(len(shards), seed=0, purpose=Purpose.SPLIT)[:num_held_out].tolist())
    train = tuple(shard for index, shard in enumerate(shards) if index not in held_out)
    return train, tuple(shards[index] for index in sorted(held_out))


def select_stream(stream: Stream, settings: DataSettings, select_best: bool) -> Selection:
    """All images of a stream, all labelled: choosing among them would need to know them.

    Args:
        select_best: whether training images are to be held out to select the best epoch.

    Raises:
        InputError: settings that choose images by their labels.
    """
    asked = {
        f"data.limit_train={settings.limit_train}": settings.limit_train is not None,
        f"data.labels_per_class={settings.labels_per_class}": settings.labels_per_class is not None,
        f"data.sampling={settings.sampling}": settings.sampling != "shuffled",
        f"train.select=best with data.val_share={settings.val_share}": select_best,
    }
    refused = [key for key, is_asked in asked.items() if is_asked]
    if refused:
        raise InputError(
            f"{', '.join(refused)} for {stream.name}: remote shards, whose images are not known before they are read",
            "local shards, or all images of the stream as they come"
            + (" (and shards named val, beside others to report on, to select the best epoch)" if select_best else ""),
            "fetch the shards and give their path, or drop these settings",
        )
    num_train = stream.num_train or 0
    nobody = np.empty(0, dtype=np.int64)
    return Selection(np.arange(num_train, dtype=np.int64), np.ones(num_train, dtype=np.bool_), nobody)
