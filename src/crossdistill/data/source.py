"""What a data source is: images by index, with targets and class names, in a canonical order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.errors import InputError

TINY_SIDE = 64
"""Images up to this side (in pixels) are shown whole: they were made small, and a crop would cut the object."""


class Source(Protocol):
    """Images by index. A sample's id is its position in the source's canonical order, which never changes.

    ``num_channels`` is that of the stored images, 1 or 3 (``None`` if mixed), and ``image_size`` their (height,
    width) if all share one; both may rest on a sample of the images. ``mirror_safe`` says whether a mirrored image
    still shows its class.
    """

    @property
    def name(self) -> str: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def targets(self) -> NDArray[np.int64]: ...

    @property
    def mirror_safe(self) -> bool: ...

    @property
    def num_channels(self) -> int | None: ...

    @property
    def image_size(self) -> tuple[int, int] | None: ...

    def read(self, index: int) -> Tensor:
        """The image as uint8 ``(C, H, W)`` with one or three channels; raises :class:`CorruptImage`."""
        ...

    def describe(self, index: int) -> str:
        """Where the image lies (path or row), for messages."""
        ...


class CorruptImage(Exception):
    """An image that cannot be decoded: where it lies, and what the decoder said."""

    def __init__(self, where: str, reason: str) -> None:
        self.where, self.reason = where, reason
        super().__init__(where, reason)

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Splits:
    """The training images and those that accuracy is reported on (``evaluation_name``: "test" or "val").

    Of images without classes, which can only be pretrained on, none is reported on (``evaluation_name``: "none").
    ``validation`` holds the images of val beside test: they may select the best epoch, and are never reported on.
    """

    train: Source
    evaluation: Source
    evaluation_name: str
    validation: Source | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of the targets."""
        return self.train.class_names


_FEWEST_CLASSES: ContextVar[int] = ContextVar("fewest classes", default=2)


@contextmanager
def one_class_will_do() -> Iterator[None]:
    """Let sets of one class pass: an owner in a federation may know no other."""
    token = _FEWEST_CLASSES.set(1)
    try:
        yield
    finally:
        _FEWEST_CLASSES.reset(token)


def check_several_classes(class_names: Sequence[str], targets: NDArray[np.int64], where: str) -> None:
    """Refuse training data of fewer than two classes, or of none where :func:`one_class_will_do`."""
    present = np.unique(targets[targets >= 0])
    if len(present) < _FEWEST_CLASSES.get():
        only = f"only one class, {class_names[present[0]]!r}" if len(present) else "no labelled image"
        raise InputError(f"{where}: {only}", "training images of two classes or more", "add images of another class")


def probe_shape(
    candidates: NDArray[np.int64], shape_of: Callable[[int], tuple[int, int, int]], *, num_probes: int = 64
) -> tuple[int | None, tuple[int, int] | None]:
    """Channels and size that images spread evenly over the candidates agree on, each ``None`` where they differ.

    Args:
        candidates: indices of images that may be looked at.
        shape_of: (channels, height, width) of an image; may raise :class:`CorruptImage`, which is passed over.
    """
    shapes = set()
    places = np.linspace(0, len(candidates) - 1, num=min(num_probes, len(candidates))).astype(int)
    for index in candidates[np.unique(places)]:
        try:
            shapes.add(shape_of(int(index)))
        except CorruptImage:
            continue
    channels = {shape[0] for shape in shapes}
    sizes = {shape[1:] for shape in shapes}
    return channels.pop() if len(channels) == 1 else None, sizes.pop() if len(sizes) == 1 else None
