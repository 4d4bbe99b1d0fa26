"""One pretraining run, or several seeds of it, from settings to a folder that names a network for what follows."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from crossdistill.contracts import Batch
from crossdistill.engine import FitResult, Reporter, connect, fit, on_main, process, reporter
from crossdistill.export import export_student
from crossdistill.models import StagedModel
from crossdistill.models.checkpoint import PROBED
from crossdistill.report import write_report
from crossdistill.runs.api import network_name
from crossdistill.runs.costs import network_cost
from crossdistill.runs.folder import RunFolder
from crossdistill.runs.plan import check_seeds
from crossdistill.runs.results import Results, Row, make_results, make_row, merge
from crossdistill.runs.single import DRY_RUN_STEPS, corrupt_notes, num_parameters, plain_spec, reporter_for
from crossdistill.selfsup.compose import Parts, compose
from crossdistill.selfsup.features import Features
from crossdistill.selfsup.knn import knn_accuracy
from crossdistill.selfsup.linear import LinearProbe, install_probe, linear_probe, probe_accuracy
from crossdistill.selfsup.pictures import draw_words
from crossdistill.selfsup.recalibrate import mixed_batches, recalibrate
from crossdistill.selfsup.settings import PretrainSettings, load_settings

KIND = "pretrain"
NEIGHBOURS, LINEAR = "k-NN", "linear probe"


def pretrain(
    model: str | Path | nn.Module,
    data: str,
    out: str | Path,
    *,
    teacher: str | Path | nn.Module | None = None,
    seeds: Sequence[int] = (0,),
    overrides: Iterable[str] = (),
    resume: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
) -> Results:
    """Learn a representation without labels: predict the bags of visual words of a teacher.

    Args:
        model: a name as on the command line, or a module: a CNN, transformer or MLP.
        data: as for ``--data``; labels are never read in training.
        out: the folder of the run, made here; by its name the network initialises a student or serves as a teacher.
        teacher: a trained network whose words are predicted; default the student's own moving average (OBoW).
        seeds: several make one table.
        overrides: any setting as ``key=value``, such as ``"method.num_words=2048"``.
        resume: go on with what is in ``out``.
        dry_run: build everything, run two steps, write nothing.
        quiet: no progress on the terminal.

    Returns:
        What ``results.json`` holds.

    Raises:
        InputError: anything that the caller can mend.
    """
    modules: dict[str, nn.Module] = {}
    tree: dict[str, Any] = {"student": {"name": network_name(model, "model", modules)}, "data": {"source": data}}
    if teacher is not None:
        tree["teacher"] = {"name": network_name(teacher, "teacher", modules)}
    settings = load_settings(tree, overrides)
    return execute(settings, Path(out), seeds=seeds, resume=resume, dry_run=dry_run, quiet=quiet, modules=modules)


def execute(
    settings: PretrainSettings,
    out: Path,
    *,
    seeds: Sequence[int] = (0,),
    resume: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    modules: Mapping[str, nn.Module] | None = None,
) -> Results:
    """Carry out a run for each seed and write its table and report; finished seeds are not run again."""
    check_seeds(list(seeds))
    members = {f"pretrained/seed-{seed}": settings.model_copy(update={"seed": seed}) for seed in seeds}
    if len(members) == 1:
        members = {".": next(iter(members.values()))}
    root = RunFolder(out)
    on_main(lambda: root.check(settings, resume=resume, several=len(members) > 1) if len(members) > 1 else None)
    if dry_run:
        RunFolder(out).check(members.get(".", settings), resume=resume, several=len(members) > 1)
        return {"dry_run": {KIND: try_out(next(iter(members.values())), quiet=quiet, modules=modules)}}
    results = _run_members(members, root, settings, resume=resume, quiet=quiet, modules=modules)
    on_main(lambda: write_report(out))
    return results


def _run_members(
    members: Mapping[str, PretrainSettings], root: RunFolder, settings: PretrainSettings, **options: Any
) -> Results:
    if set(members) == {"."}:
        return run_single(members["."], root, **options)
    connect(settings.device, settings.train.precision)
    parts = []
    progress = reporter("quiet" if options["quiet"] or process()[0] else "auto")
    for index, (name, member) in enumerate(members.items(), start=1):
        progress.message(f"run {index} of {len(members)}: {name}")
        parts.append((name, run_single(member, RunFolder(root.root / name), **options)))
        on_main(lambda: root.begin(settings))

    def conclude() -> Results:
        merged = merge(KIND, parts, settings=settings.model_dump(mode="json"))
        root.write_results(merged)
        return merged

    return on_main(conclude)


def run_single(
    settings: PretrainSettings,
    folder: RunFolder,
    *,
    resume: bool,
    quiet: bool,
    modules: Mapping[str, nn.Module] | None = None,
) -> Results:
    """Pretrain one network with one seed into a run folder; a finished run is read, not run again."""
    accelerator = connect(settings.device, settings.train.precision)
    finished = on_main(lambda: folder.check(settings, resume=resume))
    if finished is not None:
        return finished
    parts = compose(settings, modules)
    on_main(folder.make)
    start = time.perf_counter()
    progress = reporter_for(accelerator, quiet=quiet)
    for warning in parts.warnings:
        progress.message(f"note: {warning}")
    on_main(lambda: folder.begin(parts.settings))
    fitted = _fit(parts, folder, progress)
    parts.warnings.extend(fitted.warnings)
    progress.message("measuring what was learnt")
    kept, rows, facts = _conclude(parts, accelerator)
    facts |= {"words": draw_words(parts, folder.root, accelerator)}
    own = parts.train_loader.corrupt | ({} if parts.exam is None else parts.exam.corrupt)
    parts.warnings.extend(corrupt_notes(own))

    def write() -> Results:
        try:
            export_student(kept, folder.student, class_names=parts.class_names, metrics=facts["metrics"])
        finally:  # a network that cannot be exported must not cost the figures
            results = _results(parts, rows, facts, seconds=time.perf_counter() - start)
            folder.write_results(results)
        return results

    return on_main(write)


def try_out(
    settings: PretrainSettings, *, quiet: bool, modules: Mapping[str, nn.Module] | None = None
) -> dict[str, Any]:
    """Build a run and take two steps without writing anything; what was built, in plain data."""
    accelerator = connect(settings.device, settings.train.precision)
    parts = compose(settings, modules)
    fitted = _fit(parts, None, reporter_for(accelerator, quiet=quiet), max_steps=DRY_RUN_STEPS)
    return {
        "student": plain_spec(parts.student.spec),
        "teacher": parts.teacher.fingerprint() if parts.follows else parts.teacher.spec.name,
        "method": {"name": parts.settings.method.name, "num_parameters": num_parameters(parts.method)},
        "views": parts.settings.views.model_dump(mode="json"),
        "num_train": len(parts.train_loader.ids),
        "steps_per_epoch": parts.train_loader.steps_per_epoch,
        "images_per_second": fitted.images_per_second,
        "warnings": parts.warnings,
    }


def _fit(parts: Parts, folder: RunFolder | None, progress: Reporter, *, max_steps: int | None = None) -> FitResult:
    settings = parts.settings
    given = settings.model_dump(mode="json", include={"data", "method", "student", "teacher", "views", "momentum"})
    return fit(
        parts.student,
        parts.method,
        parts.teacher,
        parts.train_loader,
        parts.exam,
        settings=settings.train,
        seed=settings.seed,
        device=settings.device,
        out=folder.root if folder else None,
        fingerprint=given | parts.identity(),
        reporter=progress,
        max_steps=max_steps,
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """A network with its figures, and the features that gave them."""

    network: StagedModel
    top1: float
    bank: Features
    queries: Features


def _conclude(parts: Parts, accelerator: Accelerator) -> tuple[StagedModel, list[Row], dict[str, Any]]:
    """The network to keep, the rows of the table, and further facts; all processes take part."""
    settings = parts.settings.probe
    candidates = {"student": parts.student}
    if parts.follows:
        candidates["teacher"] = parts.teacher.model  # type: ignore[assignment]
    keep = settings.keep if settings.keep in candidates else "student"  # a given teacher is kept where it is
    kept = candidates[keep]
    whole = copy.deepcopy(kept)
    is_other = recalibrate(whole, _whole_images(parts), accelerator)
    if parts.exam is None:
        return whole if settings.recalibrate and is_other else kept, [], {"metrics": {}, "num_evaluation": 0}
    measured = {role: _measure(parts, network, accelerator) for role, network in candidates.items()}
    if is_other:
        measured["recalibrated"] = _measure(parts, whole, accelerator)
    chosen = measured["recalibrated" if settings.recalibrate and "recalibrated" in measured else keep]
    rows = [_row(parts, one, _said(role, keep)) for role, one in measured.items()]
    metrics = {"knn_top1": chosen.top1}
    if settings.linear:
        probe, accuracy = _probe(parts, chosen)
        rows.append(_row(parts, chosen, LINEAR, top1=accuracy))
        if install_probe(chosen.network, probe):
            metrics[PROBED] = accuracy
        else:
            parts.warnings.append(
                f"{chosen.network.spec.name} has a classifier of another form than a linear one on its embedding: it "
                "keeps none, and the linear probe is measured only"
            )
    return chosen.network, rows, {"metrics": metrics, "num_evaluation": len(chosen.queries.targets)}


def _whole_images(parts: Parts) -> Iterator[Batch]:
    source, ids, view = parts.splits.train, parts.train_loader.ids, parts.student.spec.input
    return mixed_batches(source, ids, view, batch_size=min(256, parts.settings.train.batch_size))


def _measure(parts: Parts, network: StagedModel, accelerator: Accelerator) -> Measured:
    assert parts.exam is not None  # checked by whoever asks
    bank, queries = parts.exam.features(network, accelerator)
    probe = parts.settings.probe
    figures = knn_accuracy(
        bank,
        queries,
        num_classes=len(parts.class_names),
        neighbours=min(probe.neighbours, len(bank.targets)),
        temperature=probe.temperature,
    )
    return Measured(network, figures["top1"], bank, queries)


def _probe(parts: Parts, chosen: Measured) -> tuple[LinearProbe, float]:
    """A linear probe on the features of the network that is kept, and its accuracy."""
    probe = linear_probe(chosen.bank, num_classes=len(parts.class_names), seed=parts.settings.seed)
    parts.warnings.extend(probe.warnings)
    return probe, probe_accuracy(probe, chosen.queries)["top1"]


def _said(role: str, kept: str) -> str:
    """How the table calls what was measured."""
    return {
        "student": NEIGHBOURS,
        "teacher": f"{NEIGHBOURS}, averaged teacher",
        "recalibrated": f"{NEIGHBOURS}, {kept} with statistics of whole images",
    }[role]


def _row(parts: Parts, measured: Measured, how: str, *, top1: float | None = None) -> Row:
    return make_row(
        "pretrained",
        parts.student.spec.name,
        method=how,
        seed=parts.settings.seed,
        top1=measured.top1 if top1 is None else top1,
        folder=".",
        cost=network_cost(measured.network, parts.student.spec),
    )


def _results(parts: Parts, rows: list[Row], facts: dict[str, Any], *, seconds: float) -> Results:
    settings = parts.settings
    results = make_results(
        KIND,
        rows,
        data={
            "source": settings.data.source,
            "num_classes": len(parts.splits.class_names),
            "num_train": len(parts.train_loader.ids),
            "num_labelled": 0,
            "evaluation_split": parts.splits.evaluation_name,
            "num_evaluation": facts["num_evaluation"],
        },
        identity=parts.identity(),
        settings=settings.model_dump(mode="json"),
        seconds=seconds,
        warnings=parts.warnings,
    )
    seen = {
        "classes": list(parts.splits.class_names),
        "teacher": parts.teacher.spec.name if not parts.follows else None,
    }
    return results | {"pretraining": seen | {"metrics": facts["metrics"], "words": facts["words"]}}
