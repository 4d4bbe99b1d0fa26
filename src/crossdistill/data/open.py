"""``--data NAME`` -> training and evaluation images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from crossdistill.data.held import HeldSource
from crossdistill.data.listed import only_listed
from crossdistill.data.shards.stream import Stream
from crossdistill.data.source import Source, Splits
from crossdistill.data.sources.digits import open_digits
from crossdistill.data.sources.kinds import KINDS, check_columns, open_kind
from crossdistill.data.sources.known import KNOWN, VARIABLE, known_by_folder, open_known
from crossdistill.data.sources.layout import find_layout
from crossdistill.errors import InputError, nearest
from crossdistill.settings import DataSettings

_OPERANDS = {word: kind.operand for word, kind in KINDS.items() if kind.operand is not None}
_SOURCES = ("digits", *(f"{word}:{operand}" for word, operand in _OPERANDS.items()), *KNOWN)
_HELD = "class folders, parquet, IDX or npz files, shards, what save_to_disk writes, CIFAR's binary version"


def open_source(settings: DataSettings) -> Splits:
    """Find the images of a data source and read their labels; pixels are read when they are needed.

    Raises:
        InputError: unknown source, one that is not as its kind must be, or settings that it has no use for.
    """
    splits = _open(settings)
    if settings.train_list is not None:
        splits = replace(splits, train=only_listed(splits.train, Path(settings.train_list)))
    validation = _held(splits.validation) if splits.validation is not None else None
    return Splits(_held(splits.train), _held(splits.evaluation), splits.evaluation_name, validation)


def open_labelled(settings: DataSettings) -> Splits:
    """:func:`open_source` where classes are learnt or measured: images without classes are refused as well."""
    if settings.unlabelled:
        raise InputError(
            f"{settings.source} with data.unlabelled=true, images without classes",
            "images with classes; only pretraining does without",
            "drop data.unlabelled, or use `crossdistill pretrain`",
        )
    return open_source(settings)


def _held(source: Source) -> Source:
    return source if isinstance(source, Stream) else HeldSource(source)  # a stream is not read by index


def _open(settings: DataSettings) -> Splits:
    source = settings.source
    kind, colon, path = source.partition(":")
    if not (source == "digits" or source in KNOWN or kind in _OPERANDS):
        raise _unknown(source, kind if colon else source)
    if settings.stream is not None and kind != "wds":
        raise InputError(
            f"data source {source!r} with data.stream, which describes remote shards (wds:)",
            "no data.stream: these images are counted",
            "drop it",
        )
    if settings.unlabelled and kind != "folder":
        raise InputError(
            f"data source {source!r} with data.unlabelled=true",
            "folder:PATH, whose images need not be sorted by class",
            "drop data.unlabelled: pretraining does not read the labels of other sources",
        )
    if source == "digits":
        check_columns(settings, (), source)
        return open_digits(settings)
    if source in KNOWN:
        return open_known(source, settings)
    if not path:
        raise InputError(f"data source {source!r}", f"{kind}:{_OPERANDS[kind]}", "add it after the colon")
    return open_kind(kind, path, settings)


def _unknown(source: str, kind: str) -> InputError:
    expected = f"one of {', '.join(_SOURCES)}"
    path = Path(source).expanduser()
    if source and path.exists():
        return InputError(f"data source {source!r}", expected, _told_of(path, source))
    known_words = {one.partition(":")[0]: one for one in _SOURCES}
    return InputError(f"data source {source!r}", expected, nearest(kind, known_words))


def _told_of(path: Path, source: str) -> str:
    """How to open what lies at a path that was given without a kind."""
    found = find_layout(path)
    if found is None:
        return f"check what it holds, which is none of these: {_HELD}"
    word, place = found
    if word != "cifar":
        return f"did you mean '{word}:{source if place == path else place}'?"
    name = known_by_folder(place)
    told = f"give the known name {name}" if name else "rename the folder to cifar10 or cifar100, give that name"
    return f"{told}, and set {VARIABLE}={place.parent}"
