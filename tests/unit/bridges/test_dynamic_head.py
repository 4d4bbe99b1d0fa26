"""The dynamic head: golden logits, published parameter counts, plain loops, and no gradient into words."""

import numpy as np
import pytest
import torch

from crossdistill.bridges.dynamic_head import DynamicHead
from oracles import obow as oracle


def loaded(golden, prefix, width, kappa):
    words = golden[f"{prefix}/vocabulary"]
    head = DynamicHead(words.shape[1], width, kappa=kappa).double()
    names = {
        "fc.weight": head.fc.weight,
        "bn.weight": head.bn.weight,
        "bn.bias": head.bn.bias,
        "last_layer.weight": head.last_layer.weight,
        "last_layer.bias": head.last_layer.bias,
    }
    with torch.no_grad():
        for name, parameter in names.items():
            parameter.copy_(golden[f"{prefix}/{name}"])
    return head, words


@pytest.mark.parametrize(("name", "levels", "groups"), [("head0", 2, 2), ("head1", 1, 2)])
def test_golden_logits(shared, name, levels, groups):
    with np.load(shared("golden/obow.npz"), allow_pickle=False) as file:
        golden = {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}
    kappa = float(golden[f"{name}/kappa"])
    for level in range(levels):
        width = golden[f"{name}/features0"].shape[1]
        head, words = loaded(golden, f"{name}/level{level}", width, kappa)
        weights = head(words)
        for group in range(groups):
            logits = head.logits(golden[f"{name}/features{group}"], weights)
            expected = golden[f"{name}/logits_features{group}_level{level}"]
            torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("channels", "width", "count"),
    [(1024, 2048, 12_593_152), (2048, 2048, 16_787_456), (256, 512, 788_992), (512, 512, 1_051_136)],
)
def test_published_parameter_counts(channels, width, count):
    with torch.device("meta"):
        head = DynamicHead(channels, width, kappa=8.0)
    assert sum(parameter.numel() for parameter in head.parameters()) == count


def test_weights_in_plain_loops():
    torch.manual_seed(0)
    head, words = DynamicHead(4, 3, kappa=5.0).double(), torch.randn(6, 4).double()
    with torch.no_grad():
        head.bn.weight.uniform_(0.5, 2)
        head.bn.bias.normal_()
    parameters = {
        "fc": head.fc.weight,
        "bn_weight": head.bn.weight,
        "bn_bias": head.bn.bias,
        "last": head.last_layer.weight,
        "last_bias": head.last_layer.bias,
    }
    expected = oracle.head(words.numpy(), {name: value.detach().numpy() for name, value in parameters.items()})
    np.testing.assert_allclose(head(words).detach().numpy(), expected, rtol=1e-9)


def test_no_gradient_reaches_the_words_and_all_weights_get_one():
    head, words = DynamicHead(4, 3, kappa=5.0), torch.randn(6, 4, requires_grad=True)
    head.logits(torch.randn(2, 3), head(words)).sum().backward()
    assert words.grad is None
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_gradients_in_float64():
    head, words = DynamicHead(3, 2, kappa=2.0, learn_kappa=True).double(), torch.randn(5, 3).double()
    parameters = dict(head.named_parameters())
    assert "kappa" in parameters
    embedding = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)

    def logits(embedding, *values):
        made = torch.func.functional_call(head, dict(zip(parameters, values, strict=True)), (words,))
        return values[list(parameters).index("kappa")] * embedding @ made.T

    assert torch.autograd.gradcheck(logits, (embedding, *parameters.values()))


def test_the_embedding_is_not_normalised_and_weights_are():
    head, words = DynamicHead(4, 3, kappa=5.0), torch.randn(6, 4)
    weights, embedding = head(words), torch.randn(2, 3)
    torch.testing.assert_close(weights.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(head.logits(2 * embedding, weights), 2 * head.logits(embedding, weights))
    torch.testing.assert_close(head(3 * words), weights)


def test_weights_stay_in_float32_within_autocast():
    head, words = DynamicHead(4, 3, kappa=5.0), torch.randn(6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        weights = head(words)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.norm(dim=1), torch.ones(6))
