"""Trained models put to use: evaluate on data, predict image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from crossdistill.data import EvalLoader, open_source, prepare_image
from crossdistill.engine import connect, process
from crossdistill.engine import evaluate as measure
from crossdistill.errors import InputError
from crossdistill.models import build
from crossdistill.models.build import parse
from crossdistill.runs.compose import STUDENT_VIEW
from crossdistill.settings import DataSettings, validate


def evaluate(
    model: str | Path | nn.Module,
    data: str | None = None,
    *,
    batch_size: int = 128,
    image_size: int | None = None,
    device: str = "auto",
    workers: int | None = None,
) -> dict[str, Any]:
    """Accuracy of a trained model on the evaluation split of ``data``.

    Args:
        model: a run folder, a timm folder, ``NAME@PATH`` or a module.
        data: as for ``--data``; default: what the run folder was trained on.
        batch_size: images at once.
        image_size: height and width in pixels; default the model's own.
        device: auto, cpu or cuda.
        workers: loader processes.

    Returns:
        ``top1`` (and ``top5`` with more than five classes) as fractions, mean cross-entropy ``loss``, ``num_samples``,
        and one entry a class under ``per_class``.

    Raises:
        InputError: a model or data that cannot be read, or whose classes differ.
    """
    _check_trained(model)
    settings = _data_settings(model, data)
    splits = open_source(settings)
    built = build(
        str(model) if isinstance(model, Path) else model,
        num_classes=len(splits.class_names),
        image_size=image_size,
        class_names=splits.class_names,
    )
    accelerator = connect(device)
    rank, world_size = process()
    loader = EvalLoader(
        splits.evaluation,
        {STUDENT_VIEW: built.spec.input},
        batch_size=batch_size,
        workers=workers,
        rank=rank,
        world_size=world_size,
        max_corrupt_share=settings.max_corrupt_share,
    )
    metrics = measure(built, loader, accelerator=accelerator)
    counts = zip(splits.class_names, metrics.pop("class_correct"), metrics.pop("class_total"), strict=True)
    return {
        "model": built.spec.name,
        "data": settings.source,
        "split": splits.evaluation_name,
        **metrics,
        "per_class": [
            {"class": name, "num_samples": total, "accuracy": correct / total if total else None}
            for name, correct, total in counts
        ],
        "skipped": loader.corrupt,
    }


def predict(model: str | Path, images: Sequence[Path], *, top: int = 3, device: str = "auto") -> list[dict[str, Any]]:
    """The most probable classes of image files, with probabilities.

    Raises:
        InputError: a model without class names, or an image that cannot be read (named; none is skipped silently).
    """
    built = build(str(model))
    class_names = built.spec.class_names
    if class_names is None:
        raise InputError(f"{model}, which carries no class names", "a run folder or an exported student", "give one")
    accelerator = connect(device)
    built = built.to(accelerator.device).eval()
    predictions = []
    with torch.inference_mode():
        for path in images:
            image = prepare_image(path, built.spec.input).unsqueeze(0).to(accelerator.device)
            probabilities = built(image).require("logits").float().softmax(dim=1)[0].cpu()
            values, indices = probabilities.topk(min(top, len(class_names)))
            classes = [
                {"class": class_names[index], "probability": value}
                for value, index in zip(values.tolist(), indices.tolist(), strict=True)
            ]
            predictions.append({"image": str(path), "classes": classes})
    return predictions


def _check_trained(model: str | Path | nn.Module) -> None:
    if isinstance(model, nn.Module):
        return
    architecture, source = parse(str(model))
    if source is None:
        raise InputError(
            f"model {str(model)!r}, whose weights would be random",
            "a trained model: a run folder, an exported student, NAME@PATH or NAME@pretrained",
            f"train it first (crossdistill train --model {architecture} …) and give its folder",
        )


def _data_settings(model: str | Path | nn.Module, data: str | None) -> DataSettings:
    if data is not None:
        return DataSettings(source=data)
    config = None if isinstance(model, nn.Module) else Path(model) / "config.yaml"
    if config is None or not config.is_file():
        raise InputError(f"{model} without --data", "images to evaluate on", "add --data folder:PATH")
    tree = yaml.safe_load(config.read_text(encoding="utf-8"))
    return validate(DataSettings, tree["data"], prefix="data.")
