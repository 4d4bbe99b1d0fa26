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
from crossdistill.data import Source, Stream
from crossdistill.settings import AugmentSettings

Ids = NDArray[np.int64]


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


def images_section(source: Source, augment: AugmentSettings, *, seed: int, balanced: bool) -> dict[str, Any]:
    """What decides, for an image of an epoch, what is seen of it; ``augment`` is resolved."""
    return plain(
        {
            "seed": seed,
            "classes": list(source.class_names),
            "source_sha256": source_sha256(source),
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
