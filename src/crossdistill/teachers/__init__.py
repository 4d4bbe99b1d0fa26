"""Teachers: anything that answers a batch with signals, and the checks that one is worth listening to."""

from crossdistill.teachers.check import ANSWERED_TOGETHER, check_above_chance, check_signals
from crossdistill.teachers.class_map import ClassMap, make_class_map
from crossdistill.teachers.ensemble import EnsembleTeacher
from crossdistill.teachers.fingerprint import fingerprint
from crossdistill.teachers.frozen import FrozenTeacher
from crossdistill.teachers.mapped import MappedTeacher
from crossdistill.teachers.moving_average import MovingAverageTeacher
from crossdistill.teachers.several import Known, SeveralTeachers, are_several
from crossdistill.teachers.stored import StoredEnsemble, StoredTeacher, facts_of, stored_teacher

__all__ = [
    "ANSWERED_TOGETHER",
    "ClassMap",
    "EnsembleTeacher",
    "FrozenTeacher",
    "Known",
    "MappedTeacher",
    "MovingAverageTeacher",
    "SeveralTeachers",
    "StoredEnsemble",
    "StoredTeacher",
    "are_several",
    "check_above_chance",
    "check_signals",
    "facts_of",
    "fingerprint",
    "make_class_map",
    "stored_teacher",
]
