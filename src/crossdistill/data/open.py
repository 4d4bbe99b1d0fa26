"""``--data NAME`` -> training and evaluation images."""

from __future__ import annotations

from pathlib import Path

from crossdistill.data.held import HeldSource
from crossdistill.data.shards.stream import Stream
from crossdistill.data.source import Source, Splits
from crossdistill.data.sources.digits import open_digits
from crossdistill.data.sources.folder import open_folder
from crossdistill.data.sources.hub import open_hub
from crossdistill.data.sources.idx import open_idx
from crossdistill.data.sources.known import KNOWN, open_known
from crossdistill.data.sources.layout import find_layout
from crossdistill.data.sources.npz import open_npz
from crossdistill.data.sources.parquet import open_parquet
from crossdistill.errors import InputError, nearest
from crossdistill.settings import DataSettings

_KINDS = {"folder": "PATH", "parquet": "PATH", "idx": "PATH", "npz": "FILE", "hf": "ID", "wds": "PATTERN"}
_SOURCES = ("digits", *(f"{kind}:{what}" for kind, what in _KINDS.items()), *KNOWN)


def open_source(settings: DataSettings) -> Splits:
    """Find the images of a data source and read their labels; pixels are read when they are needed.

    Raises:
        InputError: unknown source, or one that is not as its kind must be.
    """
    splits = _open(settings)
    validation = _held(splits.validation) if splits.validation is not None else None
    return Splits(_held(splits.train), _held(splits.evaluation), splits.evaluation_name, validation)


def _held(source: Source) -> Source:
    return source if isinstance(source, Stream) else HeldSource(source)  # a stream is not read by index


def _open(settings: DataSettings) -> Splits:
    kind, colon, path = settings.source.partition(":")
    if settings.source == "digits":
        return open_digits(settings)
    if settings.source in KNOWN:
        return open_known(settings.source, settings)
    if kind in _KINDS and not path:
        raise InputError(f"data source {settings.source!r}", f"{kind}:{_KINDS[kind]}", "add it after the colon")
    if kind == "folder":
        return open_folder(Path(path).expanduser(), settings)
    if kind == "parquet":
        return open_parquet(path, settings)
    if kind == "idx":
        return open_idx(Path(path).expanduser(), settings)
    if kind == "npz":
        return open_npz(Path(path).expanduser(), settings)
    if kind == "hf":
        return open_hub(path, settings)
    if kind == "wds":
        from crossdistill.data.shards.open import open_webdataset  # needed here only

        return open_webdataset(path, settings)
    raise _unknown(settings.source, kind if colon else settings.source)


def _unknown(source: str, kind: str) -> InputError:
    expected = f"one of {', '.join(_SOURCES)}"
    path = Path(source).expanduser()
    if path.exists():
        word, place = find_layout(path) or ("folder", path)
        told = f"did you mean '{word}:{source}'?"
        if word == "cifar":
            told = f"give a known name, cifar10 or cifar100, and set CROSSDISTILL_DATA={place.parent}"
        return InputError(f"data source {source!r}", expected, told)
    known_words = {one.partition(":")[0]: one for one in _SOURCES}
    return InputError(f"data source {source!r}", expected, nearest(kind, known_words))
