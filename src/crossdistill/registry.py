"""Name -> record, for everything a user picks by name; plugins add records through entry points."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from crossdistill.errors import InputError, nearest

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Record(Generic[T]):
    """A registered thing and the facts that listings print (paper, summary, …)."""

    name: str
    value: T
    facts: dict[str, str] = field(default_factory=dict)


class Registry(Generic[T]):
    """Records of one kind, filled on first use from a package's modules and from entry points.

    Args:
        kind: the word used in messages, such as "method".
        package: package whose modules register themselves when imported; deleting a module removes its name.
        group: entry-point group that other distributions use to add records.
        listing: the command that lists all records; default that of the kind.
    """

    def __init__(self, kind: str, *, package: str, group: str, listing: str | None = None) -> None:
        self.kind, self.package, self.group = kind, package, group
        self.listing = listing or f"crossdistill {kind}s"
        self._records: dict[str, Record[T]] = {}
        self._loaded = False

    def register(self, name: str, **facts: str) -> Callable[[T], T]:
        """Decorator that files a class or function under ``name``."""

        def file(value: T) -> T:
            known = self._records.get(name)
            if known is not None and _origin(known.value) != _origin(value):
                raise InputError(
                    f"{self.kind} {name!r} registered by {_origin(value)}",
                    f"a name that {_origin(known.value)} does not hold already",
                    "give the new one another name",
                )
            self._records[name] = Record(name, value, facts)
            return value

        return file

    def get(self, name: str) -> Record[T]:
        """The record of that name, or an error that names the nearest ones."""
        self._load()
        if name not in self._records:
            raise InputError(
                f"{self.kind} {name!r}",
                f"a registered {self.kind}",
                f"{nearest(name, self._records)} `{self.listing}` lists all",
            )
        return self._records[name]

    def __iter__(self) -> Iterator[Record[T]]:
        self._load()
        return iter(sorted(self._records.values(), key=lambda record: record.name))

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        for point in entry_points(group=self.group):
            try:
                point.load()
            except Exception as error:
                raise InputError(
                    f"plugin {point.value!r} ({point.group}: {point.name}), which fails on import: {error!r}",
                    "a module that registers itself when imported",
                    "mend or uninstall the distribution that brings it",
                ) from error


def _origin(value: Any) -> str:
    return f"{getattr(value, '__module__', '?')}.{getattr(value, '__qualname__', value)}"


METHODS: Registry[Any] = Registry("method", package="crossdistill.methods", group="crossdistill.methods")
