"""Teachers: anything that answers a batch with signals, and the checks that one is worth listening to."""

from crossdistill.teachers.check import check_above_chance, check_signals
from crossdistill.teachers.ensemble import EnsembleTeacher
from crossdistill.teachers.fingerprint import fingerprint
from crossdistill.teachers.frozen import FrozenTeacher

__all__ = ["EnsembleTeacher", "FrozenTeacher", "check_above_chance", "check_signals", "fingerprint"]
