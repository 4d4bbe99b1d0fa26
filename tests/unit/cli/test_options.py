"""Options become settings: each where it belongs, and what help states as the default is the default."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdistill import cli
from crossdistill.cli.app import app
from crossdistill.cli.options import parse_seeds, settings_tree
from crossdistill.errors import InputError
from crossdistill.settings import Settings

OPTIONS = {
    "--epochs 3": "train.epochs=3",
    "--steps 3": "train.steps=3",
    "--batch-size 7": "train.batch_size=7",
    "--lr 0.5": "train.lr=0.5",
    "--precision bf16": "train.precision=bf16",
    "--val-share 0.3": "data.val_share=0.3",
    "--limit-train 50": "data.limit_train=50",
    "--labels-per-class 5": "data.labels_per_class=5",
    "--image-size 24": "student.image_size=24",
    "--init weights.pth": "student.init=weights.pth",
    "--device cpu": "device=cpu",
}
DISTILL = "distill --teacher a --teacher b --student timm/resnet18 --method dkd --data digits --out run"


@pytest.fixture
def planned(monkeypatch):
    """The plan of a command line, which is not carried out, and how it would have been."""

    def run(line):
        seen = {}

        def execute(plan, out, **how):
            seen.update(plan=plan, out=out, how=how)
            return {"dry_run": {}}

        monkeypatch.setattr("crossdistill.runs.execute", execute)
        assert cli.run(shlex.split(line)) == 0
        return seen

    return run


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_the_setting_of_that_name(option, planned):
    assert planned(f"{DISTILL} {option}")["plan"] == planned(f"{DISTILL} {OPTIONS[option]}")["plan"]
    assert planned(f"{DISTILL} {option}")["plan"] != planned(DISTILL)["plan"]


def test_a_class_map_is_that_of_every_teacher(planned):
    settings = "teachers.0.class_map=names teachers.1.class_map=names"
    assert planned(f"{DISTILL} --class-map names")["plan"] == planned(f"{DISTILL} {settings}")["plan"]
    (one, other) = planned(f"{DISTILL} --class-map a.yaml teachers.1.class_map=null")["plan"].settings.teachers
    assert (one.class_map, other.class_map) == ("a.yaml", None)


def test_a_setting_wins_over_an_option(planned):
    assert planned(f"{DISTILL} --lr 0.5 train.lr=0.25")["plan"].settings.train.lr == 0.25


def test_what_is_not_given_is_the_default(planned):
    settings = planned(DISTILL)["plan"].settings
    assert [teacher.name for teacher in settings.teachers] == ["a", "b"]
    assert settings.method.name == "dkd"
    assert settings.student.name == "timm/resnet18"
    named = {"student": {"name": "timm/resnet18"}, "teachers": [{"name": "a"}, {"name": "b"}]}
    expected = Settings.model_validate({**named, "method": settings.method, "data": {"source": "digits"}})
    assert settings == expected


def test_flags_reach_the_run(planned):
    seen = planned(f"{DISTILL} --seeds 3,1 --baseline --resume --dry-run --json")
    assert seen["plan"].seeds == (3, 1)
    assert seen["plan"].baseline
    assert seen["how"] == {"resume": True, "dry_run": True, "quiet": True}
    assert str(seen["out"]) == "run"


def test_train_has_no_teacher(planned):
    settings = planned("train --model timm/resnet18 --data digits --out run")["plan"].settings
    assert settings.teachers == ()
    assert settings.method.name == "none"


def test_the_defaults_that_help_states_are_those_of_the_settings():
    import typer

    defaults = Settings.model_validate({"student": {"name": "x"}, "data": {"source": "digits"}})
    stated = {
        option.opts[0]: option.show_default
        for option in typer.main.get_command(app).commands["train"].params
        if isinstance(getattr(option, "show_default", None), str)
    }
    words = {None: {"all", "the model's own"}, "auto": {"auto"}}
    found = {
        "--batch-size": defaults.train.batch_size,
        "--lr": defaults.train.lr,
        "--precision": defaults.train.precision,
        "--val-share": defaults.data.val_share,
        "--device": defaults.device,
        "--limit-train": defaults.data.limit_train,
        "--labels-per-class": defaults.data.labels_per_class,
        "--image-size": defaults.student.image_size,
    }
    assert stated.keys() - {"--epochs"} == found.keys()
    for option, value in found.items():
        assert stated[option] in words.get(value, {str(value)}), option


@given(st.lists(st.integers(0, 10**6), min_size=1, unique=True))
def test_seeds_are_read(seeds):
    assert parse_seeds(",".join(map(str, seeds))) == tuple(seeds)


@pytest.mark.parametrize("text", ["", "a", "0,", "1.5", "0;1"])
def test_seeds_that_are_none(text):
    with pytest.raises(InputError, match=r"--seeds 0,1,2"):
        parse_seeds(text)


def test_a_tree_holds_what_is_given():
    assert settings_tree(a__b__c=1, a__b__d=0, a__e=None, f=False, g__h=None) == {
        "a": {"b": {"c": 1, "d": 0}},
        "f": False,
    }
