"""Distil any teacher into any student, whatever the architecture.

The ten public names load on first use, so that ``import crossdistill`` costs nothing.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossdistill import losses
    from crossdistill.contracts import Method, ModelSpec, Outputs, Teacher
    from crossdistill.models import StagedModel, build
    from crossdistill.runs import distill, evaluate, train

__all__ = [
    "Method",
    "ModelSpec",
    "Outputs",
    "StagedModel",
    "Teacher",
    "build",
    "distill",
    "evaluate",
    "losses",
    "train",
]

_HOME = {
    "Method": "contracts",
    "ModelSpec": "contracts",
    "Outputs": "contracts",
    "Teacher": "contracts",
    "StagedModel": "models",
    "build": "models",
    "train": "runs",
    "distill": "runs",
    "evaluate": "runs",
}

try:
    __version__ = version("crossdistill")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name == "losses":
        return importlib.import_module("crossdistill.losses")
    if name in _HOME:
        return getattr(importlib.import_module(f"crossdistill.{_HOME[name]}"), name)
    raise AttributeError(f"module 'crossdistill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
