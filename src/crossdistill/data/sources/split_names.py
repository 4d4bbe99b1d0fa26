"""Which split a file belongs to, and which split is trained on, reported on, and used to select the best epoch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from crossdistill.data.source import Source, Splits, check_several_classes
from crossdistill.data.sources.subset import Subset
from crossdistill.data.splits import hold_out
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings

_WORDS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "t10k": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
}
_SUFFIXES = re.compile(r"(\.(parquet|tar|tgz|gz|zst|npz))+$", re.IGNORECASE)
_NUMBERED = re.compile(r"(?P<word>.+?)-\d+-of-\d+")

REPORTED = ("test", "val")
"""Splits that accuracy is reported on: the first of these that there is."""


def split_name(word: str) -> str:
    """The name a split goes by here: "train", "test" or "val" where the word means one of these, else the word.

    >>> split_name("Validation"), split_name("extra")
    ('val', 'extra')
    """
    return _WORDS.get(word.lower(), word)


def is_split_word(word: str) -> bool:
    """Whether a word means one of "train", "test" and "val"."""
    return word.lower() in _WORDS


def split_words(words: Iterable[str], where: str) -> dict[str, str]:
    """The one word for each split, by the name of the split.

    Args:
        where: what holds them, for messages.

    Raises:
        InputError: two words for one split, of which neither can be passed over.
    """
    found: dict[str, str] = {}
    for word in words:
        other = found.setdefault(split_name(word), word)
        if other != word:
            raise InputError(
                f"{where} with {other!r} and {word!r}, which both mean the split {split_name(word)!r}",
                "one of the two",
                "merge them, or rename one, such as to 'extra'",
            )
    return found


def by_split(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Files by the split they belong to, in the order they came.

    The first word for a split in a file's name decides, else the folder it lies in. A file without such a word
    belongs to a split of its own name (of its folder's name, where the files lie in several), less what numbers it.

    >>> list(by_split([Path("raw-train-00000.parquet"), Path("t10k-images-idx3-ubyte.gz"), Path("extra/0000.tar")]))
    ['train', 'test', 'extra']
    """
    files = list(files)
    several_folders = len({file.parent for file in files}) > 1
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(_split_of(file, several_folders), []).append(file)
    return found


def prefix(file: Path) -> str:
    """What stands before the split in a file's name, less numbers: "raw" of ``raw-train-00000.parquet``."""
    tokens = _tokens(file)
    end = next((at for at, token in enumerate(tokens) if _known(token)), len(tokens))
    return "-".join(filter(None, (token.rstrip("0123456789") for token in tokens[:end])))


def _split_of(file: Path, several_folders: bool) -> str:
    known = next(filter(None, map(_known, _tokens(file))), None) or _WORDS.get(file.parent.name.lower())
    if known is not None:
        return known
    own = file.parent.name if several_folders else _own_name(file)
    return own or file.parent.name or "all"


def _own_name(file: Path) -> str:
    stem = _SUFFIXES.sub("", file.name)
    numbered = _NUMBERED.match(stem)
    if numbered:
        return numbered["word"]
    return "-".join(filter(None, (token.rstrip("0123456789") for token in _tokens(file))))


def _tokens(file: Path) -> list[str]:
    return re.split(r"[-_.]", _SUFFIXES.sub("", file.name))


def _known(token: str) -> str | None:
    word = token.lower()
    return _WORDS.get(word) or _WORDS.get(word.rstrip("0123456789"))


@dataclass(frozen=True, slots=True)
class Chosen:
    """The splits of a run. Without an ``evaluation`` a fixed 20 % of the training images is reported on, as "val"."""

    train: str
    evaluation: str | None = None
    validation: str | None = None

    def open(self, open_split: Callable[[str], Source]) -> Splits:
        """Open the splits, training images first, and check that there is something to learn and to report on."""
        train = open_split(self.train)
        check_several_classes(train.class_names, train.targets, train.name)
        if self.evaluation is None:
            return hold_out(train.targets, train.class_names, lambda name, ids: Subset(train, ids, name))
        evaluation = _filled(open_split(self.evaluation))
        validation = None if self.validation is None else _filled(open_split(self.validation))
        return Splits(train, evaluation, self.evaluation, validation)


def choose_splits(
    present: Iterable[str], settings: DataSettings, where: str, *, reported: Sequence[str] = REPORTED
) -> Chosen:
    """Which splits are used, of those present (by the names of :func:`split_name`).

    Trained on is "train", or the only split there is; reported on the first of ``reported``. The validation split is
    "val" beside another one that is reported on. ``data.train_split`` and ``data.evaluation_split`` go first.

    Args:
        where: what was opened, for messages.

    Raises:
        InputError: a split that is not there, or one that is to be both trained and reported on.
    """
    present = list(present)
    train = _train(present, settings, where)
    rest = [name for name in present if name != train]
    if settings.evaluation_split is not None:
        evaluation = _present(settings.evaluation_split, "evaluation_split", present, where)
        if evaluation == train:
            raise InputError(
                f"{where}: split {train!r} both to train on and to report on",
                "two splits",
                "change data.train_split or data.evaluation_split",
            )
    else:
        evaluation = next((name for name in reported if name in rest), "")
    validation = "val" if "val" in rest and evaluation not in ("", "val") else None
    return Chosen(train, evaluation or None, validation)


def _train(present: list[str], settings: DataSettings, where: str) -> str:
    if settings.train_split is not None:
        return _present(settings.train_split, "train_split", present, where)
    if "train" in present:
        return "train"
    if len(present) == 1 and settings.evaluation_split is None:
        return present[0]
    raise InputError(
        f"{where} with the splits {_listed(present)}",
        "a split named train, or one split alone, which is then divided",
        "say which with data.train_split, or rename it",
    )


def _present(word: str, key: str, present: list[str], where: str) -> str:
    for name in (word, split_name(word)):
        if name in present:
            return name
    raise InputError(
        f"data.{key}={word!r}, which {where} does not have",
        f"one of its splits: {_listed(present)}",
        f"change data.{key}",
    )


def _listed(present: list[str]) -> str:
    shown = ", ".join(sorted(present)[:12])
    return f"{shown}, … ({len(present)} in all)" if len(present) > 12 else shown or "none"


def _filled(source: Source) -> Source:
    if len(source.targets):
        return source
    raise InputError(f"{source.name}, which holds no image", "images to report on", "add images, or name another split")
