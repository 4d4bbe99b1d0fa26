"""Asking a teacher once about every image of so many epochs, and keeping its answers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from crossdistill.contracts import Batch, Outputs
from crossdistill.engine import connect, evaluate, from_all, on_main, process
from crossdistill.engine.hold import to_channels_last
from crossdistill.engine.interrupt import StopSignal
from crossdistill.errors import InputError, Interrupted
from crossdistill.runs.costs import teacher_cost
from crossdistill.runs.identity import WORDS
from crossdistill.runs.results import command_line
from crossdistill.runs.store_pass import Order, StorePass, compose_pass
from crossdistill.runs.store_settings import StoreSettings
from crossdistill.runs.store_trial import check_answers
from crossdistill.runs.stores import evaluation_of
from crossdistill.store import Keep, Manifest, Store, StoreWriter, check_folder, is_store
from crossdistill.store.shard import shard_path
from crossdistill.teachers import check_above_chance

DRY_RUN_BATCHES = 2
DRY_RUN_EVALUATION_BATCHES = 8

_INTERRUPTED = "interrupted; the shards that are written are whole, and the same command goes on with the rest"

Place = tuple[int, int]
"""Epoch and shard."""


@dataclass(frozen=True, slots=True)
class Written:
    """How far this process is: images asked of how many, bytes written, and seconds."""

    images: int
    total_images: int
    num_bytes: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Over all that was done so far."""
        return self.images / self.seconds if self.seconds > 0 else 0.0


Watch = Callable[[Written], None]


def store_teacher(
    settings: StoreSettings,
    out: Path,
    *,
    epochs: int,
    keep: Keep | None = None,
    part: tuple[int, int] = (1, 1),
    shard_size: int | None = None,
    dry_run: bool = False,
    watch: Watch | None = None,
    say: Callable[[str], None] = print,
    modules: Mapping[str, nn.Module] | None = None,
) -> dict[str, Any]:
    """Write the shards of the first ``epochs`` that are not there yet; the same call goes on where another stopped.

    Of several processes each writes its share of the missing shards, and all return the same report.

    Args:
        settings: teachers and images.
        out: the store's folder, made here.
        epochs: how many, counted from the first; more than there are append.
        keep: what is kept of each answer; default all logits.
        part: (I, N): only every N-th shard, from the I-th on; independent jobs with the other parts write the others.
        shard_size: positions of an epoch that a shard holds, made even or a multiple of an odd batch size where images
            are mixed; default about 16 MB, or as the store has.
        dry_run: ask about two batches and say how large the store will be; write nothing.
        watch: told how far this process is.
        say: told what is worth saying once.
        modules: networks given as objects, by the name that the settings use for them.

    Raises:
        InputError: anything that the caller can mend: another store in ``out``, a teacher at chance, a full disk, …
        Interrupted: SIGINT or SIGTERM came; whole shards stay, and the same call goes on.
    """
    _check(epochs, part, settings.data.cycle_epochs)
    accelerator = connect(settings.device, settings.train.precision)
    asked = compose_pass(settings, keep or Keep(), shard_size, _begun(out), modules)
    if settings.train.channels_last:
        to_channels_last(asked.teacher)
    asked.teacher.to(accelerator.device)
    if dry_run:
        return _try_out(asked, out, epochs, accelerator, say)
    writer = _open(asked, out, accelerator, say)
    missing = on_main(partial(writer.missing, epochs))
    unreadable = on_main(lambda: writer.unreadable(missing))
    places = _own(missing, writer.manifest.num_shards, part)
    rank, num_processes = process()
    start = time.perf_counter()
    written = _write(asked, writer, places[rank::num_processes], accelerator, watch)
    return _report(asked, writer, epochs, missing, unreadable, written, seconds=time.perf_counter() - start)


def is_main_process() -> bool:
    """Whether this process speaks for all of them."""
    return process()[0] == 0


def _begun(out: Path) -> Manifest | None:
    """What the store in this folder holds, if there is one."""
    return Store.open(out).manifest if is_store(out) else None


def _check(epochs: int, part: tuple[int, int], cycle_epochs: int | None) -> None:
    if epochs < 1:
        raise InputError(f"--epochs {epochs}", "at least 1", "give the epochs that runs are to show")
    if cycle_epochs is not None and epochs > cycle_epochs:
        raise InputError(
            f"--epochs {epochs} with data.cycle_epochs={cycle_epochs}",
            f"at most {cycle_epochs}: runs show the first {cycle_epochs} again and again",
            f"give --epochs {cycle_epochs}, or leave out data.cycle_epochs",
        )
    if not 1 <= part[0] <= part[1]:
        raise InputError(f"--part {part[0]}/{part[1]}", "I/N with I from 1 to N", "number the jobs from 1")


