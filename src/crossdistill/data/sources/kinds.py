"""The kinds of source that lie at a path or are called by an id: what opens each, and which columns it has."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from crossdistill.data.source import Splits
from crossdistill.data.sources.cifar import open_cifar
from crossdistill.data.sources.classes import NO_FACTS, Facts
from crossdistill.data.sources.folder import open_folder
from crossdistill.data.sources.hub import HUB_EXPECTED, open_hub
from crossdistill.data.sources.idx import open_idx
from crossdistill.data.sources.layout import find_layout
from crossdistill.data.sources.npz import open_npz
from crossdistill.data.sources.parquet import open_parquet
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings

_COLUMNS = ("image_column", "label_column")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of source.

    ``open`` takes the path or id, the settings, and the facts if any are known. ``operand`` says what follows the
    colon in ``--data KIND:…``; ``None`` for a kind that only a known name opens. ``columns`` are the settings of
    columns that it reads.
    """

    open: Callable[..., Splits]
    operand: str | None
    columns: tuple[str, ...] = ()


def _open_hub(name: str, settings: DataSettings, facts: Facts = NO_FACTS) -> Splits:
    """As :func:`open_hub`; the path of a file is refused, which would be taken for a name on the hub."""
    file = Path(name).expanduser()
    if file.is_file():
        found = find_layout(file)
        action = "give the folder that it lies in" if found is None else f"give '{found[0]}:{name}' instead"
        raise InputError(f"data source hf:{name}, which is a file", HUB_EXPECTED, action)
    return open_hub(name, settings, facts)


def _open_webdataset(pattern: str, settings: DataSettings) -> Splits:
    from crossdistill.data.shards.open import open_webdataset  # needed here only

    return open_webdataset(pattern, settings)


KINDS = {
    "folder": Kind(open_folder, "PATH"),
    "parquet": Kind(open_parquet, "PATH", _COLUMNS),
    "idx": Kind(open_idx, "PATH"),
    "npz": Kind(open_npz, "FILE"),
    "hf": Kind(_open_hub, "ID", _COLUMNS),
    "wds": Kind(_open_webdataset, "PATTERN"),
    "cifar": Kind(open_cifar, None, ("label_column",)),
}


def open_kind(kind: str, path: str, settings: DataSettings, *facts: Facts) -> Splits:
    """Open a path or an id as one of :data:`KINDS`.

    Args:
        facts: one, of a known set; none takes what the kind itself says of unknown files.

    Raises:
        InputError: settings that this kind has no use for, or what :attr:`Kind.open` raises.
    """
    check_columns(settings, KINDS[kind].columns, f"{kind}:{path}")
    return KINDS[kind].open(path, settings, *facts)


def check_columns(settings: DataSettings, columns: Collection[str], where: str) -> None:
    """Refuse data.image_column and data.label_column but for those of ``columns``."""
    for key in _COLUMNS:
        asked = getattr(settings, key)
        if asked is not None and key not in columns:
            raise InputError(
                f"data.{key}={asked!r} for {where}, which has no columns to choose from",
                "no such setting: columns are those of parquet and hf sources",
                f"drop data.{key}",
            )
