"""``wds:PATTERN`` -> the shards it names: local files, or addresses of a web server."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from crossdistill.data.shards.tar_headers import compressed
from crossdistill.errors import InputError

Shard = Path | str
"""A local file, or an address (http or https)."""

_EXAMPLE = "wds:/data/train-{000..011}.tar"
_INNERMOST = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_COMPRESSED = re.compile(r"\.(tgz|tar\.(gz|bz2|xz|zst|lz4))$", re.IGNORECASE)


def find_shards(pattern: str) -> list[Shard]:
    """The shards of a pattern, each once: paths, folders, globs and addresses, with braces, joined by ``::``.

    Raises:
        InputError: nothing there, compressed shards, or an address of another kind than http and https.
    """
    found: list[Shard] = []
    for part in filter(None, (part.strip() for part in pattern.split("::"))):
        if _SCHEME.match(part) and not Path(part).exists():
            found += map(_address, expand_braces(part))
        else:
            found += _local(part)
    if not found:
        raise InputError(f"data source 'wds:{pattern}'", f"shards, such as {_EXAMPLE}", "add them after the colon")
    return list(dict.fromkeys(found))


def expand_braces(pattern: str) -> list[str]:
    """All words that a pattern with ``{a,b}`` and ``{000..011}`` stands for, in order; other braces stay.

    >>> expand_braces("train-{08..10}.{tar}")
    ['train-08.{tar}', 'train-09.{tar}', 'train-10.{tar}']
    """
    return list(_expand(pattern, 0))


def _expand(pattern: str, start: int) -> Iterator[str]:
    brace = _INNERMOST.search(pattern, start)
    if brace is None:
        yield pattern
        return
    words = _words(brace[1])
    if words is None:
        yield from _expand(pattern, brace.end())
        return
    for word in words:
        # From the front again, since what was an outer brace may now be an innermost one.
        yield from _expand(pattern[: brace.start()] + word + pattern[brace.end() :], 0 if start == 0 else start)


def _words(inside: str) -> list[str] | None:
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        return inside.split(",") if "," in inside else None
    first, last = int(numbers[1]), int(numbers[2])
    padded = any(len(number) > 1 and number[0] == "0" for number in numbers.groups())
    width = max(map(len, numbers.groups())) if padded else 0
    step = 1 if first <= last else -1
    return [str(number).zfill(width) for number in range(first, last + step, step)]


def _address(address: str) -> str:
    if urlsplit(address).scheme in ("http", "https"):
        return address
    raise InputError(
        f"shard {address!r}",
        "a local file, or an address that begins with http:// or https://",
        "fetch the shards first: commands and other protocols are not run from a pattern",
    )


def _local(part: str) -> list[Path]:
    words = expand_braces(str(Path(part).expanduser()))
    found = [(word, _matches(word)) for word in words]
    missing = [word for word, paths in found if not paths]
    if missing:
        raise _nothing(missing, len(words))
    paths = [path for _, paths in found for path in paths]
    for path in paths:
        if kind := _COMPRESSED.search(path.name):
            raise compressed(path, kind[0])
    return paths


def _matches(word: str) -> list[Path]:
    """The file or folder of that name, else the files that it matches as a glob."""
    path = Path(word)
    if path.is_dir():
        return sorted(path.glob("*.tar")) or sorted(path.glob("*/*.tar")) or sorted(path.glob("*.tar.*"))
    if path.exists():
        return [path]
    return sorted(map(Path, glob.glob(word)))


def _nothing(missing: list[str], count: int) -> InputError:
    first = Path(missing[0])
    if first.is_dir():
        given = f"folder {first}, which holds no .tar file"
    elif glob.has_magic(missing[0]):
        given = f"shards {first}, which no file matches"
    else:
        given = f"shard {first}, which does not exist"
    more = f" ({len(missing)} of {count} are missing)" if count > 1 else ""
    return InputError(given + more, f"shards, such as {_EXAMPLE}", "check the path")
