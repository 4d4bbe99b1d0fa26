import hashlib
import io
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from crossdistill.data import HeldSource, open_source
from crossdistill.data.duplicates import crossing, find_duplicates
from crossdistill.data.scan import digest, scan
from crossdistill.data.sources.arrays import ArraySource
from crossdistill.data.sources.subset import Subset
from crossdistill.settings import DataSettings

NAMES = ("ant", "bee", "cat")


def source(name, pixels, targets=None):
    """Images of one pixel each, of these values."""
    targets = [0] * len(pixels) if targets is None else targets
    images = np.array(pixels, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return ArraySource(name, images, np.array(targets, dtype=np.int64), NAMES)


@given(st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1))
def test_counts_are_those_of_comparing_every_two_images(pixels):
    found = find_duplicates({name: source(name, values) for name, values in pixels.items()})
    names = list(pixels)
    assert len(found.overlaps) == len(names) * (len(names) + 1) // 2
    for later_place, later in enumerate(names):
        repeats = sum(value in pixels[later][:index] for index, value in enumerate(pixels[later]))
        assert found.between(later, later).num_images == repeats
        for earlier in names[:later_place]:
            both = sum(value in pixels[earlier] for value in pixels[later])
            assert found.between(earlier, later).num_images == both


def test_a_pair_is_named_by_both_places_and_labels():
    train, test = source("train", [5, 6, 7, 6], [0, 1, 2, 1]), source("test", [9, 6, 5], [0, 2, 0])
    found = find_duplicates({"train": train, "test": test})
    (within,) = found.between("train", "train").examples
    assert (within.earlier.where, within.later.where) == ("train, image 1", "train, image 3")
    assert (within.earlier.class_name, within.later.class_name) == ("bee", "bee")
    across = found.between("train", "test")
    assert (across.num_images, across.num_other_label) == (2, 1)
    first, second = across.examples
    assert (first.earlier.class_name, first.later.class_name) == ("bee", "cat"), "labels that differ come first"
    assert (second.earlier.index, second.later.index) == (0, 2)


def test_a_missing_label_contradicts_none():
    found = find_duplicates({"train": source("train", [1, 2], [0, -1]), "test": source("test", [1, 2], [-1, 1])})
    across = found.between("train", "test")
    assert (across.num_images, across.num_other_label) == (2, 0)
    assert {(pair.earlier.class_name, pair.later.class_name) for pair in across.examples} == {
        ("ant", None),
        (None, "bee"),
    }


def test_only_the_first_pairs_are_named():
    found = find_duplicates({"train": source("train", [0] * 9)}, num_examples=3)
    assert found.between("train", "train").num_images == 8
    assert [pair.later.index for pair in found.between("train", "train").examples] == [1, 2, 3]


def test_the_same_pixels_in_other_files_are_found(tmp_path, make_picture):
    """A PNG, a BMP and a WebP without loss of one picture: other bytes, the same pixels."""
    for split, kind in (("train", "png"), ("test", "bmp"), ("val", "webp")):
        for seed, name in enumerate(NAMES):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            own = 100 * len(split) if name == "cat" else seed
            make_picture(own).save(folder / f"0.{kind}", **({"lossless": True} if kind == "webp" else {}))
    splits = open_source(DataSettings(source=f"folder:{tmp_path}"))
    sources = {"train": splits.train, "val": splits.validation, "test": splits.evaluation}
    found = find_duplicates(sources)
    for earlier, later, count in (("train", "val", 2), ("train", "test", 2), ("val", "test", 2), ("test", "test", 0)):
        assert found.between(earlier, later).num_images == count, (earlier, later)
    quick = find_duplicates(sources, {name: scan(one, quick=True) for name, one in sources.items()})
    assert all(one.num_images == 0 for one in quick.overlaps), "as files they differ"


def test_a_copied_file_is_found_without_decoding(tmp_path, write_tree):
    write_tree(tmp_path / "train", {"ant": 2, "bee": 2})
    write_tree(tmp_path / "test", {"ant": 1, "bee": 1}, first_seed=2)
    splits = open_source(DataSettings(source=f"folder:{tmp_path}"))
    sources = {"train": splits.train, "test": splits.evaluation}
    for quick in (False, True):
        found = find_duplicates(sources, {name: scan(one, quick=quick) for name, one in sources.items()})
        across = found.between("train", "test")
        assert (across.num_images, across.num_other_label) == (2, 1)
        assert across.examples[0].later.where == str(tmp_path / "test" / "ant" / "000.png")


@given(st.integers(1, 3), st.integers(1, 3), st.data())
def test_a_hash_tells_shapes_and_values_apart(height, width, data):
    values = st.lists(st.integers(0, 255), min_size=height * width, max_size=height * width)
    first, second = (np.array(data.draw(values), dtype=np.uint8).reshape(1, height, width) for _ in range(2))
    assert (digest(first) == digest(second)) == bool((first == second).all())
    assert (digest(first) == digest(first.reshape(1, width, height))) == (height == width)
    assert digest(torch.from_numpy(first)) == digest(first)
    assert digest(np.asfortranarray(first)) == digest(first)


