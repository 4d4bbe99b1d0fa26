"""What one client has: its own images, the transfer set that all share, and what it is tested on."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.data import CorruptImage, HeldSource, Source, Splits, Stream, open_labelled, open_source
from crossdistill.data.source import one_class_will_do
from crossdistill.data.sources.parquet import ParquetSource
from crossdistill.data.sources.row_groups import read_column, read_metadata
from crossdistill.data.sources.subset import Subset
from crossdistill.errors import InputError, nearest
from crossdistill.federated.partition import (
    Draw,
    Ids,
    by_group,
    dirichlet,
    generator,
    histogram,
    hold_private,
    shards,
    take_transfer,
)
from crossdistill.federated.settings import FederateSettings
from crossdistill.settings import DataSettings


@dataclass(frozen=True, slots=True)
class Images:
    """Some images of a source, by id."""

    source: Source
    ids: Ids

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def histogram(self) -> Ids:
        """Images of each class ``(C,)``."""
        return histogram(self.source.targets, self.ids, len(self.source.class_names))


@dataclass(frozen=True, slots=True)
class Site:
    """One client.

    ``test`` are images to test on; ``shares`` ``(C,)`` are the class shares of the client's own images, by which their
    classes count, or ``None`` where the test images are the client's own. ``everyone`` are test images of all
    clients, where they are known and are others.
    """

    client: int
    name: str
    train: Images
    val: Images
    transfer: Images
    test: Images
    shares: NDArray[np.float64] | None
    everyone: Images | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of the targets."""
        return self.train.source.class_names

    @property
    def histogram(self) -> Ids:
        """The client's own images of each class ``(C,)``, those that validate included."""
        return self.train.histogram + self.val.histogram


class Renamed(Subset):
    """All images of a source, with other class names and targets."""

    def __init__(self, source: Source, class_names: tuple[str, ...], targets: Ids) -> None:
        super().__init__(source, np.arange(len(source.targets), dtype=np.int64), "classes of all clients")
        self.class_names, self.targets = class_names, targets

    @classmethod
    def of(cls, source: Source, class_names: tuple[str, ...], whose: str) -> Renamed:
        """Number the classes of ``source`` by their place in ``class_names``, as all clients do.

        Raises:
            InputError: a class that the others do not know.
        """
        place = {name: index for index, name in enumerate(class_names)}
        for name in source.class_names:
            if name not in place:
                raise InputError(
                    f"class {name!r} of {whose}",
                    f"one of the {len(class_names)} classes of all clients",
                    nearest(name, class_names),
                )
        mapped = np.array([place[name] for name in source.class_names], dtype=np.int64)
        return cls(source, class_names, np.where(source.targets >= 0, mapped[source.targets], source.targets))


class Pooled:
    """Images of several sources with the same classes, one source after the other, as one source."""

    def __init__(self, parts: Sequence[Images]) -> None:
        first = parts[0].source
        self.parts, self.name = parts, "images of all clients"
        self.class_names, self.mirror_safe = first.class_names, all(one.source.mirror_safe for one in parts)
        self.targets = np.concatenate([one.source.targets[one.ids] for one in parts])
        self._starts = np.cumsum([0, *map(len, parts)])
        channels, sizes = ({getattr(one.source, key) for one in parts} for key in ("num_channels", "image_size"))
        self.num_channels = channels.pop() if len(channels) == 1 else None
        self.image_size = sizes.pop() if len(sizes) == 1 else None

    def read(self, index: int) -> Tensor:
        """The image as uint8 ``(C, H, W)``."""
        source, own = self._place(index)
        return source.read(own)

    def describe(self, index: int) -> str:
        """Where it lies."""
        source, own = self._place(index)
        return source.describe(own)

    def _place(self, index: int) -> tuple[Source, int]:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.parts[part].source, int(self.parts[part].ids[index - self._starts[part]])


def sites_of(settings: FederateSettings) -> tuple[Site, ...]:
    """All clients of a federation whose data are on this machine, in order; what was opened last is kept.

    Raises:
        InputError: data that cannot be opened or dealt out.
    """
    counts = {"data", "classes", "partition", "transfer", "clients", "seed", "safety"}
    return _opened(settings.model_dump_json(include=counts))


@functools.lru_cache(maxsize=4)
def _opened(settings_json: str) -> tuple[Site, ...]:
    settings = FederateSettings.model_validate({**json.loads(settings_json), "models": [{"name": "any"}]})
    return _folders(settings) if settings.partition.kind == "folder" else _parts(settings)


