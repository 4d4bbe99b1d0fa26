"""Networks of every source through the command line: torchvision, a Python file, and a teacher from the hub's cache."""

import json

import huggingface_hub
import pytest
import torch
from PIL import Image

from crossdistill import cli
from samples import hub_cache

QUICK = "--data digits --limit-train 100 --batch-size 25 --steps 2 --device cpu --json"
SMALL = "allow_untrained_teacher=true"
NET = """
from torch import nn

def build(num_classes, width=8):
    stem = nn.Sequential(nn.Conv2d(3, width, 3, stride=4, padding=1), nn.ReLU())
    body = nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU())
    return nn.Sequential(stem, body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))
"""


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def run(capsys):
    """Run a command line; its exit code, what it prints as JSON, and what it says on standard error."""

    def run(line, *more):
        capsys.readouterr()
        code = cli.run([*line.split(), *map(str, more)])
        printed = capsys.readouterr()
        return code, json.loads(printed.out) if code == 0 else None, printed.err

    return run


@pytest.fixture
def net(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    return f"file:{tmp_path}/net.py:build"


@pytest.fixture
def image(tmp_path):
    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def teacher(tmp_path, net, run):
    """A run of a file's network."""
    code, _, error = run(f"train --model {net} --image-size 32 {QUICK} --allow-code", "--out", tmp_path / "teacher")
    assert code == 0, error
    return tmp_path / "teacher"


def test_a_network_of_torchvision_is_distilled_evaluated_and_used(teacher, image, tmp_path, run):
    out = tmp_path / "student"
    line = f"distill --student torchvision/squeezenet1_1 --image-size 32 {QUICK} {SMALL} --allow-code"
    code, _, error = run(line, "--teacher", teacher, "--out", out)
    assert code == 0, error
    config = json.loads((out / "student" / "config.json").read_text())
    assert config["architecture"] == "torchvision/squeezenet1_1"
    code, measured, error = run(f"evaluate {out} --json")
    assert code == 0, error
    assert measured["model"] == "torchvision/squeezenet1_1"
    code, predicted, error = run(f"predict {out} {image} --json")
    assert code == 0, error
    assert len(predicted[0]["classes"]) == 3


def test_a_file_is_run_only_with_the_flag(teacher, net, image, tmp_path, run):
    out = tmp_path / "out"
    for line in (
        f"train --model {net} --image-size 32 --dry-run {QUICK} --out {out}",
        f"distill --teacher {teacher} --student test_resnet --image-size 32 --dry-run {QUICK} {SMALL} --out {out}",
        f"evaluate {teacher} --json",
        f"predict {teacher} {image} --json",
    ):
        code, _, error = run(line)
        assert code == 2
        assert "--allow-code" in error
        code, _, error = run(line, "--allow-code")
        assert code == 0, error
    code, _, error = run(f"train --model {net}x --dry-run {QUICK} --out {out} --allow-code")
    assert code == 2
    assert "did you mean 'build'" in error


def test_a_teacher_from_the_hub_s_cache_offline(tmp_path, run, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    hub_cache.save(
        hub_cache.repository(tmp_path / "hub", "me/vit"), "vit", id2label={index: str(index) for index in range(10)}
    )
    line = f"distill --teacher hf-hub:me/vit --student torchvision/squeezenet1_1 --image-size 32 {QUICK} {SMALL}"
    code, results, error = run(f"{line} --dry-run", "--out", tmp_path / "out")
    assert code == 0, error
    assert error == ""
    (trial,) = results["dry_run"].values()
    assert trial["teacher"]["name"] == "hf-hub:me/vit"
    assert trial["teacher"]["input"]["image_size"] == [64, 64]
    code, _, error = run(f"{line} --dry-run".replace("me/vit", "me/none"), "--out", tmp_path / "out")
    assert code == 2
    assert "hf-hub:me/none" in error
