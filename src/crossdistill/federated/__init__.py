"""Owners who share neither data nor weights: KnFu and its baselines on Flower."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from crossdistill.federated.environment import keep_to_itself, quiet

if TYPE_CHECKING:
    from crossdistill.federated.plan import execute, federate
    from crossdistill.federated.settings import FederateSettings, load_settings
    from crossdistill.federated.strategy import STRATEGIES

_HOMES = {
    "execute": "plan",
    "federate": "plan",
    "FederateSettings": "settings",
    "load_settings": "settings",
    "STRATEGIES": "strategy",
}

__all__ = ["STRATEGIES", "FederateSettings", "execute", "federate", "load_settings"]

keep_to_itself()


def __getattr__(name: str) -> Any:
    """Load a public name when it is asked for: fusion alone needs neither Flower nor PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _HOMES[name] == "plan":
        quiet()
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
