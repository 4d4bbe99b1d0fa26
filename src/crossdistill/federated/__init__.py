"""Owners who share neither data nor weights: KnFu and its baselines on Flower."""

from crossdistill.federated.environment import quiet

quiet()

from crossdistill.federated.federate import execute, federate  # noqa: E402  (Flower must be quiet before it is imported)
from crossdistill.federated.settings import FederateSettings, load_settings  # noqa: E402
from crossdistill.federated.strategy import STRATEGIES  # noqa: E402

__all__ = ["STRATEGIES", "FederateSettings", "execute", "federate", "load_settings"]
