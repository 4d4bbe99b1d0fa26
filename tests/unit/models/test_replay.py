"""The fallback: leave the forward early, enter it late."""

import copy
from itertools import pairwise

import pytest
import timm
import torch
from torch import nn

from crossdistill.errors import InputError
from crossdistill.models import build
from crossdistill.models.cutter import CannotCut
from crossdistill.models.replay import Replay, replay
from crossdistill.models.split import split
from crossdistill.models.stage import stage


class Untraceable(nn.Module):
    """Control flow on data, in-place work after a block, a dropout and batch statistics."""

    def __init__(self, num_classes=4, skip=False):
        super().__init__()
        widths = (3, 8, 16, 32, 64)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.Dropout(0.2), nn.GELU())
            for a, b in pairwise(widths)
        )
        self.shift = nn.Parameter(torch.tensor(0.5))
        self.fc = nn.Linear(64, num_classes)
        self.skip = skip
        self.calls = 0

    def forward(self, x):
        if x.device.type != "meta" and bool(x.isnan().any()):
            raise ValueError("not a number")
        first = None
        for number, block in enumerate(self.blocks):
            x = block(x)
            first = x if first is None else first
            if number < 2:
                x = x.add_(self.shift)
        x = x.mean(dim=(2, 3))
        return self.fc(x + first.mean(dim=(1, 2, 3))[:, None] if self.skip else x)


def agree(model, images, training):
    results = []
    for run in (
        lambda m: m.net(images),
        lambda m: m(images).logits,
        *(
            lambda m, k=k: m.forward_from(m.forward_until(images, k), k).logits
            for k in range(1, len(model.spec.stages) + 1)
        ),
    ):
        network = copy.deepcopy(model).train(training)
        torch.manual_seed(0)
        with torch.no_grad():
            results.append(run(network))
    return all(torch.equal(results[0], result) for result in results)


@pytest.fixture(scope="module")
def untraceable():
    return build(Untraceable(), num_classes=4, image_size=64)


def test_an_untraceable_network_is_replayed(untraceable):
    with pytest.raises(CannotCut, match="tracing fails"):
        split(Untraceable(), (3, 64, 64))
    assert isinstance(untraceable._cutter, Replay)
    assert [stage.stride for stage in untraceable.spec.stages] == [2, 4, 8, 16]
    assert untraceable.spec.family == "cnn"


@pytest.mark.parametrize("training", [False, True])
def test_replay_is_exact(untraceable, training):
    assert agree(untraceable, torch.rand(3, 3, 64, 64), training)


def test_taps_keep_what_the_network_overwrites_later(untraceable):
    model = copy.deepcopy(untraceable).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        outputs = model(images)
        assert torch.equal(outputs.stages[0], model.net.blocks[0](images))


def test_gradients_reach_both_halves_and_batch_statistics_change_once(untraceable):
    model = copy.deepcopy(untraceable).train()
    feature = model.forward_until(torch.rand(2, 3, 64, 64), 2)
    assert model.net.blocks[0][1].num_batches_tracked == 1
    model.forward_from(feature, 2).logits.sum().backward()
    assert model.net.blocks[0][1].num_batches_tracked == 1
    assert model.net.blocks[3][1].num_batches_tracked == 1
    assert all(p.grad is not None for p in model.net.parameters())
    assert not any(module._forward_hooks for module in model.net.modules())


def test_cuts_that_are_not_exact_are_rejected():
    model = build(Untraceable(skip=True), num_classes=4, image_size=64)
    # the first block's output is read again at the end, so only there does one tensor carry everything
    assert len(model.spec.stages) == 1
    assert agree(model, torch.rand(2, 3, 64, 64), training=False)


class ByFunction(nn.Module):
    """Its classifier is never called: only its weight is used."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8, 4)

    def forward(self, x):
        return nn.functional.linear(self.conv(x).mean(dim=(2, 3)), self.fc.weight, self.fc.bias)


def test_a_classifier_that_never_runs_is_told():
    with pytest.raises(CannotCut, match="no classifier module runs"):
        replay(ByFunction(), (3, 16, 16))
    with pytest.raises(InputError, match=r"split: [\s\S]*replay: no classifier module runs"):
        build(ByFunction(), num_classes=4, image_size=16)


def test_a_network_without_any_cut_runs_as_a_whole():
    model = build(
        nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 4)), num_classes=4, image_size=4
    )
    outputs = model(torch.rand(2, 3, 4, 4))
    assert model.spec.stages == outputs.stages == ()
    assert model.spec.embedding_dim == outputs.embedding.shape[1] == 8


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_convnext", "test_vit", "test_vit2", "test_nfnet", "test_mambaout"]
)
def test_replay_and_split_choose_the_same_stages(name):
    net = timm.create_model(name, num_classes=5).eval()
    size = net.pretrained_cfg["input_size"]
    replayed, traced = replay(net, size), split(net, size)
    images = torch.rand(2, *size)
    with torch.no_grad():
        a, b = replayed.whole(net, images), traced.whole(net, images)
    assert [point.view for point in replayed.points] == [point.view for point in traced.points]
    assert torch.equal(a.logits, b.logits)
    assert torch.equal(a.embedding, b.embedding)
    assert all(torch.equal(x, y) for x, y in zip(a.stages, b.stages, strict=True))


def test_staging_a_module_leaves_its_statistics_alone():
    net = Untraceable()
    before = copy.deepcopy(net.state_dict())
    stage(net, "net", 4, (64, 64), None)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
