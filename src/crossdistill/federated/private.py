"""Differential privacy of a client's training on its own labels, and what of a budget it has cost.

One image may move the answers to every transfer image, so noise on the answers would have to drown them. Here the
training is noisy instead (DP-SGD, Abadi et al. 2016, arXiv 1607.00133): each step draws every image by chance, clips
what each one wants changed, and adds Gaussian noise. Whatever is computed from the weights alone, such as answers to a
transfer set, then costs nothing more.

Opacus (arXiv 2109.12298) draws, clips, adds noise and keeps the account. Gradients of single images come from
``torch.func``, as its README describes for the mode "no_op": each image passes through the network on its own, so that
no layer can mix two of them. Its hooks, version 1.6.0, could not be used: they refuse networks that change activations
in place, and of convolutions of channel-last activations (every ConvNeXt) they give gradients that are no image's.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import secrets
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from crossdistill.contracts import UNLABELLED, Batch, InputSpec
from crossdistill.data import TrainLoader
from crossdistill.data.sampler import num_steps
from crossdistill.data.source import Source
from crossdistill.engine import total_steps
from crossdistill.engine.optimize import LearningRate, build_optimizer, undecayed
from crossdistill.engine.seeding import deterministic
from crossdistill.errors import InputError
from crossdistill.files import writing
from crossdistill.losses import cross_entropy
from crossdistill.models import StagedModel
from crossdistill.models.dry_run import forked
from crossdistill.settings import AugmentSettings, TrainSettings

Ids = NDArray[np.int64]

SEED_FILE = "privacy.seed"
"""In a client's own folder: what its noise is drawn from."""

ORDERS = tuple(map(float, (*(quarter / 4 for quarter in range(6, 44)), *range(11, 64), *(64, 96, 128, 192, 256, 512))))
"""Orders of Rényi divergence that are tried. Opacus' own end at 63, which makes small budgets look larger than they
are, and begin at 1.1, which takes seconds and is best only where epsilon is in the dozens."""

_GRADIENTS_AT_ONCE = 2**28
"""Most numbers that gradients of single images may take (1 GiB), unless ``device_batch_size`` says how many images."""

_IMAGES_AT_ONCE = 64

_UNHEARD = (
    *("class_weights", "clip_grad", "cross_entropy_weight", "ema_decay", "precision", "channels_last"),
    *("compile_student", "compile_method", "cuda_graphs"),
)
"""Settings of the loop that noisy training does not hear: refused rather than passed over."""


@dataclass
class Spent:
    """What training has cost so far: plain numbers, which a client keeps with its weights.

    ``history`` holds ``[noise_multiplier, sample_rate, steps]`` for steps in a row that were alike. ``delta`` is the
    chance that the bound does not hold, see :func:`delta_for`.
    """

    history: list[list[float]]
    delta: float

    @property
    def epsilon(self) -> float:
        """The bound of all steps together, as Rényi divergences add up (Mironov 2017, arXiv 1702.07476).

        It is above the exact value (by a tenth, where we compared), never below it; without noise it is infinite.
        """
        if any(noise_multiplier == 0 for noise_multiplier, _, _ in self.history):
            return math.inf
        if not self.history:
            return 0.0
        accountant = _opacus().accountants.RDPAccountant()
        accountant.history = [(noise, rate, int(steps)) for noise, rate, steps in self.history]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Optimal order is the")  # then the bound is looser, and holds
            return max(0.0, float(accountant.get_epsilon(self.delta, alphas=list(ORDERS))))

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return int(sum(steps for _, _, steps in self.history))

    def charge(self, noise_multiplier: float, sample_rate: float, steps: int) -> None:
        """Add so many steps."""
        if self.history and self.history[-1][:2] == [noise_multiplier, sample_rate]:
            self.history[-1][2] += steps
        else:
            self.history.append([noise_multiplier, sample_rate, steps])


def delta_for(num_images: int, given: float | None = None) -> float:
    """The chance that is left for the bound not to hold: ``images ** -1.1``, or the one given.

    Raises:
        InputError: one over the number of images or more, which would allow to publish an image as it is.
    """
    if num_images < 1:
        raise InputError(
            "no labelled image to train on with differential privacy", "labelled images", "leave this client out"
        )
    delta = num_images**-1.1 if given is None else given
    if not 0 < delta < 1 / num_images:
        raise InputError(
            f"privacy.delta={delta:g} for {num_images} image(s)",
            f"above 0 and below one over the images, {1 / num_images:.3g}: at that, one could be published as it is",
            "set a smaller privacy.delta, or give more images",
        )
    return delta


