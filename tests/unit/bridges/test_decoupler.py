"""RSD's decoupler: its layers, its size, and a batch of one image."""

import pytest
import torch
from torch import nn

from crossdistill.bridges.decoupler import Decoupler


def num_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_is_two_layers_with_batch_norm_and_gelu_between():
    torch.manual_seed(0)
    decoupler = Decoupler(6, 5, expansion=3)
    written = nn.Sequential(nn.Linear(6, 18, bias=False), nn.BatchNorm1d(18), nn.GELU(), nn.Linear(18, 5, bias=False))
    written.load_state_dict(dict(zip(written.state_dict(), decoupler.state_dict().values(), strict=True)))
    embedding = torch.randn(7, 6)
    for mode in (True, False):
        assert torch.equal(decoupler.train(mode)(embedding), written.train(mode)(embedding))
    assert torch.equal(decoupler.norm.running_var, written[1].running_var)


def test_first_weights_are_small_normal_numbers():
    torch.manual_seed(0)
    decoupler = Decoupler(64, 200, expansion=2)
    for layer in (decoupler.expand, decoupler.adapt):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert layer.bias is None


@pytest.mark.parametrize(("expansion", "share"), [(2, 0.14), (4, 0.27)])
def test_overhead_of_the_papers_example(expansion, share):
    """ConvNeXt-T to Swin-N: widths 768 and 512, 9.6 million parameters; 0.29 are stated, the expansion is not."""
    assert num_parameters(Decoupler(512, 768, expansion=expansion)) / 9.6e6 == pytest.approx(share, abs=0.005)


def test_one_image_is_normalised_with_the_running_statistics():
    decoupler = Decoupler(4, 3, expansion=2)
    decoupler(5 + torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))
    statistics = decoupler.norm.running_mean.clone()
    one = torch.randn(1, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    in_training = decoupler(one)
    assert torch.equal(decoupler.norm.running_mean, statistics)
    torch.testing.assert_close(in_training, decoupler.eval()(one))
    in_training.sum().backward()
    assert all(parameter.grad is not None for parameter in decoupler.parameters())
    assert one.grad.abs().sum() > 0
