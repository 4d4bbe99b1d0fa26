"""One run from settings to results: check the teacher, train, measure, export."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from accelerate import Accelerator
from torch import nn

from crossdistill.contracts import ModelSpec
from crossdistill.data.duplicates import crossing
from crossdistill.engine import (
    FitResult,
    Reporter,
    below_student,
    connect,
    evaluate,
    fit,
    from_all,
    on_main,
    reporter,
)
from crossdistill.export import export_student
from crossdistill.runs.compose import Parts, compose
from crossdistill.runs.costs import network_cost, teacher_cost
from crossdistill.runs.folder import RunFolder
from crossdistill.runs.results import Results, Row, few_labels_note, make_results, make_row
from crossdistill.runs.stores import evaluation_of
from crossdistill.settings import Settings
from crossdistill.teachers import StoredTeacher, check_above_chance

DRY_RUN_STEPS = 2
DRY_RUN_BATCHES = 8

TeacherFigures = dict[str, dict[str, Any]]
"""What evaluations of teachers found, by all that may differ between the runs of a plan."""


def run_single(
    settings: Settings,
    folder: RunFolder,
    *,
    resume: bool,
    quiet: bool,
    modules: Mapping[str, nn.Module] | None = None,
    teachers: TeacherFigures | None = None,
) -> Results:
    """Train one student with one seed into a run folder; a finished run is read, not run again.

    Of several processes all train, the main one writes, and all return the same results.

    Args:
        teachers: what runs with the same networks and data have measured of their teachers; this one adds to it.
    """
    accelerator = connect(settings.device, settings.train.precision)
    finished = on_main(lambda: folder.check(settings, resume=resume))
    if finished is not None:
        return finished
    parts = compose(settings, modules)
    on_main(folder.make)
    start = time.perf_counter()
    progress = reporter_for(accelerator, quiet=quiet)
    figures = _measured_before(parts, accelerator, {} if teachers is None else teachers)
    teacher_top1 = _check_teacher(parts, figures, progress, allow=settings.allow_untrained_teacher)
    on_main(lambda: folder.begin(parts.settings))  # not before: with another teacher it would be another run
    fitted = _fit(parts, folder, progress)
    final = fitted.metrics
    parts.warnings.extend([*fitted.warnings, *below_student(fitted, parts.train)])
    if parts.selection_loader is not parts.test_loader:
        final = evaluate(parts.student, parts.test_loader, accelerator=accelerator)
    _note_corrupt(parts)

    def conclude() -> Results:
        _note_crossing(parts)
        rows = [_student_row(parts, final), *_teacher_rows(parts, teacher_top1)]
        metrics = {"top1": final["top1"], "loss": final["loss"]}
        try:
            export_student(parts.student, folder.student, class_names=parts.splits.class_names, metrics=metrics)
        finally:  # a student that cannot be exported must not cost the figures
            num_evaluation = final["num_samples"]
            results = _results(parts, rows, num_evaluation=num_evaluation, seconds=time.perf_counter() - start)
            folder.write_results(results)
        return results

    return on_main(conclude)


def try_out(settings: Settings, *, quiet: bool, modules: Mapping[str, nn.Module] | None = None) -> dict[str, Any]:
    """Build a run and take two steps without writing anything; what was built, in plain data."""
    accelerator = connect(settings.device, settings.train.precision)
    parts = compose(settings, modules)
    progress = reporter_for(accelerator, quiet=quiet)
    figures = _measure_teacher(parts, accelerator, max_batches=DRY_RUN_BATCHES)
    teacher_top1 = _check_teacher(parts, figures, progress, allow=True)
    fitted = _fit(parts, None, progress, max_steps=DRY_RUN_STEPS)
    return {
        "student": plain_spec(parts.student.spec),
        "teacher": plain_spec(parts.teacher.spec) if parts.teacher else None,
        "teacher_top1": teacher_top1,
        "method": {"name": settings.method.name, "num_parameters": num_parameters(parts.method)},
        "num_train": len(parts.train_loader.ids),
        "num_labelled": parts.num_labelled,
        "steps_per_epoch": parts.train_loader.steps_per_epoch,
        "images_per_second": fitted.images_per_second,
        "warnings": parts.warnings,
    }


def _measured_before(parts: Parts, accelerator: Accelerator, known: TeacherFigures) -> dict[str, Any] | None:
    """The teacher's figures, measured unless they are known; a seed tells apart only teachers without weights."""
    own = {"seed", "method", "allow_untrained_teacher"}
    given = parts.settings.model_dump(mode="json", exclude=own)
    key = json.dumps([parts.identity(), given])
    if key not in known:
        figures = _measure_teacher(parts, accelerator)
        if figures is None:
            return None
        known[key] = figures
    return known[key]


def _measure_teacher(parts: Parts, accelerator: Accelerator, max_batches: int | None = None) -> dict[str, Any] | None:
    if parts.teacher is None:
        return None
    if isinstance(parts.teacher, StoredTeacher):  # its network is not here; it was measured when it answered
        return evaluation_of(parts.teacher.store)
    return evaluate(parts.teacher, parts.test_loader, accelerator=accelerator, max_batches=max_batches)


