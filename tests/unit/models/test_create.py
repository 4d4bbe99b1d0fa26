"""Networks as timm makes them, at an image size, and what is said when it refuses."""

import pytest
import timm
import torch

from crossdistill.errors import InputError
from crossdistill.models.create import create

OWN = [
    "test_resnet",
    "test_vit",
    "test_coatnet",
    "test_maxvit",
    "swin_pico",
    "mixer_tiny",
    "levit_128s",
    "poolformer_s12",
]


@pytest.mark.parametrize("name", OWN)
def test_at_its_own_size_a_network_is_exactly_what_timm_builds(name):
    size = timm.models.get_pretrained_cfg(name).input_size[1:]
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=3)
    for given in (None, size):
        torch.manual_seed(0)
        net = create(name, None, {"num_classes": 3}, given, pretrained=False)
        assert str(net) == str(plain)
        own, expected = dict(net.named_buffers()) | net.state_dict(), dict(plain.named_buffers()) | plain.state_dict()
        assert own.keys() == expected.keys()
        assert all(torch.equal(own[key], expected[key]) for key in expected)


def test_only_the_size_differs_at_another_size():
    net = create("test_vit", None, {"num_classes": 3}, (32, 64), pretrained=False)
    assert net.patch_embed.grid_size == (2, 4)
    assert net.patch_embed.proj.kernel_size == (16, 16)


def test_arguments_are_blamed_where_no_size_would_help():
    with pytest.raises(InputError, match=r"num_heads=7[\s\S]*divisible[\s\S]*correct or drop them"):
        create("test_vit", None, {"num_classes": 3, "num_heads": 7}, (32, 32), pretrained=False)
    with pytest.raises(InputError, match=r"unexpected keyword[\s\S]*deep"):
        create("poolformer_s12", None, {"num_classes": 3, "deep": 7}, (32, 32), pretrained=False)


def test_a_size_is_blamed_before_a_download(monkeypatch):
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(InputError, match=r"ZeroDivisionError[\s\S]*weights from timm's hub"):
        create("test_vit", None, {}, (32, 32), pretrained=True)
    with pytest.raises(
        InputError, match=r"100 x 100 px[\s\S]*a size that works: .*224[\s\S]*its own size is 224 x 224"
    ):
        create("nest_tiny", None, {}, (100, 100), pretrained=True)