def open_own(settings: FederateSettings, *, client: int, name: str, data: str, transfer: str | None) -> Site:
    """The one client whose images lie on this machine.

    Args:
        data: its own images, as for ``--data``.
        transfer: the transfer set, as for ``--data``; default that of the settings.

    Raises:
        InputError: no names of all classes, no transfer set, or data that cannot be opened.
    """
    if settings.classes is None:
        raise InputError(
            f"site {name!r} with data of its own, in a federation without names of classes",
            "the names of all classes, in one order for all",
            "set classes='[NAME, NAME, …]' where the run is submitted",
        )
    given = transfer or settings.transfer.source
    if given is None:
        raise InputError(
            f"site {name!r} without a transfer set",
            "images that all sites have",
            'add transfer="folder:PATH" to its node config, or set transfer.source',
        )
    shared = _whole_transfer(given, settings)
    with one_class_will_do():
        opened = open_labelled(settings.data.model_copy(update={"source": data}))
    return _site(settings, client, name, opened, settings.classes, shared)


def fingerprint(images: Images) -> str:
    """A hash of all pixels in their order: a transfer set that is another one, or another order, has another."""
    digest = hashlib.sha256(str(len(images)).encode())
    for index in images.ids:
        try:
            image = images.source.read(int(index))
        except CorruptImage as error:
            raise InputError(
                f"image {error.where} of the transfer set, which cannot be read ({error.reason})",
                "images that all clients can answer",
                "mend or remove it, for all clients alike",
            ) from error
        digest.update(str(tuple(image.shape)).encode() + image.numpy().tobytes())
    return digest.hexdigest()


def _parts(settings: FederateSettings) -> tuple[Site, ...]:
    """One set, dealt out."""
    splits = _indexed(open_labelled(settings.data), settings.data)
    train, targets = splits.train, splits.train.targets
    if (targets < 0).any():
        raise InputError("training images without a class", "a class for each", "remove them, or pretrain on them")
    everything = np.arange(len(targets), dtype=np.int64)
    if settings.transfer.source is None:
        chosen, left = take_transfer(
            len(targets), share=settings.transfer.share, limit=settings.transfer.limit, seed=settings.seed
        )
        transfer = Images(train, chosen)
    else:
        transfer, left = _whole_transfer(settings.transfer.source, settings), everything
    if settings.partition.kind == "column":
        return _columns(settings, splits, transfer, left)
    named = {f"client {number}": part for number, part in enumerate(_dealt(settings, targets, left))}
    test = Images(splits.evaluation, _tested(settings, len(splits.evaluation.targets)))
    sites = []
    for number, (name, part) in enumerate(named.items()):
        kept, held = _private(settings, targets, part, number)
        shares = histogram(targets, part, len(train.class_names)) / max(len(part), 1)
        sites.append(Site(number, name, Images(train, kept), Images(train, held), transfer, test, shares))
    return tuple(sites)


def _tested(settings: FederateSettings, count: int) -> Ids:
    """All test images, or as many as are wanted."""
    limit = settings.partition.test_limit
    if limit is None or limit >= count:
        return np.arange(count, dtype=np.int64)
    return np.sort(generator(settings.seed, Draw.TEST).permutation(count)[:limit])


def _dealt(settings: FederateSettings, targets: Ids, left: Ids) -> list[Ids]:
    partition = settings.partition
    if partition.kind == "shards":
        return shards(targets, left, num_clients=settings.clients, per_client=partition.shards, seed=settings.seed)
    return dirichlet(
        targets,
        left,
        num_clients=settings.clients,
        alpha=partition.alpha,
        samples=partition.samples,
        seed=settings.seed,
    )


def _columns(settings: FederateSettings, splits: Splits, transfer: Images, left: Ids) -> tuple[Site, ...]:
    """A client for each value of a column; each is tested on images of its own."""
    column, train = settings.partition.column or "", splits.train
    groups = _column_of(train, column)
    parts = by_group(groups, left)
    _check_number(settings, list(parts), f"column {column!r}")
    sites = []
    for number, (name, part) in enumerate(parts.items()):
        share, seed = settings.partition.test_share, settings.seed
        own, tested = hold_private(train.targets, part, share=share, seed=seed, number=number, purpose=Draw.TEST)
        kept, held = _private(settings, train.targets, own, number)
        sites.append(
            Site(number, name, Images(train, kept), Images(train, held), transfer, Images(train, tested), None)
        )
    return _with_everyone(sites)


def _column_of(source: Source, column: str) -> list[object]:
    """The cells of a column, an image each."""
    if isinstance(source, HeldSource):
        return _column_of(source.source, column)
    if isinstance(source, Subset):
        cells = _column_of(source.source, column)
        return [cells[index] for index in source.ids]
    if not isinstance(source, ParquetSource):
        raise InputError(
            f"partition.kind=column for {source.name}",
            "parquet files, whose rows have columns",
            "give --data parquet:PATH, or --partition folder",
        )
    for file in source.files:
        names = read_metadata(file).schema.to_arrow_schema().names
        if column not in names:
            raise InputError(
                f"partition.column={column}, which {file} does not have",
                f"one of its columns: {', '.join(names)}",
                nearest(column, names),
            )
    return [cell for file in source.files for cell in read_column(file, column).to_pylist()]


