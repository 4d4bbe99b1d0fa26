"""Networks by name, cut into stages: ``build``, ``StagedModel`` and the names that ``build`` knows."""

from crossdistill.models.build import build, list_models
from crossdistill.models.staged import StagedModel

__all__ = ["StagedModel", "build", "list_models"]
