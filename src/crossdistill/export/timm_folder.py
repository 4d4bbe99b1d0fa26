"""A student as a folder: one of timm's loads back with timm, any other that was built by name with ``build``."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from crossdistill.contracts import InputSpec
from crossdistill.errors import InputError
from crossdistill.files import write_bytes, write_text, writing
from crossdistill.models import StagedModel
from crossdistill.models.build import network
from crossdistill.models.sources.source import Origin, origin_of

CONFIG, WEIGHTS, LABELS = "config.json", "model.safetensors", "labels.txt"


def export_student(
    model: StagedModel,
    folder: Path,
    *,
    class_names: Sequence[str],
    metrics: Mapping[str, Any],
    check: bool = True,
) -> Path:
    """Write ``config.json``, ``model.safetensors`` and ``labels.txt``; an earlier export there is replaced at once.

    A network of timm loads back with timm (after ``import crossdistill.models`` for architectures that are registered
    there), also one that was given as an object. One that another source built by name loads back with ``build``: its
    ``config.json`` names it as ``build`` takes it. Of any other object ``config.json`` names no architecture, and the
    weights load into the same class.

    Args:
        model: the student; it keeps its device, mode and weights.
        folder: the folder to write; it may hold an earlier export, but nothing else.
        class_names: one name per output of the head, in order.
        metrics: numbers to record in ``config.json``, such as ``{"top1": 0.93}``.
        check: load the folder back and compare logits on random images.

    Raises:
        InputError: names that do not fit the head, a folder that is not writable or holds other files.
        RuntimeError: what was written gives other logits than the model.
    """
    _check_names(model, class_names)
    _check_target(folder)
    with writing(folder), _replacing(folder) as partial:
        write_bytes(partial / WEIGHTS, safetensors.torch.save(_tensors(model.net), metadata={"format": "pt"}))
        write_text(partial / LABELS, "".join(f"{name}\n" for name in class_names))
        facts = {
            "label_names": list(class_names),
            "crossdistill": {"model": model.spec.name, "metrics": dict(metrics)},
        }
        origin = origin_of(model.net)
        if origin is not None:
            problem = _write_for_source(model, origin, partial, facts, check=check)
        else:
            problem = _write_for_timm(model, partial, facts, check=check)
        by_name = timm.is_model(model.spec.name) or (origin is not None and origin.architecture == model.spec.name)
        if problem is not None and by_name:
            raise RuntimeError(f"the export of {model.spec.name} to {folder} was not kept: {problem}")
        if problem is not None:
            _write_config(partial, {"num_classes": model.spec.num_classes, **facts}, model.spec.input)
    return folder


def _check_names(model: StagedModel, class_names: Sequence[str]) -> None:
    num_classes = model.spec.num_classes
    if len(class_names) != num_classes:
        raise InputError(
            f"{len(class_names)} class names for model {model.spec.name!r}",
            f"{num_classes}, one per output of its head",
            "give the names of the data that the model was trained on",
        )
    broken = [class_name for class_name in class_names if len(class_name.splitlines()) != 1]
    if broken:
        raise InputError(f"class name {broken[0]!r}", f"one line of text, as {LABELS} has one a line", "rename it")


def _check_target(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder}, a file", "a folder, or a path that does not exist", "give another path")
    others = sorted(path.name for path in folder.iterdir() if path.name not in (CONFIG, WEIGHTS, LABELS))
    if others:
        raise InputError(
            f"folder {folder}, which holds {', '.join(others[:3])}{' …' if len(others) > 3 else ''}",
            "an earlier export, an empty folder, or a path that does not exist",
            "give another path; an export replaces the whole folder",
        )


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that takes its place once the block is through."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, former = (folder.with_name(f".{folder.name}.{os.getpid()}.{part}") for part in ("new", "old"))
    try:
        partial.mkdir()
        yield partial
        if folder.exists():
            folder.rename(former)
        partial.rename(folder)
    except BaseException:
        if former.exists() and not folder.exists():
            former.rename(folder)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    # cloned, since safetensors refuses tensors that share memory; contiguous, as channels-last ones are not
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
    }


def _write_for_timm(model: StagedModel, partial: Path, facts: dict[str, Any], *, check: bool) -> str | None:
    """Write timm's own description of the network; what is wrong with it, or ``None``."""
    if not timm.is_model(getattr(model.net, "pretrained_cfg", {}).get("architecture") or ""):
        return "timm does not know its architecture"
    try:
        save_config_for_hf(model.net, str(partial / CONFIG), model_config=dict(facts))
        _write_config(partial, json.loads((partial / CONFIG).read_text(encoding="utf-8")), model.spec.input)
        return _difference(model, partial) if check else None
    except (RuntimeError, ValueError, TypeError) as error:  # arguments not recorded, or weights that do not fit them
        return f"timm cannot build it from what is recorded ({error})"


def _write_for_source(
    model: StagedModel, origin: Origin, partial: Path, facts: dict[str, Any], *, check: bool
) -> str | None:
    """Write how a source of ours builds the network; what is wrong with it, or ``None``."""
    spec = model.spec
    config = {
        "architecture": origin.architecture,
        "num_classes": spec.num_classes,
        "model_args": {**origin.model_args, "img_size": list(spec.input.image_size)},
        **origin.config,
        **facts,
    }
    try:
        _write_config(partial, config, spec.input)
        return _difference(model, partial) if check else None
    except (InputError, TypeError) as error:  # it was altered after it was built, or given what JSON cannot hold
        return f"it cannot be built from what is recorded ({error})"


def _write_config(partial: Path, config: dict[str, Any], spec: InputSpec) -> None:
    preprocessing = config.setdefault("pretrained_cfg", {})
    preprocessing |= {
        "num_classes": config["num_classes"],
        "input_size": [spec.num_channels, *spec.image_size],
        "mean": list(spec.mean),
        "std": list(spec.std),
        "crop_pct": spec.crop_pct,
        "interpolation": spec.interpolation,
    }
    for key in ("test_input_size", "label_offset"):  # facts of the weights that the student may have started from
        preprocessing.pop(key, None)
    write_text(partial / CONFIG, json.dumps(config, indent=2) + "\n")


@torch.inference_mode()
def _difference(model: StagedModel, folder: Path) -> str | None:
    """Load the folder as a user would; how its logits differ from the network's, or ``None`` if no bit does."""
    with torch.random.fork_rng(devices=[]):  # construction draws weights, which the run's own numbers must not feel
        loaded = _load(folder, ours=origin_of(model.net) is not None).eval()
    network = copy.deepcopy(model.net).cpu().eval()
    network.load_state_dict(_tensors(network), assign=True)  # the same memory layout gives the same kernels
    spec = model.spec.input
    images = torch.randn(2, spec.num_channels, *spec.image_size, generator=torch.Generator().manual_seed(0))
    expected, found = network.float()(images), loaded.float()(images)
    if torch.equal(expected, found):
        return None
    return f"loaded back, it gives other logits (by up to {float((expected - found).abs().max()):.3g})"


def _load(folder: Path, *, ours: bool) -> nn.Module:
    # a file's code has been run for this network once, so running it again for the check is nothing new
    if ours:
        return network(str(folder), allow_code=True).net
    loaded: nn.Module = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True)
    return loaded
