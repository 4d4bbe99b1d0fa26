"""Loss functions on logits ``(B, K)``, embeddings ``(B, D)`` and maps ``(B, C, H, W)``: pure, in float32 or wider."""

from crossdistill.losses.bow import bow_cross_entropy, bow_targets
from crossdistill.losses.cross_entropy import cross_entropy, target_class
from crossdistill.losses.dist import dist
from crossdistill.losses.dkd import dkd
from crossdistill.losses.info_nce import info_nce
from crossdistill.losses.kd import kd, standardize
from crossdistill.losses.maps import (
    attention_map,
    attention_transfer,
    generation_error,
    hierarchical_context,
    map_error,
)
from crossdistill.losses.noise_contrastive import noise_contrastive
from crossdistill.losses.ofa import ofa
from crossdistill.losses.relational import correlation, rkd_angle, rkd_distance
from crossdistill.losses.rsd import rsd

__all__ = [
    "attention_map",
    "attention_transfer",
    "bow_cross_entropy",
    "bow_targets",
    "correlation",
    "cross_entropy",
    "dist",
    "dkd",
    "generation_error",
    "hierarchical_context",
    "info_nce",
    "kd",
    "map_error",
    "noise_contrastive",
    "ofa",
    "rkd_angle",
    "rkd_distance",
    "rsd",
    "standardize",
    "target_class",
]
