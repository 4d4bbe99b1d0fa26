"""What makes the images of two runs the same: every fact that changes a pixel, and none that does not."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest

from crossdistill.contracts import InputSpec
from crossdistill.data import open_source
from crossdistill.errors import InputError
from crossdistill.runs import Keep, load_store_settings
from crossdistill.runs.identity import WORDS, images_section, order_section, views_section
from crossdistill.runs.store_pass import compose_pass
from crossdistill.settings import AugmentSettings, DataSettings, TeacherSettings
from crossdistill.store import Store, StoreWriter
from samples import image_folder

IDS, LABELLED = np.arange(9), np.ones(9, dtype=bool)
ORDER = {"batch_size": 4, "mixed": True}


def source_of(root):
    return open_source(DataSettings(source=f"folder:{root}")).train


def changed(one, other):
    return {key for key in one if one[key] != other[key]}


def test_images_are_those_of_the_same_files_labels_seed_and_changes(tmp_path):
    first = image_folder.make(tmp_path / "first", ["ant", "bee"])
    copy = source_of(image_folder.make(tmp_path / "copy", ["ant", "bee"]))
    augment, facts = AugmentSettings(crop="pad", flip=0.5), {"seed": 1, "balanced": False}
    section = images_section(source_of(first), augment, **facts)
    assert section == json.loads(json.dumps(section)) == images_section(copy, augment, **facts)
    assert changed(section, images_section(copy, augment, seed=2, balanced=False)) == {"seed"}
    assert changed(section, images_section(copy, augment, seed=1, balanced=True)) == {"sampling"}
    erased = augment.model_copy(update={"erase": 0.1})
    assert changed(section, images_section(copy, erased, **facts)) == {"augment"}
    (first / "train" / "bee" / "0.png").rename(first / "train" / "bee" / "00.png")
    assert changed(section, images_section(source_of(first), augment, **facts)) == {"source_sha256"}


def test_the_order_is_that_of_the_images_and_of_what_decides_who_is_mixed_with_whom():
    section = order_section(IDS, LABELLED, **ORDER)
    assert section == order_section(IDS[::-1], LABELLED, **ORDER)
    assert changed(section, order_section(IDS[:-1], LABELLED, **ORDER)) == {
        *("num_images", "ids_sha256", "labelled_sha256")
    }
    assert changed(section, order_section(IDS, IDS > 0, **ORDER)) == {"labelled_sha256"}
    plain = order_section(IDS, LABELLED, batch_size=3, mixed=False)
    assert plain == order_section(IDS, IDS > 0, batch_size=4, mixed=False)


@pytest.mark.parametrize(("batch_size", "alike"), [(2, True), (6, True), (9, True), (11, True), (3, False), (7, False)])
def test_pairs_depend_on_the_size_of_a_step_only_where_a_whole_one_leaves_an_image_alone(batch_size, alike):
    one, other = (order_section(IDS, LABELLED, batch_size=size, mixed=True) for size in (4, batch_size))
    assert (one == other) is alike


def test_what_a_network_is_shown_in_evaluation_does_not_count():
    spec = InputSpec((32, 32), 3, (0.5,) * 3, (0.5,) * 3)
    section = views_section({"teacher0": spec})
    assert section == views_section({"teacher0": replace(spec, crop_pct=0.5)})
    assert section != views_section({"teacher0": replace(spec, interpolation="bilinear")})


def answers_of(root, *overrides):
    """The parts of a pass; nobody is asked."""
    tree = {"teachers": [{"name": "timm/test_resnet", "image_size": 24}], "data": {"source": "digits"}}
    return compose_pass(load_store_settings(tree, [one.format(root=root) for one in (*BASE, *overrides)]), Keep(), None)


BASE = ("data.limit_train=96", "train.batch_size=24", "device=cpu", "data.workers=0", "data.seed=0")
BASE += ("data.augment.mixup=0.8", "data.augment.cutmix=0.5", "data.augment.crop=resized")
FOLDER = ("data.source=folder:{root}/pets", "data.limit_train=null")
PAD = ("data.augment.crop=pad",)
BEST = ("train.select=best",)
# What changes it, and what else both sides have; or why it does not count.
DATA = {
    "source": (("data.source=folder:{root}/pets", "data.limit_train=null"), ()),
    "unlabelled": "images without classes are pretrained on, where no answers are stored",
    "train_split": (("data.train_split=val", "data.evaluation_split=train"), FOLDER),
    "evaluation_split": "the teacher's accuracy is a fact of the store; runs say where theirs is another",
    "seed": (("data.seed=1",), ()),
    "cycle_epochs": "which of the stored epochs are shown; `store` refuses more epochs than that",
    "val_share": (("data.val_share=0.3",), BEST),
    "limit_train": (("data.limit_train=80",), ()),
    "train_list": "which images these are is in the hash of the source, see above",
    "first_per_class": (("data.first_per_class=11",), ()),
    "labels_per_class": (("data.labels_per_class=2",), ()),
    "image_column": "of tables, see the test below",
    "label_column": "its labels are in the hash of the source, see above",
    "sampling": (("data.sampling=class_balanced",), ()),
    "stream": "remote streams are refused",
    "eval_crop_pct": "the teacher's accuracy is a fact of the store; runs say where theirs is measured otherwise",
    "augment_on": "the same pixels but for rounding",
    "workers": "who makes a batch decides nothing of it",
    "max_corrupt_share": "when to stop",
    "augment": "field by field, below",
}
AUGMENT = {
    "crop": (PAD, ()),
    "padding": (("data.augment.padding=0.2",), PAD),
    "scale": (("data.augment.scale=[0.2, 1.0]",), ()),
    "ratio": (("data.augment.ratio=[0.5, 2.0]",), ()),
    "flip": (("data.augment.flip=0.25",), ()),
    "interpolation": (("data.augment.interpolation=random",), ()),
    "rand_augment": (("data.augment.rand_augment=rand-m5",), ()),
    "color_jitter": (("data.augment.color_jitter=0.1",), ()),
    "erase": (("data.augment.erase=0.1",), ()),
    "mixup": (("data.augment.mixup=0.2",), ()),
    "cutmix": (("data.augment.cutmix=0.2",), ()),
    "mix_probability": (("data.augment.mix_probability=0.5",), ()),
    "cutmix_share": (("data.augment.cutmix_share=0.1",), ()),
}
TEACHER = {
    "name": (("teachers.0.name=timm/test_nfnet",), ()),
    "image_size": (("teachers.0.image_size=32",), ()),
    "init": "where weights come from; they are compared by hash",
    "new_classifier": "of those weights; they are compared by hash",
    "stages": {"stages": ("stages.0", "stages.1")},
    "args": {"args": {"drop_rate": 0.1}},
    "weight": "in the hash of several, with their weights; see the teachers' tests",
    "class_map": {"class_map": "names"},
}
INPUT = {
    "image_size": (16, 16),
    "num_channels": 1,
    "mean": (0.1, 0.1, 0.1),
    "std": (0.2, 0.2, 0.2),
    "crop_pct": "of evaluation only",
    "interpolation": "bilinear",
}
CHANGES = {
    f"{kind}.{name}": how
    for kind, table in (("data", DATA), ("augment", AUGMENT))
    for name, how in table.items()
    if not isinstance(how, str)
}


def test_every_setting_is_compared_or_said_to_have_no_effect():
    assert set(DATA) == set(DataSettings.model_fields)
    assert set(AUGMENT) == set(AugmentSettings.model_fields)
    assert set(TEACHER) == set(TeacherSettings.model_fields)
    assert set(INPUT) == {field.name for field in fields(InputSpec)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    image_folder.make(tmp_path_factory.getbasetemp() / "identity" / "pets", ["ant", "bee"], num_images=12)
    return tmp_path_factory.getbasetemp() / "identity"


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_that_counts_is_refused_where_it_differs(root, tmp_path, name):
    change, both = CHANGES[name]
    stored, now = answers_of(root, *both), answers_of(root, *both, *change)
    StoreWriter.open(tmp_path, stored.manifest({}))
    images = {section: stored.identity[section] for section in ("images", "order")}
    Store.open(tmp_path).check_same(images, WORDS)
    with pytest.raises(InputError, match="made otherwise"):
        Store.open(tmp_path).check_same({section: now.identity[section] for section in images}, WORDS)


@pytest.mark.parametrize("name", [name for name, how in TEACHER.items() if not isinstance(how, str)])
def test_another_teacher_may_not_go_on(root, tmp_path, name):
    stored, change = answers_of(root), TEACHER[name]
    if isinstance(change, dict):  # with the same weights, and the same view
        one = stored.settings.teachers[0].model_copy(update=change)
        now = replace(stored, settings=stored.settings.model_copy(update={"teachers": (one,)}))
    else:
        now = answers_of(root, *change[0])
    StoreWriter.open(tmp_path, stored.manifest({}))
    store = Store.open(tmp_path)
    store.check_same({"teacher": answers_of(root).identity["teacher"]}, WORDS)
    with pytest.raises(InputError, match=f"networks.0.{name}|weights differ"):
        store.check_same({"teacher": now.identity["teacher"]}, WORDS)


@pytest.mark.parametrize("name", INPUT)
def test_a_view_counts_but_for_what_is_of_evaluation(name):
    spec = InputSpec((32, 32), 3, (0.5,) * 3, (0.5,) * 3)
    other = replace(spec, **{name: 0.5 if isinstance(INPUT[name], str) and name == "crop_pct" else INPUT[name]})
    assert (views_section({"view": spec}) == views_section({"view": other})) is (name == "crop_pct")


def test_the_column_and_the_pixels_of_images_count(tmp_path):
    folder = image_folder.make(tmp_path, ["ant", "bee"])
    facts = {"seed": 1, "balanced": False}
    section = images_section(source_of(folder), AugmentSettings(), **facts)
    other = images_section(source_of(folder), AugmentSettings(), **facts, image_column="thermal")
    assert changed(section, other) == {"image_column"}
    (folder / "train" / "ant" / "0.png").write_bytes((folder / "train" / "ant" / "1.png").read_bytes())
    assert changed(section, images_section(source_of(folder), AugmentSettings(), **facts)) == {"pixels_sha256"}
    (folder / "train" / "ant" / "0.png").write_bytes(b"damaged")
    assert changed(section, images_section(source_of(folder), AugmentSettings(), **facts)) <= {"pixels_sha256"}
