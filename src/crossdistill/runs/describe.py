"""What the methods are (from the registry), which options they take (their signatures) and cost (as measured)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import asdict
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from crossdistill.contracts import Composite
from crossdistill.registry import METHODS, Record
from crossdistill.report.method_costs import method_costs
from crossdistill.settings import options_of

_ORDER = ("logits", "embedding", "stages", "modules")
_WORDS = {bool: "true | false", int: "whole number", float: "number", str: "text", type(None): "null", Any: "anything"}


def describe_methods() -> list[dict[str, Any]]:
    """Facts and options of every method: those that need least of a teacher come first, sums of methods last."""
    return sorted(map(_describe, METHODS), key=lambda one: (one["is_sum"], _most(one["needs"]), one["name"]))


def describe_method(name: str) -> dict[str, Any]:
    """Facts and options of one method."""
    return _describe(METHODS.get(name))


def _most(needs: list[str]) -> int:
    return max((_ORDER.index(signal) + 1 for signal in needs), default=0)


def _describe(record: Record[Any]) -> dict[str, Any]:
    meanings = option_meanings(record.value.build)
    options = {
        name: {"type": in_words(hint), "default": default, "meaning": meanings.get(name, "")}
        for name, (hint, default) in options_of(record.value.build).items()
    }
    facts = {key: record.facts.get(key, "") for key in ("title", "paper", "summary", "pick_when")}
    costs = [asdict(cost) for cost in method_costs() if cost.method == record.name]
    is_sum = issubclass(record.value, Composite)
    needs = sorted(record.value.needs)
    return {"name": record.name, **facts, "needs": needs, "is_sum": is_sum, "costs": costs, "options": options}


def option_meanings(build: Callable[..., Any]) -> dict[str, str]:
    """What the docstring of a method's ``build`` says of each argument, under ``Args:``.

    >>> def build(*, weight: float = 1.0) -> None:
    ...     '''Make it.
    ...
    ...     Args:
    ...         weight: factor of the loss,
    ...             0 or more.
    ...     '''
    >>> option_meanings(build)
    {'weight': 'factor of the loss, 0 or more.'}
    """
    section = re.search(r"^Args:\n((?:    .*\n?|\n(?=    ))*)", inspect.getdoc(build) or "", re.M)
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section[1] if section else "", re.M)
    return {name: " ".join(text.replace("``", "`").split()) for name, text in entries}


def in_words(hint: Any) -> str:
    """A type as a user writes its values in YAML; of a choice of words, the words.

    >>> in_words(list[int] | None), in_words(Literal["code", "paper"]), in_words(float)
    ('[whole number, …] | null', 'code | paper', 'number')
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " | ".join(map(in_words, arguments))
    if origin is list:
        return f"[{in_words(arguments[0])}, …]"
    if origin is dict:
        return f"{{NAME: {in_words(arguments[1])}}}"
    return _WORDS.get(hint) or (hint.__name__ if isinstance(hint, type) else str(hint))
