"""Which parameters decay, and what the learning rate is at each step."""

import math

import pytest
import timm
import torch
from accelerate.optimizer import AcceleratedOptimizer
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from crossdistill.engine import connect, optimize
from crossdistill.engine.copies import MOST_SKIPPED, Copies
from crossdistill.engine.learner import Learner
from crossdistill.engine.optimize import LearningRate, build_optimizer, undecayed
from crossdistill.errors import InputError
from crossdistill.models import build
from crossdistill.models.cutter import classifier_names
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


def test_warm_up_by_step_before_a_cosine_by_epoch_as_obow_has_it():
    """The published rates of the ResNet-50 run, of which the specification prints five digits."""
    found = rates(
        200 * 10,
        10,
        schedule="cosine",
        schedule_per="epoch",
        warmup="before",
        warmup_epochs=10,
        warmup_lr=0.0,
        lr=0.03,
        min_lr=3e-5,
    )
    assert found[0] == 0
    published = {1: 0.003, 5: 0.015, 10: 0.03, 50: 0.02684, 100: 0.016252, 150: 0.004866, 199: 0.000032}
    for epoch, rate in published.items():
        assert found[10 * epoch] == pytest.approx(rate, abs=5e-6 if rate > 1e-3 else 5e-7), epoch
    assert found[5] == pytest.approx(0.0015)  # warm-up goes by step
    assert found[500:510] == [found[500]] * 10  # the cosine by epoch


@given(total=st.integers(5, 60), warmup=st.integers(0, 10))
def test_a_schedule_after_the_warm_up_is_the_whole_schedule(total, warmup):
    found = rates(total, 1, schedule="cosine", warmup="before", warmup_epochs=warmup, warmup_lr=0.0, lr=1.0, min_lr=0.0)
    warmed = math.floor(min(warmup, total / 5))
    for step, rate in enumerate(found):
        if step < warmed:
            assert rate == pytest.approx(step / warmed)
        else:
            assert rate == pytest.approx((1 + math.cos(math.pi * (step - warmed) / (total - warmed))) / 2, abs=1e-12)


@pytest.mark.parametrize("per", ["step", "epoch"])
def test_milestones(per):
    found = rates(12, 2, schedule="step", schedule_per=per, milestones=[3, 5], decay_rate=0.2, lr=1.0, warmup_epochs=0)
    assert found == pytest.approx([1.0] * 6 + [0.2] * 4 + [0.04] * 2)


def test_milestones_are_epochs_of_the_run_also_after_a_warm_up_before():
    given = {"schedule": "step", "milestones": [5], "decay_rate": 0.2, "lr": 1.0, "warmup_epochs": 2, "warmup_lr": 0.0}
    found = rates(20, 2, warmup="before", **given)
    assert next(step for step, rate in enumerate(found) if rate == pytest.approx(0.2) and step > 4) == 10
    assert found[9] == pytest.approx(1.0)


def test_everything_decays_where_that_is_asked_for():
    learner = Learner(SmallNet(batch_norm=True), Match(), settings(), several=False)
    optimizer = build_optimizer(learner, settings(decay_all=True, weight_decay=0.3))
    (group,) = optimizer.param_groups
    assert group["weight_decay"] == 0.3
    assert len(group["params"]) == len(list(learner.parameters()))


@pytest.mark.parametrize("decay_all", [False, True])
def test_the_classifier_may_have_a_rate_of_its_own(decay_all):
    model = build("timm/test_resnet", num_classes=3, image_size=32)
    learner = Learner(model, Match(), settings(), several=False)
    given_settings = settings(lr=0.1, classifier_lr=2.0, decay_all=decay_all, schedule="cosine", min_lr=0.0)
    optimizer = build_optimizer(learner, given_settings)
    rate = LearningRate(optimizer, given_settings, total_steps=10, steps_per_epoch=1)
    (head,) = (model.net.get_submodule(name) for name in classifier_names(model.net))
    heads = {id(parameter) for parameter in head.parameters()}
    seen = set()
    for step in (0, 5):
        rate.set(step)
        expected = 0.1 * (1 + math.cos(math.pi * step / 10)) / 2
        assert rate.current == pytest.approx(expected)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                seen.add(id(parameter))
                assert group["lr"] == pytest.approx((20 if id(parameter) in heads else 1) * expected)
    assert seen == {id(parameter) for parameter in learner.parameters()}


def test_a_rate_for_a_classifier_without_weights_is_refused():
    net = SmallNet()
    net.get_classifier = nn.Identity
    learner = Learner(net, Match(), settings(), several=False)
    with pytest.raises(InputError, match="classifier_lr=2 for a SmallNet, whose classifier is empty"):
        build_optimizer(learner, settings(classifier_lr=2.0))


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


def learner_of(**changes):
    return Learner(SmallNet(seed=1, batch_norm=True), Match(), settings(**changes), several=False)


def is_fused(optimizer):
    return {bool(group.get("fused")) for group in optimizer.param_groups} == {True}


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "momentum", "adagrad", "lookahead_adamw"])
def test_an_optimizer_is_fused_where_pytorch_can_unless_that_is_not_wanted(name):
    assert is_fused(build_optimizer(learner_of(), settings(optimizer=name)))
    assert is_fused(build_optimizer(learner_of(), settings(optimizer=name, fused_optimizer=True)))
    assert not is_fused(build_optimizer(learner_of(), settings(optimizer=name, fused_optimizer=False)))


