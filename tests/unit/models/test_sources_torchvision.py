"""Classifiers of torchvision: all are built, staged and loaded; networks for other tasks are refused."""

import copy
import json
import pickle
from contextlib import nullcontext

import pytest
import safetensors.torch
import torch
from accelerate import init_empty_weights
from torchvision import models

from crossdistill.errors import InputError
from crossdistill.export import export_student
from crossdistill.models import build
from crossdistill.models.build import network
from crossdistill.models.stage import stage

ALL = models.list_models(module=models)
QUICK = {
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t",
    "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5",
    "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vit_b_16",
}  # fmt: skip
STRIDES = {"squeezenet1_0": [2, 4, 8, 16], "squeezenet1_1": [2, 4, 8, 16]}
NAMES = ("ant", "bee", "cat")


def strides(name):
    if name.startswith("vit_"):
        return [int(name.rpartition("_")[2])] * 4
    return STRIDES.get(name, [4, 8, 16, 32])


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in ALL])
def test_every_classifier_has_four_stages(name):
    # where tracing finds no cuts, those of a replay are confirmed by numbers, which need weights
    with nullcontext() if "squeezenet" in name else init_empty_weights():
        made = network(f"torchvision/{name}", num_classes=7)
    model = stage(made.net, made.name, 7, None, None)
    assert [one.stride for one in model.spec.stages] == strides(name)
    transforms = models.get_model_weights(name).DEFAULT.transforms()
    assert model.spec.input.image_size == (transforms.crop_size[0],) * 2
    assert model.spec.input.mean == tuple(transforms.mean)
    assert model.spec.input.std == tuple(transforms.std)
    assert model.spec.input.interpolation == transforms.interpolation.value
    assert model.spec.input.crop_pct == transforms.crop_size[0] / transforms.resize_size[0]
    model.eval()
    published = models.get_model_builder(name)
    assert type(model.net).__module__ == published.__module__


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "squeezenet1_1", "mobilenet_v3_small"])
def test_train_mode_gives_one_tensor_of_logits(name):
    model = build(f"torchvision/{name}", num_classes=5, image_size=96)
    images = torch.rand(2, 3, 96, 96)
    for training in (True, False):
        assert model.train(training).net(images).shape == (2, 5)
        assert model(images).logits.shape == (2, 5)


def test_a_convolutional_classifier_is_found_in_copies_too():
    model = build("torchvision/squeezenet1_1", num_classes=3, image_size=64)
    for net in (copy.deepcopy(model.net), pickle.loads(pickle.dumps(model.net))):
        assert net.get_classifier() is net.classifier[1]
        assert net.get_classifier() is not model.net.classifier[1]


def test_sizes_and_arguments_go_to_the_constructor():
    model = build("torchvision/vit_b_32", num_classes=3, image_size=64, dropout=0.5)
    assert model.spec.input.image_size == (64, 64)
    assert model.net.image_size == 64
    assert model.net.encoder.dropout.p == 0.5
    assert build("torchvision/resnet18", num_classes=3, image_size=(64, 32)).spec.stages[0].grid == (16, 8)
    with pytest.raises(InputError, match=r"image_size=50[\s\S]*its own size is 224 x 224 px"):
        build("torchvision/vit_b_16", num_classes=3, image_size=50)
    with pytest.raises(InputError, match="a square"):
        build("torchvision/vit_b_16", num_classes=3, image_size=(64, 32))
    with pytest.raises(InputError, match=r"drop_out=0.5[\s\S]*did you mean 'dropout'"):
        build("torchvision/mobilenet_v3_small", num_classes=3, drop_out=0.5)
    with pytest.raises(InputError, match="auxiliary heads are not trained"):
        build("torchvision/googlenet", num_classes=3, aux_logits=True)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fasterrcnn_resnet50_fpn", "a detector of objects: no classifier of images"),
        ("fcn_resnet50", "a segmentation network"),
        ("r3d_18", "a classifier of videos"),
        ("raft_small", "an estimator of optical flow"),
        ("quantized_resnet18", r"a quantized network[\s\S]*did you mean 'resnet18'"),
        ("resnet19", "did you mean 'resnet18'"),
        ("resnet18.tag", "did you mean 'resnet18'"),
    ],
)
def test_other_names_are_refused(name, reason):
    with pytest.raises(InputError, match=reason):
        build(f"torchvision/{name}", num_classes=3)


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Puts a state dict where torchvision's own download would have left it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def put(name, tensors):
        path = tmp_path / "hub" / "checkpoints" / models.get_model_weights(name).DEFAULT.url.rpartition("/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(tensors, path)
        return path

    return put


def original(name, **arguments):
    torch.manual_seed(3)
    return models.get_model(name, **arguments).eval()


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1"])
def test_published_weights_are_loaded(name, publish):
    net = original(name)
    publish(name, net.state_dict())
    model = build(f"torchvision/{name}@pretrained", image_size=64).eval()
    assert model.spec.num_classes == 1000
    assert model.spec.class_names[:2] == ("tench", "goldfish")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.net(images), net(images))