def sampling(num_images: int, train: TrainSettings) -> tuple[float, int]:
    """The chance of an image to be drawn in a step, and the steps of one call of :func:`train_privately`.

    A client with fewer images than a batch draws all of them in every step, one step an epoch.
    """
    rate = min(1.0, train.batch_size / num_images)
    return rate, total_steps(train, num_steps(num_images, train.batch_size))


def noise_for(target_epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """The least noise multiplier with which so many steps stay within a budget; ``steps`` are those of all rounds.

    Raises:
        InputError: a budget that no noise is enough for.
    """
    find = _opacus().accountants.utils.get_noise_multiplier
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Optimal order is the")
            found: float = find(
                target_epsilon=target_epsilon,
                target_delta=delta,
                sample_rate=sample_rate,
                steps=steps,
                accountant="rdp",
                epsilon_tolerance=target_epsilon / 1000,
                alphas=list(ORDERS),
            )
    except ValueError as error:
        raise InputError(
            f"privacy.epsilon={target_epsilon:g} over {steps} steps with delta {delta:g}",
            "a budget that some noise is enough for",
            "raise privacy.epsilon or privacy.delta",
        ) from error
    return found


def secret_seed(folder: Path) -> int:
    """What a client's noise is drawn from: made by the system once, kept in its folder, and never sent.

    The seed of a federation's settings will not do: the server knows it, and could take the noise off again.

    Raises:
        InputError: a folder that cannot be written.
    """
    path = folder / SEED_FILE
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            partial = path.with_name(f".{SEED_FILE}.{os.getpid()}")
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(f"{secrets.randbits(128):032x}\n")
            partial.replace(path)
    return int(path.read_text(encoding="ascii"), 16)


def check_network(student: StagedModel) -> None:
    """Refuse a network through which one image cannot be followed alone.

    Opacus' validator knows exact classes only, and lets timm's batch normalisation with activation pass; here all its
    kinds count, and a trial on random pixels tells the rest.

    Raises:
        InputError: naming the layers, or what went wrong.
    """
    _check_learner(_Learner(student, 0.0).train())


def train_privately(
    student: StagedModel,
    source: Source,
    ids: Ids,
    targets: NDArray[np.int64],
    *,
    train: TrainSettings,
    noise_multiplier: float,
    max_grad_norm: float,
    seed: int,
    device: torch.device,
    spent: Spent,
    limit: float | None = None,
    augment: AugmentSettings | None = None,
    workers: int | None = None,
    max_corrupt_share: float = 0.01,
    on_paid: Callable[[float, int], None] | None = None,
) -> Spent:
    """Train a student on labelled images with differential privacy of each; only its weights change.

    Momenta and schedule begin anew in each call. An image that cannot be read, or whose gradient is not finite, counts
    as one that wants nothing changed.

    Args:
        ids: the images, by id; those without a class are left out.
        targets: class of every image of the source ``(N,)``, -1 for unlabelled.
        train: epochs or steps, ``batch_size`` (the mean number of images that a step draws, which also divides the sum
            of their gradients), ``device_batch_size``, optimiser, rate, schedule, weight decay, label smoothing.
        noise_multiplier: standard deviation of the noise over ``max_grad_norm``; 0 adds none, and bounds nothing.
        max_grad_norm: what the gradient of an image is shortened to, over all weights together.
        seed: what images and noise are drawn from; for a bound that means anything, a :func:`secret_seed`. Steps that
            were taken before move it on, so that no noise ever comes twice.
        spent: what was spent before. All steps are charged to it before the first of them is taken, so that what fails
            half-way is paid for as well.
        limit: most epsilon to spend in all; training that would go beyond it does not begin.
        augment: random changes of each image; default none, as in evaluation.
        max_corrupt_share: stop when more of the images cannot be read; that it stopped, no bound covers.
        on_paid: called with sample rate and steps once these are charged, and before the first of them is taken.

    Returns:
        ``spent``, the same object.

    Raises:
        InputError: a network whose images cannot be told apart, settings that are not heard here, a delta that is too
            large, a budget that is used up, weights that are no longer finite. The student is then as it was.
    """
    labelled = ids[targets[ids] != UNLABELLED]
    delta_for(len(labelled), spent.delta)
    augment = augment or AugmentSettings(crop="none", flip=0.0)
    _check_settings(train, augment, noise_multiplier, max_grad_norm)
    learner = _Learner(student, train.label_smoothing).to(device).train()
    _check_learner(learner)
    rate, steps = sampling(len(labelled), train)
    once, of_draws, of_noise = _seeds(seed, spent.steps, steps)
    plain = build_optimizer(learner, train)
    reading: dict[str, Any] = {"workers": workers, "max_corrupt_share": max_corrupt_share, "seed": once[0]}
    views = {"student": student.spec.input}
    loader = TrainLoader(source, labelled, targets, views, augment, batch_size=train.batch_size, **reading)
    per_epoch = num_steps(len(labelled), train.batch_size)
    rates = LearningRate(plain, train, total_steps=steps, steps_per_epoch=per_epoch)
    with forked(device), deterministic(device):
        torch.manual_seed(once[1])  # of dropout and the like
        plan = _plan(labelled, rate, _at_once(train, learner), of_draws)
        optimizer = _opacus().optimizers.DPOptimizer(
            plain,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=rate * len(labelled),
            generator=torch.Generator(device),
        )
        _pay(spent, noise_multiplier, rate, steps, limit)
        if on_paid is not None:
            on_paid(rate, steps)
        _run(learner, loader, plan, optimizer, rates, of_noise)
        _check_finite(learner, train)
    student.load_state_dict(learner.student.state_dict())
    return spent


class _Learner(nn.Module):
    """A copy of the student, so that nothing is left on the student itself; its forward is the loss of one image."""

    def __init__(self, student: StagedModel, label_smoothing: float) -> None:
        super().__init__()
        self.student, self.label_smoothing = copy.deepcopy(student), label_smoothing

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of an image ``(C, H, W)`` with a class ``()``."""
        logits = self.student(image[None]).require("logits")
        return cross_entropy(logits, target[None], label_smoothing=self.label_smoothing)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the student wants no weight decay on."""
        return {f"student.{name}" for name in undecayed(self.student)}

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        return next(self.parameters()).device

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}


