"""``crossdistill store``: a teacher's answers, written once for any number of runs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from crossdistill.cli import options as o
from crossdistill.cli.show import print_json, say
from crossdistill.errors import InputError

_SECONDS_BETWEEN_LINES = 10.0

_TIMES = ((120.0, 1.0, "{:.0f} s"), (7200.0, 60.0, "{:.0f} min"), (math.inf, 3600.0, "{:.1f} h"))
"""Below so many seconds: seconds of the unit, and how it is written."""


_Part = Annotated[str, typer.Option("--part", metavar="I/N", help="Write every N-th shard, from the I-th on.")]
_ImageSize = Annotated[
    int | None,
    typer.Option("--image-size", help="What teachers see: height and width in pixels.", show_default="their own"),
]
_Verify = Annotated[
    Path | None,
    typer.Option("--verify", metavar="STORE", help="Check every byte of a store instead.", show_default=False),
]
_RemoveDamaged = Annotated[
    bool, typer.Option("--remove-damaged", help="With --verify: delete damaged shards, to be written anew.")
]
_DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Ask about two batches, say how large it will be, write nothing.")
]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the command line asks of a pass, beside its settings."""

    out: Path
    epochs: int
    top_k: int | None
    embeddings: bool
    part: tuple[int, int]
    shard_size: int | None
    dry_run: bool


def command(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Settings of teachers and data: data.augment.mixup=0.8.", show_default=False
        ),
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option("--teacher", help="A trained model: run folder, NAME@PATH …; repeat for an ensemble."),
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help=o.DATA_HELP, show_default=False)] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Epochs that there are to be; more append.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the store; made here.")] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", help="Keep the K largest logits and the others' mass.", show_default="all")
    ] = None,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Keep embeddings, too (rkd, cc, crd, rsd).")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the images; runs need the same.")] = 0,
    part: _Part = "1/1",
    class_map: o.ClassMap = None,
    image_size: _ImageSize = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Images the teacher is asked at once.", show_default="128")
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="fp32, bf16 or fp16.", show_default="fp32")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda.", show_default="auto")] = None,
    shard_size: Annotated[
        int | None, typer.Option("--shard-size", help="Images of a shard.", show_default="about 16 MB")
    ] = None,
    verify: _Verify = None,
    remove_damaged: _RemoveDamaged = False,
    allow_code: o.AllowCode = False,
    dry_run: _DryRun = False,
    as_json: o.Json = False,
) -> None:
    """Store a teacher's answers to the augmented images of so many epochs; `distill --teacher STORE` takes them up.

    Example:
    crossdistill store --teacher runs/teacher --data folder:photos \\
      --epochs 30 --out stores/teacher
    crossdistill distill --teacher stores/teacher --student timm/resnet18 --data folder:photos \\
      --epochs 30 --out runs/student
    crossdistill store … --out stores/mixed data.augment.mixup=0.8
    crossdistill store … --out stores/teacher --part 1/4
    crossdistill store --verify stores/teacher

    The same command goes on after an interruption; more --epochs append.
    Several processes (torchrun) and jobs (--part 1/4) share the work.
    --class-map and --image-size hold for all teachers; teachers.0.image_size=… sets one.
    """
    wanted = {"--teacher": teacher, "--data": data, "--epochs": epochs, "--out": out}
    if verify is not None or remove_damaged:
        others: dict[str, object] = {**wanted, "--top-k": top_k, "--embeddings": embeddings, "--class-map": class_map}
        others |= {"--seed": seed, "--part": part != "1/1", "--image-size": image_size, "--shard-size": shard_size}
        others |= {"--batch-size": batch_size, "--precision": precision, "--device": device, "--dry-run": dry_run}
        others |= {"--allow-code": allow_code, " ".join(overrides or []): overrides}
        _verify(verify, others, remove_damaged=remove_damaged, as_json=as_json)
        return
    missing = [option for option, value in wanted.items() if not value and value != 0]
    if missing:
        given = f"crossdistill store without {', '.join(missing)}"
        raise InputError(given, "--teacher, --data, --epochs and --out, or --verify STORE", "give these")
    o.at_least(1, epochs=epochs, top_k=top_k, shard_size=shard_size, batch_size=batch_size, image_size=image_size)
    tree = o.settings_tree(
        data__source=data,
        train__batch_size=batch_size,
        train__precision=precision,
        device=device,
        seed=seed,
        allow_code=allow_code or None,
    )
    of_each = o.settings_tree(class_map=class_map, image_size=image_size)
    tree["teachers"] = [{"name": one, **of_each} for one in teacher or ()]
    asked = _Asked(out or Path(), epochs or 0, top_k, embeddings, _part(part), shard_size, dry_run)
    _store(tree, overrides or [], asked, as_json=as_json)


def _store(tree: dict[str, Any], overrides: list[str], asked: _Asked, *, as_json: bool) -> None:
    from crossdistill import runs

    with _progress(quiet=as_json) as (watch, tell):
        found = runs.store_teacher(
            runs.load_store_settings(tree, overrides),
            asked.out,
            epochs=asked.epochs,
            keep=runs.Keep(asked.top_k, asked.embeddings),
            part=asked.part,
            shard_size=asked.shard_size,
            dry_run=asked.dry_run,
            watch=watch,
            say=tell,
        )
    if as_json:
        print_json(found)
    else:
        _show(found, asked.out)