def _open(asked: StorePass, out: Path, accelerator: Accelerator, say: Callable[[str], None]) -> StoreWriter:
    """The store, made or compared; a teacher is measured once, by whoever begins it."""
    begun = on_main(lambda: is_store(out))
    facts: dict[str, Any] = {}
    if not begun:
        on_main(lambda: check_folder(out))  # now, before the teacher is measured
        evaluation = _measure(asked, accelerator, None)
        _judge(asked, evaluation, say)
        facts = {"evaluation": evaluation, "cost": teacher_cost(asked.teacher), **asked.facts()}
        facts["command"] = command_line()  # which writes again what is lost
    else:
        on_main(lambda: _compare(asked, Store.open(out), accelerator))
    stored = on_main(lambda: StoreWriter.open(out, asked.manifest(facts)).manifest)
    if begun:
        _judge(asked, evaluation_of(Store(out, stored)), say)
    return StoreWriter(out, stored)


def _compare(asked: StorePass, store: Store, accelerator: Accelerator) -> None:
    """Refuse to go on with a store of other images or of another teacher."""
    store.check_same(asked.identity, WORDS)
    changed = store.manifest.differences(asked.manifest({}))
    if changed:
        return  # what is kept, or its shards, which the writer refuses

    def answer(epoch: int, samples: Order) -> tuple[Tensor, Tensor, list[Tensor]] | None:
        batch = asked.loader.batch(epoch, samples)
        if batch is None:
            return None
        rows = _Rows(store.manifest)
        rows.add(batch, _ask(asked, batch, accelerator))
        return rows.all()

    check_answers(asked, store, answer)


def _measure(asked: StorePass, accelerator: Accelerator, max_batches: int | None) -> dict[str, Any]:
    figures = evaluate(
        asked.teacher,
        asked.test_loader,
        accelerator=accelerator,
        max_batches=max_batches,
        channels_last=asked.settings.train.channels_last,
    )
    kept = {key: figures[key] for key in ("top1", "loss", "num_samples")}
    return {"split": asked.splits.evaluation_name, "source_sha256": asked.evaluation_sha256, **asked.protocol, **kept}


def _judge(asked: StorePass, evaluation: dict[str, Any], say: Callable[[str], None], *, allow: bool = False) -> None:
    """Say how good the teacher is, and refuse one that guesses, unless that is allowed."""
    teacher, top1, num_images = asked.teacher, evaluation["top1"], evaluation["num_samples"]
    say(f"teacher {teacher.spec.name}: top-1 {top1:.2%} on {evaluation['split']} ({num_images} images)")
    allow = allow or asked.settings.allow_untrained_teacher
    warning = check_above_chance(top1, num_images, teacher.spec.num_classes, allow=allow)
    if warning:
        asked.warn(warning, say)


def _own(missing: list[Place], num_shards: int, part: tuple[int, int]) -> list[Place]:
    """Those of this part. Jobs start at different times, so shards are dealt out by number, not by what is missing."""
    index, count = part
    return [(epoch, shard) for epoch, shard in missing if (epoch * num_shards + shard) % count == index - 1]


def _write(
    asked: StorePass, writer: StoreWriter, places: list[Place], accelerator: Accelerator, watch: Watch | None
) -> Written:
    """Fill these shards, one after the other."""
    manifest = writer.manifest
    total = sum(len(manifest.positions(shard)) for _, shard in places)
    start, done, num_bytes = time.perf_counter(), Written(0, total, 0, 0.0), 0
    with StopSignal() as stop:
        for epoch, own in groupby(places, key=itemgetter(0)):
            shards = [shard for _, shard in own]
            for shard, rows in _answered(asked, epoch, shards, manifest, accelerator, stop):
                writer.write(epoch, shard, *rows)
                num_bytes += shard_path(writer.path, epoch, shard).stat().st_size
                images = done.images + len(manifest.positions(shard))
                done = Written(images, total, num_bytes, time.perf_counter() - start)
                if watch is not None:
                    watch(done)
    return done


def _answered(
    asked: StorePass, epoch: int, shards: list[int], manifest: Manifest, accelerator: Accelerator, stop: StopSignal
) -> Iterator[tuple[int, tuple[Tensor, Tensor, list[Tensor]]]]:
    """The rows of each shard: samples ``(n, 2)``, logits ``(n, K)``, embeddings ``(n, D)`` of each teacher."""
    order = asked.order(epoch)
    chunks = {shard: asked.chunks(order, manifest.positions(shard)) for shard in shards}
    batches = asked.loader.answers([(epoch, one) for parts in chunks.values() for one in parts])
    for shard, parts in chunks.items():
        rows = _Rows(manifest)
        for _ in parts:
            batch = next(batches)
            if stop.requested:
                raise Interrupted(_INTERRUPTED)
            if batch is not None:
                rows.add(batch, _ask(asked, batch, accelerator))
        yield shard, rows.all()


