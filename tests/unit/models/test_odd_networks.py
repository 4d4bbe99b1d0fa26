"""Networks of people's own, written in ways that trip a tracer: staged exactly or not at all, and left alone."""

import pytest
import torch
from torch import fx, nn

from crossdistill.errors import InputError
from crossdistill.models import build
from crossdistill.models.checkpoint import locate
from crossdistill.models.cutter import classifier_names
from crossdistill.models.weights import load


def block():
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())


class Odd(nn.Module):
    """Blocks on one map; subclasses do something odd in between."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 4)  # registered before the blocks, as some do
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.ModuleList(block() for _ in range(6))
        self.unused = nn.Linear(8, 8)

    def before(self, maps):
        return maps

    def runs(self):
        return True

    def forward(self, images):
        maps = self.before(self.stem(images))
        for one in self.blocks:
            if self.runs():
                maps = maps + one(maps)
        return self.head(maps.mean((2, 3)))


class Noisy(Odd):
    """One more addition in train mode, which shifts the numbers of all later ones."""

    def before(self, maps):
        return maps + torch.randn_like(maps) if self.training else maps


class LayerDrop(Odd):
    def runs(self):
        return not self.training or torch.rand(1).item() > 0.5


class Cached(Odd):
    """A table made on first use."""

    table = None

    def before(self, maps):
        if self.table is None:
            self.table = torch.ones(1, 1, *maps.shape[2:], device=maps.device)
        return maps * self.table


class Keeps(Odd):
    """A feature that is kept for later."""

    last = None

    def before(self, maps):
        self.last = maps
        return maps


class ByKeyword(Odd):
    def forward(self, images):
        maps = self.stem(images)
        for one in self.blocks:
            maps = maps + one(maps)
        return self.head(input=maps.mean((2, 3)))


def images(dtype=torch.float32):
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=dtype)


def seeded(run, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        return run()


@pytest.mark.parametrize("kind", [Odd, Noisy, LayerDrop, Cached, Keeps, ByKeyword])
@pytest.mark.parametrize("training", [False, True])
def test_staged_and_plain_agree_whatever_chance_decides(kind, training):
    torch.manual_seed(0)
    model = build(kind(), num_classes=4, image_size=32).train(training)
    for seed in range(8):
        plain = seeded(lambda: model.net(images()), seed)
        assert torch.equal(seeded(lambda: model(images()).logits, seed), plain)
        for stage in range(1, len(model.spec.stages) + 1):

            def halves(stage=stage):
                return model.forward_from(model.forward_until(images(), stage), stage).logits

            if kind is not LayerDrop:  # the halves draw at other times than the whole
                assert torch.equal(seeded(halves, seed), plain)


def test_a_stage_ends_after_the_same_block_in_both_modes():
    model = build(Noisy(), num_classes=4, image_size=32)
    ran = []
    for one in model.net.blocks:
        one.register_forward_hook(lambda *_: ran.append(model.training))
    for training in (False, True):
        for stage in range(1, len(model.spec.stages) + 1):
            model.train(training).forward_until(images(), stage)
    assert ran.count(True) == ran.count(False)


@pytest.mark.parametrize("kind", [Cached, Keeps])
def test_building_leaves_nothing_on_the_network(kind):
    net = kind()
    before = {name: set(vars(module)) for name, module in net.named_modules()}
    build(net, num_classes=4, image_size=32)
    assert {name: set(vars(module)) for name, module in net.named_modules()} == before
    values = [value for module in net.modules() for value in vars(module).values()]
    assert not any(isinstance(value, fx.Proxy) for value in values)
    assert net(images()).shape == (3, 4)


def test_the_classifier_is_the_layer_that_gives_the_logits():
    net = Odd()
    assert classifier_names(net) == ["head"]
    assert build(net, num_classes=4, image_size=32).spec.embedding_dim == 8


def test_classes_in_another_order_move_the_rows_of_that_layer(tmp_path):
    net, other = Odd().eval(), Odd().eval()
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    checkpoint = locate(tmp_path / "weights.pth")
    object.__setattr__(checkpoint, "config", {"label_names": ["a", "b", "c", "d"]})
    load(other, checkpoint, name="odd", class_names=["d", "c", "b", "a"])
    assert torch.equal(other(images()), net(images()).flip(1))


def test_a_saved_classifier_without_dimensions_is_told(tmp_path):
    net = Odd()
    torch.save(net.state_dict() | {"head.bias": torch.tensor(1.0)}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="no classes"):
        load(net, locate(tmp_path / "weights.pth"), name="odd", class_names=None)


class Untraceable(Odd):
    def before(self, maps):
        return maps * 2 if bool(maps.isnan().any()) else maps


@pytest.mark.parametrize("kind", [Odd, Untraceable])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_way_of_cutting_holds_for_other_number_types_and_autocast(kind, dtype):
    torch.manual_seed(0)
    model = build(kind().to(dtype), num_classes=4, image_size=32).eval()
    if kind is Untraceable:
        model = build(kind().to(dtype), num_classes=4, image_size=32, stages=["stem"]).eval()
    assert model.spec.stages
    for enabled in (False, True):
        if enabled and dtype is torch.float64:
            continue
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            expected = model.net(images(dtype))
            assert torch.equal(model(images(dtype)).logits, expected)
            for stage in range(1, len(model.spec.stages) + 1):
                feature = model.forward_until(images(dtype), stage)
                assert torch.equal(model.forward_from(feature, stage).logits, expected)
