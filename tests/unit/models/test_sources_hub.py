"""Repositories of the Hugging Face hub, from its cache and offline: transformers' own logits, classes and images."""

import json
import socket
import sys
import time

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

from crossdistill.data import prepare_image
from crossdistill.errors import InputError
from crossdistill.export import export_student
from crossdistill.models import build
from crossdistill.models.build import network
from crossdistill.models.cutter import classifier_names
from crossdistill.models.sources.transformers import ImageClassifier
from crossdistill.models.spec import input_of
from samples import hub_cache

transformers = pytest.importorskip("transformers")
NAMES = tuple(hub_cache.CLASSES.values())
NUM_STAGES = {"swin": 2, "mobilevit": 3}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def saved(cache, kind, **more):
    """A repository me/KIND, and the network in it as transformers loads it."""
    torch.manual_seed(2)
    folder = hub_cache.repository(cache, f"me/{kind}")
    return folder, hub_cache.save(folder, kind, **more)


@pytest.mark.parametrize("kind", list(hub_cache.CONFIGS))
def test_logits_and_images_are_those_of_transformers(kind, cache, tmp_path):
    folder, reference = saved(cache, kind)
    model = build(f"hf-hub:me/{kind}").eval()
    assert model.spec.name == f"hf-hub:me/{kind}"
    assert model.spec.class_names == NAMES
    assert model.spec.num_classes == 3
    assert len(model.spec.stages) >= NUM_STAGES.get(kind, 4)
    pixels = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((200, 200)).save(tmp_path / "image.png")
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    wanted = processor(Image.open(tmp_path / "image.png"), return_tensors="pt")["pixel_values"]
    images = wanted.flip(1) if kind == "mobilevit" else wanted
    with torch.no_grad():
        outputs, expected = model(images), reference(wanted).logits
    assert torch.equal(outputs.logits, expected)
    prepared = prepare_image(tmp_path / "image.png", model.spec.input)
    assert prepared.shape == images[0].shape
    # resized by another kernel of the same name
    assert float((prepared - images[0]).abs().mean()) < 0.02 / min(model.spec.input.std)


def test_a_local_folder_in_the_layout_of_transformers(tmp_path):
    reference = hub_cache.save(tmp_path / "vit", "vit")
    model = build(str(tmp_path / "vit")).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.net(images), reference(images).logits)
    assert model.spec.class_names == NAMES


def test_classes_are_matched_by_name(cache):
    saved(cache, "resnet")
    images = torch.rand(2, 3, 64, 64)
    net = network("hf-hub:me/resnet", num_classes=3, class_names=NAMES).net.eval()
    other = network("hf-hub:me/resnet", num_classes=3, class_names=("cat", "ant", "bee")).net.eval()
    with torch.no_grad():
        assert torch.allclose(other(images), net(images)[:, [2, 0, 1]], atol=1e-6)
    with pytest.raises(InputError, match=r"the classes ant, bee, cat[\s\S]*--init pretrained"):
        build("hf-hub:me/resnet", num_classes=3, class_names=("ant", "bee", "dog"))


def test_both_classifiers_of_a_distilled_network_take_the_order_of_the_classes(cache, tmp_path):
    _, reference = saved(cache, "deit_distilled")
    images = torch.rand(2, 3, 64, 64)
    model = build("hf-hub:me/deit_distilled", class_names=NAMES[::-1]).eval()
    assert model.net.get_classifier() == (model.net.model.cls_classifier, model.net.model.distillation_classifier)
    with torch.no_grad():
        expected = reference(images).logits.flip(1)
        assert torch.equal(model(images).logits, expected)
        folder = export_student(model, tmp_path / "m", class_names=NAMES[::-1], metrics={})
        assert torch.equal(network(str(folder), class_names=NAMES).net.eval()(images), expected.flip(1))


