"""What makes the images of two runs the same: every fact that changes a pixel, and none that does not."""

import json
from dataclasses import replace

import numpy as np
import pytest

from crossdistill.contracts import InputSpec
from crossdistill.data import open_source
from crossdistill.runs.identity import images_section, order_section, views_section
from crossdistill.settings import AugmentSettings, DataSettings
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
