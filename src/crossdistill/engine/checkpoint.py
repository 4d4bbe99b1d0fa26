"""Checkpoints: written whole or not at all, hashed, tensors in safetensors and the rest in JSON.

``checkpoints/step-00000120/`` holds ``manifest.json`` (hashes, step, what the run was given, where it ran),
``state.json`` and one safetensors file for each part that has tensors.
A second checkpoint of the same step is ``step-00000120.1``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

from crossdistill.differences import differences, shown
from crossdistill.engine.state import join, split
from crossdistill.errors import InputError
from crossdistill.files import NO_ROOM, sync

SCHEMA = 1
KEEP = 2
"""How many of the newest checkpoints stay on disk."""

MAY_CHANGE = frozenset(
    {
        *("device", "precision", "device_batch_size", "workers", "log_every", "checkpoint_every"),
        *("channels_last", "compile_student", "compile_teacher", "compile_method", "cuda_graphs", "fused_optimizer"),
        *("parallel", "augment_on", "max_corrupt_share"),
    }
)
"""Last words of settings that say where and how fast a run is computed, not what; a resume may change them."""

_NAME = re.compile(r"step-(\d{8,})(?:\.(\d+))?")


class BrokenCheckpoint(Exception):
    """A checkpoint folder whose files are missing, unreadable or not the ones that were written."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint: the state by part (student, method, optimizer, …) and the manifest."""

    path: Path
    state: dict[str, Any]
    manifest: dict[str, Any]


def write(
    folder: Path,
    state: dict[str, Any],
    *,
    step: int,
    epoch: int,
    fingerprint: dict[str, Any],
    environment: dict[str, Any],
    keep_steps: Collection[int] = (),
) -> Path:
    """Write ``state`` as the newest checkpoint below ``folder`` and drop old ones.

    Args:
        folder: made where missing.
        state: part -> nested state dict.
        step, epoch: finished optimiser steps, and the epoch that the next one belongs to.
        fingerprint: what the run was given (settings, seed, teacher's hash); a resume must be given the same.
        environment: where it ran; a resume elsewhere warns.
        keep_steps: checkpoints of these steps stay, beside the newest two.

    Raises:
        InputError: the disk is full or may not be written; the checkpoints that exist are as they were.
    """
    files = _encode(state)
    manifest = {
        "schema": SCHEMA,
        "step": step,
        "epoch": epoch,
        "fingerprint": fingerprint,
        "environment": environment,
        "files": {n: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in files.items()},
    }
    files["manifest.json"] = _json(manifest)
    partial = folder / f"step-{step:08d}.tmp-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _free_name(folder, step)
        _write_files(partial, files)
        partial.rename(path)
        sync(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise _refused(folder, error, sum(map(len, files.values()))) from error
    _prune(folder, keep_steps)
    return path


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose hashes verify; broken ones are skipped with a warning. ``None`` where there is none.

    Raises:
        InputError: there are checkpoints, but none is whole.
    """
    paths = sorted(_checkpoints(folder), key=_order, reverse=True)
    for path in paths:
        try:
            return load(path)
        except BrokenCheckpoint as error:
            warnings.warn(f"skipping checkpoint {path}: {error}", stacklevel=2)
    if paths:
        raise InputError(
            f"{folder}, where none of {len(paths)} checkpoints is whole",
            "at least one checkpoint whose files match its manifest",
            "restore them from a backup, or remove the folder to start anew",
        )
    return None


def at_step(folder: Path, step: int) -> Path | None:
    """The checkpoint folder of that step, the last written where there are several."""
    paths = [path for path in _checkpoints(folder) if _order(path)[0] == step]
    return max(paths, key=_order, default=None)


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        BrokenCheckpoint: a file is missing, cut short, or altered.
        InputError: written by a newer version.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        if manifest["schema"] > SCHEMA:
            raise InputError(
                f"checkpoint {path} of schema {manifest['schema']}",
                f"schema {SCHEMA} or older",
                "resume with the crossdistill that wrote it",
            )
        contents = {name: _verified(path / name, facts) for name, facts in manifest["files"].items()}
        skeleton = json.loads(contents.pop("state.json"))
        tensors = {name.removesuffix(".safetensors"): safetensors.torch.load(c) for name, c in contents.items()}
        state = {part: join(child, tensors.get(part, {})) for part, child in skeleton.items()}
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise BrokenCheckpoint(str(error) or type(error).__name__) from error
    return Checkpoint(path, state, manifest)


def check_same(path: Path, recorded: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse a resume with another fingerprint (settings, seed, teacher) than the checkpoint's.

    Raises:
        InputError: naming the keys that differ, with both values.
    """
    found = differences(recorded, given, was="was")
    changed = {key: phrase for key, phrase in found.items() if key.rpartition(".")[2] not in MAY_CHANGE}
    if changed:
        changed_teacher = any(key.split(".")[0] in ("teacher", "teachers") for key in changed)
        what = "another teacher" if changed_teacher else "other settings"
        raise InputError(
            f"resume from {path} with {what} ({shown(list(changed.values()))})",
            "what the run was started with",
            "give the same again, or start anew in another folder",
        )


def warn_of_changes(recorded: dict[str, Any], here: dict[str, Any]) -> None:
    """Say which facts of the environment differ, since the run then goes on, but not bit for bit."""
    changed = [key for key in here if key in recorded and recorded[key] != here[key]]
    if changed:
        each = ", ".join(f"{key} {recorded[key]} -> {here[key]}" for key in changed)
        warnings.warn(f"resumed elsewhere ({each}): the result will not be bit-identical", stacklevel=2)


def remove_partial(folder: Path) -> None:
    """Remove what a killed process left half-written."""
    for path in folder.glob("step-*.tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def _encode(state: dict[str, Any]) -> dict[str, bytes]:
    skeletons, files = {}, {}
    for part, child in state.items():
        skeletons[part], tensors = split(child)
        if tensors:
            files[f"{part}.safetensors"] = safetensors.torch.save(tensors)
    files["state.json"] = _json(skeletons)
    return files


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False).encode()


def _verified(path: Path, facts: dict[str, Any]) -> bytes:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != facts["sha256"]:
        raise BrokenCheckpoint(f"{path.name} ({len(content)} of {facts['bytes']} bytes) is not what was written")
    return content


def _write_files(folder: Path, files: dict[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        with (folder / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    sync(folder)


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]


def _order(path: Path) -> tuple[int, int]:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def _free_name(folder: Path, step: int) -> str:
    taken = at_step(folder, step)
    return f"step-{step:08d}" + ("" if taken is None else f".{_order(taken)[1] + 1}")


def _prune(folder: Path, keep_steps: Collection[int]) -> None:
    newest = sorted(_checkpoints(folder), key=_order)[-KEEP:]
    kept = {*newest, *(at_step(folder, step) for step in keep_steps)}
    for path in _checkpoints(folder):
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _refused(folder: Path, error: OSError, num_bytes: int) -> InputError:
    existing = next((path for path in (folder, *folder.parents) if path.exists()), Path.cwd())
    free = shutil.disk_usage(existing).free
    action = "make room" if error.errno in NO_ROOM else "make the folder writable"
    return InputError(
        f"checkpoint below {folder} could not be written ({error.strerror}): {num_bytes:,} bytes needed, {free:,} free",
        "a folder that can be written and has room",
        f"{action}, then resume; the checkpoints written before are whole and the run goes on from the newest",
    )
