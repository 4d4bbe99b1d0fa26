"""The moving average of a student: schedule, what is averaged, modes, and its state."""

import pytest
import torch
from torch import nn

from crossdistill.contracts import Batch, Follower, Moment, Teacher
from crossdistill.models import build
from crossdistill.teachers import MovingAverageTeacher
from crossdistill.teachers.moving_average import momentum_at


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return build("timm/test_resnet", num_classes=3, image_size=32)


def test_published_schedule():
    values = [momentum_at(Moment(step, 1000), start=0.99, schedule="cosine") for step in (0, 250, 500, 750, 900, 1000)]
    assert values[0] == 0.99
    assert values == pytest.approx([0.990, 0.991464, 0.995, 0.998536, 0.999755, 1.0], abs=5e-7)
    assert momentum_at(Moment(500, 1000), start=0.9, schedule="constant") == 0.9


def test_it_is_both_a_teacher_and_a_follower(student):
    teacher = MovingAverageTeacher(student)
    assert isinstance(teacher, Teacher)
    assert isinstance(teacher, Follower)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_parameters_are_averaged_and_buffers_are_not(student):
    teacher = MovingAverageTeacher(student, momentum=0.75, schedule="constant")
    other = build("timm/test_resnet", num_classes=3, image_size=32)
    with torch.no_grad():
        for module in other.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.add_(5)
    teacher.follow(other, Moment(0, 10))
    for own, old, new in zip(teacher.model.parameters(), student.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(own, 0.75 * old + 0.25 * new)
    for own, old in zip(teacher.model.buffers(), student.buffers(), strict=True):
        assert torch.equal(own, old)


def test_batch_norm_uses_the_batch_and_dropout_stays_off(student):
    teacher = MovingAverageTeacher(student)
    teacher.model.net.add_module("extra", nn.Dropout(0.5))
    for mode in (True, False):
        teacher.train(mode)
        modes = {type(module).__name__: module.training for module in teacher.modules()}
        assert modes["Dropout"] is False
        assert any(v for k, v in modes.items() if "BatchNorm" in k)
    images = torch.randn(4, 3, 32, 32)
    batch = Batch({"teacher0": images}, torch.zeros(4), torch.arange(4))
    statistics = {name: buffer.clone() for name, buffer in teacher.named_buffers() if "running_mean" in name}
    answer = teacher.signals(batch)
    assert any(not torch.equal(buffer, dict(teacher.named_buffers())[name]) for name, buffer in statistics.items())
    student.train()
    with torch.no_grad():
        torch.testing.assert_close(answer.require_stages()[-1], student(images).require_stages()[-1])
    assert answer.logits is not None
    assert not answer.logits.requires_grad


def test_its_state_goes_on(student):
    teacher, again = MovingAverageTeacher(student), MovingAverageTeacher(student)
    teacher.follow(build("timm/test_resnet", num_classes=3, image_size=32), Moment(0, 10))
    again.load_state_dict(teacher.state_dict())
    assert all(map(torch.equal, teacher.parameters(), again.parameters()))
    assert "cosine" in teacher.fingerprint()
    assert teacher.fingerprint() == again.fingerprint()
