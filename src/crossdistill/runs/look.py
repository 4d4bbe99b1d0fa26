"""Looking at a data set: its figures, images that are there twice, and a picture of what training will see."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from crossdistill.contracts import UNLABELLED, InputSpec
from crossdistill.data import Source, Splits, Stream, open_labelled, resolve_augment, select_training
from crossdistill.data.duplicates import Overlap, Pair, Place, find_duplicates
from crossdistill.data.scan import scan
from crossdistill.data.source import TINY_SIDE
from crossdistill.data.summary import Summary, summarise
from crossdistill.errors import InputError
from crossdistill.files import write_bytes, writing
from crossdistill.report.samples import draw_samples
from crossdistill.runs.compose import data_seed, model_of
from crossdistill.runs.recipes import read_recipe
from crossdistill.runs.sample_views import Training, choose_samples, sample_rows
from crossdistill.settings import (
    AugmentSettings,
    DataSettings,
    ModelSettings,
    Settings,
    Strict,
    TrainSettings,
    overridden,
    validate,
)

PICTURE = Path("data-samples.png")
_USUAL_SIDE = 224
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Watch = Callable[[str, int, int], None]
"""Told the split, how many of its images were looked at, and how many there are."""


class DataAlone(Strict):
    """What can be set where there is no recipe."""

    data: DataSettings
    student: ModelSettings | None = None
    seed: int = Field(0, ge=0, lt=2**63)
    allow_code: bool = False


def look(
    source: str,
    recipe: str | None = None,
    overrides: Iterable[str] = (),
    *,
    image_size: int | None = None,
    seed: int | None = None,
    num_samples: int = 8,
    picture: Path = PICTURE,
    quick: bool = False,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """The figures of a data set, and a picture of some of its images as training shows them.

    Args:
        source: as for ``--data``.
        recipe: a recipe whose student and random changes are taken; its own data source is not.
        overrides: ``key=value``, such as ``data.augment.mixup=0.8``.
        image_size: height and width in pixels; default: the student's, else 224, or their own for tiny images.
        seed: of the random changes; default the recipe's first, else 0.
        num_samples: rows of the picture.
        picture: the PNG file to write.
        quick: decode nothing but the samples: figures are from headers, and only files of equal bytes are duplicates.
        watch: called while images are looked at.

    Raises:
        InputError: data, a recipe, a seed or settings that are wrong, or a picture that cannot be written.
    """
    _check(seed, picture)
    settings = _settings(source, recipe, overrides, image_size)
    splits = _open(settings.data)
    training = _training(
        settings, splits, image_size, data_seed(settings.data, settings.seed) if seed is None else seed
    )
    shown = _draw(training, settings, num_samples, picture)
    return {
        "source": source,
        "num_classes": len(splits.class_names),
        "evaluation_split": splits.evaluation_name,
        **_figures(sources_of(splits), quick, watch),
        "picture": shown,
    }


def _check(seed: int | None, picture: Path) -> None:
    """Refuse what must not be found out only after every image was looked at."""
    if seed is not None and not 0 <= seed < 2**63:
        raise InputError(f"seed {seed}", "a whole number from 0, below 2^63", "give another seed")
    if picture.is_dir():
        raise InputError(
            f"the picture {picture}, which is a folder", "the name of a PNG file", f"give {picture / PICTURE} instead"
        )


def _open(data: DataSettings) -> Splits:
    splits = open_labelled(data)
    if isinstance(splits.train, Stream):
        raise InputError(
            f"remote stream {data.source!r}", "data that can be read by index", "look at a local copy of it"
        )
    return splits


def _figures(sources: Mapping[str, Source], quick: bool, watch: Watch | None) -> dict[str, Any]:
    """What one pass over all images finds."""
    scans = {name: scan(one, quick=quick, watch=_watch(watch, name, one)) for name, one in sources.items()}
    return {
        "splits": {name: _plain(one, summarise(one, scans[name])) for name, one in sources.items()},
        "duplicates_compare": "files" if quick else "pixels",
        "duplicates": [_plain_overlap(one) for one in find_duplicates(sources, scans)],
    }


def sources_of(splits: Splits) -> dict[str, Source]:
    """The splits by name, "train" first."""
    validation = {} if splits.validation is None else {"val": splits.validation}
    return {"train": splits.train, **validation, splits.evaluation_name: splits.evaluation}


def _settings(
    source: str, recipe: str | None, overrides: Iterable[str], image_size: int | None
) -> Settings | DataAlone:
    if recipe is None:
        settings: Settings | DataAlone = validate(DataAlone, overridden({"data": {"source": source}}, overrides))
    else:
        named = f"data.source={json.dumps(source, ensure_ascii=False)}"
        settings = read_recipe(recipe, [named, *overrides]).settings
    if settings.student is None or image_size is None:
        return settings
    return settings.model_copy(update={"student": settings.student.model_copy(update={"image_size": image_size})})


def _input_spec(settings: Settings | DataAlone, splits: Splits, image_size: int | None) -> InputSpec:
    """What the student wants to see; without one, ImageNet's normalisation."""
    if settings.student is not None:
        # Pixels do not depend on weights, so none are fetched or read.
        untrained = {"name": settings.student.name.removesuffix("@pretrained"), "init": None}
        student = settings.student.model_copy(update=untrained)
        return model_of(student, splits.class_names, allow_code=settings.allow_code).spec.input
    own_size = splits.train.image_size
    if image_size is not None:
        size = image_size, image_size
    elif own_size is not None and max(own_size) <= TINY_SIDE:
        size = own_size
    else:
        size = _USUAL_SIDE, _USUAL_SIDE
    return InputSpec(size, 3, _IMAGENET_MEAN, _IMAGENET_STD)