def _ask(asked: StorePass, batch: Batch, accelerator: Accelerator) -> Outputs:
    moved = batch.to(accelerator.device, channels_last=asked.settings.train.channels_last)
    with torch.no_grad(), accelerator.autocast():
        return asked.teacher.signals(moved)


class _Rows:
    """The answers to one shard's images, where the teacher gave them, so that no batch waits for the host."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.samples: list[Tensor] = [torch.empty((0, 2), dtype=torch.int64)]
        self.logits: list[Tensor] = []
        self.embeddings: list[list[Tensor]] = [[] for _ in manifest.embedding_dims]

    def add(self, batch: Batch, answer: Outputs) -> None:
        """Those of one batch."""
        assert batch.samples is not None  # our own loader says what was asked for
        self.samples.append(batch.samples)
        self.logits.append(answer.require("logits").float())
        members = (answer,) if answer.members is None else answer.members
        for rows, member in zip(self.embeddings, members, strict=False):
            rows.append(member.require("embedding").float())

    def all(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """One tensor of each; of a shard none of whose images can be read, empty ones."""
        nothing = [torch.empty((0, self.manifest.num_classes))]
        dims = self.manifest.embedding_dims
        each = [torch.cat(rows or [torch.empty((0, dim))]) for rows, dim in zip(self.embeddings, dims, strict=True)]
        return torch.cat(self.samples), torch.cat(self.logits or nothing), each


def _try_out(
    asked: StorePass, out: Path, epochs: int, accelerator: Accelerator, say: Callable[[str], None]
) -> dict[str, Any]:
    """Two batches, and what the whole will come to."""
    manifest = asked.manifest({})
    if is_store(out):
        _compare(asked, Store.open(out), accelerator)
        StoreWriter.open(out, manifest)
    evaluation = _measure(asked, accelerator, DRY_RUN_EVALUATION_BATCHES)
    _judge(asked, evaluation, say, allow=True)
    chunks = asked.chunks(asked.order(0), range(manifest.num_samples))[:DRY_RUN_BATCHES]
    start, num_images = time.perf_counter(), 0
    for batch in asked.loader.answers([(0, one) for one in chunks]):
        if batch is not None:
            rows = _Rows(manifest)
            rows.add(batch, _ask(asked, batch, accelerator))
            num_images += len(rows.all()[1].cpu())
    rate = num_images / (time.perf_counter() - start)
    total_images = epochs * manifest.num_samples
    total_bytes = total_images * manifest.bytes_per_sample()
    _note_room(asked, out, total_bytes, say)
    return {
        "kind": "store_dry_run",
        **asked.described(evaluation),
        "epochs": epochs,
        "shard_size": manifest.shard_size,
        "num_shards": epochs * manifest.num_shards,
        "bytes_per_image": manifest.bytes_per_sample(),
        "total_bytes": total_bytes,
        "images_per_second": rate,
        "seconds_left": total_images / rate if rate else None,
        "warnings": asked.warnings,
    }


def _note_room(asked: StorePass, out: Path, total_bytes: int, say: Callable[[str], None]) -> None:
    existing = next(one for one in (out, *out.absolute().parents) if one.exists())
    free = shutil.disk_usage(existing).free
    if total_bytes > free:
        asked.warn(f"{total_bytes / 2**30:.2f} GiB for a disk with {free / 2**30:.2f} GiB free", say)


def _report(
    asked: StorePass,
    writer: StoreWriter,
    epochs: int,
    missing: list[Place],
    unreadable: list[Place],
    written: Written,
    *,
    seconds: float,
) -> dict[str, Any]:
    """What all processes have done, and what is there now; of the shards, those that were missing are looked at."""
    everyone = from_all((written, asked.corrupt))
    corrupt = {where: reason for _, one in everyone for where, reason in one.items()}

    def conclude() -> dict[str, Any]:
        store = Store(writer.path, writer.manifest)
        still = writer.still_missing(missing)
        images = sum(one.images for one, _ in everyone)
        replaced = [(epoch, shard) for epoch, shard in unreadable if (epoch, shard) not in still]
        again = [f"epoch {epoch} shard {shard} could not be read and was written anew" for epoch, shard in replaced]
        return {
            "kind": "store",
            **asked.described(evaluation_of(store)),
            "epochs": epochs,
            "num_epochs": still[0][0] if still else store.num_epochs(epochs),
            "missing_shards": len(still),
            "images_written": images,
            "bytes_written": sum(one.num_bytes for one, _ in everyone),
            "bytes_per_image": store.manifest.bytes_per_sample(),
            "seconds": seconds,
            "images_per_second": images / seconds if seconds > 0 else 0.0,
            "skipped": corrupt,
            "warnings": asked.warnings + again,
        }

    return on_main(conclude)