def _folders(settings: FederateSettings) -> tuple[Site, ...]:
    """One folder a site below the given one, each with splits or class folders of its own."""
    kind, _, path = settings.data.source.partition(":")
    root = Path(path).expanduser()
    if kind != "folder" or not root.is_dir():
        raise InputError(
            f"--data {settings.data.source} with one folder a site",
            "folder:PATH, where PATH holds a folder for each site",
            "check the path",
        )
    names = sorted(one.name for one in root.iterdir() if one.is_dir() and not one.name.startswith("."))
    _check_number(settings, names, f"folder {root}")
    if settings.transfer.source is None:
        raise InputError(
            "one folder a site without a transfer set",
            "images that all sites may see",
            "give --transfer folder:PATH",
        )
    with one_class_will_do():
        opened = {
            name: open_labelled(settings.data.model_copy(update={"source": f"folder:{root / name}"})) for name in names
        }
    classes = settings.classes or tuple(sorted({one for splits in opened.values() for one in splits.class_names}))
    shared = _whole_transfer(settings.transfer.source, settings)
    return _with_everyone(
        [_site(settings, number, name, opened[name], classes, shared) for number, name in enumerate(names)]
    )


def _site(
    settings: FederateSettings, number: int, name: str, splits: Splits, classes: tuple[str, ...], transfer: Images
) -> Site:
    """A client with a set of its own, which may bring images to test on."""
    splits = _indexed(splits, settings.data)
    if (splits.train.targets < 0).any():
        raise InputError(f"images of site {name!r} without a class", "a class for each", "remove them")
    train = HeldSource(Renamed.of(splits.train, classes, f"site {name!r}"))
    test = HeldSource(Renamed.of(splits.evaluation, classes, f"site {name!r}"))
    ids = np.arange(len(train.targets), dtype=np.int64)
    kept, held = _private(settings, train.targets, ids, number)
    tested = Images(test, np.arange(len(test.targets), dtype=np.int64))
    shared = Images(_as_transfer(transfer.source, classes), transfer.ids)
    return Site(number, name, Images(train, kept), Images(train, held), shared, tested, None)


def _private(settings: FederateSettings, targets: Ids, part: Ids, number: int) -> tuple[Ids, Ids]:
    share, seed = settings.safety.val_share, settings.seed
    return hold_private(targets, part, share=share, seed=seed, number=number, purpose=Draw.PRIVATE)


def _with_everyone(sites: Sequence[Site]) -> tuple[Site, ...]:
    pooled = Pooled([site.test for site in sites])
    everyone = Images(HeldSource(pooled), np.arange(len(pooled.targets), dtype=np.int64))
    return tuple(
        Site(one.client, one.name, one.train, one.val, one.transfer, one.test, one.shares, everyone) for one in sites
    )


def _whole_transfer(source: str, settings: FederateSettings) -> Images:
    """The images of a set of its own, classes or not, in its order."""
    own: dict[str, object] = {"source": source}
    if source.startswith("folder:"):
        own["unlabelled"] = True
    train = _indexed(open_source(DataSettings.model_validate(own)), settings.data).train
    count = len(train.targets)
    limit = settings.transfer.limit or count
    if limit >= count:
        return Images(train, np.arange(count, dtype=np.int64))
    return Images(train, np.sort(generator(settings.seed, Draw.TRANSFER).permutation(count)[:limit]))


def _as_transfer(source: Source, classes: tuple[str, ...]) -> Source:
    """The same images without labels, among the classes that they are answered in."""
    return HeldSource(Renamed(source, classes, np.full(len(source.targets), -1, dtype=np.int64)))


def _indexed(splits: Splits, data: DataSettings) -> Splits:
    if isinstance(splits.train, Stream) or isinstance(splits.evaluation, Stream):
        raise InputError(
            f"data source {data.source!r}, a remote stream", "images that can be dealt out", "download the shards"
        )
    return splits


def _check_number(settings: FederateSettings, names: Sequence[str], where: str) -> None:
    if len(names) < 2:
        raise InputError(f"{where} with {len(names)} site(s)", "two or more", "check the path or the column")
    if settings.clients != len(names):
        raise InputError(
            f"{where} with {len(names)} sites, and {settings.clients} clients",
            "a client a site",
            f"give --clients {len(names)}, or leave it out",
        )
