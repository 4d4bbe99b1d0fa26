"""Representations measured by name: nearest neighbours, a linear probe, and few-shot episodes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from crossdistill.contracts import STUDENT_VIEW
from crossdistill.data import EvalLoader, Splits, Stream, open_source, select_training
from crossdistill.engine import connect, from_all, on_main, process
from crossdistill.errors import InputError
from crossdistill.export import export_student
from crossdistill.models import StagedModel, build
from crossdistill.models.checkpoint import PROBED
from crossdistill.models.names import parse
from crossdistill.runs.compose import data_seed
from crossdistill.runs.inspect import check_trained, data_settings, own_seed
from crossdistill.selfsup.features import Features, extract
from crossdistill.selfsup.few_shot import Episodes, few_shot_accuracy, novel_classes
from crossdistill.selfsup.knn import NEIGHBOURS, TEMPERATURE, knn_accuracy
from crossdistill.selfsup.linear import DEFAULT_RATES, install_probe, linear_probe, probe_accuracy
from crossdistill.settings import DataSettings


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: a network by name, and how its images are read."""

    model: str
    data: str | None = None
    batch_size: int = 128
    image_size: int | None = None
    device: str = "auto"
    allow_code: bool = False
    allow_random: bool = False
    overrides: Sequence[str] = ()


class Probed:
    """A network and the images that measure it.

    Args:
        subject: as named on the command line.

    Raises:
        InputError: a model or data that cannot be read, random weights that nobody asked for, or data without labels.
    """

    def __init__(self, subject: Subject) -> None:
        if not subject.allow_random:
            check_trained(subject.model)
        self.subject, self.settings = subject, data_settings(subject.model, subject.data, subject.overrides)
        self.splits, self.skipped = _labelled(self.settings), dict[str, str]()
        self.accelerator: Accelerator = connect(subject.device)
        is_random = subject.allow_random and parse(subject.model).is_random
        self.network: StagedModel = build(
            subject.model,
            num_classes=len(self.splits.class_names) if is_random else None,
            image_size=subject.image_size,
            allow_code=subject.allow_code,
        )

    def features(self, which: str, *, max_batches: int | None = None) -> Features:
        """Of the "train" split, with ``data.limit_train`` and the like, or of the "evaluation" split."""
        source = self.splits.train if which == "train" else self.splits.evaluation
        ids = self._train_ids() if which == "train" else np.arange(len(source.targets), dtype=np.int64)
        rank, world_size = process()
        loader = EvalLoader(
            source,
            {STUDENT_VIEW: self.network.spec.input},
            ids=ids,
            batch_size=self.subject.batch_size,
            workers=self.settings.workers,
            rank=rank,
            world_size=world_size,
            max_corrupt_share=self.settings.max_corrupt_share,
            crop_pct=self.settings.eval_crop_pct,
        )
        found = extract(self.network, islice(loader, max_batches), self.accelerator).labelled()
        for share in from_all(loader.corrupt):
            self.skipped |= share
        return found

    def _train_ids(self) -> NDArray[np.int64]:
        targets, settings = self.splits.train.targets, self.settings
        seed = data_seed(settings, own_seed(self.subject.model))
        chosen = select_training(targets, settings, seed, False, self.splits.class_names)
        return chosen.train_ids[chosen.labelled[chosen.train_ids]]

    @property
    def facts(self) -> dict[str, Any]:
        """What every result says first."""
        return {"model": self.network.spec.name, "data": self.settings.source, "split": self.splits.evaluation_name}


def _labelled(settings: DataSettings) -> Splits:
    splits = open_source(settings)
    if isinstance(splits.train, Stream) or isinstance(splits.evaluation, Stream):
        raise InputError(
            f"data source {settings.source!r}, a remote stream", "images that can be counted", "copy the shards here"
        )
    if not splits.class_names:
        raise InputError(
            f"data source {settings.source!r} without classes, where labels are asked for",
            "images with classes: representations are measured by them",
            "give labelled images with --data",
        )
    return splits


def knn(subject: Subject, *, neighbours: int = NEIGHBOURS, temperature: float = TEMPERATURE) -> dict[str, Any]:
    """k-NN accuracy on the evaluation split; training images vote."""
    probed = Probed(subject)
    bank, queries = probed.features("train"), probed.features("evaluation")
    how: dict[str, Any] = {"neighbours": neighbours, "temperature": temperature}
    measured = knn_accuracy(bank, queries, num_classes=len(probed.splits.class_names), **how)
    return {**probed.facts, **how, "num_train": len(bank), **measured, "skipped": probed.skipped}


