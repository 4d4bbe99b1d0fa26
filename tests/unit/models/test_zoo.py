"""The whole zoo: one network of every file of timm, against timm itself and its plain forward.

The quick tests see every file on the meta device, and run the light ones on numbers; the slow one runs them all.
"""

import pytest
import timm
import torch
from timm.models._registry import _model_to_module

from crossdistill.errors import InputError
from crossdistill.models import build
from crossdistill.models.dry_run import dry_run
from crossdistill.models.stage import stage
from crossdistill.models.zoo import smallest_variants
from samples.networks import awake, images_for

ZOO = smallest_variants()

MANY_TENSORS = {
    "coat": "three scales run side by side after the first stage (the coat_lite variants are cut)",
    "crossvit": "two branches from the first layer to the last",
    "nasnet": "every cell reads the two cells before it",
    "pnasnet": "every cell reads the two cells before it",
    "tnt": "every block passes on pixel tokens and patch tokens",
    "vision_transformer_relpos": "one table for all blocks, with dropout in train mode (unlike that of other variants)",
}
"""Files whose smallest variant has fewer than three places where one tensor carries everything."""

MLPS = {"mlp_mixer", "sequencer"}
CNNS = {
    "byobnet", "convmixer", "convnext", "cspnet", "cspnext", "densenet", "dla", "dpn", "efficientnet", "efficientvim",
    "fasternet", "fastvit", "focalnet", "ghostnet", "hardcorenas", "hgnet", "hrnet", "inception_next",
    "inception_resnet_v2", "inception_v3", "inception_v4", "lcnetv2", "mambaout", "metaformer", "mobilenetv3", "nasnet",
    "nfnet", "pnasnet", "rdnet", "regnet", "repghost", "repvit", "res2net", "resnest", "resnet", "resnetv2", "rexnet",
    "selecsls", "senet", "sknet", "starnet", "tresnet", "vgg", "vovnet", "xception", "xception_aligned",
}  # fmt: skip
"""Families as their papers call them, of the smallest variant; all others attend."""

OTHER_WIDTHS = {
    "efficientnet": "timm counts the map before the last 1x1 convolution, the head takes the one after it",
    "fastvit": "timm counts the map before the final convolution",
    "ghostnet": "timm counts expanded maps inside the blocks",
    "hrnet": "timm counts the branches, which are more than one tensor",
    "inception_v4": "timm counts the map inside the first mixed block",
    "lowformer": "timm counts the map before the last 1x1 convolution",
    "mobilenetv5": "timm counts the maps before they are fused at stride 16",
    "repghost": "timm counts expanded maps inside the blocks",
    "rexnet": "timm counts the map before the last 1x1 convolution",
    "xception_aligned": "timm counts widened maps inside the blocks, before their stride",
}
"""Files whose ``feature_info`` means other tensors than those that the network passes on between its stages."""

ON_NUMBERS = [
    "byobnet", "convnext", "cspnext", "deit", "edgenext", "efficientformer_v2", "efficientnet", "efficientvit_mit",
    "eva", "fasternet", "ghostnet", "levit", "mlp_mixer", "mobilenetv3", "mobilevit", "naflexvit", "pit", "pvt_v2",
    "regnet", "repghost", "resnet", "shvit", "starnet", "swiftformer", "vision_transformer",
    "vision_transformer_hybrid", "vovnet", "xcit",
]  # fmt: skip
"""Light ones of every layout, family and way of tracing."""

NUM_CLASSES = 7
SMALL = (64, 56)
"""Image sizes to try; patches of 14 need the second."""


def layout_shape(stage, batch_size):
    rows, columns = stage.grid
    return {
        "NCHW": (batch_size, stage.channels, rows, columns),
        "NHWC": (batch_size, rows, columns, stage.channels),
        "NLC": (batch_size, stage.num_prefix_tokens + rows * columns, stage.channels),
    }[stage.layout]


def test_the_zoo_has_every_file_of_the_installed_timm():
    registered = {module.rpartition(".")[2] for module in map(_module_of, timm.list_models())}
    assert set(ZOO) == registered - {"additions"}  # our own
    assert len(ZOO) == 98
    assert all(_module_of(name).endswith(f".{file}") for file, name in ZOO.items())


def _module_of(name):
    return f"timm.models.{_model_to_module[name]}"


SLOW = frozenset(
    ("sequencer", "gemma4_vit", "nasnet", "coat", "pnasnet", "mvitv2", "crossvit", "deepseek_vit", "tnt", "maxxvit")
)
"""Files whose smallest network takes ten seconds and more to trace."""


