"""Trained models put to use: evaluate on data, predict image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from torch import Tensor, nn

from crossdistill.contracts import STUDENT_VIEW, UNLABELLED, Batch, Outputs
from crossdistill.data import EvalLoader, Splits, StreamEvalLoader, eval_loader, open_labelled, prepare_image
from crossdistill.engine import connect, process
from crossdistill.engine import evaluate as measure
from crossdistill.errors import InputError
from crossdistill.models import StagedModel, build
from crossdistill.models.names import parse
from crossdistill.runs.stores import refuse_as_model
from crossdistill.settings import DataSettings, overridden, validate
from crossdistill.teachers import ClassMap, FrozenTeacher, MappedTeacher, make_class_map
from crossdistill.teachers.class_map import Given


def evaluate(
    model: str | Path | nn.Module,
    data: str | None = None,
    *,
    class_map: Given | None = None,
    batch_size: int = 128,
    image_size: int | None = None,
    device: str = "auto",
    workers: int | None = None,
    allow_code: bool = False,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Accuracy of a trained model on the evaluation split of ``data``.

    Args:
        model: a run folder, a timm folder, ``NAME@PATH`` or a module.
        data: as for ``--data``; default: what the run folder was trained on.
        class_map: for a model of other classes: "names", a file, or ``{class of the data: class of the model}``. The
            figures then are of its answers among the data's classes.
        batch_size: images at once.
        image_size: height and width in pixels; default the model's own.
        device: auto, cpu or cuda.
        workers: loader processes.
        allow_code: run the Python file of a model ``file:PATH.py:FUNCTION``.
        overrides: settings of the data, such as ``data.evaluation_split=val``.

    Returns:
        ``top1`` (and ``top5`` with more than five classes) as fractions, mean cross-entropy ``loss``, ``num_samples``,
        and one entry a class under ``per_class``. With a class map also ``num_model_classes``, and as
        ``top1_of_all_classes`` the share of images whose most probable class of all these stands for the right one.

    Raises:
        InputError: a model or data that cannot be read, or whose classes differ.
    """
    check_trained(model)
    settings = data_settings(model, data, overrides)
    splits = open_labelled(settings)
    built = build(
        str(model) if isinstance(model, Path) else model,
        num_classes=None if class_map is not None else len(splits.class_names),
        image_size=image_size,
        class_names=None if class_map is not None else splits.class_names,
        allow_code=allow_code,
    )
    mapped = None if class_map is None else _Mapped(built, make_class_map(class_map, splits.class_names, built.spec))
    accelerator = connect(device)
    loader = _loader(splits, built, settings, batch_size=batch_size, workers=workers)
    metrics = measure(built if mapped is None else mapped, loader, accelerator=accelerator)
    if mapped is not None:
        metrics |= mapped.of_all_classes(accelerator, metrics["num_samples"])
    per_class = _per_class(splits.class_names, metrics.pop("class_correct"), metrics.pop("class_total"))
    return {
        "model": built.spec.name,
        "data": settings.source,
        "split": splits.evaluation_name,
        **metrics,
        "per_class": per_class,
        "skipped": loader.corrupt,
    }


def _loader(
    splits: Splits, model: StagedModel, settings: DataSettings, *, batch_size: int, workers: int | None
) -> EvalLoader | StreamEvalLoader:
    """This process's share of the evaluation split, prepared for the model."""
    rank, world_size = process()
    return eval_loader(
        splits.evaluation,
        {STUDENT_VIEW: model.spec.input},
        batch_size=batch_size,
        workers=workers,
        rank=rank,
        world_size=world_size,
        max_corrupt_share=settings.max_corrupt_share,
        crop_pct=settings.eval_crop_pct,
    )


def _per_class(names: Sequence[str], correct: Sequence[int], totals: Sequence[int]) -> list[dict[str, Any]]:
    """One entry a class; a class without images has no accuracy."""
    return [
        {"class": name, "num_samples": total, "accuracy": right / total if total else None}
        for name, right, total in zip(names, correct, totals, strict=True)
    ]


