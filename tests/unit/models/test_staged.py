"""Exactness: a staged model is the plain network, cut anywhere, in both modes."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

from crossdistill.contracts import Outputs
from crossdistill.errors import InputError
from crossdistill.models import build
from oracles.stages import classifier_input, module_outputs
from samples.networks import awake, images_for

TEST_MODELS = [name for name in timm.list_models("test_*") if name.startswith("test_")]
SMALL_SIZES = {"mixer_tiny": 16, "resmlp_tiny": 16, "swin_pico": 32, "swin_nano": 32}
REAL = [
    ("resnet18", 32), ("mobilenetv2_100", 32), ("efficientnet_b0", 32), ("convnext_atto", 32),
    ("deit_tiny_patch16_224", 64), ("mixer_s32_224", 64), ("resmlp_12_224", 64),
]  # fmt: skip
ALL = [*((name, None) for name in TEST_MODELS), *SMALL_SIZES.items(), *REAL]


@pytest.fixture(scope="module", params=ALL, ids=lambda pair: pair[0])
def model(request):
    name, size = request.param
    return awake(build(name, num_classes=7, image_size=size, **REGULARISED.get(name, {})))


REGULARISED = {
    "resnet18": {"drop_rate": 0.1, "drop_path_rate": 0.2},
    "deit_tiny_patch16_224": {"drop_rate": 0.1, "drop_path_rate": 0.2},
    "convnext_atto": {"drop_path_rate": 0.3},
}
"""Random control flow in train mode: the halves must draw what the whole draws."""


def seeded(model, training, run):
    """Run on a copy, since batch statistics change in train mode, from one state of the generator."""
    model = copy.deepcopy(model).train(training)
    torch.manual_seed(2)
    with torch.no_grad():
        return run(model)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_plain_network_staged_network_and_its_halves_agree_bit_for_bit(model, training):
    images = images_for(model)
    plain = seeded(model, training, lambda m: m.net(images))
    whole = seeded(model, training, lambda m: m(images))
    assert plain.std() > 0
    assert torch.equal(plain, whole.logits)
    assert len(whole.stages) == len(model.spec.stages) == 4
    for stage in range(1, 5):

        def halves(m, stage=stage):
            feature = m.forward_until(images, stage)
            before = feature.clone()
            return feature, before, m.forward_from(feature, stage)

        feature, before, rest = seeded(model, training, halves)
        assert torch.equal(feature, before), "the second half overwrote its input"
        assert torch.equal(feature, whole.stages[stage - 1])
        assert torch.equal(rest.logits, plain)
        assert torch.equal(rest.embedding, whole.embedding)
        assert len(rest.stages) == 5 - stage
        assert all(torch.equal(a, b) for a, b in zip(rest.stages, whole.stages[stage - 1 :], strict=True))


def test_train_mode_changes_batch_statistics_as_the_plain_network_does(model):
    images = images_for(model)
    staged, plain = copy.deepcopy(model).train(), copy.deepcopy(model.net).train()
    torch.manual_seed(0)
    staged(images)
    torch.manual_seed(0)
    plain(images)
    after = plain.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in staged.net.state_dict().items())


def test_the_specification_tells_the_shapes(model):
    model = copy.deepcopy(model).eval()
    outputs = model(images_for(model, batch_size=3))
    assert outputs.logits.shape == (3, 7)
    assert outputs.embedding.shape == (3, model.spec.embedding_dim)
    for stage, tensor in zip(model.spec.stages, outputs.stages, strict=True):
        rows, columns = stage.grid
        shapes = {
            "NCHW": (3, stage.channels, rows, columns),
            "NHWC": (3, rows, columns, stage.channels),
            "NLC": (3, stage.num_prefix_tokens + rows * columns, stage.channels),
        }
        assert tuple(tensor.shape) == shapes[stage.layout]
    assert model.spec.num_parameters == sum(p.numel() for p in model.net.parameters())


def test_gradients_flow_back_through_every_stage(model):
    model = copy.deepcopy(model).train()
    outputs = model(images_for(model))
    (sum(stage.float().square().mean() for stage in outputs.stages) + outputs.logits.square().mean()).backward()
    missing = [name for name, p in model.net.named_parameters() if p.grad is None]
    assert not missing
    for stage in (1, len(outputs.stages)):
        feature = outputs.stages[stage - 1].detach().requires_grad_()
        model.forward_from(feature, stage).logits.sum().backward()
        assert feature.grad.abs().sum() > 0


def test_embedding_is_what_the_classifier_gets(model):
    model = copy.deepcopy(model).eval()
    images = images_for(model)
    with torch.no_grad():
        assert torch.equal(model(images).embedding, classifier_input(model.net, images).flatten(1))


PICKED = {
    "resnet18": ["layer1", "layer2", "layer3", "layer4"],
    "mobilenetv2_100": ["blocks.1", "blocks.2", "blocks.4", "bn2"],
    "efficientnet_b0": ["blocks.1", "blocks.2", "blocks.4", "bn2"],
    "convnext_tiny": ["stages.0", "stages.1", "stages.2", "stages.3"],
    "deit_tiny_patch16_224": ["blocks.1", "blocks.3", "blocks.9", "blocks.11"],
    "swin_tiny_patch4_window7_224": ["layers.0", "layers.1", "layers.2", "layers.3"],
    "swin_pico": ["layers.0.blocks.1", "layers.1.blocks.1", "layers.2.blocks.1", "layers.3.blocks.1"],
    "mixer_b16_224": ["blocks.1", "blocks.3", "blocks.9", "blocks.11"],
    "resmlp_12_224": ["blocks.1", "blocks.3", "blocks.9", "blocks.11"],
    "test_nfnet": ["stages.0", "stages.1", "stages.2", "final_act"],
    "test_vit2": ["blocks.1", "blocks.2", "blocks.6", "blocks.7"],
    "test_maxvit": ["stages.0", "stages.1", "stages.2", "stages.3"],
}


@pytest.mark.parametrize("name", PICKED)
def test_stages_are_the_outputs_of_the_modules_a_person_would_pick(name):
    size = None if name.startswith("test_") else 64 if "_patch16" in name or "_224" in name else 32
    model = build(name, num_classes=3, image_size=size).eval()
    images = images_for(model)
    logits, expected = module_outputs(model.net, images, PICKED[name])
    with torch.no_grad():
        outputs = model(images)
    assert torch.equal(outputs.logits, logits)
    assert all(torch.equal(a, b) for a, b in zip(outputs.stages, expected, strict=True))


@pytest.mark.parametrize("name", ["resnet18", "test_vit", "swin_pico", "mixer_tiny", "test_nfnet"])
def test_copies_moves_and_pickles_stay_exact_and_independent(name):
    model = awake(build(name, num_classes=5, image_size=32)).eval()
    images = images_for(model)
    expected = model(images).logits
    average, restored = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        for parameter in model.net.parameters():
            parameter.zero_()
    assert torch.equal(average(images).logits, expected)
    assert torch.equal(restored(images).logits, expected)
    assert not torch.equal(model(images).logits, expected)
    assert average.spec == restored.spec == model.spec
    moved = average.to(torch.bfloat16)
    assert moved(images.bfloat16()).logits.dtype == torch.bfloat16
    assert torch.equal(moved(images.bfloat16()).logits, moved.net(images.bfloat16()))


def test_the_plain_networks_state_is_untouched_by_staging():
    torch.manual_seed(3)
    plain = timm.create_model("test_resnet", num_classes=5)
    torch.manual_seed(3)
    staged = build("test_resnet", num_classes=5)
    before_generator = torch.get_rng_state()
    torch.manual_seed(3)
    timm.create_model("test_resnet", num_classes=5)
    assert torch.equal(before_generator, torch.get_rng_state()), "cutting drew random numbers"
    assert list(staged.net.state_dict()) == list(plain.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(staged.net.state_dict().values(), plain.state_dict().values(), strict=True)
    )
    assert set(vars(staged.net)) == set(vars(plain))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in staged.net.modules())


def test_hooks_and_replaced_parameters_of_blocks_are_live():
    model = build("test_vit", num_classes=5, image_size=32).eval()
    calls = []
    model.net.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    images = images_for(model)
    model(images)
    assert calls == [1]
    model.net.pos_embed = nn.Parameter(torch.zeros_like(model.net.pos_embed))
    assert torch.equal(model(images).logits, model.net(images))


def test_a_frozen_part_keeps_its_mode():
    model = build("test_resnet", num_classes=5).train()
    model.net.layer1.eval()
    before = model.net.layer1[0].bn1.running_mean.clone()
    model(images_for(model))
    assert torch.equal(model.net.layer1[0].bn1.running_mean, before)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_batch_size_is_free(batch_size):
    for name in ("test_vit", "swin_pico", "mixer_tiny", "test_efficientnet"):
        model = build(name, num_classes=5, image_size=32).eval()
        assert model(images_for(model, batch_size)).logits.shape == (batch_size, 5)


@pytest.mark.parametrize("stage", [0, 5, -1])
def test_a_stage_that_does_not_exist(stage):
    model = build("test_resnet", num_classes=5)
    with pytest.raises(InputError, match="a stage from 1 to 4"):
        model.forward_until(images_for(model), stage)
    with pytest.raises(InputError, match="a stage from 1 to 4"):
        model.forward_from(torch.zeros(1), stage)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "mixer_tiny"])
def test_compiles_without_a_graph_break(name):
    torch._dynamo.reset()
    model = build(name, num_classes=5, image_size=32).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    images = images_for(model)
    outputs = compiled(images)
    assert isinstance(outputs, Outputs)
    assert torch.equal(outputs.logits, model.net(images))


def test_tracebacks_show_the_generated_lines():
    import linecache

    model = build("test_resnet", num_classes=5)
    code = model._cutter.programs[False].until[0].run.__code__
    assert "def forward" in "".join(linecache.getlines(code.co_filename))