def linear(
    subject: Subject,
    *,
    rates: Sequence[float] = DEFAULT_RATES,
    epochs: int = 50,
    seed: int = 0,
    out: Path | None = None,
) -> dict[str, Any]:
    """Accuracy of a linear probe on the evaluation split; its rate is chosen on held-out training images.

    Args:
        subject: what is measured.
        rates: learning rates of the sweep.
        epochs: of each probe.
        seed: of the order and of what is held out.
        out: a folder for the network with the probe as its classifier, in timm's layout.

    Raises:
        InputError: the classifier is not a linear layer on the embedding, where ``out`` wants it to be.
    """
    probed = Probed(subject)
    train, queries = probed.features("train"), probed.features("evaluation")
    probe = linear_probe(train, num_classes=len(probed.splits.class_names), rates=rates, epochs=epochs, seed=seed)
    measured = probe_accuracy(probe, queries)
    learnt = probe_accuracy(probe, train)["top1"]
    results = {**probed.facts, "num_train": len(train), **measured, "train_top1": learnt}
    results |= {"rate": probe.rate, "held_out_top1": probe.held_out_top1, "warnings": list(probe.warnings)}
    results |= {"skipped": probed.skipped}
    if out is None:
        return results
    network = _with_classes(probed)
    if not install_probe(network, probe):
        raise InputError(
            f"{network.spec.name}, whose classifier is no linear layer on its embedding",
            "one that a linear probe can take the place of",
            "leave --out out: the probe is then measured alone",
        )
    names, metrics = probed.splits.class_names, {PROBED: measured["top1"]}
    on_main(lambda: export_student(network.cpu(), out, class_names=names, metrics=metrics))
    return results | {"folder": str(out)}


def _with_classes(probed: Probed) -> StagedModel:
    """The network with a head for the data's classes and the same weights otherwise."""
    names = probed.splits.class_names
    network, subject = probed.network, probed.subject
    if network.spec.num_classes == len(names):
        return network
    arguments = start_of(subject.model)
    made = build(
        arguments["name"],
        num_classes=len(names),
        class_names=names,
        image_size=network.spec.input.image_size,
        init=arguments["init"],
        allow_code=subject.allow_code,
        **arguments["args"],
    )
    return made


def start_of(model: str) -> dict[str, Any]:
    """A trained network as something to start from: name and arguments of its architecture, its size, its weights."""
    named = parse(model)
    saved = named.checkpoint
    if saved is None:
        published = None if named.weights is None else "pretrained"
        return {"name": named.full, "args": {}, "image_size": None, "init": published}
    given = {key: value for key, value in saved.model_args.items() if key not in ("img_size", "num_classes")}
    shape = (saved.config.get("pretrained_cfg") or {}).get("input_size")
    side = int(shape[1]) if shape and shape[1] == shape[2] else None
    return {"name": named.full, "args": given, "image_size": side, "init": model.partition("@")[2] or model}


def few_shot(
    subject: Subject, episodes: Episodes, *, novel: int | None = None, classes: Path | None = None
) -> dict[str, Any]:
    """Accuracy over episodes of classes of the evaluation split, and whether pretraining saw images of these."""
    probed = Probed(subject)
    names = probed.splits.class_names
    chosen = novel_classes(names, number=novel, names=classes, seed=episodes.seed)
    measured = few_shot_accuracy(probed.features("evaluation"), chosen, episodes)
    return {
        **probed.facts,
        **measured,
        "classes": [names[one] for one in chosen],
        "classes_seen_in_pretraining": _seen(subject.model, [names[one] for one in chosen]),
        "skipped": probed.skipped,
    }


def _seen(model: str, names: Sequence[str]) -> str:
    """Whether these are among the classes of a pretraining run's data; of any other model that is unknown."""
    path = Path(model.rpartition("@")[2]) / "results.json"
    try:
        recorded = set(json.loads(path.read_text(encoding="utf-8"))["pretraining"]["classes"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"
    if not recorded:
        return "unknown"
    found = [name in recorded for name in names]
    return "yes" if all(found) else "some" if any(found) else "no"
