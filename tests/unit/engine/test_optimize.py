"""Which parameters decay, and what the learning rate is at each step."""

import math

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from crossdistill.engine.learner import Learner
from crossdistill.engine.optimize import LearningRate, build_optimizer, undecayed
from crossdistill.errors import InputError
from samples.training import Match, SmallNet, settings


class Wrapper(nn.Module):
    """The plain network one level down, as in ``StagedModel``."""

    def __init__(self, net):
        super().__init__()
        self.net = net


def rates(total, per_epoch, **changes):
    """The rate of every step, asked for in an order that a stateful schedule would get wrong."""
    given_settings = settings(**changes)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=given_settings.lr)
    rate = LearningRate(optimizer, given_settings, total_steps=total, steps_per_epoch=per_epoch)
    found = {}
    for step in reversed(range(total)):
        rate.set(step)
        found[step] = rate.current
    return [found[step] for step in range(total)]


@given(
    total=st.integers(2, 60),
    per_epoch=st.integers(1, 12),
    warmup_epochs=st.floats(0, 4),
    lr=st.floats(1e-4, 1.0),
    min_lr=st.floats(0, 1.0),
    warmup_lr=st.floats(0, 1.0),
)
def test_cosine_with_warmup_per_step_is_the_closed_form(total, per_epoch, warmup_epochs, lr, min_lr, warmup_lr):
    found = rates(
        total, per_epoch, warmup_epochs=warmup_epochs, lr=lr, min_lr=min_lr, warmup_lr=warmup_lr, schedule="cosine"
    )
    warmup = math.floor(min(round(warmup_epochs * per_epoch), total / 5))
    low, start = min(min_lr, lr), min(warmup_lr, lr)
    for step, rate in enumerate(found):
        if step < warmup:
            expected = start + step * (lr - start) / warmup
        else:
            expected = low + (lr - low) * (1 + math.cos(math.pi * step / total)) / 2
        assert rate == pytest.approx(expected)


def test_per_epoch_the_rate_stands_still_within_an_epoch():
    found = rates(20, 4, schedule="cosine", schedule_per="epoch", lr=1.0, min_lr=0.0, warmup_epochs=1, warmup_lr=0.1)
    cosine = [(1 + math.cos(math.pi * epoch / 5)) / 2 for epoch in range(1, 5)]
    assert found == pytest.approx([rate for rate in [0.1, *cosine] for _ in range(4)])


def test_step_schedule_decays_every_decay_epochs():
    found = rates(12, 2, schedule="step", decay_epochs=2, decay_rate=0.1, lr=1.0)
    assert found == pytest.approx([1.0] * 4 + [0.1] * 4 + [0.01] * 4)


def test_constant_schedule_is_constant_after_warmup():
    found = rates(20, 4, schedule="constant", lr=0.5, warmup_epochs=100, warmup_lr=0.1)
    assert found == pytest.approx([0.1, 0.2, 0.3, 0.4] + [0.5] * 16)


@pytest.mark.parametrize("name", ["test_vit3", "swin_tiny_patch4_window7_224"])
def test_the_students_own_list_is_found_behind_the_wrapper(name):
    net = timm.create_model(name, num_classes=4)
    expected = {f"net.{p}" for p, _ in net.named_parameters() if any(word in p for word in net.no_weight_decay())}
    assert expected
    assert undecayed(Wrapper(net)) == expected


def test_decay_falls_on_matrices_of_student_and_method_only():
    net = timm.create_model("test_vit3", num_classes=4)
    learner = Learner(Wrapper(net), Match(), settings(), several=False)
    optimizer = build_optimizer(learner, settings(weight_decay=0.3))
    names = {id(parameter): name for name, parameter in learner.named_parameters()}
    decay = {
        names[id(parameter)]: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]
    }
    assert decay.keys() == set(names.values())
    for name, parameter in learner.named_parameters():
        excluded = parameter.ndim <= 1 or name.rpartition(".")[2] in ("pos_embed", "cls_token", "reg_token")
        assert decay[name] == (0.0 if excluded else 0.3), name
    assert decay["student.net.pos_embed"] == 0.0
    assert decay["method.projector.weight"] == 0.3


@pytest.mark.parametrize("name", ["sgd", "lamb", "Lookahead_AdamW", "muon"])
def test_timms_optimizers_are_built_by_name(name):
    learner = Learner(SmallNet(), Match(), settings(), several=False)
    optimizer = build_optimizer(learner, settings(optimizer=name, lr=0.125))
    assert {group["lr"] for group in optimizer.param_groups} == {0.125}


@pytest.mark.parametrize("name", ["lookahead", "adam w", "lookahead_nothing", "fusedadam"])
def test_an_optimizer_that_cannot_be_built_is_bad_input(name):
    learner = Learner(SmallNet(), Match(), settings(), several=False)
    with pytest.raises(InputError, match=f"optimizer {name!r}"):
        build_optimizer(learner, settings(optimizer=name))
