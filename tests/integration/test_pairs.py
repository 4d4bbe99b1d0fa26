"""Every method with every pair of families, on real networks and real digits: two steps of a dry run.

A covering design: teachers and students rotate, so that a method meets each pair of families once and each network
takes part at least once. A third of it is quick: there a method meets each family of teachers once, and each of
students. A method is found by its registration, so one in a new file is tested without a change here.
"""

import copy
import math
from functools import partial
from itertools import cycle, islice, product
from typing import NamedTuple

import pytest
import torch
from torch.nn import functional

from crossdistill.engine.progress import Quiet
from crossdistill.registry import METHODS
from crossdistill.runs import execute, make_plan, single

SMALL_DEIT = {"patch_size": 4, "embed_dim": 48, "depth": 4, "num_heads": 3}
SMALL_SWIN = {"embed_dim": 16, "num_heads": (1, 2, 4, 8)}
# name -> constructor arguments
NETWORKS = {
    "cnn": {
        "test_resnet": {},
        "test_convnext": {},
        "mobilenetv2_035": {},
        "test_efficientnet": {},
        "resnet10t": {"channels": (8, 16, 24, 48), "stem_width": 8},
        "test_convnext2": {},
        "test_efficientnet_gn": {},
        "test_byobnet": {},
        "test_convnext3": {},
        "test_efficientnet_ln": {},
        "test_nfnet": {},
        "test_efficientnet_evos": {},
        "test_mambaout": {},
    },
    "transformer": {
        "test_vit": {},
        "deit_tiny_patch16_224": SMALL_DEIT,
        "swin_pico": SMALL_SWIN,
        "test_vit3": {},
        "deit_tiny_distilled_patch16_224": SMALL_DEIT,
        "swin_nano": SMALL_SWIN,
        "test_vit2": {},
        "test_coatnet": {},
        "test_vit4": {},
        "test_maxvit": {},
        "test_vit_relpos": {},
    },
    "mlp": {"mixer_tiny": {}, "resmlp_tiny": {}, "resmlp_12_224": {}},
}
FAMILIES = tuple(NETWORKS)
STUDENT_SIZE, TEACHER_SIZE = 32, 48
NEVER_TEACHER = {"test_coatnet"}
"""Takes 32 px only."""
NEVER_STUDENT = {"resmlp_12_224"}
"""15 M parameters."""


class Pair(NamedTuple):
    """One cell of the design; the method that trains alone has no teacher."""

    method: str
    teacher: str | None
    student: str

    def __str__(self):
        return f"{self.method}-{self.teacher or 'alone'}-{self.student}"


