"""``crossdistill.train`` and ``crossdistill.distill``: the commands from Python, with the same settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from crossdistill.runs.plan import execute, make_plan
from crossdistill.runs.results import Results

Network = str | Path | nn.Module


def train(
    model: Network,
    data: str,
    out: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    overrides: Iterable[str] = (),
    resume: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
) -> Results:
    """Train a model on labels.

    Args:
        model: a name as on the command line, or a module with a head for the data's classes.
        data: as for ``--data``.
        out: the folder of the run, made here.
        seeds: several make one table.
        overrides: any setting as ``key=value``, such as ``"train.epochs=5"``.
        resume: go on with what is in ``out``.
        dry_run: build everything, run two steps, write nothing.
        quiet: no progress on the terminal.

    Returns:
        What ``results.json`` holds.

    Raises:
        InputError: anything that the caller can mend.
    """
    modules: dict[str, nn.Module] = {}
    tree = {"student": {"name": network_name(model, "student", modules)}, "data": {"source": data}}
    plan = make_plan(tree, overrides, seeds=tuple(seeds))
    return execute(plan, Path(out), resume=resume, dry_run=dry_run, quiet=quiet, modules=modules)


def distill(
    teacher: Network | Sequence[Network],
    student: Network,
    data: str,
    out: str | Path,
    *,
    method: str = "kd",
    baseline: bool = False,
    seeds: Sequence[int] = (0,),
    overrides: Iterable[str] = (),
    resume: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
) -> Results:
    """Distil a teacher, or an ensemble of several, into a student of any architecture.

    Args:
        teacher: a trained model, or several: names as on the command line, or modules. Or the folder of a store.
        student: a name, or a module with a head for the data's classes (its weights are where training starts).
        method: a name that ``crossdistill methods`` lists.
        baseline: also train the student alone, to compare with.

    The other arguments, the results and the errors are those of :func:`train`.
    """
    modules: dict[str, nn.Module] = {}
    teachers = [teacher] if isinstance(teacher, str | Path | nn.Module) else list(teacher)
    tree: dict[str, Any] = {
        "student": {"name": network_name(student, "student", modules)},
        "teachers": [{"name": network_name(one, f"teacher{index}", modules)} for index, one in enumerate(teachers)],
        "method": {"name": method},
        "data": {"source": data},
    }
    plan = make_plan(tree, overrides, seeds=tuple(seeds), baseline=baseline)
    return execute(plan, Path(out), resume=resume, dry_run=dry_run, quiet=quiet, modules=modules)


def network_name(network: Network, role: str, modules: dict[str, nn.Module]) -> str:
    """The name that settings record; a module gets one made of its role and class, by which ``modules`` then has it."""
    if not isinstance(network, nn.Module):
        return str(network)
    name = f"{role}:{type(network).__name__}"
    modules[name] = network
    return name
