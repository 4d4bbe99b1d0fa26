"""OFA's exit branches: published parameter counts, layers, initialisation, and grids of any size."""

import pytest
import torch
from torch import nn

from crossdistill.bridges.exit_branch import MapBranch, SepConv, TokenBranch, exit_branch, num_merges
from crossdistill.bridges.token_layers import Block, PatchMerging
from crossdistill.contracts import StageSpec
from oracles import model_specs as specs

PUBLISHED = [
    (specs.resnet18(100), 768, 1_626_256, (411_748, 397_924, 345_700, 470_884)),
    (specs.resnet18(100), 384, 1_194_384, (320_100, 306_276, 254_052, 313_956)),
    (specs.mobilenetv2(100), 768, 2_529_296, (275_044, 221_796, 264_676, 1_767_780)),
    (specs.deit_tiny(100), 768, 3_783_184, (1_501_156, 1_056_868, 612_580, 612_580)),
    (specs.swin(48, 100), 768, 14_864_656, (6_618_340, 4_326_244, 2_108_260, 1_811_812)),
    (specs.resmlp_s12(100), 768, 14_938_768, (5_951_332, 4_178_020, 2_404_708, 2_404_708)),
    (specs.resnet18(1000), 192, 3_041_184, (781_800, 767_976, 715_752, 775_656)),
    (specs.mobilenetv2(1000), 192, 7_140_896, (1_427_944, 1_374_696, 1_417_576, 2_920_680)),
    (specs.deit_tiny(1000), 2048, 4_477_984, (1_674_856, 1_230_568, 786_280, 786_280)),
    (specs.swin(64, 1000), 2048, 28_187_040, (12_202_472, 8_130_536, 4_190_184, 3_663_848)),
    (specs.resmlp_s12(1000), 2048, 16_324_768, (6_297_832, 4_524_520, 2_751_208, 2_751_208)),
]


def build(student, number, *, teacher_dim=32, num_classes=10):
    return exit_branch(student, specs.teacher(teacher_dim), number, num_classes=num_classes)


def branch_of(stage, *, embedding_dim, num_later_stages=1, num_classes=10):
    """The branch of a stage that is followed by others."""
    family = "cnn" if stage.layout == "NCHW" else "transformer"
    student = specs.model("student", family, embedding_dim, [stage] * (num_later_stages + 1), num_classes)
    return build(student, 1, num_classes=num_classes)


def feature_of(stage, size=2):
    height, width = stage.grid
    shapes = {
        "NCHW": (size, stage.channels, height, width),
        "NHWC": (size, height, width, stage.channels),
        "NLC": (size, stage.num_prefix_tokens + height * width, stage.channels),
    }
    return torch.randn(shapes[stage.layout])


@pytest.mark.parametrize(("student", "teacher_dim", "total", "per_stage"), PUBLISHED)
def test_parameter_counts_are_the_published_ones(student, teacher_dim, total, per_stage):
    with torch.device("meta"):
        branches = [
            build(student, number, teacher_dim=teacher_dim, num_classes=student.num_classes) for number in range(1, 5)
        ]
    counts = [sum(parameter.numel() for parameter in branch.parameters()) for branch in branches]
    assert tuple(counts) == per_stage
    assert sum(counts) == total


@pytest.mark.parametrize("student", [specs.resnet18(10), specs.deit_tiny(10), specs.swin(16, 10), specs.resmlp_s12(10)])
def test_branches_give_logits_at_published_sizes(student):
    for number, stage in enumerate(student.stages, start=1):
        assert build(student, number)(feature_of(stage)).shape == (2, 10)


