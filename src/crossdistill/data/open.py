"""``--data NAME`` -> training and evaluation images."""

from __future__ import annotations

from pathlib import Path

from crossdistill.data.digits import open_digits
from crossdistill.data.folder import open_folder
from crossdistill.data.held import HeldSource
from crossdistill.data.parquet import open_parquet
from crossdistill.data.source import Splits
from crossdistill.errors import InputError, nearest
from crossdistill.settings import DataSettings

_SOURCES = ("digits", "folder:PATH", "parquet:PATH")
_NOT_YET = frozenset({"hf", "wds", "idx", "cifar10", "cifar100", "imagenet", "mnist", "fashion_mnist"})


def open_source(settings: DataSettings) -> Splits:
    """Find the images of a data source and read their labels; pixels are read when they are needed.

    Raises:
        InputError: unknown source, or one that is not as its kind must be.
    """
    splits = _open(settings)
    validation = HeldSource(splits.validation) if splits.validation is not None else None
    return Splits(HeldSource(splits.train), HeldSource(splits.evaluation), splits.evaluation_name, validation)


def _open(settings: DataSettings) -> Splits:
    kind, colon, path = settings.source.partition(":")
    if settings.source == "digits":
        return open_digits()
    if kind in ("folder", "parquet") and not path:
        raise InputError(f"data source {settings.source!r}", f"{kind}:PATH", "add the path after the colon")
    if kind == "folder":
        return open_folder(Path(path).expanduser())
    if kind == "parquet":
        return open_parquet(
            Path(path).expanduser(), image_column=settings.image_column, label_column=settings.label_column
        )
    raise _unknown(settings.source, kind if colon else settings.source)


def _unknown(source: str, kind: str) -> InputError:
    expected = f"one of {', '.join(_SOURCES)}"
    if kind in _NOT_YET:
        return InputError(
            f"data source {source!r}, which is not supported yet", expected, "save the images as a folder or as parquet"
        )
    path = Path(source).expanduser()
    if path.exists():
        word = "parquet" if path.suffix == ".parquet" or any(path.glob("*.parquet")) else "folder"
        return InputError(f"data source {source!r}", expected, f"did you mean '{word}:{source}'?")
    known = {one.partition(":")[0]: one for one in _SOURCES}
    return InputError(f"data source {source!r}", expected, nearest(kind, known))