def _verify(path: Path | None, others: dict[str, object], *, remove_damaged: bool, as_json: bool) -> None:
    """Look a store through; ``others`` are what other options say, none of which has a meaning here."""
    if path is None:
        raise InputError("--remove-damaged without --verify STORE", "both", "give --verify STORE as well")
    given = [option for option, value in others.items() if value]
    if given:
        raise InputError(
            f"--verify {path} with {', '.join(given)}",
            "--verify STORE alone, or with --remove-damaged or --json: it looks through all that is there",
            "leave the others out",
        )
    from crossdistill import runs

    found = runs.verify_store(path, remove_damaged=remove_damaged)
    if as_json:
        print_json(found)
    else:
        whole = f"{_epochs(found['num_whole_epochs'])}, {found['num_rows']:,} answers, {_bytes(found['num_bytes'])}"
        say(f"{path}: {whole}; every byte as written")


def _part(text: str) -> tuple[int, int]:
    first, slash, count = text.partition("/")
    if not (slash and first.isdigit() and count.isdigit()):
        raise InputError(f"--part {text!r}", "I/N, such as 1/4", "number the jobs from 1")
    return int(first), int(count)


def _show(found: dict[str, Any], out: Path) -> None:
    images = f"{found['num_images']:,} images an epoch, {found['num_classes']:,} classes"
    lines = {"teacher": f"{found['teacher']}, top-1 {found['teacher_top1']:.1%} on {found['evaluation_split']}"}
    lines["images"] = f"{found['data']}, {images}"
    lines["answers"] = f"{found['bytes_per_image']:,} bytes an image"
    rate = f"{found['images_per_second']:.0f} images/s"
    if found["kind"] == "store_dry_run":
        lines["whole"] = (
            f"{found['epochs']} epochs: about {_bytes(found['total_bytes'])} in {found['num_shards']:,} shards"
        )
        lines["time"] = f"about {_time(found['seconds_left'])} at {rate}" if found["seconds_left"] else "unknown"
    else:
        written = f"{found['images_written']:,} images, {_bytes(found['bytes_written'])}, {rate}"
        lines["written"] = written if found["images_written"] else _nothing_written(found)
        left = f"; {found['missing_shards']} shards of {found['epochs']} epochs to be written by other parts"
        present = f"{_epochs(found['num_epochs'])} present in {out}{left if found['missing_shards'] else ''}"
        lines["store"] = f"{present}; `crossdistill store --verify {out}` checks every byte"
    for key, text in lines.items():
        say(f"{key:>7}: {text}")
    for where, reason in list(found.get("skipped", {}).items())[:3]:
        say(f"   note: left out {where} ({reason})")
    for warning in found["warnings"]:
        say(f"   note: {warning}")
    if found["kind"] == "store_dry_run":
        say("dry run: everything fits together; nothing was written")


def _nothing_written(found: dict[str, Any]) -> str:
    there = "all shards of this part" if found["missing_shards"] else f"all {_epochs(found['epochs'])}"
    return f"nothing to write: {there} are there"


def _epochs(count: int) -> str:
    return f"{count} {'epoch' if count == 1 else 'epochs'}"


def _bytes(count: int) -> str:
    """A size in the unit that suits it.

    >>> _bytes(1536)
    '1.5 KiB'
    """
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def _time(seconds: float | None) -> str:
    """A duration in the unit that suits it.

    >>> _time(90), _time(600), _time(9000), _time(None)
    ('90 s', '10 min', '2.5 h', 'unknown time')
    """
    if seconds is None:
        return "unknown time"
    unit, written = next((unit, written) for limit, unit, written in _TIMES if seconds < limit)
    return written.format(seconds / unit)


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[tuple[Callable[[Any], None] | None, Callable[[str], None]]]:
    """A bar on a terminal, and a line now and then elsewhere; standard output holds the answer alone."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeRemainingColumn

    from crossdistill.runs import is_main_process

    console = Console(stderr=True)
    if quiet or not is_main_process():
        yield None, lambda text: None
        return
    columns = (TextColumn("{task.description}"), *Progress.get_default_columns()[1:2])
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("asking the teacher", total=None)
        shown_at = -_SECONDS_BETWEEN_LINES

        def watch(done: Any) -> None:
            nonlocal shown_at
            rate = f"{done.images_per_second:.0f}/s, {_bytes(done.num_bytes)}"
            text = f"{done.images:,}/{done.total_images:,} images, {rate}"
            progress.update(task, description=text, completed=done.images, total=done.total_images)
            due = done.seconds - shown_at >= _SECONDS_BETWEEN_LINES or done.images == done.total_images
            if due and not console.is_terminal:
                shown_at = done.seconds
                left = (done.total_images - done.images) / max(done.images_per_second, 1e-9)
                console.print(f"{text}, {_time(left)} left", markup=False, highlight=False, soft_wrap=True)

        yield watch, lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)