@pytest.mark.parametrize(("number", "widths"), [(1, [64, 128, 256, 768]), (2, [128, 256, 768]), (3, [256, 768])])
def test_map_branch_doubles_its_width_and_ends_at_the_wider_embedding(number, widths):
    branch = build(specs.resnet18(), number, teacher_dim=768)
    outputs = []
    for layer in branch.projector:
        assert isinstance(layer, SepConv)
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(tuple(output.shape)))
    side = specs.resnet18().stages[number - 1].grid[0]
    branch(torch.randn(1, widths[0], side, side))
    sides = [side // 2**step for step in range(1, len(widths))]
    assert outputs == [(1, width, side, side) for width, side in zip(widths[1:], sides, strict=True)]
    assert outputs[-1][2] == 7


def test_last_map_branch_is_one_convolution_with_bias():
    branch = build(specs.resnet18(), 4, teacher_dim=768)
    assert isinstance(branch.projector, nn.Conv2d)
    assert branch.projector.weight.shape == (768, 512, 1, 1)
    assert branch.projector.bias is not None


def test_separable_convolution_layer_by_layer():
    depthwise, pointwise, norm, relu, depthwise2, pointwise2, norm2, relu2 = SepConv(6, 12)
    for layer, stride in ((depthwise, (2, 2)), (depthwise2, (1, 1))):
        assert (layer.groups, layer.kernel_size, layer.stride, layer.padding) == (6, (3, 3), stride, (1, 1))
    assert pointwise.weight.shape == (6, 6, 1, 1)
    assert pointwise2.weight.shape == (12, 6, 1, 1)
    assert all(layer.bias is None for layer in (depthwise, pointwise, depthwise2, pointwise2))
    assert (norm.num_features, norm2.num_features) == (6, 12)
    assert isinstance(relu, nn.ReLU)
    assert isinstance(relu2, nn.ReLU)


@pytest.mark.parametrize(
    ("number", "kinds"),
    [
        (1, [PatchMerging, nn.GELU, PatchMerging, nn.GELU, PatchMerging]),
        (2, [PatchMerging, nn.GELU, PatchMerging]),
        (3, [PatchMerging, nn.GELU]),
        (4, []),
    ],
)
def test_merging_of_a_pyramid_of_tokens(number, kinds):
    student = specs.swin(16)
    branch = build(student, number)
    assert [type(layer) for layer in branch.merge] == kinds
    merged = branch.merge(feature_of(student.stages[number - 1]))
    assert merged.shape == (2, 7, 7, 128)


@pytest.mark.parametrize(("number", "num_blocks"), [(1, 3), (2, 2), (3, 1), (4, 1)])
def test_block_settings(number, num_blocks):
    branch = build(specs.deit_tiny(), number, teacher_dim=768)
    assert len(branch.blocks) == num_blocks
    for block in branch.blocks:
        assert isinstance(block, Block)
        assert block.num_heads == 4
        assert block.qkv.bias is None
        assert block.mlp[0].weight.shape == (768, 192)
        assert block.norm1.eps == 1e-5


def test_initialisation():
    torch.manual_seed(0)
    branches = [build(specs.resnet18(), 1, teacher_dim=768), build(specs.deit_tiny(), 1)]
    for module in (module for branch in branches for module in branch.modules()):
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
        elif isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            assert (module.weight == 1).all()
            assert not module.bias.any()


def test_grids_are_merged_to_about_seven_by_seven():
    counts = {(56, 56): 3, (32, 32): 2, (27, 27): 1, (14, 14): 1, (13, 13): 0, (7, 7): 0, (1, 1): 0, (7, 28): 1}
    assert {grid: num_merges(grid) for grid in counts} == counts


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (3, 5), (7, 28), (15, 15), (29, 31)])
@pytest.mark.parametrize(
    ("layout", "num_prefix_tokens"), [("NCHW", 0), ("NHWC", 0), ("NLC", 0), ("NLC", 1), ("NLC", 5)]
)
@pytest.mark.parametrize("embedding_dim", [8, 12])
def test_any_grid_trains(grid, layout, num_prefix_tokens, embedding_dim):
    stage = StageSpec(channels=8, stride=4, layout=layout, num_prefix_tokens=num_prefix_tokens, grid=grid)
    branch = branch_of(stage, embedding_dim=embedding_dim, num_later_stages=2)
    logits = branch(feature_of(stage))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in branch.parameters())


@pytest.mark.parametrize("num_stages", [1, 3, 5])
def test_any_number_of_stages(num_stages):
    grids = [2 ** (6 - number) for number in range(num_stages)]
    maps = specs.model("cnn", "cnn", 24, specs.pyramid([8] * num_stages, "NCHW", sides=grids))
    tokens = specs.model("vit", "transformer", 8, specs.isotropic(8, 1, num_stages=num_stages))
    for number in range(1, num_stages + 1):
        assert build(maps, number)(feature_of(maps.stages[number - 1])).shape == (2, 10)
        branch = build(tokens, number)
        assert branch(feature_of(tokens.stages[number - 1])).shape == (2, 10)
        assert len(branch.blocks) == max(num_stages - number, 1)


def test_layout_decides_not_family():
    mlp_with_maps = specs.model("cyclemlp", "mlp", 512, specs.pyramid((64, 128, 320, 512), "NCHW"))
    assert isinstance(build(mlp_with_maps, 1), MapBranch)
    assert isinstance(build(specs.resmlp_s12(), 1), TokenBranch)


def test_class_token_is_read_and_registers_are_kept_for_the_blocks():
    stage = StageSpec(channels=8, stride=16, layout="NLC", num_prefix_tokens=3, grid=(4, 4))
    branch = branch_of(stage, embedding_dim=8)
    feature = feature_of(stage, size=1)
    seen = []
    branch.blocks.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    logits = branch(feature)
    ((tokens, passed),) = seen
    assert torch.equal(tokens, feature)
    assert torch.equal(logits, branch.classifier(passed[:, 0]))


def test_without_prefix_tokens_the_mean_is_read():
    stage = StageSpec(channels=8, stride=16, layout="NHWC", num_prefix_tokens=0, grid=(4, 4))
    branch = branch_of(stage, embedding_dim=8)
    passed = []
    branch.blocks.register_forward_hook(lambda module, inputs, output: passed.append(output))
    logits = branch(feature_of(stage))
    assert torch.equal(logits, branch.classifier(passed[0].mean(1)))


def test_maps_may_come_at_another_resolution_than_the_spec():
    for layout, shape in (("NCHW", (2, 8, 20, 12)), ("NHWC", (2, 20, 12, 8))):
        stage = StageSpec(channels=8, stride=4, layout=layout, num_prefix_tokens=0, grid=(14, 14))
        assert branch_of(stage, embedding_dim=8)(torch.randn(shape)).shape == (2, 10)
