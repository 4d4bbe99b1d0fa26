"""The parts of a training step by name, for whoever profiles one."""

from __future__ import annotations

from torch.profiler import record_function

PREFIX = "crossdistill/"

PHASES = ("data", "teacher", "student", "method", "backward", "optimizer")
"""In the order of a step: waiting for images; these onto the device and the teacher's answer; and so on."""


def phase(name: str) -> record_function:
    """A range of this name around a block, which a profile shows as ``crossdistill/NAME``.

    Without a profiler it costs a few microseconds and waits for no device.
    """
    return record_function(PREFIX + name)
