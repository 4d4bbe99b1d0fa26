"""Weights loaded at another image size than the one at which they were saved."""

import pytest
import safetensors.torch
import torch
from timm.layers.pos_embed import resample_abs_pos_embed, resample_abs_pos_embed_nhwc
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table, resize_rel_pos_bias_table_levit
from timm.models import save_for_hf
from torch import nn

from crossdistill.errors import InputError
from crossdistill.models import weights
from crossdistill.models.checkpoint import locate
from crossdistill.models.sizes import construct

TINY = {"num_classes": 3, "embed_dim": 24, "depth": 2, "num_heads": 2}
SWIN = {"num_classes": 3, "embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)}


def absolute(prefix):
    """timm's resampling of ``(1, L, C)``, by hand, to the square grid that the network has."""

    def resample(saved, own, module):
        side = round((own.shape[1] - prefix) ** 0.5)
        return resample_abs_pos_embed(saved, [side, side], num_prefix_tokens=prefix)

    return resample


def channels_last(saved, own, module):
    return resample_abs_pos_embed_nhwc(saved, own.shape[1:3])


def channels_first(saved, own, module):
    last = resample_abs_pos_embed_nhwc(saved.permute(0, 2, 3, 1), own.shape[2:])
    return last.permute(0, 3, 1, 2)


def windows(saved, own, module):
    return resize_rel_pos_bias_table(saved, module.window_size, own.shape)


def offsets(saved, own, module):
    return resize_rel_pos_bias_table_levit(saved.T, own.T.shape).T


def axis(saved, own, module):
    return nn.functional.interpolate(saved.T[None], own.shape[0], mode="linear")[0].T


FAMILIES = {
    "vit": ("vit_tiny_patch16_224", TINY, {"pos_embed": absolute(1)}),
    "vit without class token": (
        "vit_tiny_patch16_224",
        {**TINY, "class_token": False, "global_pool": "avg"},
        {"pos_embed": absolute(0)},
    ),
    "deit with two tokens": ("deit_tiny_distilled_patch16_224", TINY, {"pos_embed": absolute(2)}),
    "eva": ("eva02_tiny_patch14_336", {**TINY, "embed_dim": 32, "patch_size": 16}, {"pos_embed": absolute(1)}),
    "cait": ("cait_xxs24_224", TINY, {"pos_embed": absolute(0)}),
    "convit": ("convit_tiny", {"num_classes": 3, "embed_dim": 8, "depth": 2}, {"pos_embed": absolute(0)}),
    "hiera": (
        "hiera_tiny_224",
        {"num_classes": 3, "embed_dim": 8, "stages": (1, 1, 1, 1)},
        {"pos_embed": absolute(0)},
    ),
    "volo": ("volo_d1_224", {"num_classes": 3}, {"pos_embed": channels_last}),
    "pit": (
        "pit_ti_224",
        {"num_classes": 3},
        {"pos_embed": channels_first},
    ),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, {"relative_position_bias_table": windows}),
    "our swin": ("swin_pico", SWIN, {"relative_position_bias_table": windows}),
    "swinv2": ("swinv2_tiny_window8_256", SWIN, {}),
    "beit": ("beit_base_patch16_224", TINY, {"relative_position_bias_table": windows}),
    "coatnet": ("test_coatnet", {"num_classes": 3}, {"relative_position_bias_table": windows}),
    "levit": ("levit_128s", {"num_classes": 3, "depth": (1, 1, 1)}, {"attention_biases": offsets}),
    "efficientvit": ("efficientvit_m0", {"num_classes": 3, "depth": (1, 1, 1)}, {"attention_biases": offsets}),
    "mvitv2": ("mvitv2_tiny", {"num_classes": 3}, {"rel_pos_": axis}),
    "botnet": ("botnet26t_256", {"num_classes": 3}, {"height_rel": axis, "width_rel": axis}),
}


def saved(net, path, *, as_folder):
    """The network on disk: in timm's layout, which states its size, or as a bare file."""
    if as_folder:
        save_for_hf(net, path / "m", safe_serialization=True)
        return locate(path / "m")
    safetensors.torch.save_file(net.state_dict(), path / "w.safetensors")
    return locate(path / "w.safetensors")


