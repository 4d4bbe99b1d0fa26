"""A teacher of other classes: which of them stand for the student's, and what it then answers."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from crossdistill.contracts import Batch, Outputs, Teacher
from crossdistill.errors import InputError
from crossdistill.teachers import (
    EnsembleTeacher,
    FrozenTeacher,
    MappedTeacher,
    check_signals,
    make_class_map,
)
from crossdistill.teachers.class_names import imagenet_names, normal
from oracles import class_maps
from samples.training import Alone, Match, SmallNet, TensorLoader, spec_of

IMAGENET = spec_of("efficientnet", 1000)
PETS = spec_of("pets", 4, ("cat", "dog, hound", "Guinea_pig", "dog, puppy"))
NAMELESS = spec_of("nameless", 7)


def groups(class_map, class_names, spec=IMAGENET):
    return make_class_map(class_map, class_names, spec).groups


def refused(class_map, class_names, spec=IMAGENET):
    with pytest.raises(InputError) as caught:
        make_class_map(class_map, class_names, spec)
    return caught.value


def test_imagenet_classes_are_found_by_synset_description_or_one_of_its_names():
    imagenette = ["tench", "English springer", "cassette_player", "chain saw", "church", "French horn"]
    assert groups("names", imagenette) == ((0,), (217,), (482,), (491,), (497,), (566,))
    assert groups("names", ["n01440764", "N03888257"]) == ((0,), (701,))
    assert groups("names", ["tench, Tinca tinca", "tinca-TINCA "][:1]) == ((0,),)
    assert groups("names", ["tinca-TINCA ", "GARBAGE TRUCK", "Golf-ball"]) == ((0,), (569,), (574,))


def test_a_class_of_imagenet_is_found_by_its_id_in_larger_lists_too():
    for num_classes in (1000, 11821, 21843):
        names = imagenet_names(num_classes)
        assert len(names) == num_classes
        assert groups("names", [names[-1], names[0]], spec_of("x", num_classes)) == ((num_classes - 1,), (0,))
    assert imagenet_names(999) is None


@pytest.mark.parametrize(
    ("name", "candidates"),
    [
        ("crane", ["134 'n02012849' (crane)", "517 'n03126707' (crane)"]),
        ("Maillot", ["638 'n03710637' (maillot)", "639 'n03710721' (maillot, tank suit)"]),
        ("panda", ["387 'n02509815' (lesser panda", "388 'n02510455' (giant panda"]),
    ],
)
def test_a_name_of_two_classes_is_refused_with_both(name, candidates):
    for class_map in ("names", {"tench": 0, name: name}):
        error = refused(class_map, ["tench", name])
        assert f"{name!r}, a name of 2 classes of teacher efficientnet" in error.given
        assert all(one in error.given for one in candidates)
        numbers = [int(one.split()[0]) for one in candidates]
        assert f"({name}: {numbers[0]})" in error.action
        assert f"({name}: {numbers})" in error.action
    as_advised = {"tench": 0, name: numbers}
    assert groups(as_advised, ["tench", name]) == ((0,), tuple(numbers))


def test_a_teacher_is_found_by_its_saved_names():
    assert groups("names", ["guinea pig", "CAT", "puppy", "hound"], PETS) == ((2,), (0,), (3,), (1,))
    assert (
        "'dog', a name of 2 classes of teacher pets: 1 'dog, hound' and 3 'dog, puppy'"
        in refused("names", ["cat", "dog"], PETS).given
    )
    saved = spec_of("saved", 3, ("n02012849", "n99999999", "tench"))  # synsets, one of which nobody knows
    assert groups("names", ["crane", "n99999999", "Tench"], saved) == ((0,), (1,), (2,))


def test_saved_names_win_over_a_number_of_classes_that_imagenet_has_too():
    own = replace(IMAGENET, class_names=tuple(f"flower {number}" for number in range(1000)))
    assert groups("names", ["Flower_7", "flower 0"], own) == ((7,), (0,))
    assert "for 'tench'" in refused("names", ["flower 1", "tench"], own).given


def test_a_teacher_that_has_the_same_classes_maps_onto_itself():
    names = ("a, b", "a", "A")
    assert groups("names", names, spec_of("same", 3, names)) == ((0,), (1,), (2,))


def test_a_mapping_gives_names_numbers_and_lists_of_both():
    mapping = {"fish": ["tench", 1, "n01484850"], "crane": 517, "car": ["sports car"], "dog": 217}
    assert groups(mapping, ["dog", "fish", "car", "crane"]) == ((217,), (0, 1, 2), (817,), (517,))
    assert groups({"a": 6, "b": [0, 3]}, ["a", "b"], NAMELESS) == ((6,), (0, 3))


@pytest.mark.parametrize(("suffix", "write"), [(".json", json.dumps), (".yaml", yaml.safe_dump), (".txt", json.dumps)])
def test_a_file_holds_the_same_mapping(tmp_path, suffix, write):
    path = tmp_path / f"map{suffix}"
    path.write_text(write({"fish": ["tench", 1], "dog": 217}))
    assert groups(str(path), ["dog", "fish"]) == ((217,), (0, 1))


def test_classes_that_are_called_by_numbers(tmp_path):
    path = tmp_path / "map.yaml"
    path.write_text("0: n01440764\n1: 217\n")
    assert groups(str(path), ["0", "1"]) == ((0,), (217,))


def test_a_class_without_a_teacher_class_is_refused_with_the_nearest_names():
    error = refused("names", ["tensch", "chruch", "parachute", "zzzzz", "yyyyy"])
    assert "without a class of teacher efficientnet for 'tensch', 'chruch', 'zzzzz', … (4 in all)" in error.given
    assert "tensch: did you mean 'tench'" in error.action
    assert "chruch: did you mean 'crutch' or 'church'?" in error.action
    assert "zzzzz:" not in error.action
    error = refused({"tench": 0}, ["tench", "church"])
    assert "class map without a class of teacher efficientnet for 'church'" in error.given
    error = refused({"0": 1}, ["0", "1"], NAMELESS)
    assert "without a class of teacher nameless for '1'" in error.given


@pytest.mark.parametrize(
    ("class_map", "class_names", "spec", "given_", "action"),
    [
        ({"a": "tensch", "b": 1}, "ab", IMAGENET, "class map, a: class 'tensch', which teacher eff", "'tench'"),
        ({"a": "cat", "b": 1}, "ab", NAMELESS, "class map, a: class 'cat', which teacher nameless", "give numbers"),
        ({"a": 7, "b": 1}, "ab", NAMELESS, "class map, a: class 7 of teacher nameless", "correct the number"),
        ({"a": -1, "b": 1}, "ab", NAMELESS, "class -1 of teacher", "correct the number"),
        ({"a": [], "b": 1}, "ab", NAMELESS, "no teacher class in a: []", "name one"),
        ({"a": 3, "b": [1, 3]}, "ab", NAMELESS, "class 3 of teacher nameless for 'a' and for 'b'", "another class"),
        ({"a": [1, 1], "b": 0}, "ab", NAMELESS, "class 1 of teacher nameless for 'a' twice", "another class"),
        ({"a": 0, "b": 1, "cc": 2}, "ab", NAMELESS, "with class 'cc', which the data do not have", "known: a, b"),
        ({"a": 0, "b": None}, "ab", NAMELESS, "None is NoneType", "quote the name"),
        ({"a": True, "b": 0}, "ab", NAMELESS, "True is bool", "quote the name"),
        ({"a": [0.5], "b": 0}, "ab", NAMELESS, "0.5 is float", "quote the name"),
        ("names", "ab", NAMELESS, "teacher nameless, whose 7 classes have no names", "map each class to its number"),
        ("names", ["chain saw", "chainsaw"], IMAGENET, "for 'chain saw' and for 'chainsaw'", "another class"),
    ],
)
def test_a_wrong_map_says_what_to_do(class_map, class_names, spec, given_, action):
    error = refused(class_map, list(class_names), spec)
    assert given_ in error.given
    assert action in error.action


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("none.yaml", None, "No such file"),
        ("a.yaml", "a: [1", "valid YAML or JSON"),
        ("a.json", '{"a": 1', "valid YAML or JSON"),
        ("a.yaml", b"\xff\xfe\x00", "valid YAML or JSON"),
        ("a.yaml", "- a\n- b\n", "which is list"),
        ("a.yaml", "", "which is NoneType"),
        ("a.yaml", "no: 3\n", "False is bool"),
    ],
)
def test_a_file_that_is_no_map_is_refused(tmp_path, name, text, words):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    error = refused(str(path), ["a", "b"])
    assert str(path) in error.given
    assert words in str(error)


@given(st.text(" -_aA", max_size=6), st.text(" -_aA", max_size=6))
def test_the_normal_form_is_blind_to_case_and_what_stands_between_words(first, second):
    assert normal(normal(first)) == normal(first)
    plain = first.replace("_", " ").replace("-", " ").lower().split()
    assert (normal(first) == normal(second)) == (plain == second.replace("_", " ").replace("-", " ").lower().split())


class Columns(torch.nn.Module):
    """The logits that the images hold, and stages and an embedding to tell apart."""

    def __init__(self, num_classes, class_names=None):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.spec = spec_of("columns", num_classes, class_names)

    def forward(self, images):
        return Outputs(images * self.scale, images[:, :2], (images[:, :3],))


def mapped(groups_, num_classes, *, view="teacher0"):
    names = [f"s{index}" for index in range(len(groups_))]
    model = Columns(num_classes)
    return MappedTeacher(
        model, make_class_map(dict(zip(names, map(list, groups_), strict=True)), names, model.spec), view=view
    )


def batch_of(logits, view="teacher0"):
    return Batch({view: logits}, torch.zeros(len(logits)).long(), torch.arange(len(logits)))


GROUPS = ((4,), (0, 2, 9), (7, 1), (8,), (3, 6))


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_softmax_is_the_teachers_probability_given_the_students_classes(scale):
    logits = scale * torch.randn(16, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    got = mapped(GROUPS, 11).signals(batch_of(logits)).logits
    assert got.dtype == torch.float64
    expected = torch.tensor(class_maps.conditioned(logits.tolist(), GROUPS), dtype=torch.float64)
    torch.testing.assert_close(got.softmax(1), expected, rtol=1e-12, atol=1e-300)


def test_one_class_for_one_class_passes_the_logits_on_bit_for_bit():
    logits = torch.randn(5, 11)
    got = mapped(((3,), (10,), (0,)), 11).signals(batch_of(logits)).logits
    assert torch.equal(got, logits[:, [3, 10, 0]])


def test_it_is_finite_in_half_precision_where_a_sum_of_exponentials_is_not():
    logits = torch.tensor([[300.0, 299.0, -300.0, -1e4]], dtype=torch.float16)
    got = mapped(((0, 1), (2, 3)), 4).signals(batch_of(logits)).logits
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.tensor([[300.0 + torch.tensor(-1.0).exp().log1p().item(), -300.0]]))


def test_the_rest_of_the_teacher_is_as_it_was():
    logits = torch.randn(6, 11)
    teacher = mapped(GROUPS, 11, view="teacher3")
    outputs = teacher.signals(batch_of(logits, "teacher3"))
    assert isinstance(teacher, Teacher)
    assert torch.equal(outputs.embedding, logits[:, :2])
    assert torch.equal(outputs.stages[0], logits[:, :3])
    assert not outputs.logits.requires_grad
    own = teacher.model.spec
    assert teacher.spec == replace(own, num_classes=5, class_names=("s0", "s1", "s2", "s3", "s4"))
    assert own.num_classes == 11
    assert teacher.view == "teacher3"
    assert not any(module.training for module in teacher.train().modules())


def test_a_method_that_fuses_modules_is_refused():
    class Fuse(Alone):
        needs = frozenset({"logits", "modules"})

    teacher = mapped(GROUPS, 11)
    check_signals(Match, teacher)
    check_signals(Fuse, FrozenTeacher(teacher.model))
    with pytest.raises(InputError, match=r"which holds embedding, logits, stages\n[\s\S]*without a class map"):
        check_signals(Fuse, teacher)


def test_the_fingerprint_covers_the_map_and_the_weights():
    one, other = mapped(((0,), (1,)), 4), mapped(((1,), (0,)), 4)
    assert one.fingerprint() == mapped(((0,), (1,)), 4, view="teacher8").fingerprint()
    plain = FrozenTeacher(one.model).fingerprint()
    renamed = MappedTeacher(one.model, replace(one.class_map, class_names=("x", "y")))
    with torch.no_grad():
        moved = mapped(((0,), (1,)), 4)
        moved.model.scale += 1
    prints = {plain, *(teacher.fingerprint() for teacher in (one, other, renamed, moved))}
    assert len(prints) == 5
    assert all(len(one) == 64 for one in prints)


def test_mapped_and_unmapped_teachers_make_an_ensemble():
    names = ("a", "b", "c", "d")
    batch = TensorLoader().evaluation()[0]
    small = SmallNet()
    small.spec = replace(small.spec, class_names=names)
    big = SmallNet(seed=2)
    big.head = torch.nn.Linear(8, 6)
    big.spec = replace(big.spec, num_classes=6)
    given_ = {"a": 5, "b": [0, 3], "c": 1, "d": 2}
    teacher = MappedTeacher(big, make_class_map(given_, names, big.spec))
    ensemble = EnsembleTeacher([FrozenTeacher(small), teacher], [1.0, 3.0])
    images = batch.images["teacher0"]
    with torch.no_grad():
        alone = small(images).logits.double().softmax(1)
        conditioned = torch.tensor(class_maps.conditioned(big(images).logits.tolist(), [(5,), (0, 3), (1,), (2,)]))
    torch.testing.assert_close(ensemble.signals(batch).logits.exp(), (alone / 4 + conditioned * 3 / 4).float())
    with pytest.raises(InputError, match="small with 4 classes and small with 6"):
        EnsembleTeacher([FrozenTeacher(small), FrozenTeacher(big)])
