"""OBoW's recipes resolve to the published settings: configurations of the released code, specification section 4."""

import pytest
import torch

from crossdistill.contracts import Moment
from crossdistill.engine.optimize import LearningRate, build_optimizer
from crossdistill.selfsup import read_recipe
from crossdistill.teachers.moving_average import momentum_at

# images a step, epochs, rate, lowest rate, weight decay, inverse delta, kappa
PUBLISHED = {
    "imagenet/obow-resnet50": (256, 200, 0.03, 3e-5, 1e-4, 15.0, 8.0),
    "imagenet/obow-resnet18": (128, 80, 0.05, 0.0, 5e-4, 10.0, 5.0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings(name):
    settings, seeds = read_recipe(name)
    batch_size, epochs, lr, min_lr, decay, inverse_delta, kappa = PUBLISHED[name]
    train, options, views = settings.train, settings.method.options, settings.views
    assert (train.batch_size, train.epochs, train.lr, train.min_lr) == (batch_size, epochs, lr, min_lr)
    assert (train.weight_decay, train.decay_all, train.momentum) == (decay, True, 0.9)
    assert (train.clip_grad, train.precision, train.ema_decay) == (None, "fp32", None)
    assert (options["inverse_delta"], options["kappa"], options["learn_kappa"]) == (inverse_delta, kappa, False)
    assert (options["levels"], options["num_words"], options["pool"]) == ([3, 4], 8192, "max")
    assert (options["border"], options["queue"], options["words_per_step"]) == (1, "local_average", None)
    assert (settings.momentum.start, settings.momentum.schedule) == (0.99, "cosine")
    assert (views.crops, views.crop_size, views.crop_scale) == (2, 160, (0.08, 0.6))
    assert (views.patches, views.patch_size, views.patch_base, views.patch_scale) == (5, 96, 256, (0.6, 1.0))
    assert (views.color_jitter, views.jitter_probability, views.grey_probability) == ((0.4, 0.4, 0.4, 0.1), 0.8, 0.2)
    assert (views.blur_probability, views.blur_sigma) == (0.5, (0.1, 2.0))
    assert settings.data.first_per_class == (260 if name.endswith("18") else None)
    assert seeds == (0,)


def test_the_rate_of_resnet50_at_the_published_epochs():
    train = read_recipe("imagenet/obow-resnet50")[0].train
    net = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(net, train)
    assert not any(group["nesterov"] for group in optimizer.param_groups)
    assert all(group["weight_decay"] == 1e-4 for group in optimizer.param_groups)
    steps = 5004
    rate = LearningRate(optimizer, train, total_steps=200 * steps, steps_per_epoch=steps)
    published = {0: 0.0, 1: 0.003, 5: 0.015, 10: 0.03, 50: 0.02684, 100: 0.016252, 150: 0.004866, 199: 0.000032}
    for epoch, expected in published.items():
        rate.set(epoch * steps)
        assert rate.current == pytest.approx(expected, abs=5e-6 if expected > 1e-3 else 5e-7), epoch


def test_the_momentum_over_the_published_run():
    total = 1_000_800
    shares = {0: 0.990, 0.25: 0.991464, 0.5: 0.995, 0.75: 0.998536, 0.9: 0.999755}
    for share, expected in shares.items():
        moment = Moment(int(share * total), total)
        assert momentum_at(moment, start=0.99, schedule="cosine") == pytest.approx(expected, abs=5e-7)
