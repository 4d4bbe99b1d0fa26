"""A plan names its single runs; seeds come from one place."""

import pytest

from crossdistill.errors import InputError
from crossdistill.runs import make_plan

TRAIN = {"student": {"name": "timm/test_vit"}, "data": {"source": "digits"}}
DISTIL = {**TRAIN, "teachers": [{"name": "runs/teacher"}], "method": {"name": "kd"}}


def test_one_run_lies_in_the_folder_itself():
    plan = make_plan(TRAIN)
    assert plan.kind == "train"
    assert plan.members() == {".": plan.settings}
    assert plan.settings.seed == 0
    (alone,) = make_plan(DISTIL, seeds=(7,)).members().values()
    assert alone.seed == 7


def test_several_seeds_and_the_baseline_lie_below():
    plan = make_plan(DISTIL, seeds=(3, 1), baseline=True)
    members = plan.members()
    assert plan.kind == "distill"
    assert list(members) == ["student_alone/seed-3", "kd/seed-3", "student_alone/seed-1", "kd/seed-1"]
    for name, settings in members.items():
        assert settings.seed == int(name[-1])
        same = {"student", "data", "train", "device"}
        assert settings.model_dump(include=same) == plan.settings.model_dump(include=same)
    alone, kd = members["student_alone/seed-1"], members["kd/seed-1"]
    assert (alone.method.name, alone.teachers) == ("none", ())
    assert (kd.method.name, len(kd.teachers)) == ("kd", 1)


def test_a_plan_of_plain_training_calls_its_members_student_alone():
    assert list(make_plan(TRAIN, seeds=(0, 1)).members()) == ["student_alone/seed-0", "student_alone/seed-1"]


def test_the_options_of_the_method_are_filled_in():
    plan = make_plan(DISTIL, ["method.temperature=2"])
    assert plan.settings.method.options["temperature"] == 2.0
    assert set(plan.settings.method.options) > {"temperature"}


@pytest.mark.parametrize(
    ("tree", "overrides", "more", "words"),
    [
        (TRAIN, ["seed=3"], {}, "use --seeds"),
        ({**TRAIN, "seed": 3}, [], {}, "use --seeds"),
        (TRAIN, [], {"seeds": ()}, r"seeds \(\)"),
        (TRAIN, [], {"seeds": (0, 1, 0)}, r"seeds \(0, 1, 0\)"),
        (TRAIN, [], {"seeds": (0, -1)}, "whole numbers from 0"),
        (TRAIN, [], {"seeds": (0.5,)}, "whole numbers from 0"),
        (TRAIN, [], {"seeds": 3}, "seeds 3"),
        (TRAIN, [], {"baseline": True}, "a distillation to compare with"),
        (DISTIL, ["method.temprature=2"], {}, "did you mean 'temperature'"),
        (DISTIL, ["method.name=kdd"], {}, "method 'kdd'"),
        ({**DISTIL, "studnt": {}}, [], {}, "did you mean 'student'"),
    ],
)
def test_what_cannot_be_planned(tree, overrides, more, words):
    with pytest.raises(InputError, match=words):
        make_plan(tree, overrides, **more)
