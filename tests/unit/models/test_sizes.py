"""Which sizes a network can have, family by family, and what a refusal says."""

import re
from pathlib import Path

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

from crossdistill.errors import InputError
from crossdistill.models import build
from crossdistill.models.sizes import CANDIDATES, construct, own_size, recipe, size_of, sizes_for, sizes_of
from crossdistill.models.views import view
from samples.sizes import EVERY, REFUSED, SIZES

FAMILIES = {
    # architecture: rows of the last grid at each of the six sizes (None where it cannot be built)
    "test_resnet": (1, 2, 3, 5, 7, 12),
    "test_convnext": (1, 2, 3, 5, 7, 12),
    "test_efficientnet": (1, 2, 3, 5, 7, 12),
    "test_nfnet": (1, 2, 3, 5, 7, 12),
    "test_byobnet": (1, 2, 3, 5, 7, 12),
    "test_mambaout": (1, 2, 3, 5, 7, 12),
    "poolformer_s12": (1, 2, 3, 5, 7, 12),
    "inception_v3": (None, None, 1, 3, 5, 10),
    "botnet26t_256": (1, 2, 3, 5, 7, 12),
    "test_vit": (2, 4, 6, 10, 14, 24),
    "test_vit_relpos": (2, 4, 6, 10, 14, 24),
    "deit_tiny_patch16_224": (2, 4, 6, 10, 14, 24),
    "convit_tiny": (2, 4, 6, 10, 14, 24),
    "beit_base_patch16_224": (2, 4, 6, 10, 14, 24),
    "eva02_tiny_patch14_336": (2, 4, 6, 11, 16, 27),
    "samvit_base_patch16": (2, 4, 6, 10, 14, 24),
    "swin_pico": (1, 2, 3, 5, 7, 12),
    "swinv2_tiny_window8_256": (1, 2, 3, 5, 7, 12),
    "test_maxvit": (1, 2, 3, 5, 7, 12),
    "test_coatnet": (1, 2, 3, 5, 7, 12),
    "gcvit_xxtiny": (1, 2, 3, 5, 7, 12),
    "hiera_tiny_224": (1, 2, 3, 5, 7, 12),
    "nest_tiny": (2, 4, 6, 10, 14, 24),
    "levit_128s": (1, 1, 2, 3, 4, 6),
    "efficientvit_m0": (1, 1, 2, 3, 4, 6),
    "efficientformer_l1": (None, None, None, None, 7, None),
    "mobilevit_xxs": (1, 2, 3, 5, 7, 12),
    "twins_svt_small": (1, 2, 3, 5, 7, 12),
    "mixer_tiny": (8, 8, 12, 10, 14, 12),
    "resmlp_tiny": (8, 8, 12, 10, 14, 12),
    "gmlp_ti16_224": (2, 4, 6, 10, 14, 24),
}


def on_meta(architecture, size, **options):
    """The network without memory, and its last features, from one forward each."""
    with torch.device("meta"), torch.no_grad():
        net = construct(architecture, {"num_classes": 3, **options}, (size, size)).eval()
        images = torch.zeros(2, 3, size, size)
        return net, net(images).shape, net.forward_features(images).shape


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_family_is_built_at_each_size_or_refused(architecture):
    for size, rows in zip(SIZES, FAMILIES[architecture], strict=True):
        if rows is None:
            with pytest.raises(RuntimeError):
                on_meta(architecture, size)
            continue
        net, logits, features = on_meta(architecture, size)
        assert logits == (2, 3)
        found = view(features, (size, size), num_prefix_tokens=getattr(net, "num_prefix_tokens", 0))
        assert found.grid == (rows, rows), size


@pytest.mark.parametrize(
    ("architecture", "size", "works", "fails"),
    [
        ("inception_v3", 64, {96, 224, 299, 384}, {16, 32, 48, 64}),
        ("efficientformer_l1", 384, {224}, EVERY - {224}),
        ("crossvit_9_240", 224, {240}, EVERY),
        ("test_coatnet", 8, EVERY | {160}, {16, 48}),
        ("test_maxvit", 100, EVERY | {160}, {16}),
    ],
)
def test_a_refusal_lists_sizes_that_work(architecture, size, works, fails):
    with pytest.raises(InputError, match=f"{size} x {size} px") as caught:
        build(architecture, num_classes=3, image_size=size)
    listed = {int(number) for number in re.findall(r"\d+", caught.value.expected)}
    assert works <= listed
    assert not listed & fails
    own = own_size(architecture)
    assert own[0] in listed
    assert f"its own size is {own[0]} x {own[1]} px" in caught.value.action


