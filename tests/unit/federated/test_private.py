"""Noisy training: what it costs, that each image is bounded, that only weights change, and what is refused."""

import copy
import json
import logging
import math
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

from crossdistill.contracts import InputSpec
from crossdistill.data.pixels import centre_view, normalise
from crossdistill.data.sources.arrays import ArraySource
from crossdistill.errors import InputError
from crossdistill.losses import cross_entropy
from crossdistill.models import build
from crossdistill.settings import AugmentSettings, TrainSettings

pytest.importorskip("opacus")

from crossdistill.federated import private
from crossdistill.federated.private import (
    Spent,
    check_network,
    delta_for,
    image_gradients,
    noise_for,
    sampling,
    secret_seed,
    train_privately,
)

NUM_IMAGES = 12
CPU = torch.device("cpu")
NETWORKS = {
    "vit": ("timm/vit_tiny_patch16_224", {"image_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2}),
    "resmlp": ("timm/resmlp_tiny", {"image_size": 16, "patch_size": 8, "embed_dim": 16, "num_blocks": 2}),
    "convnext": ("timm/convnext_atto", {"image_size": 32, "depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}),
    "swin": (
        "timm/swin_tiny_patch4_window7_224",
        {"image_size": 16, "window_size": 2, "patch_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1)},
    ),
    "resnet": ("timm/resnet10t", {"image_size": 32, "channels": [8, 8, 8, 8], "norm_layer": "groupnorm1"}),
}
"""Of each family; activations of ConvNeXt are channel-last, Swin's windows lie in the batch, ResNet works in place."""


def network(name="resmlp", seed=0):
    architecture, args = NETWORKS[name]
    if name == "vit":
        args = {**args, "num_heads": 2}
    torch.manual_seed(seed)
    return build(architecture, num_classes=4, **args)


def source_of(num_images=NUM_IMAGES, change=lambda pixels: None):
    pixels = np.random.default_rng(0).integers(0, 256, (num_images, 3, 16, 16), dtype=np.uint8)
    change(pixels)
    return ArraySource("pixels", pixels, np.arange(num_images) % 4, ("a", "b", "c", "d"), mirror_safe=True)


def settings(**changes):
    usual = {"epochs": 1, "batch_size": 4, "optimizer": "momentum", "momentum": 0.0, "lr": 0.5, "weight_decay": 0.0}
    return TrainSettings(**{**usual, "schedule": "constant", "warmup_epochs": 0.0, **changes})


def train(student, source=None, *, ids=None, spent=None, noise=1.0, norm=1.0, seed=3, loop=None, **options):
    source = source or source_of()
    ids = np.arange(len(source.targets)) if ids is None else ids
    return train_privately(
        student,
        source,
        ids,
        source.targets,
        train=loop or settings(),
        noise_multiplier=noise,
        max_grad_norm=norm,
        seed=seed,
        device=CPU,
        spent=Spent([], 1e-3) if spent is None else spent,
        workers=0,
        **options,
    )


def weights(student):
    return nn.utils.parameters_to_vector(student.parameters()).detach().clone()


def images_of(source, spec):
    return torch.stack([normalise(centre_view(source.read(one), spec), spec) for one in range(len(source.targets))])


def single_gradients(student, source):
    """The oracle: each image through the plain network on its own, one after the other ``(N, P)``."""
    student = copy.deepcopy(student).train()
    images, found = images_of(source, student.spec.input), []
    for image, target in zip(images, torch.from_numpy(source.targets), strict=True):
        student.zero_grad()
        cross_entropy(student(image[None]).logits, target[None]).backward()
        found.append(torch.cat([one.grad.flatten() for one in student.parameters()]))
    return torch.stack(found)


# what it costs


@pytest.mark.parametrize(("noise", "steps", "delta"), [(1.0, 1, 1e-5), (4.0, 30, 1e-5), (30.0, 10, 1e-3)])
def test_without_sampling_it_is_the_gaussian_mechanism(noise, steps, delta):
    """Rényi divergence of order a is a * steps / (2 noise ** 2); conversion by Balle et al. 2020, theorem 21."""
    orders = np.arange(1.01, 2000, 0.01)
    renyi = orders * steps / (2 * noise**2)
    exact = renyi + np.log((orders - 1) / orders) - (np.log(delta) + np.log(orders)) / (orders - 1)
    # fewer orders than all can only give a larger bound
    assert exact.min() <= Spent([[noise, 1.0, steps]], delta).epsilon <= exact.min() * 1.005


@pytest.mark.parametrize(
    "history",
    [
        [[1.0, 0.1, 100]],
        [[1.0, 0.1, 100], [1.5, 0.05, 200]],
        [[0.8, 0.02, 500]],
        [[3.0, 0.3, 300], [5.0, 1.0, 4]],
        [[20.0, 0.1, 50]],
    ],
)
def test_another_library_agrees(history):
    """dp-accounting, by the same divergences and by exact privacy losses, below which no bound may be."""
    accounting = pytest.importorskip("dp_accounting")
    from dp_accounting import pld, rdp

    def told_by(accountant):
        for noise, rate, steps in history:
            event = accounting.GaussianDpEvent(noise)
            sampled = event if rate == 1 else accounting.PoissonSampledDpEvent(rate, event)
            accountant.compose(sampled, int(steps))
        return accountant.get_epsilon(1e-4)

    found = Spent(history, 1e-4).epsilon
    assert found == pytest.approx(told_by(rdp.RdpAccountant(private.ORDERS)), rel=1e-3)
    exact = told_by(pld.PLDAccountant())
    assert exact < found < 1.25 * exact


def test_rounds_add_up_to_one_long_run():
    rounds = Spent([], 1e-4)
    for _ in range(7):
        rounds.charge(1.2, 0.1, 10)
    assert rounds.history == [[1.2, 0.1, 70]]
    assert rounds.steps == 70
    assert rounds.epsilon == Spent([[1.2, 0.1, 70]], 1e-4).epsilon
    rounds.charge(2.0, 0.1, 10)
    rounds.charge(1.2, 0.1, 5)
    assert rounds.history == [[1.2, 0.1, 70], [2.0, 0.1, 10], [1.2, 0.1, 5]]
    apart = Spent([[1.2, 0.1, 75], [2.0, 0.1, 10]], 1e-4)
    assert rounds.epsilon == pytest.approx(apart.epsilon, rel=1e-9)
    assert rounds.epsilon > Spent([[1.2, 0.1, 75]], 1e-4).epsilon > Spent([[1.2, 0.1, 70]], 1e-4).epsilon


def test_it_is_plain_json():
    spent = Spent([[1.2, 0.1, 70]], 1e-4)
    back = Spent(**json.loads(json.dumps(asdict(spent))))
    assert back == spent
    back.charge(1.2, 0.1, 1)
    assert back.history == [[1.2, 0.1, 71]]


def test_nothing_costs_nothing_and_no_noise_everything():
    assert Spent([], 1e-4).epsilon == 0
    assert Spent([[1.0, 0.1, 5], [0.0, 0.1, 1]], 1e-4).epsilon == math.inf


@pytest.mark.parametrize("target", [0.2, 1.0, 8.0])
@pytest.mark.parametrize("rate", [0.05, 1.0])
def test_noise_for_a_budget_is_enough_and_hardly_more(target, rate):
    noise = noise_for(target, 1e-4, rate, 200)
    assert 0.99 * target < Spent([[noise, rate, 200]], 1e-4).epsilon <= target


def test_a_budget_that_nothing_is_enough_for_is_refused():
    with pytest.raises(InputError, match=r"privacy.epsilon=0.0001 over 200 steps"):
        noise_for(1e-4, 1e-6, 0.5, 200)


def test_delta():
    assert delta_for(1000) == pytest.approx(1000**-1.1)
    assert delta_for(1000, 1e-5) == 1e-5
    for count, given in ((1000, 1e-3), (1000, 0.5), (1, None), (10, 0.0)):
        with pytest.raises(InputError, match="one could be published as it is"):
            delta_for(count, given)
    with pytest.raises(InputError, match="no labelled image"):
        delta_for(0)


@pytest.mark.parametrize(
    ("count", "changes", "expected"),
    [
        (640, {"batch_size": 64, "epochs": 3}, (0.1, 30)),
        (650, {"batch_size": 64, "epochs": 1}, (64 / 650, 10)),
        (20, {"batch_size": 64, "epochs": 5}, (1.0, 5)),
        (640, {"batch_size": 64, "epochs": None, "steps": 7}, (0.1, 7)),
    ],
)
def test_sampling(count, changes, expected):
    assert sampling(count, settings(**changes)) == expected


# what one image can do


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_each_image_alone(name):
    student, source = network(name).train(), source_of(3)
    if name == "swin":
        for module in student.modules():
            if hasattr(module, "drop_prob"):
                module.drop_prob = 0.0
    learner = private._Learner(student, 0.0).train()
    found = image_gradients(learner, images_of(source, student.spec.input), torch.from_numpy(source.targets))
    flat = torch.cat([one.flatten(1) for one in found.values()], dim=1)
    expected = single_gradients(student, source)
    assert expected.norm(dim=1).min() > 0.1
    torch.testing.assert_close(flat, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("at_once", [None, 5])
def test_each_image_is_clipped_and_the_sum_is_divided_by_the_batch(at_once):
    """One step on all images, without noise: the oracle clips gradients taken one by one."""
    student, source, norm = network(), source_of(), 0.5
    gradients = single_gradients(student, source)
    lengths = gradients.norm(dim=1, keepdim=True)
    assert (lengths > norm).any()
    expected = weights(student) - 0.5 * (gradients * (norm / lengths).clamp(max=1)).sum(dim=0) / NUM_IMAGES
    loop = settings(batch_size=64, device_batch_size=at_once)
    spent = train(student, source, noise=0.0, norm=norm, loop=loop)
    assert spent.history == [[0.0, 1.0, 1]]
    torch.testing.assert_close(weights(student), expected, rtol=1e-4, atol=1e-6)


def test_an_outlier_moves_the_weights_by_no_more_than_its_share():
    """Two trainings that differ in one image, whose gradient alone would be far larger."""
    norm, lr, ends = 0.1, 0.5, []
    start = weights(network())
    for outlier in (0, 255):
        source = source_of(change=lambda pixels, value=outlier: pixels[0].fill(value))
        student = network()
        train(student, source, noise=0.0, norm=norm, loop=settings(batch_size=64, lr=lr))
        ends.append(weights(student))
    moved = (ends[0] - ends[1]).norm().item()
    assert 0 < moved <= 2 * lr * norm / NUM_IMAGES + 1e-6
    assert (ends[0] - start).norm().item() <= lr * norm + 1e-6
    alone = train_alone(norm, lr)
    assert alone == pytest.approx(lr * norm, rel=1e-3)


def train_alone(norm, lr):
    """How far one image moves the weights in a step of its own: exactly to the bound, as its gradient is longer."""
    student, source = network(), source_of()
    before = weights(student)
    assert single_gradients(student, source)[0].norm() > norm
    train(student, source, ids=np.array([0]), noise=0.0, norm=norm, loop=settings(batch_size=1, lr=lr))
    return (weights(student) - before).norm().item()


def test_noise_has_the_deviation_that_is_paid_for():
    """Gradients of at most 1e-3 beside noise of 200 * 1e-3, divided by the batch of twelve."""
    student = network()
    before = weights(student)
    train(student, noise=200.0, norm=1e-3, loop=settings(batch_size=64, lr=1.0))
    moved = (weights(student) - before).numpy()
    assert len(moved) > 5000
    assert moved.std() == pytest.approx(200 * 1e-3 / NUM_IMAGES, rel=0.03)
    assert abs(moved.mean()) < 4 * moved.std() / math.sqrt(len(moved))


def test_every_image_is_drawn_on_its_own():
    """Poisson sampling: sizes differ as they should, no image is drawn twice in a step, and some step is empty."""
    ids = np.arange(100, 120)
    plan = private._plan(ids, 0.1, 3, list(range(4000)))
    drawn = [np.concatenate(parts) if parts else np.array([], dtype=np.int64) for parts in plan]
    assert max(len(part) for parts in plan for part in parts) == 3
    assert all(len(set(one)) == len(one) and set(one) <= set(ids) for one in drawn)
    sizes = np.array([len(one) for one in drawn])
    assert sizes.mean() == pytest.approx(2, rel=0.05)
    assert sizes.var() == pytest.approx(20 * 0.1 * 0.9, rel=0.1)
    assert (sizes == 0).mean() == pytest.approx(0.9**20, rel=0.15)
    counts = np.bincount(np.concatenate(drawn) - 100, minlength=20)
    assert counts.min() > 300
    assert counts.max() < 500


def test_steps_without_images_are_noise_alone(monkeypatch):
    monkeypatch.setattr(private, "_plan", lambda ids, rate, at_once, seeds: [[] for _ in seeds])
    student = network()
    before = weights(student)
    spent = train(student, noise=2.0, norm=0.1, loop=settings(lr=1.0))
    moved = (weights(student) - before).numpy()
    assert spent.history == [[2.0, 4 / NUM_IMAGES, 3]]
    assert moved.std() == pytest.approx(math.sqrt(3) * 2.0 * 0.1 / 4, rel=0.03)


def test_an_image_without_a_finite_gradient_counts_for_nothing():
    student = network()
    learner = private._Learner(student, 0.0).train()
    images = images_of(source_of(3), student.spec.input)
    good = image_gradients(learner, images, torch.zeros(3, dtype=torch.int64))
    for value in (math.nan, math.inf):
        images[1] = value
        found = image_gradients(learner, images, torch.zeros(3, dtype=torch.int64))
        for name, one in found.items():
            assert (one[1] == 0).all(), name
            torch.testing.assert_close(one[[0, 2]], good[name][[0, 2]])


def test_images_without_a_class_have_no_part():
    source = source_of()
    source.targets[8:] = -1
    student, other = network(), network()
    spent = train(student, source)
    assert spent.history == [[1.0, 4 / 8, 2]]
    train(other, source, ids=np.arange(8))
    assert torch.equal(weights(student), weights(other))


# what is repeatable, and what is left


def test_a_seed_repeats_and_another_does_not():
    ends = {}
    for key, seed in {"one": 3, "again": 3, "other": 4, "large": 3 + 2**127}.items():
        student = network()
        torch.manual_seed(hash(key) % 1000)  # what was drawn before has no say
        before = torch.get_rng_state()
        train(student, seed=seed)
        assert torch.equal(before, torch.get_rng_state())
        ends[key] = weights(student)
    assert torch.equal(ends["one"], ends["again"])
    assert not torch.equal(ends["one"], ends["other"])
    assert not torch.equal(ends["one"], ends["large"])


def test_noise_never_comes_twice():
    """With one seed for all rounds; else the difference of two rounds would hold none."""
    moved, spent = [], Spent([], 1e-3)
    for _ in range(2):
        student = network()
        before = weights(student)
        train(student, noise=100.0, norm=1e-3, spent=spent, loop=settings(batch_size=64))
        moved.append((weights(student) - before).numpy())
    assert spent.history == [[100.0, 1.0, 2]]
    assert abs(np.corrcoef(*moved)[0, 1]) < 0.1


def test_only_weights_change():
    student = network("vit")
    student.train()
    student.net.head.eval()
    bias = student.net.head.bias.requires_grad_(False)
    kept, before = bias.clone(), weights(student)
    facts = {
        name: (set(vars(module)), module.training, len(module._forward_hooks) + len(module._backward_hooks))
        for name, module in student.named_modules()
    }
    parameters, names = dict(student.named_parameters()), list(student.state_dict())
    train(student)
    assert not torch.equal(weights(student), before)
    assert torch.equal(bias, kept)
    assert list(student.state_dict()) == names
    assert all(parameters[name] is one and not vars(one) for name, one in student.named_parameters())
    assert all(one.grad is None for one in student.parameters())
    assert facts == {
        name: (set(vars(module)), module.training, len(module._forward_hooks) + len(module._backward_hooks))
        for name, module in student.named_modules()
    }


@pytest.mark.parametrize("name", ["vit", "convnext", "resnet"])
def test_real_networks_learn(name):
    """Four classes told apart by their brightness, with little noise."""
    brightness = (np.arange(32) % 4 * 80)[:, None, None, None]
    source = source_of(32, change=lambda pixels: np.copyto(pixels, brightness, casting="unsafe"))
    student = network(name)
    images, target = images_of(source, student.spec.input), torch.from_numpy(source.targets)
    loop = settings(epochs=20, batch_size=16, optimizer="adam", lr=0.01, device_batch_size=8)
    with torch.no_grad():
        before = cross_entropy(student.eval()(images).logits, target).item()
        train(student, source, noise=0.1, norm=1.0, loop=loop)
        after = cross_entropy(student.eval()(images).logits, target).item()
    assert after < 0.8 * before


def test_random_changes_are_those_asked_for():
    same, changed = network(), network()
    train(same, noise=0.0)
    train(changed, noise=0.0, augment=AugmentSettings(crop="pad", flip=0.5))
    assert not torch.equal(weights(same), weights(changed))


def test_the_log_of_the_process_is_left_alone():
    code = (
        "import logging; from crossdistill.federated.private import Spent; "
        "assert Spent([[1.0, 0.1, 5]], 1e-4).epsilon > 0; print(logging.root.handlers, logging.root.level)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"[] {logging.WARNING}"


def test_a_secret_is_made_once(tmp_path):
    first = secret_seed(tmp_path / "client")
    assert secret_seed(tmp_path / "client") == first
    assert secret_seed(tmp_path / "other") != first
    assert first.bit_length() > 64
    path = tmp_path / "client" / private.SEED_FILE
    assert path.stat().st_mode & 0o077 == 0
    assert [one.name for one in path.parent.iterdir()] == [private.SEED_FILE]


# what is refused


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(InputError, match="pip install") as error:
        noise_for(1.0, 1e-4, 0.1, 10)
    assert "opacus" in error.value.given


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_efficientnet"])
def test_batch_normalisation_is_refused(name):
    """The second one's is a class of timm's own, which Opacus' validator does not know."""
    from opacus.validators import ModuleValidator

    student = build(name, num_classes=4, image_size=32)
    assert bool(ModuleValidator.validate(student.net.train())) == (name == "timm/test_resnet")
    before, spent = weights(student), Spent([], 1e-3)
    with pytest.raises(InputError, match=r"(?s)batch normalisations, first .* layer or group normalisation") as error:
        train(student, spent=spent)
    assert "groupnorm1" in error.value.action
    assert spent.history == []
    assert torch.equal(weights(student), before)
    with pytest.raises(InputError, match="batch normalisations"):
        check_network(student)


def test_other_running_figures_are_refused():
    class Counting(nn.Module):
        """Keeps the mean of all it saw."""

        def __init__(self):
            super().__init__()
            self.pretrained_cfg = {"input_size": (3, 16, 16)}
            self.register_buffer("mean", torch.zeros(()))
            self.head = nn.Linear(3, 4)

        def forward(self, images):
            if self.training:
                self.mean.mul_(0.9).add_(0.1 * images.mean())
            return self.head(images.mean(dim=(2, 3)) - self.mean)

    student = build(Counting(), num_classes=4, image_size=16)
    with pytest.raises(InputError, match=r"on one image alone: .*in-place"):
        check_network(student)


def test_a_sound_network_passes_and_stays_as_it_is():
    student = network().eval()
    before = {name: set(vars(module)) for name, module in student.named_modules()}
    check_network(student)
    assert not student.training
    assert before == {name: set(vars(module)) for name, module in student.named_modules()}


def test_frozen_networks_are_refused():
    student = network()
    student.requires_grad_(False)
    with pytest.raises(InputError, match="no weight is trained"):
        check_network(student)


@pytest.mark.parametrize(
    ("changes", "options", "named"),
    [
        ({"clip_grad": 1.0}, {}, "train.clip_grad=1.0"),
        ({"precision": "bf16"}, {}, "train.precision=bf16"),
        ({"class_weights": "balanced"}, {}, "train.class_weights=balanced"),
        ({}, {"augment": AugmentSettings(mixup=0.2)}, "mixup"),
        ({}, {"norm": 0.0}, "privacy.max_grad_norm=0.0"),
        ({}, {"noise": -1.0}, "privacy.noise_multiplier=-1.0"),
        ({}, {"noise": math.nan}, "privacy.noise_multiplier=nan"),
        ({}, {"spent": Spent([], 0.1)}, "privacy.delta=0.1 for 12"),
        ({}, {"ids": np.array([], dtype=np.int64)}, "no labelled image"),
    ],
)
def test_what_is_not_heard_is_refused_before_anything_is_paid(changes, options, named):
    spent = options.pop("spent", Spent([], 1e-3))
    with pytest.raises(InputError, match=named.replace(".", r"\.")):
        train(network(), spent=spent, loop=settings(**changes), **options)
    assert spent.history == []


def test_a_budget_is_not_overdrawn():
    noise = noise_for(4.0, 1e-3, 4 / NUM_IMAGES, 6)
    student, spent = network(), Spent([], 1e-3)
    for _ in range(2):
        train(student, noise=noise, spent=spent, limit=4.0)
    before = weights(student)
    with pytest.raises(InputError, match="at most 4 in all"):
        train(student, noise=noise, spent=spent, limit=4.0)
    assert spent.history == [[noise, 4 / NUM_IMAGES, 6]]
    assert torch.equal(weights(student), before)


@pytest.mark.parametrize(("rate", "what"), [(1e38, "weight|bias|alpha|beta|gamma"), (1e30, "an answer")])
def test_what_breaks_is_paid_for_and_undone(rate, what):
    student, spent = network(), Spent([], 1e-3)
    before = weights(student)
    with pytest.raises(InputError, match=rf"(?s)({what}) that is not finite .*lower train.lr"):
        train(student, spent=spent, noise=100.0, loop=settings(lr=rate, epochs=3))
    assert torch.equal(weights(student), before)
    assert spent.steps == 9


def test_a_student_says_how_its_images_are_prepared():
    """Evaluation's view: of a tiny image all, scaled to the network's size and normalised as it says."""
    student, seen = network(), []
    assert isinstance(student.spec.input, InputSpec)

    def note(learner, images, target):
        seen.append(images)
        return image_gradients(learner, images, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private, "image_gradients", note)
        train(student, loop=settings(batch_size=64))
    trial, images = seen
    assert trial.shape == (2, 3, 16, 16)
    assert torch.equal(images, images_of(source_of(), student.spec.input))
