"""The recipes that carry a paper's name resolve to the paper's numbers.

Source: Hao, Guo, Han, Tang, Hu, Wang, Xu, NeurIPS 2023, arXiv 2310.19444: the released configurations, 8 processes.
"""

import pytest
import torch

from crossdistill.data.augmentation.rand_augment import parse_policy
from crossdistill.engine.optimize import LearningRate, build_optimizer
from crossdistill.runs import read_recipe

CIFAR_MEAN, CIFAR_STD = [0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]

# epochs, images a step, optimiser, rate, decay, schedule, lowest rate, warm-up epochs and rate, largest norm, EMA
TRAINING = {
    "cifar100/ofa-cnn": (300, 8 * 128, "sgd", 0.05, 2e-3, "cosine", 1e-3, 3, 1e-4, None, None),
    "cifar100/ofa-transformer": (300, 8 * 128, "adamw", 5e-4, 0.05, "cosine", 1e-5, 20, 5e-7, 5.0, None),
    "imagenet/ofa-cnn": (100, 8 * 64, "sgd", 0.1, 1e-4, "step", None, 3, 1e-4, None, None),
    "imagenet/ofa-transformer": (300, 8 * 128, "adamw", 5e-4, 0.05, "cosine", 1e-6, 20, 5e-7, 5.0, 0.99996),
}
# teacher, student, exponent, share of the side in evaluation
PAIRS = {
    "cifar100/ofa-cnn": ("runs/cifar100/teacher", "timm/resnet18", 1.0, 0.875),
    "cifar100/ofa-transformer": ("runs/cifar100/teacher-convnext", "timm/deit_tiny_patch16_224", 1.0, 0.9),
    "imagenet/ofa-cnn": ("timm/deit_tiny_patch16_224.fb_in1k@pretrained", "timm/resnet18", 1.5, 0.875),
    "imagenet/ofa-transformer": ("timm/convnext_tiny.fb_in1k@pretrained", "timm/deit_tiny_patch16_224", 1.0, 0.9),
}


@pytest.mark.parametrize("name", TRAINING)
def test_training_settings(name):
    train = read_recipe(name).settings.train
    epochs, batch_size, optimizer, lr, decay, schedule, min_lr, warmup, warmup_lr, norm, ema = TRAINING[name]
    assert (train.epochs, train.batch_size, train.optimizer) == (epochs, batch_size, optimizer)
    assert (train.lr, train.weight_decay, train.schedule) == (lr, decay, schedule)
    assert (train.warmup_epochs, train.warmup_lr, train.schedule_per) == (warmup, warmup_lr, "epoch")
    assert (train.clip_grad, train.ema_decay, train.label_smoothing) == (norm, ema, 0.1)
    if schedule == "step":
        assert (train.decay_epochs, train.decay_rate) == (30, 0.1)
    else:
        assert train.min_lr == min_lr
    assert (train.precision, train.cross_entropy_weight, train.class_weights) == ("fp32", 1.0, None)


@pytest.mark.parametrize("name", TRAINING)
def test_pairs_and_loss(name):
    settings = read_recipe(name).settings
    teacher, student, gamma, crop_pct = PAIRS[name]
    assert ([one.name for one in settings.teachers], settings.student.name) == ([teacher], student)
    assert settings.method.name == "ofa"
    options = settings.method.options
    assert (options["gamma"], options["temperature"], options["kd_weight"], options["branch_weight"]) == (
        gamma,
        1,
        1,
        1,
    )
    assert settings.data.eval_crop_pct == crop_pct
    assert settings.data.source == name.partition("/")[0]
    if settings.data.source == "cifar100":
        normalisation = settings.student.args["pretrained_cfg_overlay"]
        assert (normalisation["mean"], normalisation["std"]) == (CIFAR_MEAN, CIFAR_STD)


@pytest.mark.parametrize("name", TRAINING)
def test_augmentation(name):
    augment = read_recipe(name).settings.data.augment
    assert (augment.crop, augment.scale, augment.ratio) == ("resized", (0.08, 1.0), (3 / 4, 4 / 3))
    assert (augment.flip, augment.interpolation, augment.color_jitter) == (0.5, "random", 0.0)
    if name.endswith("cnn"):
        assert (augment.rand_augment, augment.erase, augment.mixup, augment.cutmix) == (None, 0.0, 0.0, 0.0)
        return
    policy = parse_policy(augment.rand_augment)
    assert (policy.magnitude, policy.magnitude_std, policy.increasing) == (9, 0.5, True)
    assert (policy.num_layers, policy.probability) == (2, 0.5)
    assert (augment.erase, augment.mixup, augment.cutmix) == (0.25, 0.8, 1.0)
    assert (augment.mix_probability, augment.cutmix_share) == (1.0, 0.5)


@pytest.mark.parametrize("name", TRAINING)
def test_the_rate_over_the_epochs(name):
    """With 48 steps an epoch, as CIFAR has: linear warm-up inside the total, then the peak, and the lowest last."""
    train = read_recipe(name).settings.train
    net = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(net, train)
    rate = LearningRate(optimizer, train, total_steps=train.epochs * 48, steps_per_epoch=48)

    def at(epoch, step=0):
        rate.set(epoch * 48 + step)
        return rate.current

    warmup = int(train.warmup_epochs)
    assert at(0) == pytest.approx(train.warmup_lr)
    assert at(1, 47) == at(1)  # it changes once an epoch
    assert at(1) == pytest.approx(train.warmup_lr + (train.lr - train.warmup_lr) / warmup)
    if train.schedule == "step":
        assert [at(epoch) for epoch in (3, 29, 30, 60, 99)] == pytest.approx([0.1, 0.1, 0.01, 1e-3, 1e-4])
        return
    assert at(warmup) == pytest.approx(train.lr, rel=0.02)  # the cosine has begun at epoch 0
    assert at(train.epochs // 2) == pytest.approx((train.lr + train.min_lr) / 2)
    assert at(train.epochs - 1) == pytest.approx(train.min_lr, rel=0.05)
    assert all(group["nesterov"] for group in optimizer.param_groups if train.optimizer == "sgd")


def test_the_teacher_is_fine_tuned_at_a_tenth_of_the_rate():
    settings = read_recipe("cifar100/teacher").settings
    assert (settings.student.name, settings.student.init) == ("timm/swin_tiny_patch4_window7_224", "pretrained")
    student = read_recipe("cifar100/ofa-transformer").settings
    assert settings.data.augment == student.data.augment
    train = settings.train
    assert (train.lr, train.min_lr, train.warmup_lr) == pytest.approx((student.train.lr / 10, 1e-6, 5e-8))
    assert settings.student.args == read_recipe("cifar100/ofa-cnn").settings.student.args


def test_rsds_recipe_is_ofas_with_two_processes_and_the_released_weights():
    """Zhang, Liu, Ran, Ma, ICCV 2025, arXiv 2507.21844: defaults and command of the released code."""
    rsd, ofa = read_recipe("cifar100/rsd-cnn").settings, read_recipe("cifar100/ofa-cnn").settings
    assert rsd.method.name == "rsd"
    options = {"kappa": 0.01, "weight": 0.1, "expansion": 2, "compare": "embedding"}
    assert rsd.method.options == options
    assert rsd.train.batch_size == 2 * 128
    assert rsd.train.model_copy(update={"batch_size": ofa.train.batch_size}) == ofa.train
    assert (rsd.student, rsd.teachers, rsd.data) == (ofa.student, ofa.teachers, ofa.data)
