"""Stages named by hand: the same exactness, and errors that name the module."""

import pytest
import timm
import torch
from torch import nn

from crossdistill.errors import InputError
from crossdistill.models import build


def exact(model, size=32):
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = model.eval().net(images)
    return all(
        torch.equal(model.forward_from(model.forward_until(images, number), number).logits, expected)
        for number in range(1, len(model.spec.stages) + 1)
    )


def test_stages_end_where_the_names_say():
    model = build("timm/resnet10t", num_classes=5, image_size=32, stages=["conv1", "layer2", "layer3.0"])
    assert [(stage.channels, stage.stride) for stage in model.spec.stages] == [(64, 2), (128, 8), (256, 16)]
    assert exact(model)


def test_a_module_object_is_staged_by_names():
    net = timm.create_model("test_vit", num_classes=5, img_size=32)
    model = build(net, num_classes=5, image_size=32, stages=["blocks.0", "blocks.3"])
    assert [stage.num_prefix_tokens for stage in model.spec.stages] == [net.num_prefix_tokens] * 2
    assert exact(model)


def test_a_staged_model_keeps_its_names_when_it_is_built_again():
    model = build("timm/test_resnet", num_classes=5, image_size=32, stages=["layer1", "layer4"])
    again = build(model, num_classes=5)
    assert again.spec.stages == model.spec.stages
    assert len(build(model, num_classes=5, stages=["layer2"]).spec.stages) == 1


def test_a_network_that_cannot_be_traced_is_staged_by_names():
    class Untraceable(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.body, self.fc = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 8, 2, 2), nn.Linear(8, 5)

        def forward(self, images):
            maps = self.body(self.stem(images))
            return self.fc(maps.mean((2, 3)) * (2.0 if bool(maps.isnan().any()) else 1.0))

    model = build(Untraceable(), num_classes=5, image_size=32, stages=["stem", "body"])
    assert [stage.stride for stage in model.spec.stages] == [4, 8]
    assert exact(model)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["layer1", "layerr2"], r"(?s)'layerr2' of test_resnet.*layer2"),
        (["layer1", "layer1"], "comes twice"),
        (["layer1", "layer1.0"], "'layer1' comes twice or holds another"),
        (["layer2", "layer1"], r"(?s)layer2, layer1.*in the order in which they run"),
        (["layer1.0.conv1"], r"(?s)more than one tensor.*let the stages be found"),
        (
            ["fc"],
            r"stages fc \(split: after 'fc' the network needs more than one tensor with positions; replay: after 'fc'",
        ),
    ],
)
def test_names_that_end_no_stage_are_refused(names, message):
    with pytest.raises(InputError, match=message):
        build("timm/test_resnet", num_classes=5, image_size=32, stages=names)
