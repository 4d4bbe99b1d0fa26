"""The loop with the project's own models, data and methods, on the embedded digits."""

import copy
import os
import signal

import numpy as np
import pytest
import torch

from crossdistill.contracts import UNLABELLED
from crossdistill.data import EvalLoader, TrainLoader, open_source
from crossdistill.engine import connect, evaluate, fit
from crossdistill.engine.progress import Quiet
from crossdistill.errors import Interrupted
from crossdistill.models import build
from crossdistill.registry import METHODS
from crossdistill.settings import DataSettings
from crossdistill.teachers import FrozenTeacher
from samples.training import settings

DIGITS = DataSettings(source="digits")


def loaders(views, *, labelled_every=1):
    splits = open_source(DIGITS)
    ids = np.arange(len(splits.train.targets))
    targets = np.where(ids % labelled_every == 0, splits.train.targets, UNLABELLED)
    sizes = {"batch_size": 64, "device_batch_size": 32}
    train = TrainLoader(splits.train, ids, targets, views, DIGITS.augment, seed=0, **sizes)
    return train, EvalLoader(splits.evaluation, views, batch_size=256)


@pytest.fixture(scope="module")
def untrained():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return build("timm/test_resnet", num_classes=10, image_size=16)


@pytest.fixture(scope="module")
def teacher(untrained):
    model = copy.deepcopy(untrained)
    train, held_out = loaders({"student": model.spec.input})
    method = METHODS.get("none").value.build(model.spec, None, num_classes=10)
    given = settings(steps=40, lr=0.01, batch_size=64)
    result = fit(model, method, None, train, held_out, settings=given, device="cpu")
    assert result.metrics["top1"] > 0.8
    return FrozenTeacher(model)


def distil(untrained, teacher, out=None, reporter=None):
    """Every twentieth training image has a label, about seven a class."""
    student = copy.deepcopy(untrained)
    train, held_out = loaders({"student": student.spec.input, "teacher0": teacher.spec.input}, labelled_every=20)
    torch.manual_seed(1)
    method = METHODS.get("ofa").value.build(student.spec, teacher.spec, num_classes=10)
    given = settings(steps=26, lr=0.01, batch_size=64, ema_decay=0.5)
    keywords = {"settings": given, "device": "cpu", "out": out, "reporter": reporter}
    return student, held_out, fit(student, method, teacher, train, held_out, **keywords)


class Stop(Quiet):
    def stepped(self, step):
        if step == 20:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_real_distillation_learns_resumes_and_describes_its_student(untrained, teacher, tmp_path):
    with pytest.raises(Interrupted):
        distil(untrained, teacher, tmp_path, Stop())
    student, held_out, result = distil(untrained, teacher, tmp_path)
    whole, _, whole_result = distil(untrained, teacher)
    for key, value in whole.state_dict().items():
        assert torch.equal(student.state_dict()[key], value), key
    accelerator = connect("cpu")
    assert result.metrics == whole_result.metrics == evaluate(student, held_out, accelerator=accelerator)
    assert evaluate(untrained, held_out, accelerator=accelerator)["top1"] < 0.3
    assert result.metrics["top1"] > 0.5
