"""Published weights reach their stated accuracy through our own evaluation; each test skips where its files are not."""

import importlib.util
import io
import math
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from crossdistill import build, evaluate

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
NUM_CIFAR, NUM_SUBSET = 10_000, 1_000
LITE0 = "data/weights/tf_efficientnet_lite0_in1k_fp16.safetensors"


@pytest.fixture(scope="module")
def benchmark():
    """The script that fills ``results/real-weights.csv``, with its neighbours."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("real_weights", BENCHMARKS / "real_weights.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))


def standard_error(share, num_images, num_all):
    """Of the accuracy on images drawn without replacement from those that the share was stated on."""
    return math.sqrt(share * (1 - share) / num_images * (num_all - num_images) / (num_all - 1))


def pixels(table):
    """Images ``(N, 3, 32, 32)`` between 0 and 1."""
    images = [np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in table["image"].to_pylist()]
    return torch.tensor(np.stack(images)).permute(0, 3, 1, 2) / 255


def normalised(images, mean, std):
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


@pytest.fixture
def cifar_subset(shared, tmp_path):
    """The first thousand test images of CIFAR-100, which are in no order, as training and test split."""
    table = pq.read_table(shared("data/cifar100/test-00000-of-00001.parquet")).slice(0, NUM_SUBSET)
    for split in ("train", "test"):
        pq.write_table(table, tmp_path / f"{split}-0.parquet")
    return tmp_path, table


def test_resnet56_on_a_thousand_images_of_cifar100(benchmark, shared, cifar_subset):
    folder, table = cifar_subset
    (weights,) = benchmark.CIFAR["cifar100"]
    net = benchmark.load(weights, shared("data/weights")).eval()
    measured = evaluate(net, f"parquet:{folder}", batch_size=50, device="cpu")
    assert measured["num_samples"] == NUM_SUBSET
    assert abs(measured["top1"] - weights.stated) < 3 * standard_error(weights.stated, NUM_SUBSET, NUM_CIFAR)
    with torch.no_grad():  # and with nothing of ours between the file and the network
        images = normalised(pixels(table), *benchmark.cifar_resnet.STATISTICS["convolution"])
        logits = torch.cat([net(part) for part in images.split(50)])
    right = (logits.argmax(1) == torch.tensor(table["label"].to_pylist())).sum().item()
    assert round(measured["top1"] * NUM_SUBSET) == right


@pytest.mark.slow
def test_resnet56_on_all_test_images_of_cifar100(benchmark, shared):
    (row,) = benchmark.cifar_rows("cifar100", shared("data/weights"), shared("data/cifar100"))
    assert round(row["top1_mean"], 4) == 0.7263


@pytest.mark.slow
def test_efficientnet_on_all_validation_images_of_imagenette(benchmark, shared):
    among_ten, among_all = benchmark.imagenet_rows(shared("data/weights"), shared("data/imagenette-128"))
    assert round(among_ten["top1_mean"], 3) == 0.974
    assert round(among_all["top1_mean"], 3) == 0.638


def test_half_precision_weights_without_a_number_of_classes(shared):
    """The classifier's rows tell the number; what is saved in 16 bits is computed with in 32."""
    path = shared(LITE0)
    model = build(f"timm/tf_efficientnet_lite0@{path}")
    saved = safetensors.torch.load_file(path)
    own = model.net.state_dict()
    assert model.spec.num_classes == len(saved["classifier.weight"]) == 1000
    assert {tensor.dtype for tensor in saved.values()} == {torch.float16}
    assert {tensor.dtype for key, tensor in own.items() if key in saved} == {torch.float32}
    assert all(torch.equal(own[key], tensor.float()) for key, tensor in saved.items())
    assert all(key.endswith("num_batches_tracked") for key in own.keys() - saved.keys())


@pytest.mark.parametrize("data", ["cifar100", "cifar10"])
def test_every_tensor_of_the_cifar_weights_has_its_place(data, benchmark, shared):
    for weights in benchmark.CIFAR[data]:
        net = benchmark.load(weights, shared("data/weights"))
        saved = safetensors.torch.load_file(shared(f"data/weights/{weights.file}.safetensors"))
        own = net.state_dict()
        assert all(torch.equal(own[key], tensor) for key, tensor in saved.items())
        assert all(key.endswith("num_batches_tracked") for key in own.keys() - saved.keys())
        layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        shortcuts = 2 if weights.shortcut == "convolution" else 0
        assert len(layers) - shortcuts == weights.depth
        model = build(net, num_classes=weights.num_classes)
        grids = [(stage.channels, stage.stride, stage.grid) for stage in model.spec.stages]
        assert grids[-3:] == [(16, 1, (32, 32)), (32, 2, (16, 16)), (64, 4, (8, 8))]
        with torch.no_grad():
            assert model.eval()(torch.rand(2, 3, 32, 32)).logits.shape == (2, weights.num_classes)


def misfit(net, images):
    """Mean absolute logarithm of the variances that batch norms see here over those that they saw in training."""
    found = []

    def compare(norm, inputs, output):
        found.append((inputs[0].var((0, 2, 3)) / norm.running_var).log().abs().mean().item())

    hooks = [module.register_forward_hook(compare) for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        net(images)
    for hook in hooks:
        hook.remove()
    return sum(found) / len(found)


@pytest.mark.parametrize("depth", [20, 56])
def test_the_shortcuts_of_the_cifar10_networks_are_those_they_were_trained_with(depth, benchmark, shared, monkeypatch):
    """Without one image of CIFAR-10: on photographs of CIFAR-100 the activations vary as they did in training, and
    twice as far from it where the same shortcut pads its zeros on one side only.
    """
    weights = next(one for one in benchmark.CIFAR["cifar10"] if one.depth == depth)
    net = benchmark.load(weights, shared("data/weights")).eval()
    table = pq.read_table(shared("data/cifar100/test-00000-of-00001.parquet")).slice(0, 100)
    images = normalised(pixels(table), *benchmark.cifar_resnet.STATISTICS["padding"])
    as_built = misfit(net, images)
    for before in (0, 1):

        def one_sided(self, x, before=before):
            channels = x.shape[1]
            return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before * channels, (1 - before) * channels))

        monkeypatch.setattr(benchmark.cifar_resnet.Padding, "forward", one_sided)
        assert misfit(net, images) > 2 * as_built


def test_a_depth_that_no_such_network_has(benchmark):
    with pytest.raises(ValueError, match="depth 18 is not 6n"):
        benchmark.cifar_resnet.build(10, depth=18)