class _Mapped(MappedTeacher):
    """Answers in the data's classes, and counts how often it is right among all its own."""

    stands_for: Tensor
    num_correct: Tensor

    def __init__(self, model: StagedModel, class_map: ClassMap) -> None:
        super().__init__(model, class_map, view=STUDENT_VIEW)
        stands_for = torch.full((model.spec.num_classes,), UNLABELLED)
        for target, group in enumerate(class_map.groups):
            stands_for[list(group)] = target
        self.register_buffer("stands_for", stands_for)
        self.register_buffer("num_correct", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def signals(self, batch: Batch) -> Outputs:
        """The mapped outputs, counted before they are mapped."""
        outputs = FrozenTeacher.answer(self, batch, ())
        found = self.stands_for[outputs.require("logits").argmax(dim=1)]
        self.num_correct += ((found == batch.target) & (batch.target != UNLABELLED)).sum()
        return self.in_student_classes(outputs)

    def of_all_classes(self, accelerator: Accelerator, num_samples: int) -> dict[str, Any]:
        """The count over all processes as a share of the images."""
        num_correct = int(accelerator.reduce(self.num_correct, "sum"))
        return {"num_model_classes": len(self.stands_for), "top1_of_all_classes": num_correct / num_samples}


def predict(
    model: str | Path, images: Sequence[Path], *, top: int = 3, device: str = "auto", allow_code: bool = False
) -> list[dict[str, Any]]:
    """The most probable classes of image files, with probabilities.

    Raises:
        InputError: a model without class names, or an image that cannot be read (named; none is skipped silently).
    """
    refuse_as_model(model)
    built = build(str(model), allow_code=allow_code)
    class_names = built.spec.class_names
    if class_names is None or len(class_names) < 2:
        raise InputError(
            f"{model}, which carries no names of classes to choose from",
            "a run folder or an exported student",
            "give one",
        )
    crop_pct = (_own_data(model) or {}).get("eval_crop_pct")
    accelerator = connect(device)
    built = built.to(accelerator.device).eval()
    predictions = []
    with torch.inference_mode():
        for path in images:
            image = prepare_image(path, built.spec.input, crop_pct).unsqueeze(0).to(accelerator.device)
            probabilities = built(image).require("logits").float().softmax(dim=1)[0].cpu()
            values, indices = probabilities.topk(min(top, len(class_names)))
            classes = [
                {"class": class_names[index], "probability": value}
                for value, index in zip(values.tolist(), indices.tolist(), strict=True)
            ]
            predictions.append({"image": str(path), "classes": classes})
    return predictions


def check_trained(model: str | Path | nn.Module) -> None:
    """Refuse a network by a name that gives it random weights.

    Raises:
        InputError: naming the command that trains it.
    """
    if isinstance(model, nn.Module):
        return
    refuse_as_model(model)
    named = parse(str(model))
    if named.is_random:
        raise InputError(
            f"model {str(model)!r}, whose weights would be random",
            "a trained model: a run folder, an exported student, NAME@PATH or NAME@pretrained",
            f"train it first (crossdistill train --model {named.full} …) and give its folder",
        )


def data_settings(model: str | Path | nn.Module, data: str | None, overrides: Sequence[str]) -> DataSettings:
    """The run's settings for its own data; for other data only the share of an image that its model was shown."""
    own = _own_data(model)
    if data is None and own is None:
        raise InputError(f"{model} without --data", "images to evaluate on", "add --data folder:PATH")
    tree = own or {}
    if data is not None and data != tree.get("source"):
        tree = {"source": data, "eval_crop_pct": tree.get("eval_crop_pct")}
    changed = overridden({"data": tree}, overrides)
    if set(changed) != {"data"}:
        raise InputError(f"{', '.join(overrides)}", "settings of the data: data.KEY=VALUE", "leave out the others")
    return validate(DataSettings, changed["data"], prefix="data.")


def own_seed(model: str | Path | nn.Module) -> int:
    """The seed of a run folder, which chose its images; 0 of any other model."""
    tree = _own_settings(model)
    return int(tree.get("seed", 0)) if tree is not None else 0


def _own_data(model: str | Path | nn.Module) -> dict[str, Any] | None:
    """The data settings of a run folder."""
    tree = _own_settings(model)
    return None if tree is None else dict(tree["data"])


def _own_settings(model: str | Path | nn.Module) -> dict[str, Any] | None:
    """All settings of a run folder."""
    config = None if isinstance(model, nn.Module) else Path(model) / "config.yaml"
    if config is None or not config.is_file():
        return None
    tree: dict[str, Any] = yaml.safe_load(config.read_text(encoding="utf-8"))
    return tree