@pytest.mark.parametrize("name", ["lamb", "rmsprop", "nadamw", "muon"])
def test_others_are_built_without_and_refused_where_fusing_is_a_must(name):
    assert not is_fused(build_optimizer(learner_of(), settings(optimizer=name)))
    with pytest.raises(InputError, match=f"fused_optimizer with optimizer '{name}' and weights on cpu") as refused:
        build_optimizer(learner_of(), settings(optimizer=name, fused_optimizer=True))
    assert "adamw" in refused.value.expected


def test_weights_that_are_not_trained_decide_nothing():
    """A frozen weight of whole numbers, smaller than all others, has no fused kernel and needs none."""
    learner = learner_of()
    learner.register_parameter("scale", nn.Parameter(torch.zeros(0, dtype=torch.int8), requires_grad=False))
    assert is_fused(build_optimizer(learner, settings(optimizer="adamw", fused_optimizer=True)))


def test_a_device_without_a_fused_kernel_gets_the_plain_one(monkeypatch):
    class Elsewhere(torch.optim.AdamW):
        def __init__(self, params, *, fused=None, **options):
            if fused:
                raise RuntimeError("`fused=True` requires all the params to be on supported devices")
            super().__init__(params, **options)

    info = type("Info", (), {"opt_class": Elsewhere})
    monkeypatch.setattr(optimize, "get_optimizer_info", lambda name: info)
    assert not optimize._has_fused("adamw", torch.zeros(1))


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "adagrad"])
def test_fused_steps_are_the_plain_ones_but_for_rounding(name):
    ends = []
    for fused in (True, False):
        learner = learner_of()
        run = settings(optimizer=name, fused_optimizer=fused, lr=0.05, weight_decay=0.1)
        optimizer = build_optimizer(learner, run)
        random = torch.Generator().manual_seed(0)
        for _ in range(5):
            for parameter in learner.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=random)
            optimizer.step()
        ends.append(learner.state_dict())
    start = learner_of().state_dict()
    for key, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][key], rtol=1e-5, atol=1e-6)
    assert not torch.equal(start["student.head.weight"], ends[0]["student.head.weight"])


class Scaled:
    """An accelerator that scales losses on a CPU, as it would in fp16 on a GPU."""

    def __init__(self):
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)

    def prepare_optimizer(self, optimizer):
        connect("cpu")  # accelerate wants its state
        return AcceleratedOptimizer(optimizer, scaler=self.scaler)

    def prepare_model(self, model):
        return model

    def clip_grad_norm_(self, parameters, max_norm):
        self.scaler.unscale_(self.copies.optimizer.optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)


def scaled_copies(**changes):
    accelerator = Scaled()
    copies = Copies(learner_of(), settings(precision="fp16", lr=0.05, **changes), accelerator)
    accelerator.copies = copies
    return copies


def set_gradients(copies, value):
    """Of that value once the scale is taken off."""
    copies.accelerator.scaler.scale(torch.ones(()))  # it is made when first used
    for parameter in copies.learner.parameters():
        parameter.grad = torch.full_like(parameter, value * copies.accelerator.scaler.get_scale())


@pytest.mark.parametrize("clip_grad", [None, 1.0])
@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "lookahead_adamw"])
def test_steps_that_overflow_are_skipped_and_counted_fused_or_not(name, clip_grad):
    ends = []
    for fused in (None, False):
        copies = scaled_copies(optimizer=name, clip_grad=clip_grad, fused_optimizer=fused, ema_decay=0.5)
        for value, skipped in ((0.1, 0), (math.inf, 1), (math.nan, 2), (0.2, 0), (math.inf, 1), (0.1, 0)):
            before = {key: tensor.clone() for key, tensor in copies.learner.state_dict().items()}
            average = copies.ema.module.head.weight.clone()
            set_gradients(copies, value)
            copies.update(1)
            assert copies.num_skipped == skipped
            stands = all(torch.equal(tensor, before[key]) for key, tensor in copies.learner.state_dict().items())
            assert stands == bool(skipped)
            assert not skipped or torch.equal(copies.ema.module.head.weight, average)
        assert copies.accelerator.scaler.get_scale() == 2.0**13
        ends.append(copies.learner.state_dict())
    for key, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][key], rtol=1e-5, atol=1e-6)


def test_too_many_skipped_steps_in_a_row_are_an_error_also_of_a_fused_optimizer():
    copies = scaled_copies(fused_optimizer=True)
    for _ in range(MOST_SKIPPED - 1):
        set_gradients(copies, math.inf)
        copies.update(1)
    set_gradients(copies, math.inf)
    with pytest.raises(InputError, match=f"gradients are not finite in {MOST_SKIPPED} steps in a row"):
        copies.update(1)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True)])
def test_a_resumed_run_fuses_as_it_is_told_and_not_as_the_checkpoint_was(name, before, after):
    states, steps = [], []
    for fused in (before, after):
        copies = Copies(learner_of(), settings(optimizer=name, fused_optimizer=fused), connect("cpu"))
        if states:
            copies.load_state_dict(states[0])
        for parameter in copies.learner.parameters():
            parameter.grad = torch.ones_like(parameter)
        copies.update(1)
        assert is_fused(copies.optimizer) == fused
        states.append(copies.state_dict())
        steps.append(float(states[-1]["optimizer"]["state"][0].get("step", math.nan)))
    assert name == "sgd" or steps == [1.0, 2.0]
