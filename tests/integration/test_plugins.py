"""A method of another distribution: one source file and one recipe in a wheel, nothing edited here."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import zipfile

import pytest
from safetensors.torch import load_file

from crossdistill import cli
from crossdistill.registry import METHODS

SOURCE = '''
"""Squared error of logits, the student's after a learnt scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crossdistill.contracts import Batch, Method, Outputs
from crossdistill.losses.inputs import check_weights
from crossdistill.registry import METHODS


@METHODS.register(
    "logit_error",
    title="Logit error",
    paper="nobody's",
    summary="Mean squared error of the logits.",
    pick_when="a test wants a plugin",
)
class LogitError(Method):
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight, self.scale = weight, nn.Parameter(torch.ones(()))

    @classmethod
    def build(cls, student_spec, teacher_spec, *, num_classes: int, modules=None, weight: float = 0.5):
        check_weights({"weight": weight})
        return cls(weight)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        error = self.scale * student.require("logits") - teacher.require("logits")
        return {"logit_error": self.weight * error.square().mean()}
'''
RECIPE = """
description: A plugin's method on the digits.
student: {name: timm/test_resnet, image_size: 16}
teachers: [{name: timm/test_vit, image_size: 16}]
method: {name: logit_error, weight: 2}
data: {source: digits, limit_train: 64}
train: {steps: 3, batch_size: 32, log_every: 1}
allow_untrained_teacher: true
device: cpu
"""
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
METADATA = "Metadata-Version: 2.1\nName: logit-error\nVersion: 1.0\n"


def wheel(folder):
    """A wheel as a build tool would write it."""
    files = {
        "logit_error/__init__.py": SOURCE,
        "logit_error/recipe.yaml": RECIPE,
        "logit_error-1.0.dist-info/METADATA": METADATA,
        "logit_error-1.0.dist-info/WHEEL": WHEEL,
        "logit_error-1.0.dist-info/entry_points.txt": "[crossdistill.methods]\nlogit_error = logit_error\n",
    }
    record = "logit_error-1.0.dist-info/RECORD"
    lines = [f"{name},sha256={digest(text)},{len(text.encode())}" for name, text in files.items()]
    path = folder / "logit_error-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, record: "\n".join([*lines, f"{record},,"]) + "\n"}.items():
            archive.writestr(name, text)
    return path


def digest(text):
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder that the wheel was installed into."""
    folder = tmp_path_factory.mktemp("plugin")
    target = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    done = subprocess.run([*pip, str(wheel(folder))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def command(site, *arguments):
    """``crossdistill ARGUMENTS --json`` with one more folder of packages; what it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(site)}
    line = [sys.executable, "-m", "crossdistill", *map(str, arguments), "--json"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_its_method_is_listed_with_its_options(site):
    (described,) = command(site, "methods", "logit_error")
    assert described["title"] == "Logit error"
    assert described["needs"] == ["logits"]
    assert described["options"] == {"weight": {"type": "number", "default": 0.5, "meaning": ""}}


def test_its_recipe_runs_resumes_and_is_reported(site, tmp_path):
    run = tmp_path / "run"
    results = command(site, "recipes", "run", site / "logit_error" / "recipe.yaml", "--out", run)
    (student,) = (row for row in results["rows"] if row["role"] == "distilled")
    assert student["method"] == "logit_error"
    assert results["settings"]["method"] == {"name": "logit_error", "weight": 2.0}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(set(line["losses"]) == {"cross_entropy", "logit_error"} for line in lines if line["kind"] == "train")
    assert "logit_error" in (run / "report.html").read_text()
    newest = max(run.glob("checkpoints/*/method.safetensors"))
    assert load_file(newest)["scale"] != 1

    (run / "results.json").unlink()  # as if it had been killed before its last words
    again = command(site, "recipes", "run", site / "logit_error" / "recipe.yaml", "--out", run, "--resume")
    assert [row["runs"] for row in again["rows"]] == [row["runs"] for row in results["rows"]]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import no_such_module_at_all\n", "No module named 'no_such_module_at_all'"),
        (SOURCE.replace('"logit_error",\n', '"kd",\n', 1), "method 'kd' registered by bad_plugin.LogitError"),
    ],
)
def test_one_that_fails_or_takes_a_name_is_named(source, words, tmp_path, monkeypatch, capsys):
    (tmp_path / "bad_plugin.py").write_text(source)
    facts = tmp_path / "bad_plugin-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(METADATA.replace("logit-error", "bad-plugin"))
    (facts / "entry_points.txt").write_text("[crossdistill.methods]\nmine = bad_plugin\n")
    assert METHODS.get("kd")  # what is here is loaded first, without it
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(METHODS, "_records", dict(METHODS._records))
    monkeypatch.setattr(METHODS, "_loaded", False)
    try:
        assert cli.run(["methods", "--json"]) == 2
    finally:
        sys.modules.pop("bad_plugin", None)
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["given"].startswith("plugin 'bad_plugin' (crossdistill.methods: mine)")
    assert words in error["given"].replace("\\'", "'")
    assert "uninstall" in " ".join(error.values())
