"""How Flower and Ray behave in a process of ours: they ask nobody outside, and say only what matters."""

from __future__ import annotations

import logging
import os

from crossdistill.errors import InputError

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""No telemetry, no question for updates, no installation of packages while a run begins."""


def keep_to_itself() -> None:
    """Set what is not set otherwise; before Flower is imported, which reads some of it then."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def quiet() -> None:
    """Have Flower say nothing but errors.

    Raises:
        InputError: Flower is not installed.
    """
    try:
        from flwr.supercore.logger import FLOWER_LOGGER
    except ImportError as error:
        raise InputError(
            f"a federation without Flower ({error})", "the package flwr", "pip install 'crossdistill[federated]'"
        ) from error
    FLOWER_LOGGER.setLevel(logging.ERROR)