def _check_teacher(parts: Parts, figures: dict[str, Any] | None, progress: Reporter, *, allow: bool) -> float | None:
    """The teacher's accuracy, said before the first step; one at chance is refused unless that is allowed."""
    teacher = parts.teacher
    if teacher is None or figures is None:
        return None
    top1: float = figures["top1"]
    num_images = figures["num_samples"]
    split = figures.get("split", parts.splits.evaluation_name)
    shown = f"{split} ({num_images} {'image' if num_images == 1 else 'images'})"
    progress.message(f"teacher {teacher.spec.name}: top-1 {top1:.2%} on {shown}")
    warning = check_above_chance(top1, num_images, teacher.spec.num_classes, allow=allow)
    if warning:
        parts.warnings.append(warning)
        progress.message(f"warning: {warning}")
    return top1


def _fit(parts: Parts, folder: RunFolder | None, progress: Reporter, *, max_steps: int | None = None) -> FitResult:
    settings = parts.settings
    given = settings.model_dump(mode="json", include={"data", "method", "student"}) | parts.identity()
    return fit(
        parts.student,
        parts.method,
        parts.teacher,
        parts.train_loader,
        parts.selection_loader,
        settings=parts.train,
        seed=settings.seed,
        device=settings.device,
        out=folder.root if folder else None,
        fingerprint=given,
        reporter=progress,
        max_steps=max_steps,
    )


def _student_row(parts: Parts, final: dict[str, Any]) -> Row:
    method = parts.settings.method.name
    distilled = parts.teacher is not None
    return make_row(
        "distilled" if distilled else "student_alone",
        parts.student.spec.name,
        method=method if distilled else None,
        seed=parts.settings.seed,
        top1=final["top1"],
        folder=".",
        cost=network_cost(parts.student, parts.student.spec),
        num_labels=parts.num_labelled,
    )


def _teacher_rows(parts: Parts, top1: float | None) -> list[Row]:
    teacher = parts.teacher
    if teacher is None or top1 is None:
        return []
    name, seed = teacher.spec.name, parts.settings.seed
    return [make_row("teacher", name, seed=seed, top1=top1, folder=None, cost=teacher_cost(teacher))]


def _note_corrupt(parts: Parts) -> None:
    own = parts.train_loader.corrupt | parts.selection_loader.corrupt | parts.test_loader.corrupt
    parts.warnings.extend(corrupt_notes(own))


def corrupt_notes(own: Mapping[str, str]) -> list[str]:
    """A warning that names unreadable images, if there are any; each process has met only its own."""
    corrupt: dict[str, str] = {}
    for one in from_all(dict(own)):
        corrupt |= one
    if not corrupt:
        return []
    first = "; ".join(f"{where} ({reason})" for where, reason in list(corrupt.items())[:3])
    what = "1 unreadable image was" if len(corrupt) == 1 else f"{len(corrupt)} unreadable images were"
    return [f"{what} left out: {first}{' …' if len(corrupt) > 3 else ''}"]


def _note_crossing(parts: Parts) -> None:
    """Warnings about images that were trained on, and that accuracy is measured on or the best epoch chosen by."""
    splits = parts.splits
    used = {"accuracy is measured on": splits.evaluation}
    if splits.validation is not None and parts.settings.train.select == "best":
        used["the best epoch is chosen by"] = splits.validation
    warnings = [crossing(splits.train, one, parts.train_loader.ids, purpose=purpose) for purpose, one in used.items()]
    parts.warnings.extend(warning for warning in warnings if warning is not None)


def _results(parts: Parts, rows: list[Row], *, num_evaluation: int, seconds: float) -> Results:
    settings = parts.settings
    if parts.num_labelled < parts.num_train and parts.teacher is not None:
        parts.warnings.append(few_labels_note(parts.num_labelled, parts.num_train))
    return make_results(
        "distill" if parts.teacher else "train",
        rows,
        data={
            "source": settings.data.source,
            "num_classes": len(parts.splits.class_names),
            "num_train": len(parts.train_loader.ids),
            "num_labelled": parts.num_labelled,
            "evaluation_split": parts.splits.evaluation_name,
            "num_evaluation": num_evaluation,
        },
        store=_store_facts(parts),
        identity=parts.identity(),
        settings=settings.model_dump(mode="json"),
        seconds=seconds,
        warnings=parts.warnings,
    )


def _store_facts(parts: Parts) -> dict[str, Any] | None:
    """What of the teacher's answers was stored, and to which images; ``None`` of a live teacher."""
    if not isinstance(parts.teacher, StoredTeacher):
        return None
    store = parts.teacher.store
    facts = {"path": str(store.path), "num_classes": store.manifest.num_classes, **asdict(store.manifest.keep)}
    facts["num_epochs"] = store.num_epochs()
    return facts | store.fact(
        "its precision and the seed of its images",
        lambda manifest: {
            "precision": str(manifest.identity["teacher"]["precision"]),
            "seed": int(manifest.identity["images"]["seed"]),
        },
    )


def reporter_for(accelerator: Accelerator, *, quiet: bool) -> Reporter:
    """Shows progress where there is somebody to see it: in the main process, unless it is to be quiet."""
    return reporter("quiet" if quiet or not accelerator.is_main_process else "auto")


def num_parameters(module: nn.Module) -> int:
    """Of a network or a method."""
    return sum(parameter.numel() for parameter in module.parameters())


def plain_spec(spec: ModelSpec) -> dict[str, Any]:
    """The facts of a network as plain data, without the names of its classes."""
    return {key: value for key, value in asdict(spec).items() if key != "class_names"}
