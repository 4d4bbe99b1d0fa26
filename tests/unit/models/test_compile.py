"""``torch.compile``: staging breaks no graph that the plain network keeps whole, and changes no result.

``fullgraph=True`` raises at the first break.
"""

import pytest
import torch
import torch._dynamo
from torch import nn

from crossdistill.models import build
from crossdistill.models.stage import stage
from samples.networks import awake, images_for

FAMILIES = {
    "resnet": ("test_resnet", 32),
    "convnext": ("test_convnext", 32),
    "vit": ("test_vit", None),
    "swin": ("swin_pico", 32),
    "mixer": ("mixer_tiny", 16),
}
CUT = 2
"""The stage after which the halves meet."""


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def model(request):
    name, size = FAMILIES[request.param]
    return awake(build(name, num_classes=7, image_size=size))


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=[False, True], ids=["eval", "train"])
def training(request):
    return request.param


class Decides(nn.Module):
    """Asks its images a question half way, which ends a graph in any case, and cannot be traced."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.body = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.fc = nn.Linear(16, 4)

    def forward(self, images):
        x = self.stem(images)
        if x.device.type != "meta" and bool(x.isnan().any()):
            raise ValueError("not a number")
        return self.fc(self.body(x).relu().mean(dim=(2, 3)))


def seeded(call, images):
    """From one state of the generator, since some networks drop paths in train mode."""
    torch.manual_seed(2)
    return call(images)


def number_of_breaks(call, *inputs):
    torch._dynamo.reset()
    return torch._dynamo.explain(call)(*inputs).graph_break_count


def tensors(outputs):
    return [outputs.logits, outputs.embedding, *outputs.stages]


def assert_equal(expected, actual):
    assert len(expected) == len(actual)
    assert all(torch.equal(one, other) for one, other in zip(expected, actual, strict=True))


def test_the_whole_network_is_one_graph_with_the_eager_outputs(model, training):
    model.train(training)
    images = images_for(model)
    eager = seeded(model, images)
    assert eager.logits.std() > 0
    compiled = seeded(torch.compile(model, backend="eager", fullgraph=True), images)
    assert_equal(tensors(eager), tensors(compiled))


def test_both_halves_are_one_graph_each_with_the_eager_outputs(model, training):
    model.train(training)
    images = images_for(model)
    feature = seeded(lambda x: model.forward_until(x, CUT), images).detach()
    until = torch.compile(lambda x: model.forward_until(x, CUT), backend="eager", fullgraph=True)
    rest = torch.compile(lambda x: model.forward_from(x, CUT), backend="eager", fullgraph=True)
    assert torch.equal(seeded(until, images), feature)
    expected = seeded(lambda x: model.forward_from(x, CUT), feature)
    assert_equal(tensors(expected), tensors(seeded(rest, feature)))


def test_another_batch_size_and_the_other_mode_are_compiled_as_well(model):
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for batch_size, mode in ((2, True), (3, True), (3, False), (2, True)):
        model.train(mode)
        images = images_for(model, batch_size)
        assert_equal(tensors(seeded(model, images)), tensors(seeded(compiled, images)))


@pytest.mark.parametrize(
    "model", [pytest.param(one, marks=pytest.mark.slow if one == "resnet" else ()) for one in FAMILIES], indirect=True
)
def test_gradients_through_compiled_stages_are_the_eager_ones(model):
    """Through every stage and the logits, by the backend that also compiles the backward pass."""
    model.train()
    images = images_for(model)

    def gradients(call):
        model.zero_grad()
        sum(tensor.square().mean() for tensor in tensors(seeded(call, images))).backward()
        return [parameter.grad.clone() for parameter in model.net.parameters()]

    expected = gradients(model)
    compiled = gradients(torch.compile(model, backend="aot_eager", fullgraph=True))
    assert any(gradient.abs().max() > 0 for gradient in expected)
    for one, other in zip(expected, compiled, strict=True):
        torch.testing.assert_close(one, other)


def test_a_network_with_a_break_of_its_own_gets_no_more_by_staging(training):
    torch.manual_seed(0)
    model = stage(Decides(), "decides", 4, (32, 32), None).train(training)
    images = images_for(model)
    of_its_own = number_of_breaks(model.net, images)
    assert of_its_own >= 1
    assert number_of_breaks(model, images) <= of_its_own
    torch._dynamo.reset()
    assert_equal(tensors(model(images)), tensors(torch.compile(model, backend="eager")(images)))
