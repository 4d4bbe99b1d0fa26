"""MGD's block: what is masked, how often, and what is made of the rest."""

import pytest
import torch
from torch import nn

from crossdistill.bridges.masked_generation import MaskedGeneration
from oracles import stage_losses as oracle


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def block(student=3, teacher=4, mask_ratio=0.0, masked="channels"):
    torch.manual_seed(0)
    return MaskedGeneration(student, teacher, mask_ratio=mask_ratio, masked=masked).double()


def masks(module, feature):
    """What the block multiplies the projected map with."""
    seen = []
    module.generation[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    module(feature)
    return seen[0] / module.projection(feature)


def test_without_a_mask_agrees_with_the_slow_reference():
    module, feature = block(), random(2, 3, 3, 4)
    first, _, second = module.generation
    projected = oracle.convolve(feature.tolist(), module.projection.weight.tolist(), module.projection.bias.tolist())
    hidden = oracle.convolve(projected, first.weight.tolist(), first.bias.tolist())
    hidden = [[[[max(value, 0.0) for value in row] for row in channel] for channel in one] for one in hidden]
    expected = torch.tensor(oracle.convolve(hidden, second.weight.tolist(), second.bias.tolist()), dtype=torch.float64)
    torch.testing.assert_close(module(feature).detach(), expected)


@pytest.mark.parametrize(("masked", "hidden_together"), [("channels", (2, 3)), ("positions", (1,))])
def test_masks_hide_whole_channels_or_all_channels_of_a_position(masked, hidden_together):
    mask = masks(block(64, 48, 0.3, masked), random(8, 64, 6, 7))
    assert set(mask.unique().round(decimals=9).tolist()) == {0.0, 1.0}
    share = 1 - mask.mean(dim=hidden_together)
    assert set(share.unique().round(decimals=9).tolist()) == {0.0, 1.0}
    assert share.mean().item() == pytest.approx(0.3, abs=0.09)  # four deviations of 8 * 42 draws, or of 8 * 48
    assert not torch.equal(mask[0], mask[1]), "each image has its own"


def test_masks_follow_the_generator_and_differ_from_call_to_call():
    module, feature = block(16, 16, 0.5), random(2, 16, 3, 3)
    torch.manual_seed(1)
    first, second = module(feature), module(feature)
    torch.manual_seed(1)
    assert torch.equal(module(feature), first)
    assert not torch.equal(second, first)


def test_equal_channels_are_not_projected():
    assert isinstance(block(4, 4).projection, nn.Identity)
    assert isinstance(block(3, 4).projection, nn.Conv2d)


@pytest.mark.parametrize(("student", "teacher"), [(3, 4), (4, 4), (32, 7)])
def test_parameters_in_closed_form(student, teacher):
    projection = 0 if student == teacher else student * teacher + teacher
    expected = projection + 2 * (9 * teacher**2 + teacher)
    assert sum(parameter.numel() for parameter in block(student, teacher).parameters()) == expected