def randomised(net):
    """Parameters that start as zeros would hide what is done to them."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.02 * torch.rand(tensor.shape, generator=generator)
    return net.eval()


@pytest.mark.parametrize("as_folder", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_positions_are_resampled_as_timm_does_and_nothing_else_changes(family, as_folder, tmp_path):
    name, args, rules = FAMILIES[family]
    before = randomised(construct(name, args, (128, 128)))
    net = construct(name, args, (192, 192))
    fresh = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    weights.load(net, saved(before, tmp_path, as_folder=as_folder), name=name, class_names=None)
    old, new = before.state_dict(), net.state_dict()
    resampled = [key for key in new if old[key].shape != fresh[key].shape]
    assert bool(resampled) == bool(rules)
    for key in new:
        rule = next((rule for word, rule in rules.items() if word in key), None) if key in resampled else None
        assert rule or key not in resampled, key
        module = net.get_submodule(key.rpartition(".")[0])
        assert torch.equal(new[key], rule(old[key], fresh[key], module) if rule else old[key]), key
    with torch.no_grad():
        assert net.eval()(torch.zeros(1, 3, 192, 192)).isfinite().all()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit_base_patch16_224", "eva02_tiny_patch14_336"])
def test_the_result_is_that_of_set_input_size(name, tmp_path):
    args = {**TINY, "embed_dim": 32, "patch_size": 16}
    before = randomised(construct(name, args, (64, 64)))
    net = construct(name, args, (96, 96)).eval()
    weights.load(net, saved(before, tmp_path, as_folder=True), name=name, class_names=None)
    before.set_input_size((96, 96))
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(net(images), before(images))


def test_images_of_another_aspect_have_their_own_grid(tmp_path):
    """As many tokens, but in other rows and columns."""
    before = randomised(construct("vit_tiny_patch16_224", TINY, (32, 128)))
    net = construct("vit_tiny_patch16_224", TINY, (64, 64))
    weights.load(net, saved(before, tmp_path, as_folder=True), name="vit_tiny_patch16_224", class_names=None)
    expected = resample_abs_pos_embed(before.pos_embed, [4, 4], [2, 8], num_prefix_tokens=1)
    assert torch.equal(net.pos_embed, expected)
    assert not torch.equal(net.pos_embed, before.pos_embed)


@pytest.mark.parametrize("family", ["vit", "swin", "levit", "cait", "volo"])
@pytest.mark.parametrize("as_folder", [True, False])
def test_at_the_same_size_every_bit_is_kept(family, as_folder, tmp_path):
    name, args, _ = FAMILIES[family]
    before, net = randomised(construct(name, args, (64, 64))), construct(name, args, (64, 64)).eval()
    weights.load(net, saved(before, tmp_path, as_folder=as_folder), name=name, class_names=None)
    assert all(torch.equal(tensor, net.state_dict()[key]) for key, tensor in before.state_dict().items())
    with torch.no_grad():
        assert torch.equal(net(torch.ones(1, 3, 64, 64)), before(torch.ones(1, 3, 64, 64)))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "cait_xxs24_224"])
def test_smooth_positions_leave_the_logits_nearly_as_they_were(name, tmp_path):
    before = randomised(construct(name, TINY, (128, 128)))
    first, last = (before.pos_embed.shape[1] - 64), before.pos_embed.shape[1]
    ramp = torch.linspace(-1, 1, 8)
    with torch.no_grad():
        before.pos_embed[0, first:last] = (ramp[:, None, None] * torch.linspace(-1, 1, 24) + ramp[:, None]).reshape(
            64, 24
        )
    net, without = (construct(name, TINY, (256, 256)).eval() for _ in range(2))
    weights.load(net, saved(before, tmp_path, as_folder=True), name=name, class_names=None)
    without.load_state_dict(net.state_dict() | {"pos_embed": torch.zeros_like(net.pos_embed)})
    grey = torch.full((1, 3, 256, 256), 0.5)
    with torch.no_grad():
        small, large, none = before(grey[..., :128, :128]), net(grey), without(grey)
    assert (large - small).norm() < 0.02 * small.norm()
    assert (large - small).norm() < 0.2 * (none - small).norm(), "positions matter to these logits"


def test_the_callers_random_numbers_are_left_alone(tmp_path):
    before = construct("cait_xxs24_224", TINY, (64, 64))
    checkpoint = saved(before, tmp_path, as_folder=True)
    net = construct("cait_xxs24_224", TINY, (96, 96))
    torch.manual_seed(1)
    weights.load(net, checkpoint, name="cait_xxs24_224", class_names=None)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)


def test_start_weights_are_resampled_too_and_a_new_classifier_says_nothing_yet(tmp_path):
    before = randomised(construct("vit_tiny_patch16_224", TINY, (64, 64)))
    net = construct("vit_tiny_patch16_224", {**TINY, "num_classes": 5}, (96, 96))
    weights.start_from(net, saved(before, tmp_path, as_folder=True), name="vit_tiny_patch16_224", class_names=None)
    assert not net.head.weight.any()
    assert not net.head.bias.any()
    assert torch.equal(net.pos_embed, resample_abs_pos_embed(before.pos_embed, [6, 6], num_prefix_tokens=1))
    assert torch.equal(net.blocks[1].mlp.fc1.weight, before.blocks[1].mlp.fc1.weight)


def test_a_classifier_is_reordered_at_another_size_too(tmp_path):
    before = randomised(construct("vit_tiny_patch16_224", TINY, (64, 64)))
    save_for_hf(before, tmp_path / "m", model_config={"label_names": ["a", "b", "c"]}, safe_serialization=True)
    net = construct("vit_tiny_patch16_224", TINY, (96, 96))
    weights.load(net, locate(tmp_path / "m"), name="vit", class_names=["c", "a", "b"])
    assert torch.equal(net.head.weight, before.head.weight[[2, 0, 1]])


@pytest.mark.parametrize("load", [weights.load, weights.start_from])
@pytest.mark.parametrize(
    ("name", "args", "key"),
    [
        (
            "mixer_s32_224",
            {},
            r"blocks\.0\.mlp_tokens\.fc1\.weight \(256, 16\), not \(256, 36\)",
        ),
        ("resmlp_12_224", {}, r"linear_tokens\.weight \(64, 64\), not \(144, 144\)"),
        ("gmlp_ti16_224", {}, r"gate\.proj\.weight \(64, 64\), not \(144, 144\)"),
        ("lambda_resnet26rpt_256", {}, r"self_attn\.pos_emb \(15, 15, 16\), not \(23, 23, 16\)"),
    ],
)
def test_weights_that_mix_positions_are_refused_with_keys_and_sizes(load, name, args, key, tmp_path):
    args = {"num_classes": 3, **args}
    checkpoint = saved(construct(name, args, (128, 128)), tmp_path, as_folder=True)
    net = construct(name, args, (192, 192))
    with pytest.raises(InputError, match=rf"saved at 128 x 128 px: .*{key}[\s\S]*shapes of {name} at 192 x 192 px"):
        load(net, checkpoint, name=name, class_names=None)


@pytest.mark.parametrize("changed", [{"patch_size": 8}, {"embed_dim": 48}])
def test_other_arguments_are_no_matter_of_size(changed, tmp_path):
    """A patch kernel that timm would resample without a word is refused."""
    checkpoint = saved(construct("vit_tiny_patch16_224", TINY, (64, 64)), tmp_path, as_folder=True)
    net = construct("vit_tiny_patch16_224", {**TINY, **changed}, (96, 96))
    with pytest.raises(InputError, match=r"patch_embed\.proj\.weight \(24, 3, 16, 16\), not"):
        weights.load(net, checkpoint, name="vit_tiny_patch16_224", class_names=None)


def test_a_network_that_timm_did_not_make_is_resampled_by_name_and_shape(tmp_path):
    class Own(nn.Module):
        def __init__(self, grid):
            super().__init__()
            self.pos_embed = nn.Parameter(torch.randn(1, grid * grid, 4))
            self.head = nn.Linear(4, 3)

    before, net = Own(4), Own(6)
    weights.start_from(net, saved(before, tmp_path, as_folder=False), name="Own", class_names=None)
    assert torch.equal(net.pos_embed, resample_abs_pos_embed(before.pos_embed, [6, 6], num_prefix_tokens=0))
