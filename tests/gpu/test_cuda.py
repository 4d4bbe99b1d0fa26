"""The same runs on a CUDA device: every precision trains, resume is exact, and evaluation agrees with the CPU."""

import json

import pytest
import torch

import crossdistill
from crossdistill.registry import METHODS
from crossdistill.runs import execute, make_plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

STUDENT = {"name": "timm/test_resnet", "image_size": 32}


SPEED = {
    "channels_last": ["train.channels_last=true"],
    "compiled": ["train.compile_student=true", "train.compile_teacher=true"],
    "both": ["train.channels_last=true", "train.compile_student=true", "train.compile_teacher=true"],
}


def plan(*overrides, method="none", teacher=None):
    tree = {
        "student": STUDENT,
        "data": {"source": "digits"},
        "train": {"epochs": 3, "batch_size": 64},
        "device": "cuda",
    }
    if teacher is not None:
        tree |= {"teachers": [{"name": str(teacher)}], "method": {"name": method}}
    return make_plan(tree, overrides)


def weights(run):
    return (run / "student" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A trained teacher of another family."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    tree = {"student": {"name": "timm/test_vit", "image_size": 32}, "data": {"source": "digits"},
            "train": {"epochs": 8, "batch_size": 64}, "device": "cuda"}  # fmt: skip
    execute(make_plan(tree), out, quiet=True)
    return out


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("method", [record.name for record in METHODS if record.value.needs])
def test_every_method_trains_in_every_precision(teacher, method, precision, tmp_path):
    plan_ = plan(f"train.precision={precision}", "train.clip_grad=5", method=method, teacher=teacher)
    results = execute(plan_, tmp_path / "run", quiet=True)
    assert results["rows"][0]["top1_mean"] > 0.5


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", SPEED)
def test_memory_format_and_compilation_train_as_well(teacher, kind, precision, tmp_path):
    plan_ = plan(f"train.precision={precision}", *SPEED[kind], method="ofa", teacher=teacher)
    results = execute(plan_, tmp_path / "run", quiet=True)
    assert results["rows"][0]["top1_mean"] > 0.5


@pytest.mark.parametrize(
    "overrides",
    [[], ["train.precision=bf16"], ["train.precision=fp16"], *SPEED.values(), ["train.parallel=fsdp"]],
    ids=lambda overrides: " ".join(overrides) or "fp32",
)
def test_a_resumed_run_is_the_undisturbed_one(teacher, overrides, tmp_path):
    """Also on one process that was asked for shards."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    overrides = [*overrides, "train.ema_decay=0.9", "train.clip_grad=5"]
    execute(plan(*overrides, method="ofa", teacher=teacher), whole, quiet=True)
    execute(plan(*overrides, method="ofa", teacher=teacher), parts, quiet=True)
    newest = max((parts / "checkpoints").iterdir())
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    (parts / "results.json").unlink()
    execute(plan(*overrides, method="ofa", teacher=teacher), parts, resume=True, quiet=True)
    assert weights(whole) == weights(parts)


def test_evaluation_agrees_with_the_cpu(teacher):
    on = {device: crossdistill.evaluate(teacher, device=device) for device in ("cpu", "cuda")}
    assert on["cpu"]["num_samples"] == on["cuda"]["num_samples"]
    assert abs(on["cpu"]["top1"] - on["cuda"]["top1"]) <= 1 / on["cpu"]["num_samples"]
    assert json.dumps(on["cuda"])
