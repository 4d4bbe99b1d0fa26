"""Pretraining in the loop: exact resume, micro-batches, precision, compilation, warnings, and two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from crossdistill.engine.log import read
from crossdistill.errors import Interrupted
from samples.pretraining import settings_of, state_of, textures, train
from samples.training import Stop

TESTS = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return textures(tmp_path_factory.mktemp("textures"))


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("micro_batch", [None, 8])
def test_a_resumed_run_ends_in_the_same_bits(data, tmp_path, micro_batch):
    settings = settings_of(data, *([f"train.device_batch_size={micro_batch}"] if micro_batch else []))
    whole, _ = train(settings, out=tmp_path / "whole", examine=False)
    with pytest.raises(Interrupted):
        train(settings, out=tmp_path / "stopped", reporter=Stop(5), examine=False)
    again, result = train(settings, out=tmp_path / "stopped", examine=False)
    assert result.steps == 8
    assert_equal(state_of(whole), state_of(again))


def test_figures_are_logged_beside_the_losses(data, tmp_path):
    train(settings_of(data), out=tmp_path / "run", examine=False)
    lines = [line for line in read(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "train"]
    assert {"bow_23px", "bow_14px"} == set(lines[-1]["losses"])
    figures = lines[-1]["figures"]
    assert {"embedding_spread", "perplexity_image_level4", "perplexity_batch_level4", "words_used_level3"} <= set(
        figures
    )
    assert 1 <= figures["perplexity_image_level4"] <= figures["perplexity_batch_level4"] * 1.001 <= 48.1


def test_bf16_stays_near_float32(data):
    """One step from the same weights, of a transformer.

    PyTorch 2.15's backward pass of bfloat16 convolutions on 1 x 1 maps is sometimes NaN on CPUs, whatever the loss.
    """
    found = {}
    sizes = ("views.crop_size=32", "views.patch_size=16")
    for precision in ("fp32", "bf16"):
        settings = settings_of(data, f"train.precision={precision}", *sizes, model="timm/test_vit", image_size=48)
        parts, _ = train(settings, examine=False, max_steps=1)
        found[precision] = parts.method.figures()
        assert all(value.dtype == torch.float32 for name, value in state_of(parts).items() if "words" in name)
    for name in ("perplexity_image_level3", "mean_distance_level3"):
        torch.testing.assert_close(found["bf16"][name], found["fp32"][name], rtol=0.05, atol=0)


def test_a_compiled_method_gives_the_same_run(data):
    plain, _ = train(settings_of(data), examine=False, max_steps=3)
    compiled, _ = train(settings_of(data, "train.compile_method=true"), examine=False, max_steps=3)
    for name, value in state_of(plain).items():
        torch.testing.assert_close(
            state_of(compiled)[name], value, rtol=2e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_images_that_are_all_the_same_are_told_of(tmp_path):
    """Their embeddings have no spread, and their bags nothing to predict."""
    for index in range(16):
        for name in ("one", "other"):
            folder = tmp_path / "grey" / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (48, 48), (128, 128, 128)).save(folder / f"{index}.png")
    quick = ("views.crop_size=32", "views.patch_size=16", "train.epochs=8", "method.num_words=16")
    _, result = train(settings_of(tmp_path / "grey", *quick, model="timm/test_vit", image_size=48), examine=False)
    words = " ".join(result.warnings)
    assert "embeddings are nearly the same for all images" in words
    assert "bags of level 4 are nearly the same for all images" in words
    assert len(result.warnings) == len(set(result.warnings)), "each is told once"


@pytest.fixture(scope="module")
def launched(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(TESTS / "samples" / "pretrain_two.py"), str(data), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-6000:]
    return out


def test_two_processes_write_one_vocabulary_and_train_what_one_would(data, launched):
    """Without batch statistics in the student; the head's are shared, so that its rows can be shared out."""
    from samples.pretrain_two import OVERRIDES

    first, second = (load_file(launched / f"{rank}.safetensors") for rank in (0, 1))
    for name in first:
        assert torch.equal(first[name], second[name]), name
    parts, _ = train(settings_of(data, *OVERRIDES, model="timm/test_vit", image_size=48), examine=False)
    alone = state_of(parts)
    assert alone.keys() == first.keys()
    for name, value in alone.items():
        torch.testing.assert_close(
            first[name], value, rtol=2e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_vocabulary_is_not_sent_with_every_step(launched):
    assert (launched / "sent.txt").read_text().split() == []
