"""Names, sizes, arguments and weights that ``build`` takes, and every way in which they can be wrong."""

import json
import shlex

import pytest
import safetensors.torch
import timm
import torch
from timm.models import save_for_hf
from torch import nn

from crossdistill.errors import InputError
from crossdistill.export import export_student
from crossdistill.models import StagedModel, build, list_models

CLASSES = ["ant", "bee", "cat"]
COMMAND = "crossdistill train --model test_resnet --init"


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def saved():
    torch.manual_seed(5)
    return build("timm/test_resnet", num_classes=3).eval()


@pytest.fixture
def folder(saved, tmp_path):
    """A folder as timm writes it, with class names."""
    save_for_hf(saved.net, tmp_path / "m", model_config={"label_names": CLASSES}, safe_serialization=True)
    return tmp_path / "m"


@pytest.fixture
def file(saved, tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(saved.net.state_dict(), path)
    return path


@pytest.mark.parametrize("name", ["timm/test_resnet", "test_resnet", "test_resnet.r160_in1k"])
def test_names_of_timm(name):
    model = build(name, num_classes=4)
    assert isinstance(model, StagedModel)
    assert model.spec.num_classes == model.net.num_classes == 4


def test_our_own_names_are_timms_too():
    assert {"swin_nano", "swin_pico", "mixer_tiny", "resmlp_tiny"} <= set(list_models())
    assert timm.create_model("swin_pico", num_classes=3).num_classes == 3
    assert "mobilenetv2_100" in list_models("mobilenetv2")
    assert list_models("swin_p*") == ["swin_pico"]
    assert list_models("no such name") == []


def test_a_module_is_taken_as_it_is():
    net = timm.create_model("test_vit", num_classes=3)
    assert build(net, num_classes=3).net is net
    with pytest.raises(InputError, match=r"output is \(2, 3\)[\s\S]*logits of 5 classes"):
        build(net, num_classes=5)
    with pytest.raises(InputError, match="drop them"):
        build(net, num_classes=3, drop_rate=0.1)


def test_a_staged_model_is_taken_with_what_it_knows():
    model = build("test_vit", num_classes=3, image_size=32, class_names=CLASSES)
    for again in (build(model), build(model, num_classes=3, class_names=CLASSES)):
        assert again.net is model.net
        assert again.spec == model.spec
    nameless = build(build(model.net, num_classes=3, image_size=32), class_names=CLASSES)
    assert nameless.spec.class_names == tuple(CLASSES)


def test_a_staged_model_of_other_classes_is_refused():
    model = build("test_resnet", num_classes=3, class_names=CLASSES)
    with pytest.raises(InputError, match=r"built for the classes ant, bee, cat[\s\S]*in their order: cat, ant, bee"):
        build(model, num_classes=3, class_names=["cat", "ant", "bee"])
    with pytest.raises(InputError, match="3 class names for 5 classes"):
        build(model, num_classes=5)


def test_the_constructor_gets_size_and_arguments():
    model = build("test_vit", num_classes=3, image_size=(32, 64), in_chans=1, drop_path_rate=0.5)
    assert model.spec.input.image_size == (32, 64)
    assert model.spec.stages[0].grid == (2, 4)
    assert model.spec.input.num_channels == len(model.spec.input.mean) == 1
    assert model.net.blocks[-1].drop_path1.drop_prob == 0.5


def test_a_network_of_any_size_is_only_told_about():
    model = build("test_resnet", num_classes=3, image_size=48)
    assert model.spec.input.image_size == (48, 48)
    assert [stage.grid for stage in model.spec.stages] == [(12, 12), (6, 6), (3, 3), (2, 2)]
    assert [stage.stride for stage in model.spec.stages] == [4, 8, 16, 32]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", "wrapped.pt"])
def test_weights_from_a_file(saved, tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    tensors = saved.net.state_dict()
    if suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        prefixed = {f"module.{key}": value for key, value in tensors.items()}
        torch.save({"state_dict": prefixed, "epoch": 3} if "wrapped" in suffix else tensors, path)
    assert same_weights(build(f"test_resnet@{path}", num_classes=3).net, saved.net)


def test_weights_from_a_folder_and_from_a_run(saved, folder, tmp_path):
    folder.rename(tmp_path / "student")
    for name in (f"{tmp_path}", f"{tmp_path / 'student'}", f"timm/test_resnet@{tmp_path}"):
        model = build(name, num_classes=3)
        assert same_weights(model.net, saved.net)
        assert model.spec.class_names == tuple(CLASSES)
        assert model.spec.name == "test_resnet"


def test_a_folder_remembers_size_and_arguments(tmp_path):
    model = build("mixer_tiny", num_classes=3, image_size=16, in_chans=1)
    save_for_hf(model.net, tmp_path / "m", safe_serialization=True)
    again = build(str(tmp_path / "m"), num_classes=3)
    assert again.spec == model.spec
    assert same_weights(again.net, model.net)
    assert same_weights(timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True), model.net)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_folder_remembers_the_number_of_classes_and_the_size(name, tmp_path):
    """Also where the constructor takes no size, as with most CNNs."""
    model = build(name, num_classes=3, image_size=48, in_chans=1)
    export_student(model, tmp_path / "m", class_names=CLASSES, metrics={})
    for again in (build(str(tmp_path / "m")), build(f"{name}@{tmp_path / 'm'}", num_classes=3)):
        assert again.spec.input == model.spec.input
        assert again.spec.class_names == tuple(CLASSES)
        assert same_weights(again.net, model.net)


def test_a_number_of_classes_that_nothing_states(file):
    for name in ("test_resnet", nn.Linear(3, 3)):
        with pytest.raises(InputError, match="which does not say how many classes it has"):
            build(name)
    assert build(f"test_resnet@{file}").spec.num_classes == 3  # the rows of its classifier do


def test_classes_are_matched_by_name(saved, folder):
    order = ["cat", "ant", "bee"]
    model = build(str(folder), num_classes=3, class_names=order).eval()
    images = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.allclose(model(images).logits, saved(images).logits[:, [2, 0, 1]], atol=1e-6)
    assert model.spec.class_names == tuple(order)
    started = build("test_resnet", num_classes=3, class_names=order, init=str(folder))
    assert torch.equal(started.net.fc.weight, model.net.fc.weight)


def test_other_classes_are_refused_but_may_be_started_from(saved, folder):
    other = ["ant", "bee", "dog"]
    with pytest.raises(InputError, match=COMMAND):
        build(str(folder), num_classes=3, class_names=other)
    model = build("test_resnet", num_classes=3, class_names=other, init=str(folder))
    assert torch.equal(model.net.conv1[0].weight, saved.net.conv1[0].weight)
    assert not torch.equal(model.net.fc.weight, saved.net.fc.weight)


def test_the_command_that_fine_tunes_carries_what_the_network_was_built_with(tmp_path):
    args = {"patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2}
    export_student(
        build("vit_tiny_patch16_224", num_classes=3, image_size=16, **args),
        tmp_path / "m",
        class_names=CLASSES,
        metrics={},
    )
    with pytest.raises(InputError) as caught:
        build(str(tmp_path / "m"), num_classes=5)
    words = shlex.split(caught.value.action.partition(": ")[2])
    given = dict(word.removeprefix("student.args.").split("=") for word in words if "=" in word)
    assert {key: int(value) for key, value in given.items()} == args
    name, init, size = (words[words.index(option) + 1] for option in ("--model", "--init", "--image-size"))
    assert build(name, num_classes=5, image_size=int(size), init=init, **args).spec.num_classes == 5


def test_a_head_of_another_size_is_refused_but_may_be_started_from(saved, file):
    with pytest.raises(InputError, match=rf"a head of 3 classes[\s\S]*5 classes[\s\S]*{COMMAND}"):
        build(f"test_resnet@{file}", num_classes=5)
    model = build("test_resnet", num_classes=5, init=str(file))
    assert torch.equal(model.net.layer4[0].conv1.weight, saved.net.layer4[0].conv1.weight)
    assert model.net.fc.weight.shape[0] == 5


def test_start_weights_may_not_differ_elsewhere(file):
    with pytest.raises(InputError, match="test_vit"):
        build("test_vit", num_classes=3, init=str(file))


def test_a_checkpoint_of_another_architecture(file, folder):
    with pytest.raises(InputError, match=r"lacks 'cls_token'[\s\S]*has 'bn1.[\s\S]*besides"):
        build(f"test_vit@{file}", num_classes=3)
    with pytest.raises(InputError, match=r"a checkpoint of 'test_resnet'[\s\S]*test_resnet@"):
        build(f"test_vit@{folder}", num_classes=3)


def test_a_checkpoint_of_another_size(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(build("mixer_tiny", num_classes=3, image_size=32).net.state_dict(), path)
    with pytest.raises(InputError, match=r"\(32, 64\), not \(32, 16\)[\s\S]*image size"):
        build(f"mixer_tiny@{path}", num_classes=3, image_size=16)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_truncated_file(saved, tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(saved.net.state_dict(), path)
    else:
        safetensors.torch.save_file(saved.net.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="truncated"):
        build(f"test_resnet@{path}", num_classes=3)


class Evil:
    """Unpickling this would create a file."""

    def __reduce__(self):
        return open, ("pwned", "w")


def test_a_pickle_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "extra": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="a pickle that holds more than tensors"):
        build(f"test_resnet@{tmp_path / 'evil.pth'}", num_classes=3)
    torch.save(timm.create_model("test_resnet"), tmp_path / "whole.pth")
    with pytest.raises(InputError, match="a pickle that holds more than tensors"):
        build(f"test_resnet@{tmp_path / 'whole.pth'}", num_classes=3)
    assert not (tmp_path / "pwned").exists()


def test_a_file_without_a_state_dict(tmp_path):
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(InputError, match="holds list"):
        build(f"test_resnet@{tmp_path / 'w.pt'}", num_classes=3)


@pytest.mark.parametrize("name", ["test_resnet@{}/no.safetensors", "{}/no/such/run", "no.safetensors"])
def test_a_missing_path(name, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        build(name.format(tmp_path), num_classes=3)


def test_folders_that_are_no_models(tmp_path, file):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="without weights"):
        build(str(tmp_path / "empty"), num_classes=3)
    with pytest.raises(InputError, match=r"name the architecture: <name>@"):
        build(str(file), num_classes=3)
    (tmp_path / "broken").mkdir()
    file.rename(tmp_path / "broken" / "model.safetensors")
    (tmp_path / "broken" / "config.json").write_text("{")
    with pytest.raises(InputError, match="valid JSON"):
        build(str(tmp_path / "broken"), num_classes=3)
    (tmp_path / "broken" / "config.json").write_text(json.dumps({"architecture": "test_resnt"}))
    with pytest.raises(InputError, match="did you mean 'test_resnet'"):
        build(str(tmp_path / "broken"), num_classes=3)
    (tmp_path / "w.txt").write_text("")
    with pytest.raises(InputError, match=r"a \.txt file"):
        build(f"test_resnet@{tmp_path / 'w.txt'}", num_classes=3)


def test_unknown_names_come_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'resnet18'"):
        build("timm/resnet_18", num_classes=3)
    with pytest.raises(InputError, match="'swin_pico'"):
        build("swin_picco", num_classes=3)
    with pytest.raises(InputError, match=r"test_resnet\.no_such_tag"):
        build("test_resnet.no_such_tag", num_classes=3)


def test_arguments_that_the_constructor_does_not_take():
    with pytest.raises(InputError, match=r"drop_pth_rate=0.1[\s\S]*unexpected keyword argument 'drop_pth_rate'"):
        build("test_resnet", num_classes=3, drop_pth_rate=0.1)
    with pytest.raises(InputError, match="unexpected keyword argument 'drop_pth_rate'"):
        build("test_vit", num_classes=3, image_size=32, drop_pth_rate=0.1)


@pytest.mark.parametrize(
    ("name", "size"), [("test_convnext", 8), ("test_vit", 8), ("test_maxvit", 100), ("test_coatnet", 8)]
)
def test_sizes_that_the_model_cannot_have(name, size):
    with pytest.raises(InputError, match=rf"{size} x {size} px[\s\S]*its own size is 160 x 160 px"):
        build(name, num_classes=3, image_size=size)


def test_pretrained_weights_that_do_not_exist():
    with pytest.raises(InputError, match="a model for which timm has weights"):
        build("swin_pico@pretrained", num_classes=3)
    with pytest.raises(InputError, match="a model for which timm has weights"):
        build("swin_pico", num_classes=3, init="pretrained")


def test_pretrained_weights_that_cannot_be_fetched(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_pretrained", offline)
    with pytest.raises(InputError, match="no route to host"):
        build("test_resnet@pretrained", num_classes=1000)


def test_pretrained_weights_are_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "timm.models._builder.load_pretrained", lambda model, **kwargs: asked.append(kwargs["num_classes"])
    )
    build("test_resnet@pretrained", num_classes=1000)
    build("test_resnet", num_classes=4, init="pretrained")
    build("test_resnet", num_classes=5)
    assert asked == [1000, 4]


def test_pretrained_weights_of_other_classes_are_refused():
    """Where timm would quietly draw a new head at random."""
    with pytest.raises(
        InputError, match=r"head has 1000 classes, for data of 3[\s\S]*--model test_resnet --init pretrained"
    ):
        build("test_resnet@pretrained", num_classes=3)


def test_pretrained_weights_state_their_number_of_classes(monkeypatch):
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda model, **kwargs: None)
    assert build("test_resnet@pretrained").spec.num_classes == 1000
    with pytest.raises(InputError, match="which does not say how many classes it has"):
        build("vit_small_patch14_dinov2@pretrained")


def test_as_many_names_as_classes():
    with pytest.raises(InputError, match="2 class names for 3 classes"):
        build("test_resnet", num_classes=3, class_names=["a", "b"])


def test_a_network_whose_classifier_cannot_be_found():
    with pytest.raises(InputError, match="cannot be cut"):
        build(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), num_classes=12, image_size=8)
