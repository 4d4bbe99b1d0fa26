"""``wds:PATTERN``: shards of WebDataset. Local ones are indexed, remote ones are streamed (:mod:`.stream`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from crossdistill.data.shards.fetch import check_can_fetch
from crossdistill.data.shards.index import ShardIndex, read_index
from crossdistill.data.shards.labels import ShardClasses, classes_of, read_classes
from crossdistill.data.shards.names import Shard, find_shards
from crossdistill.data.shards.source import TarSource
from crossdistill.data.shards.stream import Stream, check_stream, hold_out_shards
from crossdistill.data.source import Source, Splits
from crossdistill.data.sources.split_names import Chosen, by_split, choose_splits
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings

_NONE = np.empty(0, dtype=np.int64)


def open_webdataset(pattern: str, settings: DataSettings) -> Splits:
    """Open the shards of a pattern; their names say to which split they belong.

    Raises:
        InputError: no such shards, shards that cannot be read or whose samples are incomplete, labels that are
            negative or unknown, training data of one class, remote shards without ``data.stream``.
    """
    where = f"wds:{pattern}"
    shard_of = {_as_path(shard): shard for shard in find_shards(pattern)}
    splits = {name: [shard_of[path] for path in paths] for name, paths in by_split(shard_of).items()}
    chosen = choose_splits(splits, settings, where)
    if any(isinstance(shard, str) for shard in splits[chosen.train]):
        return _open_remote(where, splits, chosen, settings)
    if settings.stream is not None:
        raise InputError(
            f"{where} with data.stream, whose training shards are local", "no data.stream: they are counted", "drop it"
        )
    known: list[ShardClasses] = []  # the classes of the training shards, which are opened first

    def open_split(name: str) -> Source:
        files = _all_local(splits[name], f"{where} ({name})")
        source = _Opened.of(files, f"{where} ({name})")
        known.append(known[0] if known else read_classes(files[0].parent) or source.classes())
        return source.as_source(known[0])

    return chosen.open(open_split)


def _open_remote(where: str, splits: Mapping[str, Sequence[Shard]], chosen: Chosen, settings: DataSettings) -> Splits:
    """Remote training shards, and others or local ones to report on; a fifth of the shards where there are none."""
    check_can_fetch()
    train = _all_remote(splits[chosen.train], f"{where} ({chosen.train})")
    facts = check_stream(settings, where, train)
    classes = ShardClasses.of_names(facts.class_names)

    def open_split(name: str) -> Source:
        title = f"{where} ({name})"
        if any(isinstance(shard, str) for shard in splits[name]):
            return Stream(title, _all_remote(splits[name], title), classes)
        return _Opened.of(_all_local(splits[name], title), title).as_source(classes)

    if chosen.evaluation is None:
        train, held_out = hold_out_shards(train, where)
        evaluation: Source = Stream(f"{where} (val)", held_out, classes)
    else:
        evaluation = open_split(chosen.evaluation)
    validation = None if chosen.validation is None else open_split(chosen.validation)
    training = Stream(f"{where} ({chosen.train})", train, classes, num_train=facts.num_train)
    return Splits(training, evaluation, chosen.evaluation or "val", validation)


@dataclass(frozen=True, slots=True)
class _Opened:
    """Local shards with their indices."""

    name: str
    files: Sequence[Path]
    indices: Sequence[ShardIndex]

    @classmethod
    def of(cls, files: Sequence[Path], name: str) -> _Opened:
        indices = [read_index(file) for file in files]
        if not any(len(index.keys) for index in indices):
            raise InputError(
                f"{name}: shards without any sample", "members such as 0001.jpg and 0001.cls", "check what they hold"
            )
        return cls(name, files, indices)

    def classes(self) -> ShardClasses:
        """The classes that occur."""
        return classes_of([index.labels for index in self.indices], self.name)

    def as_source(self, classes: ShardClasses) -> TarSource:
        """A source with these classes."""
        source = TarSource(self.name, self.files, self.indices, _NONE, classes.names)
        source.targets = classes.targets(np.concatenate([index.labels for index in self.indices]), source.describe)
        return source


def _all_local(shards: Sequence[Shard], where: str) -> list[Path]:
    files = [shard for shard in shards if isinstance(shard, Path)]
    if len(files) < len(shards):
        raise InputError(
            f"{where}: remote shards, while the training shards are local" if not files else _mixed(where, shards),
            "shards of one kind in a split, and remote ones to report on only beside remote ones to train on",
            "fetch the remote ones and give their path",
        )
    return files


def _all_remote(shards: Sequence[Shard], where: str) -> tuple[str, ...]:
    addresses = tuple(shard for shard in shards if isinstance(shard, str))
    if len(addresses) < len(shards):
        raise InputError(_mixed(where, shards), "shards of one kind in a split", "fetch the remote ones as well")
    return addresses


def _mixed(where: str, shards: Sequence[Shard]) -> str:
    num_local = sum(isinstance(shard, Path) for shard in shards)
    return f"{where}: {num_local} local and {len(shards) - num_local} remote shards in one split"


def _as_path(shard: Shard) -> Path:
    """What names a shard's split: its path, of a remote one behind its server's name."""
    if isinstance(shard, Path):
        return shard
    address = urlsplit(shard)
    return Path(f"{address.netloc}{address.path}")