def _training(settings: Settings | DataAlone, splits: Splits, image_size: int | None, seed: int) -> Training:
    """The images that a run with these settings trains on."""
    data, train = settings.data, splits.train
    fit = settings.train if isinstance(settings, Settings) else TrainSettings()
    best = fit.select == "best" and splits.validation is None
    chosen = select_training(train.targets, data, seed, best, splits.class_names)
    distilled = isinstance(settings, Settings) and bool(settings.teachers)
    ids = chosen.train_ids if distilled else chosen.train_ids[chosen.labelled[chosen.train_ids]]
    targets = np.where(chosen.labelled, train.targets, UNLABELLED)
    return Training(
        train,
        ids,
        targets,
        _input_spec(settings, splits, image_size),
        data.augment,
        seed,
        fit.batch_size,
        balanced=data.sampling == "class_balanced",
        crop_pct=data.eval_crop_pct,
    )


def _draw(training: Training, settings: Settings | DataAlone, num_samples: int, picture: Path) -> dict[str, Any]:
    """Write the picture, and say what it shows."""
    samples = choose_samples(training, num_samples)
    if not samples:
        raise InputError(f"{training.source.name}, of which no image can be read", "images", "mend the files")
    columns, rows = sample_rows(training, samples)
    augment = resolve_augment(training.augment, training.source)
    height, width = training.spec.image_size
    student = "" if settings.student is None else f"{settings.student.name}, "
    balanced = "class-balanced, " if training.balanced else ""
    facts = f"{student}{height} x {width} px, {describe_augment(augment)}, {balanced}seed {training.seed}"
    with writing(picture.parent):
        picture.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(picture, draw_samples(settings.data.source, facts, columns, rows))
    return {
        "file": str(picture),
        "image_size": [height, width],
        "augment": augment.model_dump(mode="json"),
        "columns": columns,
        "samples": [
            {"class": row.title, "index": index, "where": training.source.describe(index)}
            for row, index in zip(rows, samples, strict=True)
        ],
    }


def describe_augment(augment: AugmentSettings) -> str:
    """The random changes that are on, in a few words; ``augment`` is resolved.

    >>> describe_augment(AugmentSettings(crop="pad", flip=0.5, mixup=0.8))
    'pad 0.125, flip 0.5, mixup 0.8'
    """
    low, high = augment.scale
    crops = {"none": "", "pad": f"pad {augment.padding:g}", "resized": f"resized crop {low:g} to {high:g}"}
    words = [crops[augment.crop or "none"], f"flip {augment.flip:g}" if augment.flip else ""]
    numbers = {"colour jitter": augment.color_jitter, "erase": augment.erase}
    numbers |= {"mixup": augment.mixup, "cutmix": augment.cutmix}
    words += [augment.rand_augment or "", *(f"{name} {value:g}" for name, value in numbers.items() if value)]
    return ", ".join(word for word in words if word) or "no random change"


def _watch(watch: Watch | None, name: str, source: Source) -> Callable[[int], None] | None:
    return None if watch is None else lambda done: watch(name, done, len(source.targets))


def _plain(source: Source, summary: Summary) -> dict[str, Any]:
    counts = summary.class_counts
    per_class = [{"class": name, "num_images": count} for name, count in zip(source.class_names, counts, strict=True)]
    spreads = {"height": summary.height, "width": summary.width, "aspect_ratio": summary.aspect}
    return {
        "num_images": summary.num_images,
        "num_labelled": summary.num_labelled,
        "num_classes": sum(count > 0 for count in counts),
        "smallest_class": per_class[summary.smallest],
        "largest_class": per_class[summary.largest],
        "imbalance": summary.imbalance,
        "per_class": per_class,
        "sizes": [{"height": height, "width": width, "num_images": n} for (height, width), n in summary.sizes.items()],
        **{name: None if spread is None else asdict(spread) for name, spread in spreads.items()},
        "channels": {"grey" if channels == 1 else "colour": count for channels, count in summary.channels.items()},
        "formats": summary.formats,
        "unreadable": [{"where": corrupt.where, "reason": corrupt.reason} for corrupt in summary.unreadable],
    }


def _plain_overlap(overlap: Overlap) -> dict[str, Any]:
    return {
        "splits": [overlap.earlier, overlap.later],
        "num_images": overlap.num_images,
        "num_other_label": overlap.num_other_label,
        "examples": [_plain_pair(pair) for pair in overlap.examples],
    }


def _plain_pair(pair: Pair) -> list[dict[str, Any]]:
    return [_plain_place(place) for place in (pair.earlier, pair.later)]


def _plain_place(place: Place) -> dict[str, Any]:
    return {"split": place.split, "where": place.where, "class": place.class_name}