def test_published_weights_with_a_new_head(publish):
    net = original("mobilenet_v3_small")
    publish("mobilenet_v3_small", net.state_dict())
    with pytest.raises(
        InputError,
        match=r"torchvision/mobilenet_v3_small@pretrained, whose head has 1000 classes, for data of 3[\s\S]*"
        r"--model torchvision/mobilenet_v3_small --init pretrained",
    ):
        build("torchvision/mobilenet_v3_small@pretrained", num_classes=3)
    model = build("torchvision/mobilenet_v3_small", num_classes=3, image_size=64, init="pretrained")
    assert torch.equal(model.net.classifier[0].weight, net.classifier[0].weight)
    assert model.net.classifier[3].weight.shape[0] == 3
    assert not model.net.classifier[3].weight.any()  # at first every class is equally likely
    kept = build("torchvision/mobilenet_v3_small", num_classes=1000, image_size=64, init="pretrained")
    assert torch.equal(kept.net.classifier[3].weight, net.classifier[3].weight)


@pytest.mark.parametrize(
    ("name", "size"), [("googlenet", 64), pytest.param("inception_v3", 96, marks=pytest.mark.slow)]
)
def test_auxiliary_heads_of_published_weights_are_dropped(name, size, publish, tmp_path):
    """Also where the file is given by its path; the network then converts its input as these weights want it."""
    net = original(name, init_weights=False, aux_logits=True, transform_input=True)
    path = publish(name, net.state_dict())
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        expected = net(images)
        for model in (
            build(f"torchvision/{name}@pretrained", image_size=size),
            build(f"torchvision/{name}@{path}", num_classes=1000, image_size=size, transform_input=True),
        ):
            assert not any("aux" in key.lower() for key in model.net.state_dict())
            assert torch.equal(model.eval().net(images), expected)
    model = build(f"torchvision/{name}", num_classes=3, image_size=size, init="pretrained")
    folder = export_student(model, tmp_path / "m", class_names=NAMES, metrics={})
    assert build(str(folder)).net.transform_input is True


def test_old_keys_of_densenet_are_understood(publish):
    net = original("densenet121")
    old = {key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value
           for key, value in net.state_dict().items()}  # fmt: skip
    assert old.keys() != net.state_dict().keys()
    path = publish("densenet121", old)
    for name in ("torchvision/densenet121@pretrained", f"torchvision/densenet121@{path}"):
        loaded = network(name, num_classes=1000, image_size=64).net.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in net.state_dict().items())


def test_position_embeddings_are_interpolated_to_another_size(publish):
    small = {"num_layers": 2, "hidden_dim": 32, "num_heads": 2, "mlp_dim": 32}
    net = models.vision_transformer.VisionTransformer(image_size=224, patch_size=32, **small)
    publish("vit_b_32", net.state_dict())
    with pytest.raises(InputError, match="drop the arguments that change its layers"):
        build("torchvision/vit_b_32@pretrained", image_size=64)
    # an equal embedding at all places stays what it is
    with torch.no_grad():
        net.encoder.pos_embedding[:, 1:] = net.encoder.pos_embedding[:, 1:2]
    from crossdistill.models.sources import torchvision as source

    publish("vit_b_32", net.state_dict())
    other = models.vision_transformer.VisionTransformer(image_size=64, patch_size=32, **small)
    source._load(other, "vit_b_32", models.ViT_B_32_Weights.DEFAULT)
    assert torch.allclose(other.encoder.pos_embedding, net.encoder.pos_embedding[:, :5], atol=1e-6)


