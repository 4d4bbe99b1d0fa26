"""The one error for bad input: what was given, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class InputError(ValueError):
    """Raised for anything the caller can mend; the command line turns it into exit code 2.

    Args:
        given: what was found, with the user's own words and shapes in it.
        expected: what would have been right.
        action: what to do about it.

    Attributes:
        result: what the command found all the same, for those who asked for JSON.
    """

    result: Mapping[str, Any] | None = None

    def __init__(self, given: str, expected: str, action: str) -> None:
        self.given, self.expected, self.action = given, expected, action
        super().__init__(given, expected, action)  # all three, so that the error survives pickling between processes

    def __str__(self) -> str:
        return f"given: {self.given}\nexpected: {self.expected}\nwhat to do: {self.action}"


class UnsuitablePair(InputError):
    """Raised by a method's ``build`` for two networks that it cannot serve, whatever its options.

    Whoever composes a run adds the methods that can.
    """


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """A phrase that names the known words nearest to ``name``, to end an error message with.

    >>> nearest("resnet81", ["resnet18", "vit_tiny"])
    "did you mean 'resnet18'?"
    >>> nearest("zzz", ["resnet18", "vit_tiny"])
    'known: resnet18, vit_tiny'
    """
    words = sorted(known)
    close = difflib.get_close_matches(name, words, n=count, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(repr(word) for word in close)}?"
    shown = ", ".join(words[:12]) + (f", … ({len(words)} in all)" if len(words) > 12 else "")
    return f"known: {shown}"


class Interrupted(Exception):
    """A run was asked to stop and has saved its state; the command line turns it into exit code 130."""
