"""Files of weights that are damaged, and class names as configurations hold them."""

import io
import json
from contextlib import suppress

import pytest
import safetensors.torch
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossdistill.errors import InputError
from crossdistill.models import build
from crossdistill.models.checkpoint import Checkpoint, locate


def saved(*, zipped):
    file = io.BytesIO()
    tensors = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2), "steps": torch.tensor(3)}
    torch.save(tensors, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


WHOLE = {zipped: saved(zipped=zipped) for zipped in (False, True)}


@pytest.mark.parametrize("zipped", [False, True])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_are_bad_input_or_still_tensors(tmp_path, zipped, data):
    content = bytearray(WHOLE[zipped])
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "w.pth"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with suppress(InputError):
        assert all(isinstance(tensor, torch.Tensor) for tensor in locate(path).tensors().values())


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_a_truncated_file_is_bad_input(tmp_path, zipped, share):
    path = tmp_path / "w.pth"
    path.write_bytes(WHOLE[zipped][: int(share * len(WHOLE[zipped]))])
    with pytest.raises(InputError, match=r"w\.pth"):
        locate(path).tensors()


@pytest.mark.parametrize("error", [IndexError("pop from empty list"), KeyError(7), AssertionError()])
def test_whatever_the_reader_raises_is_told_as_damage(tmp_path, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    (tmp_path / "w.pth").write_bytes(b"anything")
    with pytest.raises(InputError, match=rf"cannot be read \({str(error) or 'AssertionError'}\)[\s\S]*damaged"):
        locate(tmp_path / "w.pth").tensors()


@pytest.mark.parametrize(
    "config",
    [
        {"label_names": ["a", "b"]},
        {"label_names": {"1": "b", "0": "a"}, "pretrained_cfg": None},
        {"pretrained_cfg": {"label_names": {"10": "b", "9": "a"}}},
    ],
)
def test_class_names_in_the_order_of_the_logits(tmp_path, config):
    assert Checkpoint(tmp_path, tmp_path / "model.safetensors", config).class_names == ("a", "b")


@pytest.mark.parametrize("config", [{}, {"pretrained_cfg": None}, {"label_names": []}])
def test_no_class_names(tmp_path, config):
    assert Checkpoint(tmp_path, tmp_path / "model.safetensors", config).class_names is None


def test_class_names_without_an_order_are_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps({"label_names": {"n01440764": "tench", "n01443537": "goldfish"}}))
    with pytest.raises(InputError, match=r"label_names has the keys 'n01440764', 'n01443537'[\s\S]*by index"):
        _ = locate(tmp_path).class_names


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize(
    ("name", "heads"), [("test_resnet", ["fc"]), ("deit_tiny_distilled_patch16_224", ["head", "head_dist"])]
)
def test_the_rows_of_a_saved_classifier_are_the_number_of_classes(name, heads, suffix, tmp_path):
    """Also in half precision, and where there are two classifiers; a file without one says nothing."""
    path = tmp_path / f"w.{suffix}"
    save = safetensors.torch.save_file if suffix == "safetensors" else torch.save
    tensors = timm.create_model(name, num_classes=7).half().state_dict()
    save(tensors, path)
    model = build(f"{name}@{path}")
    assert model.spec.num_classes == 7
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    for head in heads:
        assert locate(path).num_rows([head]) == locate(path).num_rows(["none", head]) == 7
    assert locate(path).num_rows(["none"]) is None
    save({key: tensor for key, tensor in tensors.items() if key.rpartition(".")[0] not in heads}, path)
    with pytest.raises(InputError, match="which does not say how many classes it has"):
        build(f"{name}@{path}")


def test_a_truncated_header_is_bad_input(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors.torch.save({"fc.weight": torch.ones(3, 2)})[:20])
    with pytest.raises(InputError, match="a complete safetensors file"):
        locate(path).num_rows(["fc"])