def test_unreadable_images_equal_no_other(tmp_path, write_tree):
    write_tree(tmp_path, {"ant": 4, "bee": 4})
    for name in ("ant", "bee"):
        (tmp_path / name / "000.png").write_bytes(b"not an image")
    root = open_source(DataSettings(source=f"folder:{tmp_path}"))
    sources = {"train": root.train, "val": root.evaluation}
    assert sum(len(scan(one).unreadable) for one in sources.values()) == 2
    assert all(one.num_images == 0 for one in find_duplicates(sources).overlaps)


def test_no_crossing_no_warning():
    assert crossing(HeldSource(source("train", [1, 2])), HeldSource(source("test", [3, 4, 3]))) is None


@pytest.mark.parametrize(("test", "says"), [([3, 1], "1 image of the 2 "), ([2, 1, 1, 3], "3 images of the 4 ")])
def test_crossing_images_are_counted(test, says):
    warning = crossing(HeldSource(source("train", [1, 2, 1])), HeldSource(source("test", test)))
    assert warning.startswith(says)
    assert "crossdistill data" in warning


def test_only_images_trained_on_count():
    train, test = HeldSource(source("train", [1, 2, 3])), HeldSource(source("test", [1, 2, 3]))
    assert crossing(train, test, np.array([2])).startswith("1 image of the 3 ")


def test_sets_too_large_to_hold_are_not_compared():
    train, test = source("train", [1, 2]), source("test", [1, 2])
    assert crossing(HeldSource(train, limit_bytes=1), HeldSource(test)) is None
    assert crossing(HeldSource(train), HeldSource(test, limit_bytes=1)) is None
    assert crossing(train, HeldSource(test)) is None, "nor are sources that read nothing ahead"


def test_crossing_reads_around_corrupt_images(tmp_path, write_tree):
    write_tree(tmp_path / "train", {"ant": 3, "bee": 3})
    write_tree(tmp_path / "test", {"ant": 3, "bee": 3})
    (tmp_path / "train" / "ant" / "001.png").write_bytes(b"no image")
    (tmp_path / "test" / "bee" / "002.png").write_bytes(b"no image")
    splits = open_source(DataSettings(source=f"folder:{tmp_path}"))
    assert crossing(splits.train, splits.evaluation).startswith("4 images of the 6 ")


def test_a_subset_s_images_are_those_of_its_source(tmp_path, write_tree):
    write_tree(tmp_path / "train", {"ant": 3, "bee": 2})
    write_tree(tmp_path / "test", {"ant": 1, "bee": 1})
    whole = open_source(DataSettings(source=f"folder:{tmp_path}")).train
    ids = np.array([4, 1])
    for quick in (False, True):
        everything, some = scan(whole, quick=quick), scan(HeldSource(Subset(whole, ids, "some")), quick=quick)
        assert some.digests == tuple(everything.digests[index] for index in ids)
        assert some.formats == {"PNG": 2}
        assert (some.shapes == everything.shapes[ids]).all()


def test_watchers_hear_of_every_image():
    heard = []
    scan(source("train", list(range(256)) * 5), watch=heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == 1280
    assert len(heard) < 10


def test_the_two_test_images_that_cifar_100_has_twice(shared):
    """Two test images are there twice; here they are found among 200 others."""
    import pyarrow.parquet as pq

    folder = shared("data/cifar100")
    test = [row["bytes"] for row in pq.read_table(folder / "test-00000-of-00001.parquet")["image"].to_pylist()]
    counts = Counter(hashlib.sha256(content).digest() for content in test)
    twice = [index for index, content in enumerate(test) if counts[hashlib.sha256(content).digest()] > 1]
    assert len(twice) == 4, "two images, twice each"
    chosen = sorted({*twice, *random.Random(0).sample(range(len(test)), 200)})
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(test[index]))) for index in chosen]).transpose(0, 3, 1, 2)
    some = ArraySource("some", pixels, np.zeros(len(chosen), dtype=np.int64), NAMES)
    found = find_duplicates({"some": some}).between("some", "some")
    assert found.num_images == 2
    assert {chosen[index] for pair in found.examples for index in (pair.earlier.index, pair.later.index)} == set(twice)


@pytest.mark.slow
def test_cifar_100_has_the_duplicates_it_is_known_for(shared):
    splits = open_source(DataSettings(source=f"parquet:{shared('data/cifar100')}"))
    found = find_duplicates({"train": splits.train, "test": splits.evaluation})
    counts = {(one.earlier, one.later): one.num_images for one in found.overlaps}
    assert counts == {("train", "train"): 14, ("train", "test"): 10, ("test", "test"): 2}
    warning = crossing(splits.train, splits.evaluation)
    assert warning.startswith("10 images of the 10,000 ")