def test_categories_in_another_order_are_matched_by_name(publish):
    net = original("mobilenet_v3_small")
    publish("mobilenet_v3_small", net.state_dict())
    names = [f"n{index:08d}" for index in range(1000)]  # ImageNet's own names of its classes, in its order
    model = build("torchvision/mobilenet_v3_small@pretrained", class_names=names, num_classes=1000, image_size=64)
    assert torch.equal(model.net.classifier[3].weight, net.classifier[3].weight)
    assert model.spec.class_names == tuple(names)


def test_weights_that_are_damaged_or_cannot_be_fetched(publish, monkeypatch):
    path = publish("mobilenet_v3_small", {})
    path.write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"@pretrained: [\s\S]*local file: torchvision/mobilenet_v3_small@PATH"):
        build("torchvision/mobilenet_v3_small@pretrained")
    path.unlink()

    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(InputError, match="no route to host"):
        build("torchvision/mobilenet_v3_small@pretrained")


class Evil:
    """Unpickling this would create a file."""

    def __reduce__(self):
        return open, ("pwned", "w")


def test_published_weights_are_never_unpickled(publish, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    publish("mobilenet_v3_small", {"state_dict": Evil()})
    with pytest.raises(InputError, match="@pretrained"):
        build("torchvision/mobilenet_v3_small@pretrained")
    assert not (tmp_path / "pwned").exists()


def test_weights_of_another_network_show_the_first_keys(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(original("squeezenet1_1", num_classes=3).state_dict(), path)
    with pytest.raises(InputError, match=r"lacks 'conv1.weight'[\s\S]*has 'classifier.1.bias'[\s\S]*weights of torchv"):
        build(f"torchvision/resnet18@{path}", num_classes=3)
    with pytest.raises(InputError, match=r"head of 3 classes[\s\S]*--model torchvision/squeezenet1_1 --init"):
        build(f"torchvision/squeezenet1_1@{path}", num_classes=4, image_size=64)
    assert build(f"torchvision/squeezenet1_1@{path}", image_size=64).spec.num_classes == 3


@pytest.mark.parametrize(
    ("name", "size", "arguments"),
    [
        ("mobilenet_v3_small", 64, {"dropout": 0.4}),
        ("squeezenet1_1", (64, 48), {}),
        ("regnet_y_400mf", 64, {}),
        pytest.param("vit_b_32", 64, {}, marks=pytest.mark.slow),
    ],
)
def test_an_export_is_a_name_again(name, size, arguments, tmp_path):
    torch.manual_seed(1)
    name = f"torchvision/{name}"
    model = build(name, num_classes=3, image_size=size, class_names=NAMES, **arguments)
    folder = export_student(model, tmp_path / "m", class_names=NAMES, metrics={"top1": 0.5})
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == name
    assert config["model_args"] == {**arguments, "img_size": list(model.spec.input.image_size)}
    again = build(str(folder))
    assert again.spec == model.spec
    images = torch.rand(2, 3, *again.spec.input.image_size)
    with torch.no_grad():
        assert torch.equal(again.eval()(images).logits, model.eval()(images).logits)
    assert build(f"{name}@{folder}", num_classes=3, **arguments).spec.class_names == NAMES
    with pytest.raises(InputError, match="a checkpoint of 'torchvision/"):
        build(f"torchvision/resnet18@{folder}", num_classes=3)
    with pytest.raises(InputError, match="a checkpoint of 'torchvision/"):
        build(f"resnet18@{folder}", num_classes=3)


def test_an_altered_network_is_not_exported_under_its_name(tmp_path):
    model = build("torchvision/squeezenet1_1", num_classes=3, image_size=64)
    model.net.classifier[2] = torch.nn.GELU()
    with pytest.raises(RuntimeError, match="other logits"):
        export_student(model, tmp_path / "m", class_names=NAMES, metrics={})
    as_object = build(model.net, num_classes=3, image_size=64)
    folder = export_student(as_object, tmp_path / "m", class_names=NAMES, metrics={})
    assert "architecture" not in json.loads((folder / "config.json").read_text())