@pytest.mark.parametrize(
    "file", [pytest.param(file, marks=pytest.mark.slow if file in SLOW else ()) for file in sorted(ZOO)]
)
def test_every_file_is_staged_and_specified_without_data(file):
    with torch.device("meta"):
        net = timm.create_model(ZOO[file], num_classes=NUM_CLASSES)
    model = stage(net, ZOO[file], NUM_CLASSES, None, None)
    spec = model.spec
    if file in MANY_TENSORS:
        assert len(spec.stages) < 3, "fewer files need an excuse than are listed"
    else:
        assert 3 <= len(spec.stages) <= 4
    assert spec.family == ("mlp" if file in MLPS else "cnn" if file in CNNS else "transformer")
    assert spec.input.image_size == timm.data.resolve_model_data_config(net)["input_size"][1:]
    assert spec.num_parameters == sum(parameter.numel() for parameter in net.parameters())
    check_widths(file, net, spec)
    outputs = dry_run(net, model._cutter.whole, (3, *spec.input.image_size))
    assert outputs.logits.shape == (2, NUM_CLASSES)
    assert [tuple(tensor.shape) for tensor in outputs.stages] == [layout_shape(stage, 2) for stage in spec.stages]
    strides = [stage.stride for stage in spec.stages]
    assert strides == sorted(strides)


def check_widths(file, net, spec):
    """Against what timm itself says of the strides and widths of its stages."""
    info = getattr(net, "feature_info", None)
    if info is None or file in OTHER_WIDTHS:
        return
    by_stride = {}
    for entry in getattr(info, "info", info):
        by_stride.setdefault(entry["reduction"], set()).add(entry["num_chs"])
    known = [stage for stage in spec.stages if stage.stride in by_stride]
    if file not in MANY_TENSORS and file != "efficientvim":  # of which only the stem passes on a single tensor
        assert known, "timm and we agree on no stride at all"
        assert spec.stages[-1].stride in by_stride
    assert all(stage.channels in by_stride[stage.stride] for stage in known)


@pytest.mark.parametrize("file", ON_NUMBERS)
def test_light_networks_are_cut_exactly(file):
    check_exactness(small(ZOO[file]))


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(set(ZOO) - set(ON_NUMBERS)))
def test_every_network_is_cut_exactly(file):
    check_exactness(small(ZOO[file]))


@pytest.mark.parametrize("name", ["coat_lite_tiny", "test_vit_relpos"])
def test_variants_whose_file_has_others_are_cut_exactly(name):
    model = small(name)
    assert len(model.spec.stages) == 4
    check_exactness(model)


def small(name):
    """The network at a small image size, if it has one, else at its own; with weights that make every logit differ."""
    for size in (*SMALL, None):
        try:
            model = build(name, num_classes=NUM_CLASSES, image_size=size)
            break
        except InputError:
            continue
    return awake(model, alpha=0.02)


def check_exactness(model):
    images = images_for(model, batch_size=3)
    names_of_state = list(model.net.state_dict())
    for training in (False, True):
        plain = seeded(model, training, lambda m: m.net(images))
        whole = seeded(model, training, lambda m: m(images))
        assert plain.std() > 0
        assert torch.equal(plain, whole.logits), "staging changes the plain network"
        assert whole.embedding.shape == (3, model.spec.embedding_dim)
        expected = [layout_shape(stage, 3) for stage in model.spec.stages]
        assert [tuple(tensor.shape) for tensor in whole.stages] == expected
        for number in range(1, len(whole.stages) + 1):
            check_halves(model, training, images, number, whole)
    assert list(model.net.state_dict()) == names_of_state
    check_gradients(model.train(), images)


def check_halves(model, training, images, number, whole):
    def halves(m):
        feature = m.forward_until(images, number)
        return feature, feature.clone(), m.forward_from(feature, number)

    feature, before, rest = seeded(model, training, halves)
    assert torch.equal(feature, before), "the second half overwrote its input"
    assert torch.equal(feature, whole.stages[number - 1])
    assert torch.equal(rest.logits, whole.logits)
    assert torch.equal(rest.embedding, whole.embedding)
    assert all(torch.equal(a, b) for a, b in zip(rest.stages, whole.stages[number - 1 :], strict=True))


def check_gradients(model, images):
    """Of the stages as they come with the whole, and of what follows each of them."""
    outputs = model(images[:2])
    if not outputs.stages:
        return
    losses = [tensor.float().square().mean() for tensor in outputs.stages]
    gradients = torch.autograd.grad(sum(losses, outputs.logits.square().sum()), [*outputs.stages], allow_unused=True)
    assert all(gradient is not None and gradient.isfinite().all() and gradient.any() for gradient in gradients)
    for number, tensor in enumerate(outputs.stages, start=1):
        feature = tensor.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(model.forward_from(feature, number).logits.square().sum(), feature)
        assert gradient.isfinite().all()
        assert gradient.any()


def seeded(model, training, run):
    """Run from one state of the generator and of the batch statistics."""
    state = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    model.train(training)
    torch.manual_seed(2)
    with torch.no_grad():
        result = run(model)
        model.net.load_state_dict(state)
    return result