def image_gradients(learner: nn.Module, images: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The gradient of each image's loss ``(B, …)`` by trained parameter; zero for an image where it is not finite.

    Args:
        learner: image ``(C, H, W)`` and class ``()`` to a loss.
        images: ``(B, C, H, W)``.
        target: ``(B,)``.
    """
    weights = {name: one.detach() for name, one in learner.named_parameters() if one.requires_grad}

    def loss(weights: dict[str, Tensor], image: Tensor, target: Tensor) -> Tensor:
        found: Tensor = functional_call(learner, weights, (image, target))
        return found

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # attention goes image by image
        each = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
        found: dict[str, Tensor] = each(weights, images, target)
    sound = torch.stack([one.flatten(1).square().sum(dim=1) for one in found.values()]).sum(dim=0).isfinite()
    if bool(sound.all()):
        return found
    return {name: torch.where(sound.view(-1, *[1] * (one.ndim - 1)), one, 0.0) for name, one in found.items()}


def _run(
    learner: _Learner,
    loader: TrainLoader,
    plan: list[list[Ids]],
    optimizer: Any,
    rates: LearningRate,
    of_noise: list[int],
) -> None:
    """Take the steps of a plan; one that drew no image is noise alone, and counts like any other."""
    # every step changes images in its own way, since an image may be drawn again in the same epoch
    answers = loader.answers(
        [(step, np.stack([part, 0 * part], axis=1)) for step, parts in enumerate(plan) for part in parts]
    )
    for step, parts in enumerate(plan):
        rates.set(step)
        optimizer.generator.manual_seed(of_noise[step])
        num_parts = max(1, len(parts))
        for part in range(num_parts):
            _give(learner, next(answers) if parts else None)
            optimizer.signal_skip_step(do_skip=part + 1 < num_parts)
            optimizer.step()
            optimizer.zero_grad()


def _give(learner: _Learner, batch: Batch | None) -> None:
    """Put the gradients of a batch's images where Opacus looks for them; those of none are ``(0, …)``."""
    trained: dict[str, Any] = dict(learner.trained)
    if batch is None:
        for parameter in trained.values():
            parameter.grad_sample = parameter.detach().new_zeros(0, *parameter.shape)
        return
    batch = batch.to(learner.device)
    for name, gradient in image_gradients(learner, batch.images["student"], batch.target).items():
        trained[name].grad_sample = gradient


def _plan(ids: Ids, rate: float, at_once: int, seeds: list[int]) -> list[list[Ids]]:
    """The images of a step a seed, each drawn by chance, in parts of so many at once; a step may have drawn none."""
    generator, plan = torch.Generator(), []
    sampler = _opacus().utils.uniform_sampler.UniformWithReplacementSampler
    drawn = iter(sampler(num_samples=len(ids), sample_rate=rate, generator=generator, steps=len(seeds)))
    for seed in seeds:
        generator.manual_seed(seed)
        places = next(drawn)
        plan.append(np.array_split(ids[places], math.ceil(len(places) / at_once)) if places else [])
    return plan


def _at_once(train: TrainSettings, learner: _Learner) -> int:
    """How many images go through the network together: each leaves a gradient as large as the network."""
    size = sum(parameter.numel() for parameter in learner.trained.values())
    return train.device_batch_size or max(1, min(_IMAGES_AT_ONCE, _GRADIENTS_AT_ONCE // size))


def _seeds(seed: int, before: int, steps: int) -> tuple[list[int], list[int], list[int]]:
    """Two seeds for all steps, one a step for what is drawn, and one a step for noise, after so many steps before.

    PyTorch's generator for CPUs takes in 32 bits of a seed, which can be tried out; so each step has one of its own.
    """
    words = np.random.default_rng([seed, before]).integers(2**63, size=2 + 2 * steps).tolist()
    return words[:2], words[2 : 2 + steps], words[2 + steps :]


def _pay(spent: Spent, noise_multiplier: float, rate: float, steps: int, limit: float | None) -> None:
    """Charge the steps to come, if the limit allows it."""
    if limit is not None:
        after = copy.deepcopy(spent)
        after.charge(noise_multiplier, rate, steps)
        if after.epsilon > limit:
            raise InputError(
                f"epsilon {spent.epsilon:.4g} spent, and {after.epsilon:.4g} after {steps} more steps",
                f"at most {limit:g} in all, which is this client's limit",
                "end the training here, or take fewer rounds or more noise from the beginning",
            )
    spent.charge(noise_multiplier, rate, steps)


def _check_settings(
    train: TrainSettings, augment: AugmentSettings, noise_multiplier: float, max_grad_norm: float
) -> None:
    usual = TrainSettings()
    asked = [f"train.{key}={getattr(train, key)}" for key in _UNHEARD if getattr(train, key) != getattr(usual, key)]
    if augment.mixup or augment.cutmix:
        asked.append("data.augment.mixup or cutmix, which put two images into one")
    if asked:
        raise InputError(f"{', '.join(asked)} with differential privacy", "settings that it hears", "leave these out")
    if not 0 <= noise_multiplier < math.inf or not 0 < max_grad_norm < math.inf:
        raise InputError(
            f"privacy.noise_multiplier={noise_multiplier} and privacy.max_grad_norm={max_grad_norm}",
            "a number from 0 on, and one above 0",
            "change them",
        )


def _check_learner(learner: _Learner) -> None:
    spec, net = learner.student.spec, learner.student.net
    if not learner.trained:
        raise InputError(f"{spec.name}, of which no weight is trained", "weights to train", "unfreeze some")
    norms = [name for name, module in net.named_modules() if isinstance(module, _BatchNorm)]
    if norms:
        raise InputError(
            f"{spec.name} with {len(norms)} batch normalisations, first {norms[0]!r}, in which images see each other",
            "a network with layer or group normalisation, or with none, for differential privacy",
            "take a transformer, an MLP, a ConvNeXt, or a ResNet with args.norm_layer=groupnorm1",
        )
    try:
        with forked(learner.device):
            images = _random_images(spec.input, learner.device)
            image_gradients(learner, images, torch.zeros(len(images), dtype=torch.int64, device=learner.device))
    except Exception as error:  # the network's own code, which may fail in any way
        reason = str(error).split("\n")[0]
        raise InputError(
            f"{spec.name} on one image alone: {type(error).__name__}: {reason}",
            "a network that changes nothing but its weights, and computes the same whatever it sees",
            "take another network for differential privacy, such as a plain transformer or a ConvNeXt",
        ) from error


def _random_images(spec: InputSpec, device: torch.device) -> Tensor:
    """Two of them, which are nobody's."""
    return torch.rand(2, spec.num_channels, *spec.image_size, device=device)


def _check_finite(learner: _Learner, train: TrainSettings) -> None:
    """Refuse weights that are of no use; what the weights themselves tell costs nothing more."""
    student = learner.student.eval()
    broken = [name for name, tensor in student.state_dict().items() if not bool(tensor.isfinite().all())]
    with torch.no_grad():
        logits = student(_random_images(student.spec.input, learner.device)).require("logits")
    if broken or not bool(logits.isfinite().all()):
        raise InputError(
            f"{broken[0] if broken else 'an answer'} that is not finite after noisy training",
            "finite numbers",
            f"lower train.lr (now {train.lr:g}); the network is as it was before, and the steps are paid for",
        )


def _opacus() -> Any:
    """The library, which an extra brings.

    Raises:
        InputError: it is not installed.
    """
    try:
        with _same_log():
            import opacus
    except ImportError as error:
        raise InputError(
            "differential privacy without opacus",
            "the library that adds the noise and keeps the account",
            'pip install "crossdistill[federated]"',
        ) from error
    return opacus


@contextmanager
def _same_log() -> Iterator[None]:
    """Opacus sends the whole process's log to stderr when it is imported; put that back."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = before
        root.setLevel(level)
