"""KD, DKD and DIST: which tensors go into the loss, and with which options."""

import pytest
import torch

from crossdistill import losses
from crossdistill.contracts import Batch, Outputs
from crossdistill.registry import METHODS
from oracles import model_specs as specs

STUDENT = Outputs(logits=torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))
TEACHER = Outputs(logits=torch.randn(4, 6, generator=torch.Generator().manual_seed(1)))
BATCH = Batch(images={}, target=torch.tensor([3, -1, 0, -1]), sample_id=torch.arange(4))


def loss_of(name, **options):
    method = METHODS.get(name).value.build(specs.resnet18(6), specs.teacher(8, 6), num_classes=6, **options)
    terms = method(STUDENT, TEACHER, BATCH)
    assert set(terms) == {name}
    return terms[name]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd(temperature):
    expected = losses.kd(STUDENT.logits, TEACHER.logits, temperature=temperature)
    assert torch.equal(loss_of("kd", temperature=temperature), expected)


def test_kd_standardizes_both_logits():
    student, teacher = losses.standardize(STUDENT.logits), losses.standardize(TEACHER.logits)
    assert torch.equal(loss_of("kd", standardize=True), losses.kd(student, teacher, temperature=4.0))
    assert not torch.equal(loss_of("kd", standardize=True), loss_of("kd"))


def test_dkd_takes_the_teachers_class_where_unlabelled():
    choice = TEACHER.logits.argmax(1)
    labels = torch.stack([torch.tensor(3), choice[1], torch.tensor(0), choice[3]])
    expected = losses.dkd(STUDENT.logits, TEACHER.logits, labels, alpha=1.0, beta=2.0, temperature=1.0)
    assert torch.equal(loss_of("dkd"), expected)


def test_dist():
    expected = losses.dist(STUDENT.logits, TEACHER.logits, beta=2.0, gamma=0.5, temperature=4.0)
    assert torch.equal(loss_of("dist", beta=2.0, gamma=0.5, temperature=4.0), expected)


def test_defaults_are_those_of_the_published_comparison():
    assert torch.equal(loss_of("dkd"), loss_of("dkd", alpha=1.0, beta=2.0, temperature=1.0))
    assert torch.equal(loss_of("dist"), loss_of("dist", beta=1.0, gamma=1.0, temperature=1.0))
    assert torch.equal(loss_of("kd"), loss_of("kd", temperature=4.0, weight=1.0, standardize=False))
