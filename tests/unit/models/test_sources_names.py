"""Names of timm that are out of date, misspelt or of networks that classify nothing; and lists of what there is."""

import pytest
import safetensors.torch
import timm
from timm.models import get_deprecated_models
from torchvision import models

from crossdistill.errors import InputError
from crossdistill.models import build, list_models
from crossdistill.models.names import FILE, TIMM, TORCHVISION, parse


@pytest.mark.parametrize(
    ("old", "new"),
    [("tv_resnet50", "resnet50.tv_in1k"), ("vit_base_patch16_224_in21k", "vit_base_patch16_224.augreg_in21k")],
)
def test_an_old_name_is_refused_with_the_new_one(old, new):
    for name in (old, f"timm/{old}@pretrained"):
        with pytest.raises(InputError, match=rf"an old name[\s\S]*its name today, '{new}'"):
            build(name, num_classes=3)
    assert build(new, num_classes=3, image_size=32 if "vit" in new else None).spec.name == new


def test_every_old_name_leads_to_one_that_is_taken():
    for old, new in get_deprecated_models().items():
        with pytest.raises(InputError, match="an old name") as caught:
            TIMM.check(old)
        today = caught.value.expected.split("'")[1]
        TIMM.check(today)
        assert today in (new, new.partition(".")[0])


def test_a_wrong_tag_is_refused_with_the_right_ones():
    with pytest.raises(InputError, match=r"one of the tags of resnet50: a1_in1k, [\s\S]*did you mean 'a1_in1k'"):
        build("resnet50.a1_in2k", num_classes=3)
    with pytest.raises(InputError, match=r"swin_pico, which has no tags[\s\S]*write swin_pico"):
        build("swin_pico.in1k", num_classes=3)


ENCODERS = [name for name in timm.list_models() if name.endswith("_enc")]


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_without_a_classifier_is_refused(name):
    with pytest.raises(InputError, match="an encoder without a classifier"):
        build(name, num_classes=3)


def test_backbones_that_get_a_classifier_with_the_number_of_classes_are_taken():
    for name in ("vit_small_patch14_dinov2", "samvit_base_patch16", "naflexvit_base_patch16_siglip"):
        TIMM.check(name)
    assert timm.models.get_pretrained_cfg("vit_small_patch14_dinov2").num_classes == 0


def test_what_a_name_means(tmp_path):
    named = parse("timm/resnet50.a1_in1k@pretrained")
    assert (named.source, named.full, named.weights, named.is_random) == (
        TIMM,
        "resnet50.a1_in1k",
        "pretrained",
        False,
    )
    named = parse("torchvision/resnet18")
    assert (named.source, named.full, named.weights, named.is_random) == (
        TORCHVISION,
        "torchvision/resnet18",
        None,
        True,
    )
    assert not parse("hf-hub:owner/name").is_random
    (tmp_path / "net.py").write_text("")
    named = parse(f"file:{tmp_path}/net.py:build")
    assert (named.source, named.weights) == (FILE, None)


def test_all_models_are_listed():
    names = list_models()
    assert set(timm.list_models()) | {f"torchvision/{name}" for name in models.list_models(module=models)} == set(names)
    assert list_models("torchvision/squeezenet*") == ["torchvision/squeezenet1_0", "torchvision/squeezenet1_1"]
    assert {"resnet18", "torchvision/resnet18"} <= set(list_models("resnet18"))


@pytest.mark.parametrize(
    "name",
    ["resnet50@", "timm/resnet50.a1_in1k@", "torchvision/resnet18@", "hf-hub:owner/name@", "file:{file}:build@"],
)
def test_nothing_after_the_at_sign_is_refused(name, tmp_path):
    (tmp_path / "net.py").write_text("")
    with pytest.raises(InputError, match=r"with nothing after the @[\s\S]*@PATH or .*@pretrained"):
        parse(name.format(file=tmp_path / "net.py"))


def test_weights_after_the_at_sign_and_init_are_two_sources_of_weights(tmp_path):
    file = tmp_path / "w.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), file)
    for name in (f"test_resnet@{file}", "test_resnet@pretrained", "resnet18.a1_in1k@pretrained"):
        with pytest.raises(InputError, match=r"weights of its own, together with init=[\s\S]*one source of weights"):
            build(name, num_classes=3, init=str(file))
