"""An export is a timm folder: it loads back bit-identically, replaces at once, and refuses what it cannot keep."""

import errno
import json
import os

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from crossdistill.errors import InputError
from crossdistill.export import export_student
from crossdistill.models import build

NAMES = ("cat", "dog", "größer als <b>")


def student(name="timm/test_resnet", image_size=32, **arguments):
    torch.manual_seed(0)
    model = build(name, num_classes=3, image_size=image_size, **arguments)
    for name, buffer in model.net.named_buffers():  # a trained network has seen data: its statistics are not 0 and 1
        if "running" in name:
            buffer.add_(torch.rand_like(buffer))
    return model


def load(folder):
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@pytest.mark.parametrize(
    ("name", "image_size", "arguments"),
    [
        ("timm/test_resnet", None, {}),
        ("test_resnet", 40, {"channels": (8, 16, 24, 40)}),
        ("timm/test_vit", 32, {"patch_size": 4}),
        ("timm/test_vit", (48, 32), {"embed_dim": 48, "num_heads": 4, "drop_path_rate": 0.1}),
        ("timm/test_efficientnet", 32, {"in_chans": 1}),
        ("timm/test_convnext", 64, {"global_pool": "max"}),
        ("timm/mixer_tiny", 32, {"in_chans": 5}),
        ("timm/swin_pico", 64, {"window_size": 4}),
    ],
)
def test_logits_are_identical_after_loading(tmp_path, name, image_size, arguments):
    model = student(name, image_size, **arguments)
    folder = export_student(model, tmp_path / "out" / "student", class_names=NAMES, metrics={"top1": 0.5})
    spec = model.spec.input
    images = torch.randn(4, spec.num_channels, *spec.image_size)
    with torch.no_grad():
        expected = model.eval()(images).logits
        assert torch.equal(load(folder)(images), expected)
        again = build(str(folder), num_classes=3, image_size=image_size).eval()
        assert torch.equal(again(images).logits, expected)
    assert again.spec.input == spec
    assert again.spec.class_names == NAMES


def test_the_folder_holds_names_preprocessing_and_metrics(tmp_path):
    folder = export_student(student(image_size=40), tmp_path / "s", class_names=NAMES, metrics={"top1": 0.5})
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "labels.txt", "model.safetensors"]
    assert tuple((folder / "labels.txt").read_text(encoding="utf-8").splitlines()) == NAMES
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert tuple(config["label_names"]) == NAMES
    assert config["crossdistill"] == {"model": "test_resnet", "metrics": {"top1": 0.5}}
    loaded = load(folder)
    prepared = timm.data.resolve_model_data_config(loaded)
    assert tuple(prepared["input_size"]) == (3, 40, 40)
    assert tuple(prepared["mean"]) == student().spec.input.mean
    assert prepared["crop_pct"] == student().spec.input.crop_pct
    assert tuple(loaded.pretrained_cfg["label_names"]) == NAMES


def test_weights_are_the_model_s_in_any_memory_layout(tmp_path):
    model = student()
    model.net.to(memory_format=torch.channels_last).train()
    folder = export_student(model, tmp_path / "s", class_names=NAMES, metrics={})
    saved = safetensors.torch.load_file(folder / "model.safetensors")
    assert saved.keys() == model.net.state_dict().keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.net.state_dict().items())
    assert model.net.training
    assert model.net.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_the_global_generator_is_left_alone(tmp_path):
    model = student()
    before = torch.get_rng_state()
    export_student(model, tmp_path / "s", class_names=NAMES, metrics={})
    assert torch.equal(torch.get_rng_state(), before)


def test_an_earlier_export_is_replaced(tmp_path):
    model = student()
    export_student(model, tmp_path / "s", class_names=NAMES, metrics={"top1": 0.1})
    with torch.no_grad():
        model.net.fc.bias += 1
    folder = export_student(model, tmp_path / "s", class_names=NAMES, metrics={"top1": 0.2})
    assert torch.equal(load(folder).fc.bias, model.net.fc.bias)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_failed_check_raises_and_keeps_the_earlier_export(tmp_path):
    model = student("timm/test_vit")
    folder = export_student(model, tmp_path / "s", class_names=NAMES, metrics={})
    before = (folder / "config.json").read_bytes(), (folder / "model.safetensors").read_bytes()
    model.net.blocks[0].attn.scale *= 2  # a change that no constructor argument records
    model.net.blocks[0].attn.fused_attn = False
    with pytest.raises(RuntimeError, match="other logits"):
        export_student(model, tmp_path / "s", class_names=NAMES, metrics={})
    assert ((folder / "config.json").read_bytes(), (folder / "model.safetensors").read_bytes()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    export_student(model, tmp_path / "s", class_names=NAMES, metrics={}, check=False)


@pytest.mark.parametrize("names", [("cat", "dog"), ("cat", "dog", "two\nlines"), ("cat", "dog", "")])
def test_class_names_that_do_not_fit_are_refused(tmp_path, names):
    with pytest.raises(InputError, match="class name"):
        export_student(student(), tmp_path / "s", class_names=names, metrics={})


def test_a_network_object_of_timm_s_own_loads_back_with_timm(tmp_path):
    model = student(timm.create_model("test_vit", num_classes=3, img_size=32, embed_dim=48, num_heads=4))
    folder = export_student(model, tmp_path / "s", class_names=NAMES, metrics={})
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(load(folder)(images), model.net.eval()(images))


def own_net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def altered_net():
    """A network of timm's with one layer exchanged, which no argument of its constructor describes."""
    net = timm.create_model("test_resnet", num_classes=3)
    net.fc = nn.Sequential(nn.Linear(net.num_features, 5), nn.Linear(5, 3))
    return net


@pytest.mark.parametrize("make", [own_net, altered_net])
def test_another_network_object_keeps_its_weights_and_names_no_architecture(tmp_path, make):
    model = student(make())
    folder = export_student(model, tmp_path / "s", class_names=NAMES, metrics={"top1": 0.5})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert "architecture" not in config
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    again = build(make(), num_classes=3, image_size=32, init=str(folder), class_names=NAMES)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.eval()(images).logits, model.eval()(images).logits)


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        export_student(student(), tmp_path, class_names=NAMES, metrics={})
    assert (tmp_path / "thesis.tex").exists()
    with pytest.raises(InputError, match="a file"):
        export_student(student(), tmp_path / "thesis.tex", class_names=NAMES, metrics={})


def test_a_full_disk_is_bad_input_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        export_student(student(), tmp_path / "s", class_names=NAMES, metrics={})
    assert list(tmp_path.iterdir()) == []


def test_a_path_below_a_file_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        export_student(student(), tmp_path / "file" / "s", class_names=NAMES, metrics={})
