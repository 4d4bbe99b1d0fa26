"""Every recipe that ships can be read, planned and copied; so can one's own, and a finished run's settings."""

import pytest
import yaml

from crossdistill.errors import InputError
from crossdistill.runs import copy_recipe, list_recipes, make_plan, read_recipe, recipe_kind, recipe_path
from crossdistill.runs.folder import RunFolder

NAMES = [recipe["name"] for recipe in list_recipes() if recipe_kind(recipe["name"]) == "run"]
MOST_LINES = 25


def test_recipes_ship():
    assert {"digits/teacher", "digits/few-labels"} <= set(NAMES)
    assert sorted(NAMES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_is_short_described_and_valid(name):
    text = recipe_path(name).read_text()
    assert len(text.splitlines()) <= MOST_LINES
    tree = yaml.safe_load(text)
    assert next(recipe["description"] for recipe in list_recipes() if recipe["name"] == name) == tree["description"]
    assert tree["description"].endswith(".")
    plan = read_recipe(name)
    assert plan.seeds == tuple(tree.get("seeds", [0]))
    assert plan.baseline == tree.get("baseline", False)
    assert plan.settings.student.name == tree["student"]["name"]
    assert plan.settings.train.model_dump(include=set(tree["train"])) == tree["train"]


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_a_recipe_of_ones_own(name, tmp_path):
    mine = tmp_path / "new" / "mine.yaml"
    copy_recipe(name, mine)
    assert mine.read_bytes() == recipe_path(name).read_bytes()
    assert read_recipe(str(mine)) == read_recipe(name)
    mine.write_text("mine")
    with pytest.raises(InputError, match=r"mine\.yaml, which exists"):
        copy_recipe(name, mine)
    assert mine.read_text() == "mine"


def test_overrides_change_a_recipe():
    plan = read_recipe("digits/teacher", ["train.epochs=3", "student.image_size=24"])
    assert (plan.settings.train.epochs, plan.settings.student.image_size) == (3, 24)
    with pytest.raises(InputError, match="did you mean 'epochs'"):
        read_recipe("digits/teacher", ["train.epoch=3"])


def test_an_unknown_recipe_is_named_with_the_nearest_and_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="did you mean 'digits/teacher'"):
        read_recipe("digits/techer")
    with pytest.raises(InputError, match="digits/techer"):
        copy_recipe("digits/techer", tmp_path / "new" / "mine.yaml")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("student: {name: [", "valid YAML"),
        ("- a list", "a mapping of settings"),
        ("description: 3", "with a description"),
        ("{student: {name: x}, data: {source: digits}, seeds: 3}", "seeds 3"),
        ("{student: {name: x}, data: {source: digits}, seeds: [0, 0]}", r"seeds \[0, 0\]"),
        ("{student: {name: x}, data: {source: digits}, seeds: [0], seed: 1}", "seeds in one place"),
        ("{student: {name: x}, data: {source: digits}, sedes: [0]}", "unknown key 'sedes'"),
        ("{student: {name: x}, data: {source: digits}, baseline: true}", "baseline without a teacher"),
    ],
)
def test_a_broken_recipe_is_refused(tmp_path, text, words):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_recipe(str(path))


def test_the_settings_of_a_run_are_a_recipe_that_repeats_it(tmp_path):
    tree = {"student": {"name": "timm/test_vit"}, "data": {"source": "digits"}}
    plan = make_plan(tree, ["train.epochs=2"], seeds=(5,))
    RunFolder(tmp_path).begin(plan.settings)
    assert read_recipe(str(tmp_path / "config.yaml")) == plan
