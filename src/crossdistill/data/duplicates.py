"""Images that are there twice, pixel by pixel, within a split and across splits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossdistill.contracts import UNLABELLED
from crossdistill.data.held import HeldSource, num_cores
from crossdistill.data.scan import Scan, digest, encoded, file_digest, scan
from crossdistill.data.source import Source

NUM_EXAMPLES = 5
_NUM_AT_ONCE = 4096
_LIMIT_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Place:
    """Where an image lies; ``class_name`` is ``None`` for an unlabelled one."""

    split: str
    index: int
    where: str
    class_name: str | None


@dataclass(frozen=True, slots=True)
class Pair:
    """An image, and the first image before it with the same pixels."""

    earlier: Place
    later: Place


@dataclass(frozen=True, slots=True)
class Overlap:
    """How far two splits share images; ``earlier`` and ``later`` are the same for copies within one split.

    ``num_images`` counts images of the later split whose pixels are in the earlier one; within a split, those that
    repeat an image before them. ``num_other_label`` of these have another label than the first image they equal.
    """

    earlier: str
    later: str
    num_images: int
    num_other_label: int
    examples: tuple[Pair, ...]


def find_duplicates(
    sources: Mapping[str, Source], scans: Mapping[str, Scan] | None = None, *, num_examples: int = NUM_EXAMPLES
) -> tuple[Overlap, ...]:
    """Overlaps of all splits with themselves and with those before them, also where there are none.

    Images that cannot be read equal no other.

    Args:
        sources: the splits by name.
        scans: what a pass over each has found; default: every image is decoded now.
        num_examples: pairs that are named for each overlap.
    """
    scans = scans if scans is not None else {name: scan(source) for name, source in sources.items()}
    firsts: dict[str, dict[bytes, int]] = {}
    overlaps = []
    for later, source in sources.items():
        firsts[later], repeated = _first_of_each(scans[later].digests)
        for earlier, first in firsts.items():
            indices = repeated if earlier == later else range(len(scans[later].digests))
            pairs = [
                (first[found], index)
                for index in indices
                if (found := scans[later].digests[index]) is not None and found in first
            ]
            overlaps.append(_overlap(earlier, sources[earlier], later, source, pairs, num_examples))
    return tuple(overlaps)


def crossing(
    train: Source,
    evaluation: Source,
    ids: NDArray[np.int64] | None = None,
    *,
    purpose: str = "accuracy is measured on",
    limit_bytes: int = _LIMIT_BYTES,
) -> str | None:
    """A warning if images of the evaluation split are among those trained on; ``None`` if none is, or if unknown.

    Images held in memory are compared by their pixels. Decoding others again would take long: of these the encoded
    files are compared, and nothing where all files together are too large to be read once more.

    Args:
        ids: the images trained on, by their id in ``train``; default all.
        purpose: what the evaluation split is there for.
        limit_bytes: most bytes of files.
    """
    in_memory = _in_memory(train) and _in_memory(evaluation)
    if not in_memory and not _are_small((train, evaluation), limit_bytes):
        return None
    digests = _pixel_digests if in_memory else _file_digests
    num_evaluation = len(evaluation.targets)
    seen = set(digests(train, np.arange(len(train.targets)) if ids is None else ids)) - {None}
    count = sum(one in seen for one in digests(evaluation, np.arange(num_evaluation)))
    if not count:
        return None
    images, part = "1 image" if count == 1 else f"{count:,} images", "pixel" if in_memory else "byte"
    return (
        f"{images} of the {num_evaluation:,} that {purpose} {'is' if count == 1 else 'are'} also among the training "
        f"images, {part} by {part}; `crossdistill data` lists them"
    )


def _in_memory(source: Source) -> bool:
    return isinstance(source, HeldSource) and source.in_memory


def _are_small(sources: Iterable[Source], limit_bytes: int) -> bool:
    """Whether the files of these sources have so many bytes at most; not if one of them holds no files."""
    files = [() if (inmost := encoded(source)) is None else inmost.files for source in sources]
    if not all(files):
        return False
    num_bytes = 0
    for file in dict.fromkeys(chain.from_iterable(files)):
        num_bytes += _size(file)
        if num_bytes > limit_bytes:  # the files of large sets are many, and not asked for their sizes
            return False
    return True


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # it equals no other
        return 0


def _pixel_digests(source: Source, ids: NDArray[np.int64]) -> list[bytes | None]:
    assert isinstance(source, HeldSource)  # as others do not hold images in memory
    found: list[bytes | None] = []
    for start in range(0, len(ids), _NUM_AT_ONCE):
        found += [digest(image) for image in source.read_batch(ids[start : start + _NUM_AT_ONCE]).images]
    return found


def _file_digests(source: Source, ids: NDArray[np.int64]) -> list[bytes | None]:
    with ThreadPoolExecutor(num_cores()) as pool:
        return list(pool.map(lambda index: file_digest(source, index), ids.tolist()))


def _first_of_each(digests: Sequence[bytes | None]) -> tuple[dict[bytes, int], list[int]]:
    """The first index of every digest, and the indices of those that repeat one."""
    first: dict[bytes, int] = {}
    repeated = []
    for index, found in enumerate(digests):
        if found is not None and first.setdefault(found, index) != index:
            repeated.append(index)
    return first, repeated


def _overlap(
    earlier: str,
    earlier_source: Source,
    later: str,
    later_source: Source,
    pairs: Sequence[tuple[int, int]],
    num_examples: int,
) -> Overlap:
    other = {pair for pair in pairs if _differ(earlier_source.targets[pair[0]], later_source.targets[pair[1]])}
    # Pairs of different labels are shown first: one of the two labels is wrong.
    shown = sorted(pairs, key=lambda pair: pair not in other)[:num_examples]
    examples = tuple(
        Pair(_place(earlier, earlier_source, first), _place(later, later_source, second)) for first, second in shown
    )
    return Overlap(earlier, later, len(pairs), len(other), examples)


def _differ(target: int, other: int) -> bool:
    """Whether two labels contradict one another; a missing one contradicts none."""
    return target != other and UNLABELLED not in (target, other)


def _place(split: str, source: Source, index: int) -> Place:
    target = int(source.targets[index])
    name = None if target == UNLABELLED else source.class_names[target]
    return Place(split, index, source.describe(index), name)
