import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from timm.data.auto_augment import LEVEL_TO_ARG, rand_augment_transform

from crossdistill.data.augmentation import rand_augment
from crossdistill.data.augmentation.rand_augment import Layer, Op, Policy, apply_layers, draw_layers, parse_policy
from crossdistill.data.philox import uniform
from crossdistill.errors import InputError
from oracles.augment import PILLOW_NAMES, operation

FILL = (124.0, 116.0, 104.0)
GEOMETRIC = [Op.ROTATE, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y]
AMOUNTS = {
    Op.ROTATE: [27.0, -13.5],
    Op.POSTERISE: [1, 3, 8],
    Op.SOLARISE: [0, 26, 256],
    Op.SOLARISE_ADD: [0, 99, 128],
    **dict.fromkeys([Op.SATURATION, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS], (0.1, 0.6, 1.0, 1.81)),
    **dict.fromkeys([Op.SHEAR_X, Op.SHEAR_Y], (0.27, -0.3)),
    **dict.fromkeys([Op.TRANSLATE_X, Op.TRANSLATE_Y], (0.4, -0.123)),
}


def scene(*shape):
    """Smooth gradients, edges and some noise: what photographs are made of."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[: shape[-2], : shape[-1]]
    waves = [np.sin(rows / (5 + k) + k) * np.cos(columns / (9 - k)) + (columns > 20 + 9 * k) for k in range(shape[-3])]
    values = np.stack(waves) * 55 + 90 + generator.normal(0, 4, shape)
    return torch.from_numpy(values.clip(0, 255).astype(np.uint8))


def change(images, op, amount, bicubic=False):
    one = np.full(len(images), 1)
    layer = Layer(one * int(op), one * float(amount), one * bicubic > 0)
    return apply_layers(images.clone(), [layer], FILL[: images.shape[1]])


CASES = [(op, amount) for op in Op for amount in AMOUNTS.get(op, [0.0])]


@pytest.mark.parametrize(("op", "amount"), CASES, ids=lambda value: getattr(value, "name", str(value)))
def test_every_operation_equals_timms_on_pillow_images(op, amount):
    image = scene(1, 3, 48, 61)
    found = change(image, op, amount)[0].int()
    expected = operation(image[0], op.name, amount, bicubic=False, fill=tuple(map(int, FILL))).int()
    difference = (found - expected).abs()
    # Integer arithmetic is Pillow's own; float32 positions and slopes may miss a whole value by one.
    assert difference.max() <= (1 if op in GEOMETRIC or op is Op.AUTO_CONTRAST else 0)
    assert difference.float().mean() < 0.1


@pytest.mark.parametrize("op", GEOMETRIC)
def test_bicubic_warps_have_a_kernel_of_their_own_but_show_the_same(op):
    image = scene(1, 3, 48, 61)
    found = change(image, op, AMOUNTS[op][0], bicubic=True)[0].int()
    expected = operation(image[0], op.name, AMOUNTS[op][0], bicubic=True, fill=tuple(map(int, FILL))).int()
    assert (found - expected).abs().float().mean() < 1.5
    assert (found - expected).float().mean().abs() < 0.1


def test_images_of_a_batch_are_changed_as_alone_each_by_its_own_amount():
    images = scene(4, 3, 20, 24)
    policy = Policy(magnitude=9, magnitude_std=0.5, increasing=True, probability=1.0, num_layers=3)
    layers = draw_layers(policy, uniform(1, 0, np.arange(4), 0, policy.num_draws))
    together = apply_layers(images.clone(), layers, FILL)
    for index in range(4):
        own = [Layer(*(part[index : index + 1] for part in (one.op, one.amount, one.bicubic))) for one in layers]
        assert torch.equal(apply_layers(images[index : index + 1].clone(), own, FILL)[0], together[index])


def test_grouped_kernels_of_an_accelerator_give_the_same_pixels(monkeypatch):
    images = scene(40, 3, 20, 24)
    policy = parse_policy("rand-m9-mstd0.5-inc1-p1")
    layers = draw_layers(policy, uniform(1, 0, np.arange(40), 0, policy.num_draws))
    one_by_one = apply_layers(images.clone(), layers, FILL)
    groups = rand_augment._groups
    monkeypatch.setattr(rand_augment, "_groups", lambda layer, **_: groups(layer, one_by_one=False))
    grouped = apply_layers(images.clone(), layers, FILL)
    assert (grouped.int() - one_by_one.int()).abs().max() <= 1


def test_grey_images_take_every_operation():
    image = scene(1, 1, 20, 24)
    for op, amount in CASES:
        changed = change(image, op, amount)
        assert (changed.shape, changed.dtype) == (image.shape, torch.uint8)
        if op is Op.SATURATION:
            assert torch.equal(changed, image)


def test_layers_have_the_published_distribution():
    policy = parse_policy("rand-m9-mstd0.5-inc1")
    draws = uniform(0, 0, np.arange(60_000), 0, policy.num_draws)
    first, second = draw_layers(policy, draws)
    for layer in (first, second):
        applied = layer.op >= 0
        assert stats.binomtest(int(applied.sum()), len(applied), 0.5).pvalue > 1e-4
        assert stats.chisquare(np.bincount(layer.op[applied], minlength=len(Op))).pvalue > 1e-4
        assert stats.binomtest(int(layer.bicubic.sum()), len(applied), 0.5).pvalue > 1e-4
        degrees = layer.amount[layer.op == Op.ROTATE]
        assert stats.binomtest(int((degrees < 0).sum()), len(degrees), 0.5).pvalue > 1e-4
        magnitude = np.abs(degrees) / 30 * 10
        assert np.isclose((magnitude == 10).mean(), stats.norm.sf(2), atol=0.012)  # cut off at 10
        below = magnitude[magnitude < 10]
        assert stats.kstest(below, stats.truncnorm(-18, 2, loc=9, scale=0.5).cdf).pvalue > 1e-4
    assert abs(np.corrcoef(first.op, second.op)[0, 1]) < 0.02


@pytest.mark.parametrize("text", ["rand-m9-mstd0.5-inc1", "rand-m7-mstd0.5", "rand-m5-mstd101-inc1", "rand-m6-n3-p0.7"])
def test_amounts_are_distributed_as_those_of_timms_own_transform(text, monkeypatch):
    """The library's transform runs with reseeded generators; what it would do is recorded instead of done."""
    theirs = {op.name: [] for op in Op}
    transform = rand_augment_transform(text, {})
    for op in transform.ops:
        name = next(ours for ours, pillow in PILLOW_NAMES.items() if pillow == op.name.removesuffix("Increasing"))
        op.aug_fn = lambda image, *arguments, name=name, **_: theirs[name].append(arguments[0] if arguments else 0.0)
    random.seed(0)
    np.random.seed(0)
    for _ in range(12_000):
        transform(None)
    policy = parse_policy(text)
    layers = draw_layers(policy, uniform(0, 0, np.arange(12_000), 0, policy.num_draws))
    assert policy.num_layers == transform.num_layers
    for op in Op:
        ours = np.concatenate([layer.amount[layer.op == op] for layer in layers])
        assert stats.ks_2samp(ours, theirs[op.name]).pvalue > 1e-4, op
        expected = 12_000 * policy.num_layers * policy.probability / len(Op)
        assert abs(len(ours) - expected) < 6 * expected**0.5