def covering_design():
    """Every method with every pair of families; networks take turns, teachers half a round ahead of students."""
    students = {key: cycle(name for name in names if name not in NEVER_STUDENT) for key, names in NETWORKS.items()}
    teachers = {key: cycle(name for name in names if name not in NEVER_TEACHER) for key, names in NETWORKS.items()}
    for family, names in teachers.items():
        next(islice(names, len(NETWORKS[family]) // 2, None))
    return [
        Pair(record.name, next(teachers[of_teacher]) if of_teacher else None, next(students[of_student]))
        for record in METHODS
        for of_teacher in (FAMILIES if record.value.needs else (None,))
        for of_student in FAMILIES
    ]


DESIGN = covering_design()
FAMILY = {name: key for key, names in NETWORKS.items() for name in names}


def is_quick(pair):
    """Whether it is one of a method's cells that have one in each row and each column, other cells for the next."""
    if pair.teacher is None:
        return True
    row, column = FAMILIES.index(FAMILY[pair.teacher]), FAMILIES.index(FAMILY[pair.student])
    return (row + column - [record.name for record in METHODS].index(pair.method)) % len(FAMILIES) == 0


ARGUMENTS = {name: arguments for names in NETWORKS.values() for name, arguments in names.items()}


def plan_of(pair):
    def network(name, size):
        return {"name": f"timm/{name}", "image_size": size, "args": ARGUMENTS[name]}

    # Without weight decay a parameter moves if and only if it gets a gradient.
    training = {"batch_size": 32, "steps": 10, "lr": 1e-3, "warmup_epochs": 0, "weight_decay": 0, "log_every": 1}
    tree = {
        "student": network(pair.student, STUDENT_SIZE),
        "teachers": [network(pair.teacher, TEACHER_SIZE)] if pair.teacher else [],
        "method": {"name": pair.method},
        "data": {"source": "digits", "limit_train": 64},
        "train": training,
        "device": "cpu",
    }
    return make_plan(tree)


class Witness(Quiet):
    """Sees what a dry run builds, what its networks are shown, and its losses."""

    def __init__(self, monkeypatch):
        self.compose = single.compose
        self.losses, self.shown, self.teacher_modes = [], {}, set()
        monkeypatch.setattr(single, "compose", self.watch)
        monkeypatch.setattr(single, "reporter", lambda mode: self)

    def watch(self, settings, modules):
        self.parts = self.compose(settings, modules)
        self.before = {name: copy.deepcopy(part.state_dict()) for name, part in self.networks().items()}
        for name, part in self.networks().items():
            if name != "method":
                part.register_forward_pre_hook(partial(self.note, name))
        return self.parts

    def networks(self):
        teacher = {"teacher": self.parts.teacher.model} if self.parts.teacher else {}
        return {"student": self.parts.student, "method": self.parts.method, **teacher}

    def note(self, name, network, inputs):
        if name == "teacher":
            self.teacher_modes |= {module.training for module in network.modules()}
        if self.parts.student.training:  # a training step, not an evaluation
            self.shown[name] = inputs[0]

    def train(self, line):
        self.losses.append(line["losses"])

    def unmoved(self, name):
        """Trained parameters that are what they were."""
        before = self.before[name]
        return {key for key, now in self.networks()[name].named_parameters() if torch.equal(now, before[key])}

    def idle(self):
        """The student's parameters that its logits do not depend on, such as attention biases among one position."""
        student = self.parts.student.train()
        student(self.shown["student"]).logits.square().sum().backward()
        return {key for key, one in student.named_parameters() if one.grad is None or not one.grad.any()}


def pixels(images, spec):
    """What a network sees, without its normalisation and its resolution ``(B, C, 2, 2)``, between 0 and 1."""
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (spec.input.mean, spec.input.std))
    return functional.adaptive_avg_pool2d(images * std + mean, 2)


def test_each_network_and_each_pair_of_families_takes_part():
    assert {pair.student for pair in DESIGN} | {pair.teacher for pair in DESIGN} - {None} == set(ARGUMENTS)
    for record in METHODS:
        cells = [one for one in DESIGN if one.method == record.name]
        met = {(FAMILY.get(one.teacher), FAMILY[one.student]) for one in cells}
        assert met == set(product(FAMILIES if record.value.needs else [None], FAMILIES))
        quick = [one for one in cells if is_quick(one)]
        assert len(quick) == len(FAMILIES)
        assert {FAMILY[one.student] for one in quick} == set(FAMILIES)
        if record.value.needs:
            assert {FAMILY[one.teacher] for one in quick} == set(FAMILIES)


CELLS = [pytest.param(pair, id=str(pair), marks=[] if is_quick(pair) else pytest.mark.slow) for pair in DESIGN]


@pytest.mark.parametrize("pair", CELLS)
def test_two_steps(pair, monkeypatch, tmp_path):
    torch.set_num_threads(1)
    witness = Witness(monkeypatch)
    (summary,) = execute(plan_of(pair), tmp_path / "run", dry_run=True)["dry_run"].values()

    student, teacher = witness.parts.student.spec, summary["teacher"]
    assert (student.name, student.input.image_size) == (pair.student, (STUDENT_SIZE, STUDENT_SIZE))
    assert student.family == next(family for family, names in NETWORKS.items() if pair.student in names)
    assert len(witness.losses) == 2
    assert all(math.isfinite(value) for losses in witness.losses for value in losses.values())
    assert witness.unmoved("student") <= witness.idle()
    assert not witness.unmoved("method")
    assert not (tmp_path / "run").exists()
    if teacher is None:
        assert summary["method"]["num_parameters"] == 0
        return
    assert (teacher["name"], teacher["input"]["image_size"]) == (pair.teacher, (TEACHER_SIZE, TEACHER_SIZE))
    assert len(witness.losses[0]) > 1  # the method's own, beside the cross-entropy
    check_teacher(witness)


def check_teacher(witness):
    """It is as it was, never left eval mode, and saw what the student saw, prepared in its own way."""
    network, spec = witness.parts.teacher.model, witness.parts.teacher.spec
    assert witness.teacher_modes == {False}
    assert not any(parameter.requires_grad for parameter in network.parameters())
    before = witness.before["teacher"]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert witness.shown["teacher"].shape[-1] == TEACHER_SIZE
    ours, theirs = pixels(witness.shown["student"], witness.parts.student.spec), pixels(witness.shown["teacher"], spec)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0.03)
