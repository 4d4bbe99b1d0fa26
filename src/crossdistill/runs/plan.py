"""A plan: one run or several (seeds, baseline), executed into one folder with one table and one report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from crossdistill import settings as settings_room
from crossdistill.engine import connect, on_main, process, reporter
from crossdistill.errors import InputError
from crossdistill.report import write_report
from crossdistill.runs.compose import compose
from crossdistill.runs.folder import RunFolder
from crossdistill.runs.objective import resolve_method
from crossdistill.runs.results import Results, merge
from crossdistill.runs.single import TeacherFigures, run_single, try_out
from crossdistill.runs.stores import check_seeds as check_stored_seeds
from crossdistill.settings import MethodSettings, Settings


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: settings, over which seeds, and whether the student is also trained alone to compare with."""

    settings: Settings
    seeds: tuple[int, ...] = (0,)
    baseline: bool = False

    @property
    def kind(self) -> str:
        """``train`` without a teacher, ``distill`` with one."""
        return "distill" if self.settings.teachers else "train"

    def members(self) -> dict[str, Settings]:
        """The single runs by their folder below the plan's; "." where there is only one."""
        variants = {_variant(self.settings): self.settings}
        if self.baseline:
            alone = self.settings.model_copy(update={"method": MethodSettings(name="none"), "teachers": ()})
            variants = {_variant(alone): alone, **variants}
        runs = {
            f"{variant}/seed-{seed}": settings.model_copy(update={"seed": seed})
            for seed in self.seeds
            for variant, settings in variants.items()
        }
        return runs if len(runs) > 1 else {".": next(iter(runs.values()))}


def _variant(settings: Settings) -> str:
    """What tells the members of a plan apart, beside their seeds: how the student is trained."""
    return settings.method.name if settings.teachers else "student_alone"


def make_plan(
    tree: dict[str, Any], overrides: Iterable[str] = (), *, seeds: tuple[int, ...] = (0,), baseline: bool = False
) -> Plan:
    """Validate a tree of settings with overrides; every member of the plan takes its seed from ``seeds``.

    Raises:
        InputError: settings that are wrong, also when nothing else has been looked at yet.
    """
    overrides = list(overrides)
    if "seed" in tree or any(override.partition("=")[0] == "seed" for override in overrides):
        raise InputError("seed=… among the settings", "seeds in one place", "use --seeds 0 or --seeds 0,1,2")
    check_seeds(seeds)
    settings = settings_room.load(tree, overrides)
    if baseline and not settings.teachers:
        raise InputError("--baseline without a teacher", "a distillation to compare with", "drop --baseline")
    name, options = resolve_method(settings.method.name, settings.method.options)
    settings = settings.model_copy(update={"method": MethodSettings(name=name, **options)})
    return Plan(settings.model_copy(update={"seed": seeds[0]}), seeds, baseline)


def check_seeds(seeds: Any) -> tuple[int, ...]:
    """The seeds of a plan: different whole numbers from 0, at least one.

    Raises:
        InputError: anything else.
    """
    numbers = list(seeds) if isinstance(seeds, list | tuple) else []
    whole = all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in numbers)
    if not numbers or not whole or len(set(numbers)) < len(numbers):
        raise InputError(f"seeds {seeds!r}", "different whole numbers from 0, such as [0, 1, 2]", "correct the seeds")
    return tuple(numbers)


def execute(
    plan: Plan,
    out: Path,
    *,
    resume: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    modules: Mapping[str, nn.Module] | None = None,
) -> Results:
    """Carry out a plan and write its table and report; finished members of a resumed plan are not run again.

    Args:
        out: the folder of the run, made here.
        resume: go on with what is in ``out``.
        dry_run: build everything, run two steps of each kind of member, write nothing.
        quiet: no progress on the terminal.
        modules: networks given as objects, by the name that the settings use for them.
    """
    members = plan.members()
    check_stored_seeds(plan.settings, plan.seeds, modules or ())
    if dry_run:
        RunFolder(out).check(plan.settings, resume=resume, several=len(members) > 1)
        by_variant = {_variant(settings): settings for settings in members.values()}
        return {
            "dry_run": {name: try_out(one, quiet=quiet, modules=modules) for name, one in by_variant.items()},
        }
    results = run_members(plan.kind, members, out, plan.settings, resume=resume, quiet=quiet, modules=modules)
    on_main(lambda: write_report(out))
    return results


def run_members(
    kind: str,
    members: Mapping[str, Settings],
    out: Path,
    settings: Settings,
    *,
    resume: bool,
    quiet: bool,
    modules: Mapping[str, nn.Module] | None = None,
) -> Results:
    """Run single runs into folders below ``out`` and merge their results there; ``settings`` stands for them all."""
    root = RunFolder(out)
    if set(members) == {"."}:
        return run_single(members["."], root, resume=resume, quiet=quiet, modules=modules)
    connect(settings.device, settings.train.precision)
    recorded = on_main(lambda: root.check(settings, resume=resume, several=True))
    _check_members(members, out, modules)
    parts: list[tuple[str, Results]] = []
    teachers: TeacherFigures = {}
    progress = reporter("quiet" if quiet or process()[0] else "auto")
    for index, (name, member) in enumerate(members.items(), start=1):
        progress.message(f"run {index} of {len(members)}: {name}")
        folder = RunFolder(out / name)
        results = run_single(member, folder, resume=resume, quiet=quiet, modules=modules, teachers=teachers)
        on_main(lambda: root.begin(settings))  # not before: settings that cannot be built leave no folder behind
        parts.append((name, results))

    def conclude() -> Results:
        merged = merge(kind, parts, settings=settings.model_dump(mode="json"))
        if recorded is not None and recorded["rows"] == merged["rows"]:
            return recorded
        root.write_results(merged)
        return merged

    return on_main(conclude)


def _check_members(members: Mapping[str, Settings], out: Path, modules: Mapping[str, nn.Module] | None) -> None:
    """Refuse what cannot be built before the first run, and not after hours of training the others.

    Each way to train is built once and let go again, whatever the seeds; that of the first run is built there.
    """
    left = [settings for name, settings in members.items() if not RunFolder(out / name).finished]
    ways = {settings.model_dump_json(exclude={"seed"}): settings for settings in reversed(left)}
    for settings in [one for one in reversed(ways.values()) if one is not left[0]]:
        compose(settings, modules)
