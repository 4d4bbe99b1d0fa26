"""Layout bridges and exit branches on what timm's networks really give, file by file and size by size.

Networks lie on the meta device: shapes are theirs, and no weight is ever made.
"""

import pytest
import torch

from crossdistill.bridges.exit_branch import exit_branch
from crossdistill.bridges.layout import as_map, as_tokens, map_to_tokens, split_prefix, tokens_to_map
from crossdistill.models.dry_run import dry_run
from crossdistill.models.sizes import construct, own_size
from crossdistill.models.stage import stage
from crossdistill.models.zoo import smallest_variants
from samples.sizes import REFUSED_IN_THE_ZOO, SIZES

NUM_CLASSES = 7
ZOO = smallest_variants()
CASES = [(file, side) for file, name in ZOO.items() for side in (None, *SIZES) if (side, side) != own_size(name)]

# name -> (layout, number of prefix tokens) of its stages
OF_EVERY_LAYOUT = {
    "resnet10t": {("NCHW", 0)},
    "convnext_zepto_rms": {("NCHW", 0)},
    "halonet_h1": {("NCHW", 0)},
    "mambaout_femto": {("NHWC", 0)},
    "swin_tiny_patch4_window7_224": {("NHWC", 0)},
    "swinv2_tiny_window8_256": {("NHWC", 0)},
    "sam2_hiera_tiny": {("NHWC", 0)},
    "samvit_base_patch16_224": {("NHWC", 0)},
    "hiera_tiny_224": {("NLC", 0)},
    "gmlp_ti16_224": {("NLC", 0)},
    "vit_tiny_patch16_224": {("NLC", 1)},
    "deit_tiny_distilled_patch16_224": {("NLC", 2)},
    "vit_betwixt_patch16_reg4_gap_256": {("NLC", 4)},
    "vit_tiny_patch16_dinov3_qkvb": {("NLC", 5)},
    "pit_ti_distilled_224": {("NLC", 2)},
    "convit_tiny": {("NLC", 0), ("NLC", 1)},
    "volo_d1_224": {("NHWC", 0), ("NLC", 1)},
    "efficientformer_l1": {("NCHW", 0), ("NLC", 0)},
    "levit_128s": {("NCHW", 0), ("NLC", 0)},
    "twins_svt_small": {("NCHW", 0), ("NLC", 0)},
}

SHOWN = (
    *("resnet10t", "mambaout_femto", "swin_tiny_patch4_window7_224", "hiera_tiny_224", "levit_128s"),
    *("vit_tiny_patch16_224", "volo_d1_224"),
)
SHOWN_SIZE = 64


def staged(name, side=None):
    """The network on the meta device, cut into stages; at its own size where none is given."""
    size = (side, side) if side else None
    with torch.device("meta"):
        net = construct(name, {"num_classes": NUM_CLASSES}, size)
    return stage(net, name, NUM_CLASSES, size, None)


def check_stages(model):
    """Every stage that the network gives passes every bridge."""
    image_size = model.spec.input.image_size
    features = dry_run(model.net, model._cutter.whole, (3, *image_size)).stages
    assert len(features) == len(model.spec.stages) > 0
    for number, (feature, spec) in enumerate(zip(features, model.spec.stages, strict=True), start=1):
        (height, width), channels = spec.grid, spec.channels
        num_positions = height * width
        assert as_map(feature, spec).shape == (2, channels, height, width)
        assert as_tokens(feature, spec, keep_prefix=False).shape == (2, num_positions, channels)
        prefix, patches = split_prefix(feature, spec)
        assert prefix.shape == (2, spec.num_prefix_tokens, channels)
        assert patches.shape == (2, num_positions, channels)
        check_round_trip(torch.arange(feature.numel(), dtype=torch.int32).reshape(feature.shape), spec)
        with torch.device("meta"):
            branch = exit_branch(model.spec, model.spec, number, num_classes=NUM_CLASSES)
        assert branch(torch.empty(feature.shape, device="meta")).shape == (2, NUM_CLASSES)


def check_round_trip(feature, spec):
    tokens = as_tokens(feature, spec, keep_prefix=False)
    there = as_map(feature, spec)
    assert torch.equal(map_to_tokens(there), tokens)
    assert torch.equal(tokens_to_map(tokens, spec.grid), there)
    kept = as_tokens(feature, spec, keep_prefix=True)
    assert torch.equal(torch.cat(split_prefix(feature, spec), dim=1), kept)
    assert kept.numel() == feature.numel(), "nothing is lost"


@pytest.mark.parametrize("name", OF_EVERY_LAYOUT)
def test_every_layout_passes_every_bridge(name):
    model = staged(name)
    assert {(one.layout, one.num_prefix_tokens) for one in model.spec.stages} == OF_EVERY_LAYOUT[name]
    check_stages(model)


@pytest.mark.slow
@pytest.mark.parametrize(("file", "side"), CASES, ids=lambda one: one if isinstance(one, str) else f"{one or 'own'} px")
def test_every_file_of_timm_passes_every_bridge(file, side):
    if side in REFUSED_IN_THE_ZOO.get(file, ()):
        pytest.skip(f"{file} cannot have {side} px")  # as the tests of sizes show
    check_stages(staged(ZOO[file], side))


def quadrants(image):
    """The quarters ``(..., h, w)`` of maps ``(..., H, W)``; a row or column in the middle is left out."""
    height, width = (max(side // 2, 1) for side in image.shape[-2:])
    return [
        image[..., rows, columns]
        for rows in (slice(height), slice(-height, None))
        for columns in (slice(width), slice(-width, None))
    ]


@pytest.mark.parametrize("name", SHOWN)
def test_a_change_in_the_image_shows_in_its_own_place(name):
    """Tokens in another order, or rows taken for columns, would show it elsewhere; shapes cannot tell."""
    torch.manual_seed(0)
    net = construct(name, {"num_classes": NUM_CLASSES}, (SHOWN_SIZE, SHOWN_SIZE))
    model = stage(net, name, NUM_CLASSES, (SHOWN_SIZE, SHOWN_SIZE), None).eval()
    images = torch.randn(1, 3, SHOWN_SIZE, SHOWN_SIZE).repeat(5, 1, 1, 1)
    for number, image in enumerate(images[1:]):
        centre = quadrants(image)[number][:, 8:-8, 8:-8]
        centre += torch.randn_like(centre)
    with torch.no_grad():
        features = model(images).stages
    for feature, spec in zip(features, model.spec.stages, strict=True):
        seen = as_map(feature, spec)
        changes = quadrants((seen[1:] - seen[:1]).abs().mean(dim=1))
        if min(spec.grid) > 2:
            strongest = torch.stack([change.mean(dim=(1, 2)) for change in changes]).argmax(dim=0)
            assert strongest.tolist() == [0, 1, 2, 3], f"{spec}"
