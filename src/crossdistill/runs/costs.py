"""What the networks of a run cost to use, as the columns of its table."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from crossdistill.analysis import cost
from crossdistill.contracts import ModelSpec, Teacher
from crossdistill.teachers import EnsembleTeacher, FrozenTeacher, StoredTeacher


def network_cost(model: nn.Module, spec: ModelSpec) -> dict[str, Any]:
    """Parameters, multiply-accumulates and latency of a network."""
    # Timing must not move the generators that training uses, nor depend on what is left in them.
    with torch.random.fork_rng(devices=[]):
        measured = cost(model, spec.input)
    return {
        "num_parameters": measured.num_parameters,
        "gmacs": measured.gmacs,
        "latency_ms": measured.latency_ms,
    }


def teacher_cost(teacher: Teacher) -> dict[str, Any] | None:
    """Of an ensemble the sum over its members, which answer one after the other; of a stored one what it cost then."""
    if isinstance(teacher, FrozenTeacher):
        return network_cost(teacher.model, teacher.spec)
    if isinstance(teacher, EnsembleTeacher):
        each = [network_cost(one.model, one.spec) for one in teacher.teachers]
        return {key: sum(one[key] for one in each) for key in each[0]}
    if isinstance(teacher, StoredTeacher):
        stored: dict[str, Any] | None = teacher.store.manifest.facts.get("cost")
        return stored
    return None
