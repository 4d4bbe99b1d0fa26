"""What the methods are (from the registry), which options they take (their signatures) and cost (as measured)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal, get_args, get_origin

from crossdistill.registry import METHODS, Record
from crossdistill.report.method_costs import method_costs
from crossdistill.settings import options_of


def describe_methods() -> list[dict[str, Any]]:
    """Facts and options of every method."""
    return [_describe(record) for record in METHODS]


def describe_method(name: str) -> dict[str, Any]:
    """Facts and options of one method."""
    return _describe(METHODS.get(name))


def _describe(record: Record[Any]) -> dict[str, Any]:
    options = {
        name: {"type": _in_words(hint), "default": default}
        for name, (hint, default) in options_of(record.value.build).items()
    }
    facts = {key: record.facts.get(key, "") for key in ("title", "paper", "summary", "pick_when")}
    costs = [asdict(cost) for cost in method_costs() if cost.method == record.name]
    return {"name": record.name, **facts, "needs": sorted(record.value.needs), "costs": costs, "options": options}


def _in_words(hint: Any) -> str:
    """A type as a user reads it; of a choice of words, the words."""
    if get_origin(hint) is Literal:
        return " | ".join(map(str, get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
