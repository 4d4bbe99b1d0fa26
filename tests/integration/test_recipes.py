"""Every published recipe trains: its own settings on real files, with small networks in place of the large ones."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from crossdistill import selfsup
from crossdistill.errors import InputError
from crossdistill.registry import METHODS
from crossdistill.runs import execute, list_recipes, read_recipe, recipe_kind
from crossdistill.runs.compose import compose

ALL = [recipe["name"] for recipe in list_recipes()]
PRETRAINING = [name for name in ALL if recipe_kind(name) == "pretrain"]
NAMES = [name for name in ALL if name.split("/")[0] in ("cifar100", "imagenet") and name not in PRETRAINING]
PILOT = [name for name in ALL if name.startswith("pilot/")]


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


# It takes a minute on one core.
SLOW = ("cifar100/ofa-transformer",)


@pytest.mark.parametrize("name", [pytest.param(one, marks=pytest.mark.slow) if one in SLOW else one for one in NAMES])
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


@pytest.mark.parametrize("name", PRETRAINING)
def test_a_recipe_of_pretraining_trains_small_networks(name, images, tmp_path):
    small = ["student.name=timm/test_resnet", "student.image_size=32", "student.args={output_stride: 8}"]
    small += ["student.stages=[layer1, layer2, layer3, layer4]", "method.num_words=16", "method.border=null"]
    small += [f"data.source=folder:{images}", "data.label_column=null", "data.limit_train=null", "data.workers=0"]
    small += [
        "views.crop_size=24",
        "views.patch_size=12",
        "views.patch_base=40",
        "train.batch_size=4",
        "train.epochs=2",
    ]
    settings, seeds = selfsup.read_recipe(name, [*small, "train.eval_every=1", "device=cpu"])
    results = selfsup.execute(settings, tmp_path / "run", seeds=seeds, quiet=True)
    assert {row["role"] for row in results["rows"]} == {"pretrained"}
    assert (tmp_path / "run" / "report.html").exists()
    with pytest.raises(InputError, match="one of pretraining"):
        read_recipe(name)


def trains_a_teacher(name):
    return "teacher" in name


def pilot_plan(name, images, *more):
    """The plan of a recipe of the pilot with its own networks and method, a teacher at hand and sixteen images."""
    own = [f"data.source=folder:{images}", "data.label_column=null", "data.limit_train=null", "data.workers=0"]
    own += ["train.batch_size=4", "device=cpu"]
    if read_recipe(name).settings.teachers:
        own += ["teachers.0.name=timm/test_resnet", "teachers.0.image_size=32", "allow_untrained_teacher=true"]
    return read_recipe(name, [*own, *more])


@pytest.mark.parametrize("name", PILOT)
def test_a_recipe_of_the_pilot_can_be_built(name, images):
    plan = pilot_plan(name, images)
    parts = compose(plan.settings)
    assert parts.student.spec.input.image_size == (32, 32)
    if trains_a_teacher(name):
        return
    assert plan.settings.method.name == name.removeprefix("pilot/")
    assert plan.seeds == (0, 1, 2)
    budget = read_recipe("pilot/none").settings
    assert plan.settings.student == budget.student
    assert read_recipe(name).settings.train == budget.train, "all methods have the same budget"


def test_every_method_has_a_recipe_in_the_pilot():
    distilling = {name for name in PILOT if not trains_a_teacher(name)}
    assert {record.name for record in METHODS} == {name.removeprefix("pilot/") for name in distilling}


def test_a_recipe_of_the_pilot_trains(images, tmp_path):
    plan = replace(pilot_plan("pilot/hybrid", images, "train.steps=2"), seeds=(0,))
    results = execute(plan, tmp_path / "run", quiet=True)
    (line, *_) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(f'"{loss}"' in line for loss in ("cross_entropy", "kd", "crd_student", "crd_teacher"))
    assert {row["role"] for row in results["rows"]} == {"distilled", "teacher"}
