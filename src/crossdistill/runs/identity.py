"""What makes the images of two runs the same, as plain data: answers to them are only good for the very same ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.contracts import InputSpec
from crossdistill.data import Source, Splits, Stream
from crossdistill.data.augmentation.transform import AUGMENTATION_VERSION
from crossdistill.data.source import CorruptImage
from crossdistill.settings import AugmentSettings, DataSettings

Ids = NDArray[np.int64]

_HASHED_IMAGES = 16
_ANEW = "or store the teacher's answers anew in another folder"

WORDS = {
    "teacher.sha256": ("the teacher's weights differ", f"give the teacher that the store was begun with, {_ANEW}"),
    "images.augmentation_version": (
        "the augmentation is another version's",
        f"use the crossdistill that made the store, {_ANEW}",
    ),
    "images.source_sha256": (
        "labels or file names of the training images differ",
        f"give the data that were stored, {_ANEW}",
    ),
    "images.pixels_sha256": (
        "pixels of the training images differ",
        f"give the images as they were when they were stored, {_ANEW}",
    ),
    "order.ids_sha256": (
        "which images take part differs",
        f"give train.select, data.limit_train and data.val_share to `store` and runs alike, {_ANEW} with these",
    ),
    "order.labelled_sha256": (
        "which images have a label differs",
        f"give data.labels_per_class to `store` and runs alike, {_ANEW} with it",
    ),
}
"""What differs, and what to do, for keys whose values say nothing to a reader."""


def data_hash(splits: Splits) -> str:
    """A hash of class names, labels and file names of all parts of the data."""
    digest = hashlib.sha256(json.dumps(splits.class_names).encode())
    for source in (splits.train, splits.evaluation, splits.validation):
        if source is not None:
            update_with(digest, source)
    return digest.hexdigest()


def update_with(digest: Any, source: Source) -> None:
    """Add the labels and file names of a source to a running hash, or what names the shards of a stream."""
    if isinstance(source, Stream):
        digest.update(source.identity())
        return
    names = (Path(source.describe(index)).name for index in range(len(source.targets)))
    digest.update(source.targets.tobytes() + "\n".join(names).encode())


def source_sha256(source: Source) -> str:
    """The hash of a source's labels and file names."""
    digest = hashlib.sha256()
    update_with(digest, source)
    return digest.hexdigest()


def pixels_sha256(source: Source) -> str:
    """The hash of some images, spread evenly over the source: files may change and keep their names and labels."""
    digest = hashlib.sha256()
    count = len(source.targets)
    for index in np.unique(np.linspace(0, count - 1, num=min(_HASHED_IMAGES, count)).astype(int)).tolist():
        try:
            image = source.read(index)
        except CorruptImage:
            continue
        digest.update(f"{tuple(image.shape)}\n".encode() + image.contiguous().numpy().tobytes())
    return digest.hexdigest()


def evaluation_protocol(data: DataSettings, precision: str) -> dict[str, Any]:
    """How accuracy is measured, beside on which images."""
    return {"crop_pct": data.eval_crop_pct, "precision": precision}


def images_section(
    source: Source, augment: AugmentSettings, *, seed: int, balanced: bool, image_column: str | None = None
) -> dict[str, Any]:
    """What decides, for an image of an epoch, what is seen of it; ``augment`` is resolved."""
    return plain(
        {
            "seed": seed,
            "classes": list(source.class_names),
            "source_sha256": source_sha256(source),
            "image_column": image_column,
            "image_size": source.image_size,
            "num_channels": source.num_channels,
            "pixels_sha256": pixels_sha256(source),
            "augmentation_version": AUGMENTATION_VERSION,
            "sampling": "class_balanced" if balanced else "shuffled",
            "augment": augment.model_dump(mode="json"),
        }
    )


def order_section(ids: Ids, labelled: NDArray[np.bool_], *, batch_size: int, mixed: bool) -> dict[str, Any]:
    """What decides where in an epoch an image comes, and which one it is mixed with, if any is.

    Args:
        ids: images that are shown.
        labelled: mask over the whole source; only images that both have a label, or both none, are mixed.
        batch_size: images a step. Neighbours of a step are mixed: of an odd size, every step has a last one alone.
    """
    whole = batch_size % 2 == 0 or len(ids) <= batch_size
    return {
        "num_images": len(ids),
        "ids_sha256": _sha256(np.sort(ids)),
        "labelled_sha256": _sha256(labelled[np.sort(ids)]) if mixed else None,
        "pairs": None if not mixed else "of every two images" if whole else f"within steps of {batch_size} images",
    }


def views_section(views: Mapping[str, InputSpec]) -> dict[str, Any]:
    """In which size and normalisation each network sees an image; what it is shown in evaluation does not count."""
    sections = {view: asdict(spec) for view, spec in views.items()}
    return plain({view: {k: v for k, v in one.items() if k != "crop_pct"} for view, one in sections.items()})


def plain(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree as JSON gives it back: tuples are lists."""
    result: dict[str, Any] = json.loads(json.dumps(tree))
    return result


def _sha256(values: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