@pytest.mark.parametrize("level", [0.0, 3.3, 5.0, 9.4, 10.0])
@pytest.mark.parametrize("increasing", [False, True])
def test_levels_mean_what_they_mean_in_timm(level, increasing):
    amounts = rand_augment._amounts(np.array([level / 10]), np.array([1.0]), increasing=increasing)
    for op, amount in amounts.items():
        name = PILLOW_NAMES[op.name]
        grows = increasing and f"{name}Increasing" in LEVEL_TO_ARG
        expected = LEVEL_TO_ARG[f"{name}Increasing" if grows else name](level, {})
        expected = abs(expected[0] if isinstance(expected, tuple) else expected)
        if op in (Op.SATURATION, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS) and increasing:
            assert amount[0] in (pytest.approx(expected), pytest.approx(2 - expected))
        else:
            assert amount[0] == pytest.approx(expected), op


@settings(max_examples=30)
@given(st.integers(0, 10), st.integers(1, 8), st.floats(0, 3), st.booleans())
def test_policies_are_read_as_written(magnitude, layers, std, increasing):
    policy = parse_policy(f"rand-m{magnitude}-n{layers}-mstd{std:.3f}-inc{int(increasing)}")
    assert (policy.magnitude, policy.num_layers, policy.increasing) == (magnitude, layers, increasing)
    assert policy.magnitude_std == float(f"{std:.3f}")


@pytest.mark.parametrize(
    "text", ["rand-x3", "augmix-m3", "rand-m", "rand-n0", "rand-n9", "rand-m9-tweights", "", "rand-p2"]
)
def test_other_policies_are_refused(text):
    with pytest.raises(InputError, match=r"rand-m9-mstd0\.5-inc1"):
        parse_policy(text)


@pytest.mark.parametrize("text", ["rand-m9-n4-p1", "rand-m9-mstd0.5-inc1", "rand-m5-n2-mstd101"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 21, 35), (3, 64, 64)])
def test_images_that_are_changed_together_become_what_they_become_one_by_one(text, shape, monkeypatch):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (60, *shape), dtype=np.uint8))
    policy = parse_policy(text)
    layers = draw_layers(policy, uniform(0, 0, np.arange(60), 0, policy.num_draws))
    together = rand_augment.apply_layers(images.clone(), layers, (100.0, 20.0, 3.0)[: shape[0]])
    monkeypatch.setattr(rand_augment, "_SMALL", 0)
    assert torch.equal(rand_augment.apply_layers(images.clone(), layers, (100.0, 20.0, 3.0)[: shape[0]]), together)