def test_both_classifiers_of_levit_are_found():
    sizes = {"hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 2, 2], "depths": [1, 1, 1], "key_dim": [8, 8, 8]}
    config = transformers.LevitConfig(**sizes, image_size=64, num_labels=3)
    net = ImageClassifier(transformers.LevitForImageClassificationWithTeacher(config), (64, 64))
    assert classifier_names(net) == ["model.classifier.linear", "model.classifier_distill.linear"]


def test_names_of_classes_that_transformers_invents_are_none(cache):
    saved(cache, "vit", id2label={0: "LABEL_0", 1: "LABEL_1"})
    assert network("hf-hub:me/vit").class_names is None
    assert network("hf-hub:me/vit", num_classes=2, class_names=("a", "b")).class_names == ("a", "b")


def test_another_number_of_classes_is_refused_but_may_be_started_from(cache):
    _, reference = saved(cache, "vit")
    with pytest.raises(
        InputError, match=r"hf-hub:me/vit, whose head has 3 classes, for data of 5[\s\S]*--model hf-hub:me/vit --init"
    ):
        build("hf-hub:me/vit", num_classes=5)
    started = network("hf-hub:me/vit", num_classes=5, init="pretrained").net.state_dict()
    for key, value in reference.state_dict().items():
        if key.startswith("classifier"):
            assert len(started[f"model.{key}"]) == 5
            assert not started[f"model.{key}"].any()
        else:
            assert torch.equal(started[f"model.{key}"], value)


def test_a_student_s_export_needs_no_hub(cache, tmp_path, monkeypatch):
    saved(cache, "mobilevit")
    model = build("hf-hub:me/mobilevit", num_classes=2, init="pretrained", image_size=96, hidden_dropout_prob=0.3)
    folder = export_student(model, tmp_path / "m", class_names=("a", "b"), metrics={})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    again = network(str(folder))
    assert (again.name, again.size, again.class_names) == ("hf-hub:me/mobilevit", (96, 96), ("a", "b"))
    assert input_of(again.net, again.size) == model.spec.input
    assert again.net.reversed_channels
    assert again.net.model.config.hidden_dropout_prob == 0.3
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(again.net.eval()(images), model.eval()(images).logits)


def test_a_transformer_sees_images_of_another_size(cache):
    _, reference = saved(cache, "vit")
    model = build("hf-hub:me/vit", image_size=96).eval()
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(model.net(images), reference(images, interpolate_pos_encoding=True).logits)
    assert model.spec.stages[-1].grid == (6, 6)


def test_a_repository_of_timm_goes_through_timm(cache):
    net = timm.create_model("test_resnet", num_classes=3)
    folder = hub_cache.repository(cache, "me/ours.v1")
    save_for_hf(net, folder, model_config={"label_names": list(NAMES)}, safe_serialization=True)
    model = build("hf-hub:me/ours.v1", num_classes=3, class_names=("cat", "ant", "bee")).eval()
    assert type(model.net) is type(net)
    images = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.allclose(model.net(images), net.eval()(images)[:, [2, 0, 1]], atol=1e-6)
    assert network("hf-hub:me/ours.v1").class_names == NAMES
    assert network(f"hf-hub:me/ours.v1@{hub_cache.HASH}").num_classes == 3
    assert network("hf-hub:me/ours.v1", num_classes=5, init="pretrained").net.num_classes == 5
    with pytest.raises(InputError, match="whose head has 3 classes, for data of 5"):
        build("hf-hub:me/ours.v1", num_classes=5)


def test_a_backbone_without_a_classifier(cache):
    folder = hub_cache.repository(cache, "me/backbone")
    backbone = transformers.AutoModel.from_config(hub_cache.CONFIGS["dinov2"]())
    backbone.save_pretrained(folder)
    transformers.BitImageProcessor(size={"shortest_edge": 64}, crop_size=hub_cache.SQUARE).save_pretrained(folder)
    with pytest.raises(InputError, match="whose head has 0 classes, for data of 3"):
        build("hf-hub:me/backbone", num_classes=3)
    net = network("hf-hub:me/backbone", num_classes=3, init="pretrained").net
    weight = "embeddings.patch_embeddings.projection.weight"
    assert torch.equal(net.state_dict()[f"model.dinov2.{weight}"], backbone.state_dict()[weight])


def test_what_is_no_classifier_of_images_is_refused(cache):
    for name, config in (
        ("detector", transformers.DetrConfig(architectures=["DetrForObjectDetection"])),
        ("text", transformers.BertConfig(architectures=["BertForMaskedLM"])),
        ("segmenter", transformers.SegformerConfig(architectures=["SegformerForSemanticSegmentation"])),
    ):
        config.save_pretrained(hub_cache.repository(cache, f"me/{name}"))
        with pytest.raises(InputError, match=rf"{config.architectures[0]}: no classifier of images"):
            build(f"hf-hub:me/{name}", num_classes=3)
    (hub_cache.repository(cache, "me/nothing") / "config.json").write_text("{}")
    with pytest.raises(InputError, match="names no network"):
        build("hf-hub:me/nothing", num_classes=3)


def test_weights_only_from_safetensors_and_never_code_from_the_repository(cache):
    folder, reference = saved(cache, "vit")
    (folder / "model.safetensors").unlink()
    torch.save(reference.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        build("hf-hub:me/vit")
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "evil.C", "AutoModelForImageClassification": "evil.M"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "evil", "auto_map": code}))
    (folder / "evil.py").write_text("raise SystemExit")
    with pytest.raises(InputError, match="no classifier of images"):
        build("hf-hub:me/vit")


def test_weights_that_lack_layers_are_refused(cache):
    folder, _ = saved(cache, "vit")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    with pytest.raises(InputError, match=r"whose weights lack vit\.[\s\S]*\.4\."):
        build("hf-hub:me/vit")


def test_a_repository_that_is_not_in_the_cache_offline():
    with pytest.raises(InputError, match=r"hf-hub:me/none: LocalEntryNotFoundError[\s\S]*the cache"):
        build("hf-hub:me/none", num_classes=3)
    with pytest.raises(InputError, match="hf-hub:OWNER/NAME"):
        build("hf-hub:none", num_classes=3)


def test_without_a_network_the_hub_is_asked_once_and_nothing_is_printed(monkeypatch, caplog, capfd):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as server:  # a port at which nobody listens once it is closed
        nowhere = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere + "/{repo_id}/resolve/{revision}/{filename}"
    )
    began = time.monotonic()
    with pytest.raises(InputError, match=r"hf-hub:nobody/nothing: ConnectError[\s\S]*the network"):
        build("hf-hub:nobody/nothing", num_classes=3)
    assert time.monotonic() - began < 5
    assert caplog.text == ""
    assert "".join(capfd.readouterr()) == ""


def test_without_the_package_the_extra_is_named(cache, monkeypatch):
    saved(cache, "vit")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r'pip install "crossdistill\[hub\]"'):
        build("hf-hub:me/vit")


def test_unknown_arguments_come_with_the_nearest(cache):
    saved(cache, "vit")
    with pytest.raises(InputError, match="did you mean 'hidden_dropout_prob'"):
        build("hf-hub:me/vit", hidden_dropout=0.1)


def test_images_without_a_description_are_refused(cache):
    folder, _ = saved(cache, "vit")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"preprocessor_config\.json"):
        build("hf-hub:me/vit")
