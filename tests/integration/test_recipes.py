"""Every published recipe trains: its own settings on real files, with small networks in place of the large ones."""

import numpy as np
import pytest
from PIL import Image

from crossdistill.runs import execute, list_recipes, read_recipe

NAMES = [recipe["name"] for recipe in list_recipes() if recipe["name"].split("/")[0] in ("cifar100", "imagenet")]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Sixteen images of 32 px of two classes."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("dark", "light"):
            (root / split / name).mkdir(parents=True)
            for index in range(4):
                pixels = generator.integers(0, 128, (32, 32, 3)) + 127 * (name == "light")
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{index}.png")
    return root


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_small_networks(name, images, tmp_path):
    small = ["student.name=timm/test_vit", "student.image_size=64", "student.init=null", "data.workers=0"]
    small += [f"data.source=folder:{images}", "train.batch_size=4", "train.epochs=2", "train.warmup_epochs=0.4"]
    if "teacher" not in name:
        small += ["teachers.0.name=timm/test_resnet", "teachers.0.image_size=64", "allow_untrained_teacher=true"]
    results = execute(read_recipe(name, small), tmp_path / "run", quiet=True)
    assert results["settings"]["data"]["augment"]["crop"] == "resized"
    student = next(row for row in results["rows"] if row["role"] != "teacher")
    assert 0 <= student["top1_mean"] <= 1
    assert (tmp_path / "run" / "report.html").exists()
