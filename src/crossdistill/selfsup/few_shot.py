"""Few-shot episodes: classes that training has not seen are told apart by a few examples each."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student_t
from torch.nn import functional as F

from crossdistill.data.philox import Purpose, random_order
from crossdistill.errors import InputError, nearest
from crossdistill.selfsup.features import Features


@dataclass(frozen=True, slots=True)
class Episodes:
    """``ways`` classes with ``shots`` examples and ``queries`` questions each, ``count`` times over."""

    ways: int = 50
    shots: int = 1
    queries: int = 1
    count: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("ways", 2), ("shots", 1), ("queries", 1), ("count", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)}", f"{name} of {least} or more", f"raise --{name}")


def few_shot_accuracy(features: Features, classes: Collection[int], episodes: Episodes) -> dict[str, Any]:
    """Mean accuracy over episodes with the half of its 95 % interval, and of how many classes they were drawn.

    Classes with fewer images than an episode takes are left out, which ``num_classes`` tells.

    In each episode a class is the direction of the mean of its examples' directions, and a question gets the class
    whose direction is nearest to its own. Episode e draws classes and images by (seed, e) alone.

    Args:
        features: images of these classes, and perhaps of others.
        classes: numbers of the classes that may be drawn.
        episodes: their form and number.

    Raises:
        InputError: fewer classes with enough images than ways.

    Source: Gidaris et al. 2021, arXiv 2012.11552, section 4.1, in the form of the released code.
    """
    members = _members(features, classes, episodes)
    directions = F.normalize(features.embeddings, dim=1)
    found = []
    for number in range(episodes.count):
        chosen, pictures = _drawn(members, episodes, number)
        shown = directions[torch.from_numpy(pictures)]
        examples, questions = shown[:, : episodes.shots], shown[:, episodes.shots :]
        means = F.normalize(examples.mean(dim=1), dim=1)
        answers = (questions @ means.T).argmax(dim=2)
        found.append((answers == torch.arange(len(chosen))[:, None]).double().mean().item())
    mean, half = float(np.mean(found)), _half_interval(found)
    how = {"ways": episodes.ways, "shots": episodes.shots, "queries": episodes.queries, "episodes": len(found)}
    return {"accuracy": mean, "interval": half, "num_classes": len(members), **how}


def _members(features: Features, classes: Collection[int], episodes: Episodes) -> list[np.ndarray[Any, Any]]:
    targets = features.targets.numpy()
    members = [np.flatnonzero(targets == one) for one in sorted(set(classes))]
    wanted = episodes.shots + episodes.queries
    enough = [one for one in members if len(one) >= wanted]
    if len(enough) < episodes.ways:
        raise InputError(
            f"{len(enough)} of {len(members)} classes with {wanted} images or more, for {episodes.ways} ways",
            f"{episodes.ways} classes with {episodes.shots} examples and {episodes.queries} questions each",
            "lower --ways, --shots or --queries, or give more classes",
        )
    return enough


def _drawn(
    members: Sequence[np.ndarray[Any, Any]], episodes: Episodes, number: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Which of the classes ``(ways,)``, and which of their images ``(ways, shots + queries)``."""
    chosen = random_order(len(members), seed=episodes.seed, epoch=number, purpose=Purpose.EPISODE)[: episodes.ways]
    wanted = episodes.shots + episodes.queries
    generator = np.random.default_rng([episodes.seed, number])
    return chosen, np.stack([generator.choice(members[one], wanted, replace=False) for one in chosen])


def _half_interval(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of the mean; one episode has none."""
    if len(values) < 2:
        return None
    return float(student_t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))


def novel_classes(class_names: Sequence[str], *, number: int | None, names: Path | None, seed: int) -> list[int]:
    """The classes that episodes are made of: named in a file, so many by chance, or all.

    The release indexes a split by another order of classes than the images have, which mixes base and novel ones; names
    cannot be mixed up.

    Args:
        class_names: of the data, in order.
        number: how many to draw.
        names: a file with a name a line.
        seed: of the draw.

    Raises:
        InputError: both are given, a name that the data lack (with the nearest), or too many.
    """
    if number is not None and names is not None:
        raise InputError("--novel and --classes", "one of them", "drop one")
    if names is not None:
        return [_number_of(one, class_names, names) for one in _read(names)]
    if number is None:
        return list(range(len(class_names)))
    if not 2 <= number <= len(class_names):
        raise InputError(
            f"--novel {number}", f"a number from 2 to {len(class_names)}, the classes of the data", "correct it"
        )
    return sorted(random_order(len(class_names), seed=seed, purpose=Purpose.EPISODE)[:number].tolist())


def _read(names: Path) -> list[str]:
    try:
        text = names.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{names}: {error}", "a text file with the name of a class in each line", "check it"
        ) from error
    return list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))


def _number_of(name: str, class_names: Sequence[str], where: Path) -> int:
    if name not in class_names:
        raise InputError(
            f"class {name!r} in {where}, which the data lack",
            "names of classes of the data",
            nearest(name, class_names),
        )
    return list(class_names).index(name)
