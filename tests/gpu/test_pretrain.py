"""Pretraining on a GPU: half precision with distances in float32, views made on the device, and an exact resume."""

import pytest
import torch

from crossdistill.errors import Interrupted
from samples.pretraining import settings_of, state_of, textures, train
from samples.training import Stop

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ON_DEVICE = ("device=cuda", "data.augment_on=device")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return textures(tmp_path_factory.mktemp("textures"))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_keeps_words_and_distances_in_float32(data, precision):
    parts, result = train(settings_of(data, *ON_DEVICE, f"train.precision={precision}"), device="cuda")
    assert result.steps == 2 * parts.train_loader.steps_per_epoch
    assert parts.method.figures()["mean_distance_level4"] > 0
    assert all(level.vocabulary.words.dtype == torch.float32 for _, level in parts.method.numbered())
    assert "teacher_top1" in result.metrics


def test_words_do_not_depend_on_tf32(data):
    """Distances are products in full float32, whatever convolutions may do."""
    found = {}
    for allowed in (False, True):
        torch.backends.cudnn.allow_tf32 = allowed
        parts, _ = train(settings_of(data, *ON_DEVICE), device="cuda", max_steps=1, examine=False)
        found[allowed] = parts.method.figures()["mean_distance_level3"]
    torch.testing.assert_close(found[True], found[False], rtol=1e-2, atol=0)


def test_a_resumed_run_ends_in_the_same_bits(data, tmp_path):
    settings = settings_of(data, *ON_DEVICE)
    whole, _ = train(settings, out=tmp_path / "whole", examine=False, device="cuda")
    with pytest.raises(Interrupted):
        train(settings, out=tmp_path / "stopped", reporter=Stop(5), examine=False, device="cuda")
    again, _ = train(settings, out=tmp_path / "stopped", examine=False, device="cuda")
    for name, value in state_of(whole).items():
        assert torch.equal(value, state_of(again)[name]), name


def test_compiled_parts_and_channels_last(data):
    compiled = [f"train.compile_{part}=true" for part in ("student", "teacher", "method")]
    plain, _ = train(settings_of(data, *ON_DEVICE), device="cuda", max_steps=2, examine=False)
    other, _ = train(
        settings_of(data, *ON_DEVICE, *compiled, "train.channels_last=true"), device="cuda", max_steps=2, examine=False
    )
    one, two = (parts.method.figures()["mean_distance_level4"] for parts in (plain, other))
    torch.testing.assert_close(one, two, rtol=2e-2, atol=0)
