"""A run folder is resumed with the settings it was started with, and with no others."""

import pytest

from crossdistill.errors import InputError
from crossdistill.runs import make_plan
from crossdistill.runs.folder import RunFolder

TREE = {
    "student": {"name": "timm/test_vit"},
    "teachers": [{"name": "runs/teacher"}],
    "data": {"source": "digits"},
}


def settings_of(method, *overrides):
    return make_plan({**TREE, "method": method}, overrides).settings


def resumed(folder, begun, given):
    """The figures of a finished run that was begun with the one and is resumed with the other settings."""
    run = RunFolder(folder)
    run.begin(begun)
    run.write_results({"rows": []})
    return run.check(given, resume=True)


FITNET, KD = {"name": "fitnet"}, {"name": "kd"}


@pytest.mark.parametrize(
    ("method", "other", "words"),
    [
        ({**FITNET, "stages": [1, 2]}, FITNET, r"method\.stages: was 'unset', now None; method\.stages\.0: was 1, now"),
        ({**FITNET, "stages": [1, 2]}, {**FITNET, "stages": [1]}, r"method\.stages\.1: was 2, now 'unset'"),
        ({"name": "fbt", "projection_dim": 7}, {"name": "fbt"}, r"method\.projection_dim: was 7, now None"),
        ({"name": "fbt"}, {"name": "fbt", "projection_dim": 7}, r"method\.projection_dim: was None, now 7"),
        (
            {"name": "hybrid", "methods": {"kd": {}, "rkd": {}}},
            {"name": "hybrid", "methods": {"kd": {}}},
            r"method\.methods\.rkd\.\w+: was .*, now 'unset'",
        ),
        (
            {"name": "hybrid", "weights": {"crd": 0.5}},
            {"name": "hybrid"},
            r"method\.weights: was 'unset', now {}; method\.weights\.crd: was 0\.5, now 'unset'",
        ),
    ],
)
def test_a_finished_run_is_not_that_of_other_options(tmp_path, method, other, words):
    begun, given = settings_of(method), settings_of(other)
    assert resumed(tmp_path, begun, begun) == {"rows": []}
    with pytest.raises(InputError, match=words):
        resumed(tmp_path, begun, given)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.clip_grad=5", r"train\.clip_grad: was 5\.0, now None"),
        ("data.augment.rand_augment=rand-m9", r"data\.augment\.rand_augment: was 'rand-m9', now None"),
        ("data.labels_per_class=3", r"data\.labels_per_class: was 3, now None"),
        ("train.class_weights=[1, 2]", r"train\.class_weights\.0: was 1\.0, now None"),
        ("student.args={depth: 3}", r"student\.args: was None, now {}; student\.args\.depth: was 3, now None"),
        (
            "teachers=[{name: runs/teacher}, {name: runs/other}]",
            r"another teacher .*teachers\.1\.name: was 'runs/other'",
        ),
    ],
)
def test_a_finished_run_is_not_that_of_settings_taken_away(tmp_path, override, words):
    with pytest.raises(InputError, match=words):
        resumed(tmp_path, settings_of(KD, override), settings_of(KD))


def test_what_was_chosen_when_the_run_began_may_be_left_open(tmp_path):
    chosen = ["student.image_size=32", "data.augment.crop=pad", "data.augment.flip=0", "train.epochs=100"]
    assert resumed(tmp_path, settings_of(KD, *chosen), settings_of(KD)) == {"rows": []}
    with pytest.raises(InputError, match=r"student\.image_size: was 32, now 48"):
        resumed(tmp_path, settings_of(KD, *chosen), settings_of(KD, "student.image_size=48"))
