"""Loss functions on logits ``(B, K)`` and embeddings ``(B, D)``: pure, and in float32 or wider whatever comes in."""

from crossdistill.losses.cross_entropy import cross_entropy, target_class
from crossdistill.losses.dist import dist
from crossdistill.losses.dkd import dkd
from crossdistill.losses.kd import kd, standardize
from crossdistill.losses.ofa import ofa
from crossdistill.losses.relational import correlation, rkd_angle, rkd_distance

__all__ = [
    "correlation",
    "cross_entropy",
    "dist",
    "dkd",
    "kd",
    "ofa",
    "rkd_angle",
    "rkd_distance",
    "standardize",
    "target_class",
]