def test_every_listed_size_can_be_built():
    with pytest.raises(InputError) as caught:
        build("test_coatnet", num_classes=3, image_size=8)
    for size in map(int, re.findall(r"\d+", caught.value.expected)):
        assert on_meta("test_coatnet", size)[1] == (2, 3)


def test_the_search_stops_in_time_but_never_before_the_networks_own_size():
    assert sizes_of("test_vit", {}, (8, 8), seconds=0) == [160]
    assert sizes_of("test_vit", {}, (8, 8), seconds=60) == list(CANDIDATES)


def test_arguments_decide_which_sizes_work():
    assert 48 in sizes_of("test_vit", {"patch_size": 16}, (8, 8))
    assert 48 not in sizes_of("test_vit", {"patch_size": 32}, (8, 8))
    assert sizes_of("test_vit", {"num_heads": 7}, (32, 32)) == []


def test_a_network_of_ones_own_is_tried_as_it_is():
    net = nn.Sequential(nn.Conv2d(1, 2, 16, stride=16), nn.Flatten(), nn.Linear(2 * 4 * 4, 3))
    assert recipe(net) is None
    assert sizes_for(net, (1, 32, 32)) == [64]
    with pytest.raises(InputError, match="a size that works: 64 px"):
        build(nn.Sequential(*net), num_classes=3, image_size=32)


def test_a_constructor_that_takes_no_size_gets_none():
    net = construct("poolformer_s12", {"num_classes": 3}, (64, 64))
    assert size_of(net) is None
    assert recipe(net)[1]["num_classes"] == 3
    assert size_of(construct("test_vit", {}, (64, 32))) == (64, 32)


def row_sizes(text):
    return [int(number) for number in text.split(",")]


def documented():
    """Rows of the tables of docs/small-images.md: model, arguments, grids, parameters."""
    page = Path(__file__).resolve().parents[3] / "docs" / "small-images.md"
    found = re.findall(
        r"^\| `(\w+)` \| (`[^|]*`|–) \| ([\d, ]+) \| ([\d,]+) \|", page.read_text(encoding="utf-8"), re.M
    )
    return [
        pytest.param(name, args.strip("`–"), row_sizes(grids), int(count.replace(",", "")), id=f"{name} {args}")
        for name, args, grids, count in found
    ]


def test_the_page_has_rows():
    assert len(documented()) >= 12


@pytest.mark.parametrize(("name", "args", "grids", "num_parameters"), documented())
def test_the_page_on_small_images_is_true(name, args, grids, num_parameters):
    options = {}
    for word in args.split():
        key, value = word.removeprefix("student.args.").split("=")
        options[key] = {"true": True, "false": False}.get(value) if value in ("true", "false") else int(value)
    model = build(f"timm/{name}", num_classes=100, image_size=32, **options)
    assert [stage.grid for stage in model.spec.stages] == [(rows, rows) for rows in grids]
    assert model.spec.num_parameters == num_parameters


def smallest_of_each_file():
    """The classifier with the fewest parameters of every file in timm/models, built without memory."""
    smallest = {}
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            config = get_pretrained_cfg(name)
            if config is None or not config.num_classes:
                continue
            with torch.device("meta"):
                net = timm.create_model(name)
            count = sum(parameter.numel() for parameter in net.parameters())
            smallest[module] = min(smallest.get(module, (count, name)), (count, name))
    return {module: name for module, (_, name) in smallest.items()}


@pytest.mark.slow
def test_one_network_of_every_file_of_timm():
    refused = {}
    for module, name in smallest_of_each_file().items():
        own = own_size(name)
        with torch.device("meta"):
            plain, sized = timm.create_model(name), construct(name, {}, own)
        assert str(plain) == str(sized), f"{name} is another network at its own size"
        assert [t.shape for t in plain.state_dict().values()] == [t.shape for t in sized.state_dict().values()], name
        for size in SIZES:
            try:
                with torch.device("meta"), torch.no_grad():
                    net = construct(name, {"num_classes": 3}, (size, size)).eval()
                    assert net(torch.zeros(2, 3, size, size)).shape == (2, 3), name
            except (RuntimeError, AssertionError):
                refused.setdefault(module, set()).add(size)
    assert refused == REFUSED
