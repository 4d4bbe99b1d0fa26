"""Stores of real networks' answers to small data, and short runs that take them up."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from crossdistill.contracts import Batch, Outputs, Teacher
from crossdistill.engine import fit
from crossdistill.engine.progress import Quiet
from crossdistill.models import build
from crossdistill.runs import Keep, load_store_settings, store_teacher
from crossdistill.runs.compose import Parts, compose
from crossdistill.runs.objective import build_method, resolve_method
from crossdistill.runs.plan import make_plan

BATCH_SIZE, EPOCHS = 32, 2
COST = {"num_parameters": 1, "gmacs": 1.0, "latency_ms": 1.0}
NETWORKS = {"cnn": ("test_resnet", 24, {}), "vit": ("test_vit", 32, {})}
DIGITS = ("data.source=digits", "data.limit_train=96", f"train.batch_size={BATCH_SIZE}", "device=cpu")


def network(kind: str, num_classes: int = 10) -> nn.Module:
    """A network whose weights nobody trained, but whose logits are as far apart as a trained one's."""
    name, size, arguments = NETWORKS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(name))
        made = build(f"timm/{name}", num_classes=num_classes, image_size=size, **arguments)
        nn.init.normal_(made.net.get_classifier().weight, std=1.5)
    return made


def write(out: Path, networks: Sequence[nn.Module], *overrides: str, **more: Any) -> Path:
    """A store of these networks' answers, two epochs of the digits unless something else is said."""
    names = [f"given{index}" for index in range(len(networks))]
    tree = {"teachers": [{"name": name} for name in names], "allow_untrained_teacher": True}
    keep = Keep(more.pop("top_k", None), more.pop("embeddings", False))
    given = dict(zip(names, networks, strict=True))
    settings = load_store_settings(tree, [*DIGITS, *overrides])
    options = {"epochs": EPOCHS, "keep": keep, "modules": given, "say": lambda text: None, **more}
    with mock.patch("crossdistill.runs.costs.network_cost", return_value=COST):  # timing a network takes its time
        store_teacher(settings, out, **options)
    return out


def parts_of(teachers: Path | Sequence[nn.Module], *overrides: str, method: str = "kd", seed: int = 0) -> Parts:
    """The parts of a short run with a store, or with live networks."""
    live = {} if isinstance(teachers, Path) else {f"given{index}": one for index, one in enumerate(teachers)}
    tree = {
        "student": {"name": "timm/mixer_tiny", "image_size": 16, "args": {"num_blocks": 4, "embed_dim": 32}},
        "teachers": [{"name": name} for name in (live or [str(teachers)])],
        "method": {"name": method},
    }
    # Plain gradient descent passes differences on in proportion; an adaptive optimiser would turn noise into steps.
    loop = [f"train.epochs={EPOCHS}", "train.log_every=1", "train.optimizer=sgd", "train.lr=0.02"]
    plan = make_plan(tree, [*DIGITS, *loop, "allow_untrained_teacher=true", *overrides], seeds=(seed,))
    parts = compose(plan.settings, live)
    with torch.random.fork_rng(devices=[]):  # of zeros, as they are, no correlation can be taken
        torch.manual_seed(seed)
        nn.init.normal_(parts.student.net.get_classifier().weight, std=0.2)
    return parts


class _Losses(Quiet):
    """Remembers the losses of every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def train(self, line: dict[str, Any]) -> None:
        self.steps.append(line["losses"])


def train(
    parts: Parts, name: str, teacher: Teacher | None = None, *, max_steps: int | None = None
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Losses of every step and final weights of a copy of the student.

    Args:
        name: the method, whichever the parts have.
        teacher: takes the place of that of the parts.
    """
    losses, student = _Losses(), copy.deepcopy(parts.student)
    torch.manual_seed(1)
    method = build_method(*resolve_method(name, {}), student, parts.teacher, num_classes=student.spec.num_classes)
    fit(
        student,
        method,
        teacher or parts.teacher,
        parts.train_loader,
        None,
        settings=parts.train,
        seed=parts.settings.seed,
        device="cpu",
        reporter=losses,
        max_steps=max_steps,
    )
    return losses.steps, {key: tensor.clone() for key, tensor in student.state_dict().items()}


class Changed:
    """A teacher whose every answer goes through a function."""

    def __init__(self, teacher: Teacher, change: Any) -> None:
        self.teacher, self.change = teacher, change
        self.spec, self.holds = teacher.spec, teacher.holds

    def signals(self, batch: Batch) -> Outputs:
        return self.change(self.teacher.signals(batch))

    def fingerprint(self) -> str:
        return self.teacher.fingerprint()


def rounded_to(bits: int, outputs: Outputs) -> Outputs:
    """Numbers of so many binary digits, fp16 has 11: logits below the row's largest, and embeddings as they are."""

    def rounded(values: torch.Tensor) -> torch.Tensor:
        digits, exponent = torch.frexp(values.double())
        return torch.ldexp((digits * 2**bits).round() / 2**bits, exponent).float()

    logits, embedding = outputs.logits, outputs.embedding
    if logits is not None:
        largest = logits.max(dim=1, keepdim=True).values
        logits = rounded(logits - largest) + largest
    return replace(outputs, logits=logits, embedding=None if embedding is None else rounded(embedding))


def in_fp16(outputs: Outputs) -> Outputs:
    """What fp16 leaves of an answer: logits below the row's largest, and embeddings as they are."""
    logits, embedding, members = outputs.logits, outputs.embedding, outputs.members
    if logits is not None:
        largest = logits.max(dim=1, keepdim=True).values
        logits = (logits - largest).half().float() + largest
    embedding = None if embedding is None else embedding.half().float()
    members = None if members is None else tuple(in_fp16(replace(member, logits=None)) for member in members)
    return Outputs(logits, embedding, None, members)
