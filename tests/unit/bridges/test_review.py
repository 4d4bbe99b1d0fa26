"""ReviewKD's fusion against a slow reference, its layers, and batches without statistics."""

import pytest
import torch

from crossdistill.bridges.review import LevelFusion, Review
from oracles import stage_losses as oracle


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def review(student_channels=(3, 4, 5), teacher_channels=(4, 2, 6), width=3, seed=0):
    torch.manual_seed(seed)
    return Review(student_channels, teacher_channels, width=width).double()


LEVELS = random(2, 3, 4, 6, seed=1), random(2, 4, 2, 3, seed=2), random(2, 5, 1, 1, seed=3)
GRIDS = (2, 6), (2, 2), (1, 1)


def test_agrees_with_the_slow_reference():
    module = review()
    results = module(LEVELS, GRIDS)
    deeper = None
    for fusion, level, grid, result in reversed(list(zip(module.fusions, LEVELS, GRIDS, results, strict=True))):
        fused = oracle.normalise(oracle.convolve(level.tolist(), fusion.project[0].weight.tolist()))
        if deeper is not None:
            fused = oracle.fuse(fused, deeper, fusion.attention.weight.tolist(), fusion.attention.bias.tolist())
        reduced = oracle.average(fused, *grid)
        expected = oracle.normalise(oracle.convolve(reduced, fusion.result[0].weight.tolist()))
        torch.testing.assert_close(result.detach(), torch.tensor(expected, dtype=torch.float64))
        deeper = fused


def test_a_shallow_result_depends_on_every_deeper_level():
    levels = [level.clone().requires_grad_() for level in LEVELS]
    shallow, middle, _ = review()(levels, GRIDS)
    (gradient,) = torch.autograd.grad(middle.square().mean() + middle.abs().sum(), levels[2], retain_graph=True)
    assert gradient.abs().sum() > 0
    for gradient in torch.autograd.grad(shallow.abs().sum(), levels):
        assert gradient.abs().sum() > 0


def test_a_deep_result_does_not_depend_on_shallower_levels():
    changed = [LEVELS[0] + 1, LEVELS[1] * 2, LEVELS[2]]
    assert torch.equal(review()(LEVELS, GRIDS)[2], review()(changed, GRIDS)[2])


def test_only_the_deepest_level_has_no_attention():
    assert [fusion.attention is None for fusion in review().fusions] == [False, False, True]
    (only,) = review((3,), (4,)).fusions
    assert only.attention is None


@pytest.mark.parametrize("takes_deeper", [False, True])
@pytest.mark.parametrize(("student", "teacher", "width"), [(3, 4, 5), (64, 96, 32), (7, 7, 1)])
def test_parameters_in_closed_form(student, teacher, width, takes_deeper):
    fusion = LevelFusion(student, teacher, width=width, takes_deeper=takes_deeper)
    expected = student * width + 2 * width + 9 * width * teacher + 2 * teacher + takes_deeper * (4 * width + 2)
    assert sum(parameter.numel() for parameter in fusion.parameters()) == expected


def test_convolutions_start_as_released():
    """Uniform of variance 1 / fan in."""
    torch.manual_seed(0)
    fusion = LevelFusion(64, 96, width=128, takes_deeper=True)
    for convolution, fan_in in ((fusion.project[0], 64), (fusion.result[0], 9 * 128)):
        assert convolution.bias is None
        assert convolution.weight.var().item() == pytest.approx(1 / fan_in, rel=0.05)
        assert convolution.weight.abs().max() <= (3 / fan_in) ** 0.5
