"""Teachers: anything that answers a batch with signals, and the checks that one is worth listening to."""

from crossdistill.teachers.check import check_above_chance, check_signals
from crossdistill.teachers.class_map import ClassMap, make_class_map
from crossdistill.teachers.ensemble import EnsembleTeacher
from crossdistill.teachers.fingerprint import fingerprint
from crossdistill.teachers.frozen import FrozenTeacher
from crossdistill.teachers.mapped import MappedTeacher

__all__ = [
    "ClassMap",
    "EnsembleTeacher",
    "FrozenTeacher",
    "MappedTeacher",
    "check_above_chance",
    "check_signals",
    "fingerprint",
    "make_class_map",
]
