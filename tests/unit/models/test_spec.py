"""The facts of published models, at 224 px on the meta device: stages of OFA-KD's table, sizes, families."""

import pytest
import timm
import torch

from crossdistill.models import additions, build
from crossdistill.models.stage import stage

MAPS = [4, 8, 16, 32]
TOKENS = [16, 16, 16, 16]


def spec_at(name, image_size=None, num_classes=1000, **args):
    """Built without memory for weights, so that large models cost milliseconds."""
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=num_classes, **args)
    return stage(net, name, num_classes, (image_size, image_size) if image_size else None, None).spec


@pytest.mark.parametrize(
    ("name", "family", "layout", "prefix", "widths", "strides", "embedding"),
    [
        ("resnet18", "cnn", "NCHW", 0, [64, 128, 256, 512], MAPS, 512),
        ("resnet50", "cnn", "NCHW", 0, [256, 512, 1024, 2048], MAPS, 2048),
        ("mobilenetv2_100", "cnn", "NCHW", 0, [24, 32, 96, 1280], MAPS, 1280),
        ("efficientnet_b0", "cnn", "NCHW", 0, [24, 40, 112, 1280], MAPS, 1280),
        ("convnext_tiny", "cnn", "NCHW", 0, [96, 192, 384, 768], MAPS, 768),
        ("convnext_base", "cnn", "NCHW", 0, [128, 256, 512, 1024], MAPS, 1024),
        ("swin_tiny_patch4_window7_224", "transformer", "NHWC", 0, [96, 192, 384, 768], MAPS, 768),
        ("swin_base_patch4_window7_224", "transformer", "NHWC", 0, [128, 256, 512, 1024], MAPS, 1024),
        ("swin_nano", "transformer", "NHWC", 0, [64, 128, 256, 512], MAPS, 512),
        ("swin_pico", "transformer", "NHWC", 0, [48, 96, 192, 384], MAPS, 384),
        ("deit_tiny_patch16_224", "transformer", "NLC", 1, [192] * 4, TOKENS, 192),
        ("deit_tiny_distilled_patch16_224", "transformer", "NLC", 2, [192] * 4, TOKENS, 192),
        ("vit_small_patch16_224", "transformer", "NLC", 1, [384] * 4, TOKENS, 384),
        ("vit_base_patch16_224", "transformer", "NLC", 1, [768] * 4, TOKENS, 768),
        ("mixer_b16_224", "mlp", "NLC", 0, [768] * 4, TOKENS, 768),
        ("resmlp_12_224", "mlp", "NLC", 0, [384] * 4, TOKENS, 384),
    ],
)  # fmt: skip
def test_stages_of_the_published_table(name, family, layout, prefix, widths, strides, embedding):
    spec = spec_at(name)
    assert spec.family == family
    assert spec.embedding_dim == embedding
    assert spec.input.image_size == (224, 224)
    found = [(stage.channels, stage.stride, stage.layout, stage.num_prefix_tokens, stage.grid) for stage in spec.stages]
    grids = [(224 // stride, 224 // stride) for stride in strides]
    assert found == [(w, s, layout, prefix, g) for w, s, g in zip(widths, strides, grids, strict=True)]


@pytest.mark.parametrize(
    ("name", "num_classes", "num_parameters"),
    [
        ("resnet18", 100, 11_227_812), ("mobilenetv2_100", 100, 2_351_972), ("deit_tiny_patch16_224", 100, 5_543_716),
        ("swin_pico", 100, 5_160_496), ("resmlp_12_224", 100, 15_004_372), ("resnet18", 1000, 11_689_512),
        ("mobilenetv2_100", 1000, 3_504_872), ("deit_tiny_patch16_224", 1000, 5_717_416),
        ("swin_nano", 1000, 9_599_940), ("resmlp_12_224", 1000, 15_350_872),
    ],
)  # fmt: skip
def test_parameters_of_the_published_students(name, num_classes, num_parameters):
    assert spec_at(name, num_classes=num_classes).num_parameters == num_parameters


@pytest.mark.parametrize("name", ["mixer_tiny", "resmlp_tiny"])
@pytest.mark.parametrize("size", [16, 28, 32, 64, 96, 160, 224])
def test_tiny_mlps_stay_tiny(name, size):
    spec = spec_at(name, size, img_size=size)
    assert spec.num_parameters < 500_000
    assert spec.family == "mlp"
    assert 4 <= spec.stages[0].grid[0] <= additions.LARGEST_GRID


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "convnext_tiny", "efficientnet_b0"])
def test_strides_do_not_depend_on_the_image(name, size):
    spec = spec_at(name, size)
    assert [stage.stride for stage in spec.stages] == MAPS
    assert [stage.grid[0] for stage in spec.stages] == [size // stride for stride in MAPS]


@pytest.mark.parametrize("name", timm.list_models("test_*"))
def test_families_of_timms_test_models(name):
    attention = ("test_vit", "test_coatnet", "test_maxvit")
    assert spec_at(name).family == ("transformer" if name.startswith(attention) else "cnn")


def test_the_input_is_what_timm_says():
    net = timm.create_model("test_vit")
    facts = timm.data.resolve_model_data_config(net)
    spec = build("test_vit", num_classes=3).spec.input
    assert spec.mean == tuple(facts["mean"])
    assert spec.std == tuple(facts["std"])
    assert spec.crop_pct == facts["crop_pct"]
    assert spec.interpolation == facts["interpolation"]
    assert spec.image_size == tuple(facts["input_size"][1:])


def test_grey_images_get_the_mean_of_the_statistics():
    colour = build("test_resnet", num_classes=3).spec.input
    grey = build("test_resnet", num_classes=3, in_chans=1).spec.input
    assert grey.mean == pytest.approx((sum(colour.mean) / 3,))
    assert grey.std == pytest.approx((sum(colour.std) / 3,))
