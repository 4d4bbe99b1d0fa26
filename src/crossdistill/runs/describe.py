"""What the methods are and which options they take, from the registry and their signatures."""

from __future__ import annotations

import inspect
from typing import Any

from crossdistill.registry import METHODS, Record


def describe_methods() -> list[dict[str, Any]]:
    """Facts and options of every method."""
    return [_describe(record) for record in METHODS]


def describe_method(name: str) -> dict[str, Any]:
    """Facts and options of one method."""
    return _describe(METHODS.get(name))


def _describe(record: Record[Any]) -> dict[str, Any]:
    parameters = inspect.signature(record.value.build).parameters.values()
    options = {
        one.name: {"type": str(one.annotation), "default": one.default}
        for one in parameters
        if one.kind is inspect.Parameter.KEYWORD_ONLY and one.name not in ("num_classes", "modules")
    }
    facts = {key: record.facts.get(key, "") for key in ("title", "paper", "summary", "pick_when")}
    return {"name": record.name, **facts, "needs": sorted(record.value.needs), "options": options}
