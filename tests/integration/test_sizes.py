"""Image sizes on the command line: sizes that cannot be, and weights saved at another one."""

import json
import re
import shlex
import subprocess
import sys

import pytest
import torch
from timm.layers.pos_embed import resample_abs_pos_embed

from crossdistill import cli
from crossdistill.export import export_student
from crossdistill.models import build

DIGITS = [str(number) for number in range(10)]
TRAIN = "train --data digits --limit-train 60 --steps 1 --batch-size 8 --device cpu"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Exported networks of ten classes: a small ViT of 32 px and an MLP of 16 px."""
    root = tmp_path_factory.mktemp("saved")
    vit = build("vit_tiny_patch16_224", num_classes=10, image_size=32, embed_dim=24, depth=2, num_heads=2, patch_size=8)
    mlp = build("mixer_tiny", num_classes=10, image_size=16)
    for name, model in {"vit": vit, "mlp": mlp}.items():
        export_student(model, root / name, class_names=DIGITS, metrics={})
    return root


@pytest.fixture
def refused(folders, tmp_path, capsys):
    """Run a command line that must be refused; what it says."""

    def run(line):
        words = shlex.split(line.format(folders=folders))
        capsys.readouterr()
        code = cli.run([*words, *(["--out", str(tmp_path / "out")] if words[0] == "train" else [])])
        said = capsys.readouterr().err
        assert code == cli.EXIT_BAD_INPUT == 2, said
        assert "Traceback" not in said
        return re.sub(r"\s+", " ", said)

    return run


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"{TRAIN} --model timm/test_maxvit --image-size 100", r"100 x 100 px: .* a size that works: 32, .* 160 x 160"),
        (f"{TRAIN} --model timm/nest_tiny --image-size 40", r"40 x 40 px .* a size that works: .*224.* 224 x 224"),
        (f"{TRAIN} --model timm/efficientformer_l1 --image-size 96", r"96 x 96 px: .* a size that works: 224 px"),
        (f"{TRAIN} --model timm/inception_v4 --image-size 32", r"32 x 32 px: .* a size that works: 96, .*299"),
        (
            f"{TRAIN} --model timm/test_vit --image-size 32 student.args.num_heads=7",
            r"num_heads=7.*divisible.* arguments that its constructor takes",
        ),
        (
            "evaluate {folders}/mlp --data digits --image-size 32 --device cpu",
            r"saved at 16 x 16 px: .*\(32, 16\), not \(32, 64\).* mixer_tiny at 32 x 32 px",
        ),
        (
            f"{TRAIN} --model timm/mixer_tiny --init {{folders}}/mlp --image-size 32",
            r"saved at 16 x 16 px: .*\(32, 16\), not \(32, 64\).* mixer_tiny at 32 x 32 px",
        ),
        (
            f"{TRAIN} --model timm/test_vit --init {{folders}}/mlp --image-size 32",
            r"lacks 'cls_token'.* the weights of test_vit",
        ),
    ],
)
def test_a_size_or_weights_that_cannot_be_are_refused(refused, line, said):
    assert re.search(said, refused(line))


@pytest.mark.slow
def test_the_exit_code_of_the_program_itself(tmp_path):
    line = f"{TRAIN} --model timm/nest_tiny --image-size 33 --out {tmp_path / 'out'}"
    done = subprocess.run([sys.executable, "-m", "crossdistill", *line.split()], capture_output=True, text=True)
    assert done.returncode == 2
    assert "a size that works: 16, 32, 48, 64" in re.sub(r"\s+", " ", done.stderr)


def test_an_exported_student_is_evaluated_at_another_size(folders, capsys):
    for size in (32, 48):
        line = f"evaluate {folders / 'vit'} --data digits --image-size {size} --device cpu --json"
        assert cli.run(line.split()) == 0
        assert json.loads(capsys.readouterr().out)
    small, large = build(str(folders / "vit")), build(str(folders / "vit"), image_size=48)
    assert large.spec.stages[0].grid == (6, 6)
    expected = resample_abs_pos_embed(small.net.pos_embed, [6, 6], num_prefix_tokens=1)
    assert torch.equal(large.net.pos_embed, expected)


def test_training_starts_from_weights_of_another_size(folders, tmp_path):
    options = "student.args.patch_size=8 student.args.embed_dim=24 student.args.depth=2 student.args.num_heads=2"
    line = f"{TRAIN} --model vit_tiny_patch16_224 --init {folders / 'vit'} --image-size 64 {options} train.lr=1e-12"
    assert cli.run([*line.split(), "--out", str(tmp_path / "run"), "--json"]) == 0
    before, after = build(str(folders / "vit")).net, build(str(tmp_path / "run"))
    assert after.spec.input.image_size == (64, 64)
    expected = resample_abs_pos_embed(before.pos_embed, [8, 8], num_prefix_tokens=1)
    assert torch.allclose(after.net.pos_embed, expected, atol=1e-6)
