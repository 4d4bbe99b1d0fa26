"""Linear probes: gradients, sweep, choice on training images alone, and the probe as a network's classifier."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crossdistill.errors import InputError
from crossdistill.models import build
from crossdistill.selfsup import linear as room
from crossdistill.selfsup.features import Features
from crossdistill.selfsup.linear import fit_probes, install_probe, linear_probe, probe_accuracy


def blobs(num_images=120, width=6, num_classes=3, spread=0.3, seed=0):
    """Classes around points far from the origin and of very different scales, which a probe must cope with."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(num_classes, width, generator=torch.Generator().manual_seed(9))
    targets = torch.arange(num_images) % num_classes
    points = centres[targets] + spread * torch.randn(num_images, width, generator=generator)
    return Features(100 + points * torch.logspace(-2, 2, width), targets, torch.arange(num_images))


def test_gradients_are_those_of_the_cross_entropy():
    weights = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    biases = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    embeddings, targets = torch.randn(5, 4).double(), torch.tensor([0, 2, 1, 1, 0])
    loss = sum(F.cross_entropy(embeddings @ weights[rate].T + biases[rate], targets) for rate in range(2))
    expected = torch.autograd.grad(loss, (weights, biases))
    found = room._gradients(weights.detach(), biases.detach(), embeddings, targets)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_each_rate_learns_as_it_would_alone():
    features = blobs()
    how = {"num_classes": 3, "epochs": 3, "batch_size": 32, "seed": 5}
    together = fit_probes(features.embeddings, features.targets, rates=[0.001, 0.01], **how)
    for index, rate in enumerate([0.001, 0.01]):
        alone = fit_probes(features.embeddings, features.targets, rates=[rate], **how)
        torch.testing.assert_close(together[0][index], alone[0][0])
        torch.testing.assert_close(together[1][index], alone[1][0])


def test_the_loop_is_sgd_with_momentum_and_a_cosine():
    features, how = blobs(30), {"num_classes": 3, "epochs": 2, "batch_size": 16, "seed": 1}
    weights, biases = fit_probes(features.embeddings, features.targets, rates=[0.01], **how)
    layer = nn.Linear(6, 3)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    for epoch in range(2):
        order = torch.from_numpy(room.random_order(30, seed=1, epoch=epoch, purpose=room.Purpose.PERMUTATION))
        for rows in order.split(16):
            optimizer.zero_grad()
            F.cross_entropy(layer(features.embeddings[rows]), features.targets[rows]).backward()
            optimizer.step()
            schedule.step()
    torch.testing.assert_close(weights[0], layer.weight.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(biases[0], layer.bias.detach(), rtol=1e-4, atol=1e-4)


def test_classes_that_can_be_separated_are():
    probe = linear_probe(blobs(), num_classes=3)
    assert probe_accuracy(probe, blobs(seed=1))["top1"] == 1.0
    assert probe.held_out_top1 == 1.0
    noise = Features(torch.randn(300, 6), torch.randint(3, (300,)), torch.arange(300))
    chance = probe_accuracy(linear_probe(noise, num_classes=3), blobs(seed=1))["top1"]
    assert chance < 0.9


def test_the_same_seed_gives_the_same_probe():
    one, other = (linear_probe(blobs(spread=3.0), num_classes=3, seed=4) for _ in range(2))
    assert torch.equal(one.weight, other.weight)
    assert one.rate == other.rate


def test_the_rate_is_chosen_among_training_images(monkeypatch):
    """Nothing but training features reaches the sweep, and what is held out is not trained on in it."""
    seen = []
    original = room.fit_probes

    def watched(embeddings, targets, **how):
        seen.append((len(embeddings), how["rates"]))
        return original(embeddings, targets, **how)

    monkeypatch.setattr(room, "fit_probes", watched)
    probe = linear_probe(blobs(), num_classes=3, rates=[1e-6, 0.1])
    assert [count for count, _ in seen] == [108, 120]
    assert seen[1][1] == [probe.rate]


@pytest.mark.parametrize(("best", "is_told"), [(0, True), (1, False), (2, True)])
def test_a_rate_at_an_end_of_the_sweep_is_told(monkeypatch, best, is_told):
    """Of three rates only one has learnt anything."""
    original = room.fit_probes

    def one_learns(embeddings, targets, **how):
        weights, biases = original(embeddings, targets, **how)
        learns = torch.arange(len(weights)) == (best if len(weights) > 1 else 0)
        return weights * learns[:, None, None], biases * learns[:, None]

    monkeypatch.setattr(room, "fit_probes", one_learns)
    probe = linear_probe(blobs(), num_classes=3, rates=[0.1, 0.2, 0.3])
    assert probe.rate == [0.1, 0.2, 0.3][best]
    assert any("at an end of the sweep" in warning for warning in probe.warnings) == is_told


def test_one_image_a_class_leaves_the_rate_unchosen():
    probe = linear_probe(blobs(3), num_classes=3)
    assert probe.held_out_top1 is None
    assert any("nothing could be held out" in warning for warning in probe.warnings)


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_vit"])
def test_the_probe_becomes_the_classifier(name):
    model = build(name, num_classes=3, image_size=32)
    width = model.spec.embedding_dim
    features = Features(torch.randn(30, width), torch.arange(30) % 3, torch.arange(30))
    probe = linear_probe(features, num_classes=3, epochs=3)
    assert install_probe(model, probe)
    images = torch.randn(2, 3, 32, 32)
    outputs = model.eval()(images)
    torch.testing.assert_close(outputs.logits, outputs.embedding @ probe.weight.T + probe.bias, rtol=1e-3, atol=1e-4)


def test_a_classifier_of_another_form_is_left_alone():
    model = build("timm/test_resnet", num_classes=5, image_size=32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    features = Features(torch.randn(30, model.spec.embedding_dim), torch.arange(30) % 3, torch.arange(30))
    assert not install_probe(model, linear_probe(features, num_classes=3, epochs=1))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_refusals():
    with pytest.raises(InputError, match="learning rates above 0"):
        linear_probe(blobs(), num_classes=3, rates=[])
    with pytest.raises(InputError, match="where labels are asked for"):
        linear_probe(Features(torch.zeros(2, 2), torch.tensor([-1, -1]), torch.arange(2)), num_classes=2)
