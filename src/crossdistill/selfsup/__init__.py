"""Learning without labels: OBoW pretraining of any backbone, and how a representation is measured."""

import crossdistill.selfsup.panels  # noqa: F401  (registers the panels of its report)
from crossdistill.selfsup.pretrain import execute, pretrain
from crossdistill.selfsup.recipes import read_recipe
from crossdistill.selfsup.settings import PretrainSettings, load_settings

__all__ = ["PretrainSettings", "execute", "load_settings", "pretrain", "read_recipe"]
