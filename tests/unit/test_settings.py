"""Settings: strict, overridden by ``key=value``, and wrong ones answered with what to do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdistill import settings
from crossdistill.errors import InputError

TREE = {
    "student": {"name": "timm/resnet18"},
    "teachers": [{"name": "timm/vit_tiny_patch16_224@teacher"}],
    "method": {"name": "kd"},
    "data": {"source": "digits"},
}


def test_overrides_reach_every_level():
    made = settings.load(
        TREE,
        ["seed=3", "train.lr=1e-2", "student.args.num_heads=2", "method.temperature=2.5", "teachers.0.image_size=32"],
    )
    assert made.seed == 3
    assert made.train.lr == 0.01
    assert made.student.args == {"num_heads": 2}
    assert made.method.options == {"temperature": 2.5}
    assert made.teachers[0].image_size == 32
    assert TREE["data"] == {"source": "digits"}, "the given tree must not change"


@pytest.mark.parametrize(
    ("override", "given_", "action"),
    [
        ("train.lrr=1", "unknown key 'train.lrr'", "'lr'"),
        ("data.augment.crp=pad", "unknown key 'data.augment.crp'", "'crop'"),
        ("trian.lr=1", "unknown key 'trian'", "'train'"),
        ("train.lr=fast", "train.lr = 'fast'", "change train.lr"),
        ("train.schedule=cosin", "train.schedule = 'cosin'", "change train.schedule"),
        ("train.lr", "override 'train.lr'", "equals sign"),
        ("teachers.4.weight=2", "key 'teachers.4.weight'", "count from 0"),
        *(
            (f"teachers.0.weight={text}", f"teachers.0.weight = {value}", "change teachers.0.weight")
            for text, value in ((".inf", "inf"), (".nan", "nan"), ("0", "0"), ("-1", "-1"))
        ),
        ("seed.x=2", "key 'seed.x'", "shorten"),
        ("train.lr=[1", "override 'train.lr=[1'", "quote"),
    ],
)
def test_a_wrong_override_says_what_to_do(override, given_, action):
    tree = {**TREE, "seed": 1}
    with pytest.raises(InputError) as caught:
        settings.load(tree, [override])
    assert given_ in caught.value.given
    assert action in caught.value.action


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["train.epochs=2", "train.steps=5"], r"train\.epochs=2 and train\.steps=5[\s\S]*one of them"),
        (["method.name=none"], r"trains the student alone, and teacher 'timm/vit_tiny_patch16_224@teacher'"),
        (["teachers=[]"], "method 'kd' without a teacher"),
    ],
)
def test_settings_that_disagree_are_refused(overrides, text):
    with pytest.raises(InputError, match=text):
        settings.load(TREE, overrides)


@pytest.mark.parametrize(
    ("given_", "kept"),
    [
        ("names", "names"),
        ("maps/pets.yaml", "maps/pets.yaml"),
        ("{0: tench, dog: [151, spaniel]}", {"0": "tench", "dog": [151, "spaniel"]}),
        ("null", None),
    ],
)
def test_a_class_map_survives_being_recorded(given_, kept):
    made = settings.load(TREE, [f"teachers.0.class_map={given_}"])
    assert made.teachers[0].class_map == kept
    assert settings.load(made.model_dump(mode="json")) == made


@pytest.mark.parametrize(
    "given_", ["3", "[a, b]", "{a: null}", "{a: {b: c}}", "{no: a}", "{a: [1, 0.5]}", "{0: 1, '0': 2}"]
)
def test_a_class_map_of_another_kind_is_refused(given_):
    with pytest.raises(InputError, match="given: class_map"):
        settings.load(TREE, [f"teachers.0.class_map={given_}"])


def test_a_class_that_is_mapped_as_a_number_and_as_text_is_refused():
    with pytest.raises(InputError, match=r"class map with class '0' twice, as a number and as text"):
        settings.check_class_map({0: "tench", "0": "goldfish"}, "class map")


def test_a_missing_value_is_named():
    with pytest.raises(InputError, match=r"no value for 'data\.source'"):
        settings.load({**TREE, "data": {}})


def test_options_come_from_the_signature_of_build():
    def build(cls, student_spec, teacher_spec, *, num_classes: int, modules: None = None, temperature: float = 4.0):
        """A stand-in for a method's build."""

    assert settings.resolve_options("kd", build, {}) == {"temperature": 4.0}
    assert settings.resolve_options("kd", build, {"temperature": 2}) == {"temperature": 2.0}
    with pytest.raises(InputError, match=r"method\.temprature.*\n.*\n.*'temperature'"):
        settings.resolve_options("kd", build, {"temprature": 2})
    with pytest.raises(InputError, match=r"method\.temperature"):
        settings.resolve_options("kd", build, {"temperature": "hot"})


def test_a_settings_file_that_is_wrong(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        settings.read(tmp_path / "none.yaml")
    file = tmp_path / "a.yaml"
    file.write_text("- 1\n- 2\n")
    with pytest.raises(InputError, match="holds list"):
        settings.read(file)
    file.write_text("a: [1\n")
    with pytest.raises(InputError, match="valid YAML"):
        settings.read(file)


@given(st.floats(min_value=1e-9, max_value=1e9, allow_nan=False))
def test_any_float_survives_an_override(value):
    assert settings.parse_override(f"train.lr={value!r}") == ("train.lr", value)


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(), min_size=1))
def test_settings_survive_yaml(tmp_path_factory, args):
    import yaml

    made = settings.load({**TREE, "student": {"name": "timm/resnet18", "args": args}})
    file = tmp_path_factory.mktemp("yaml") / "config.yaml"
    file.write_text(yaml.safe_dump(made.model_dump(mode="json")))
    assert settings.read(file) == made


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.augment.scale=[0.5]", r"data\.augment\.scale with 1 value\(s\)[\s\S]*at least 2"),
        ("data.augment.scale=[0, 1]", r"data\.augment\.scale=\[0\.0, 1\.0\]"),
        ("train.class_weights=inverse", r"train\.class_weights = 'inverse'\n *expected: 'balanced', or"),
        ("train.class_weights=[]", "at least 1 item"),
        ("data.augment.mixup=.inf", "a finite number"),
        ("train.class_weights=[1, .nan]", r"train\.class_weights = [\s\S]*a finite number"),
        ("data.eval_crop_pct=0.001", r"greater than or equal to 0\.05"),
    ],
)
def test_a_value_that_is_none_is_told_by_the_key_that_was_written(override, words):
    with pytest.raises(InputError, match=words):
        settings.load(TREE, [override])


def test_milestones_are_those_of_a_step_schedule():
    with pytest.raises(InputError, match="milestones of the step schedule"):
        settings.load(TREE, ["train.milestones=[3]"])
