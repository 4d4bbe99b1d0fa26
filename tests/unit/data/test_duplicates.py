import hashlib
import io
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from crossdistill.data import HeldSource, Stream, open_source
from crossdistill.data.duplicates import crossing, find_duplicates
from crossdistill.data.scan import digest, scan
from crossdistill.data.shards.labels import ShardClasses
from crossdistill.data.sources.arrays import ArraySource
from crossdistill.data.sources.subset import Subset
from crossdistill.settings import DataSettings
from samples import shards

NAMES = ("ant", "bee", "cat")


def source(name, pixels, targets=None):
    """Images of one pixel each, of these values."""
    targets = [0] * len(pixels) if targets is None else targets
    images = np.array(pixels, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return ArraySource(name, images, np.array(targets, dtype=np.int64), NAMES)


def between(found, earlier, later):
    return next(one for one in found if (one.earlier, one.later) == (earlier, later))


@given(st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1))
def test_counts_are_those_of_comparing_every_two_images(pixels):
    found = find_duplicates({name: source(name, values) for name, values in pixels.items()})
    names = list(pixels)
    assert len(found) == len(names) * (len(names) + 1) // 2
    for later_place, later in enumerate(names):
        repeats = sum(value in pixels[later][:index] for index, value in enumerate(pixels[later]))
        assert between(found, later, later).num_images == repeats
        for earlier in names[:later_place]:
            both = sum(value in pixels[earlier] for value in pixels[later])
            assert between(found, earlier, later).num_images == both


def test_a_pair_is_named_by_both_places_and_labels():
    train, test = source("train", [5, 6, 7, 6], [0, 1, 2, 1]), source("test", [9, 6, 5], [0, 2, 0])
    found = find_duplicates({"train": train, "test": test})
    (within,) = between(found, "train", "train").examples
    assert (within.earlier.where, within.later.where) == ("train, image 1", "train, image 3")
    assert (within.earlier.class_name, within.later.class_name) == ("bee", "bee")
    across = between(found, "train", "test")
    assert (across.num_images, across.num_other_label) == (2, 1)
    first, second = across.examples
    assert (first.earlier.class_name, first.later.class_name) == ("bee", "cat"), "labels that differ come first"
    assert (second.earlier.index, second.later.index) == (0, 2)


def test_a_missing_label_contradicts_none():
    found = find_duplicates({"train": source("train", [1, 2], [0, -1]), "test": source("test", [1, 2], [-1, 1])})
    across = between(found, "train", "test")
    assert (across.num_images, across.num_other_label) == (2, 0)
    assert {(pair.earlier.class_name, pair.later.class_name) for pair in across.examples} == {
        ("ant", None),
        (None, "bee"),
    }


def test_only_the_first_pairs_are_named():
    found = find_duplicates({"train": source("train", [0] * 9)}, num_examples=3)
    assert between(found, "train", "train").num_images == 8
    assert [pair.later.index for pair in between(found, "train", "train").examples] == [1, 2, 3]


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
        assert between(found, earlier, later).num_images == count, (earlier, later)
    quick = find_duplicates(sources, {name: scan(one, quick=True) for name, one in sources.items()})
    assert all(one.num_images == 0 for one in quick), "as files they differ"


def test_a_copied_file_is_found_without_decoding(tmp_path, write_tree):
    write_tree(tmp_path / "train", {"ant": 2, "bee": 2})
    write_tree(tmp_path / "test", {"ant": 1, "bee": 1}, first_seed=2)
    splits = open_source(DataSettings(source=f"folder:{tmp_path}"))
    sources = {"train": splits.train, "test": splits.evaluation}
    for quick in (False, True):
        found = find_duplicates(sources, {name: scan(one, quick=quick) for name, one in sources.items()})
        across = between(found, "train", "test")
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
    assert all(one.num_images == 0 for one in find_duplicates(sources))


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


def test_plain_pixels_too_many_to_hold_are_not_compared():
    train, test = source("train", [1, 2]), source("test", [1, 2])
    assert crossing(HeldSource(train, limit_bytes=1), HeldSource(test)) is None
    assert crossing(HeldSource(train), HeldSource(test, limit_bytes=1)) is None
    assert crossing(train, HeldSource(test)) is None, "nor are sources that read nothing ahead"


def tree(root, write_tree, make_picture):
    """Six training images, of which one is of another size; three of the five test images are copies, one as BMP."""
    write_tree(root / "train", {"ant": 3, "bee": 3})
    make_picture(90, (20, 12)).save(root / "train" / "bee" / "large.png")
    write_tree(root / "test", {"ant": 1, "bee": 1}, first_seed=50)
    for name, copy in (("ant/000", "bee/0"), ("bee/large", "ant/1")):
        shutil.copy(root / "train" / f"{name}.png", root / "test" / f"{copy}.png")
    Image.open(root / "train" / "ant" / "002.png").save(root / "test" / "ant" / "2.bmp")
    return open_source(DataSettings(source=f"folder:{root}"))


@pytest.fixture
def photos(tmp_path, write_tree, make_picture):
    return tree(tmp_path, write_tree, make_picture)


def test_files_are_compared_where_images_are_not_held(photos):
    assert not photos.train.in_memory
    warning = crossing(photos.train, photos.evaluation)
    assert warning.startswith("2 images of the 5 that accuracy is measured on are also among the training images, byte")
    decoded = find_duplicates({"train": photos.train, "test": photos.evaluation})
    assert between(decoded, "train", "test").num_images == 3, "the BMP has the same pixels"


def test_files_are_compared_where_one_of_two_splits_is_held(photos, tmp_path):
    (tmp_path / "test" / "ant" / "1.png").unlink()
    evaluation = open_source(DataSettings(source=f"folder:{tmp_path}")).evaluation
    assert evaluation.in_memory
    assert crossing(photos.train, evaluation).startswith("1 image of the 4 that accuracy is measured on is also")


def test_of_files_only_images_trained_on_count(photos):
    large = [index for index in range(7) if "large" in photos.train.describe(index)]
    assert crossing(photos.train, photos.evaluation, np.array(large)).startswith("1 image of the 5 ")
    others = np.setdiff1d(np.arange(7), [*large, 0])
    assert crossing(photos.train, photos.evaluation, others) is None


def test_large_files_are_not_even_read(photos, monkeypatch):
    files = {*photos.train.source.files, *photos.evaluation.source.files}
    assert len(files) == 12
    num_bytes = sum(file.stat().st_size for file in files)
    assert crossing(photos.train, photos.evaluation, limit_bytes=num_bytes) is not None
    asked = []
    monkeypatch.setattr(type(photos.train.source), "file", lambda self, index: asked.append(index))
    assert crossing(photos.train, photos.evaluation, limit_bytes=num_bytes - 1) is None
    assert not asked


def test_parts_of_one_source_count_its_files_once(photos):
    whole = photos.train.source
    parts = [Subset(whole, np.array(ids), "part") for ids in ([0, 1, 2], [2, 3])]
    num_bytes = sum(file.stat().st_size for file in whole.files)
    assert crossing(*parts, limit_bytes=num_bytes).startswith("1 image of the 2 ")
    assert crossing(*parts, limit_bytes=num_bytes - 1) is None


def test_files_that_are_gone_equal_no_other(photos):
    for index in (0, 1):
        Path(photos.train.describe(index)).unlink()
    Path(photos.evaluation.describe(4)).unlink()
    assert crossing(photos.train, photos.evaluation).startswith("1 image of the 5 ")


def test_the_warning_says_what_the_images_are_for(photos):
    warning = crossing(photos.train, photos.evaluation, purpose="the best epoch is chosen by")
    assert warning.startswith("2 images of the 5 that the best epoch is chosen by are also among")


@pytest.fixture
def hub_cache(tmp_path_factory, monkeypatch):
    """No network, no cache of the user's, and no bars."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def test_rows_that_only_name_files_are_not_compared(photos, tmp_path, hub_cache):
    splits = open_source(DataSettings(source=f"hf:{tmp_path}"))
    assert splits.train.source.file(0) == Path(photos.train.describe(0))
    assert crossing(splits.train, splits.evaluation) is None


@pytest.mark.parametrize("kind", ["parquet", "wds", "hf"])
def test_encoded_images_of_every_kind_are_compared(tmp_path, write_parquet, make_picture, kind, request):
    """Images of two sizes, which are not held; test repeats the first and the last of training."""
    if kind == "hf":
        request.getfixturevalue("hub_cache")
    sizes = ((12, 12), (9, 14))
    rows = {"train": range(6), "test": (0, 40, 5)}
    for split, seeds in rows.items():
        pictures = [make_picture(seed, sizes[seed % 2]) for seed in seeds]
        labels = [seed % 2 for seed in seeds]
        if kind == "wds":
            members = [m for at, one in enumerate(pictures) for m in shards.sample(str(at), one, labels[at])]
            shards.write(tmp_path / f"{split}-0.tar", members)
        else:
            contents = [encoded_png(one) for one in pictures]
            write_parquet(tmp_path / f"{split}-0.parquet", labels, images=contents)
    pattern = f"{tmp_path}/train-0.tar::{tmp_path}/test-0.tar" if kind == "wds" else tmp_path
    splits = open_source(DataSettings(source=f"{kind}:{pattern}"))
    assert not splits.train.in_memory
    assert crossing(splits.train, splits.evaluation).startswith("2 images of the 3 ")
    files = [*splits.train.source.files, *splits.evaluation.source.files]
    assert len(files) == 2
    num_bytes = sum(file.stat().st_size for file in files)
    assert crossing(splits.train, splits.evaluation, limit_bytes=num_bytes) is not None
    assert crossing(splits.train, splits.evaluation, limit_bytes=num_bytes - 1) is None


def encoded_png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_streams_are_not_compared():
    stream = Stream("wds:http://127.0.0.1:9/a.tar", ("http://127.0.0.1:9/a.tar",), ShardClasses.of_names(NAMES), 4)
    assert crossing(stream, stream, np.arange(4)) is None
    assert crossing(stream, HeldSource(source("test", [1])), np.arange(4)) is None


def test_grey_equals_the_same_picture_saved_in_colour(tmp_path, make_picture):
    """WebP knows no grey images, and decodes them to three equal channels."""
    for split, kind in (("train", "png"), ("test", "webp")):
        for seed, name in enumerate(NAMES):
            (tmp_path / split / name).mkdir(parents=True)
            picture = make_picture(seed + (90 if name == "cat" and split == "test" else 0), mode="L")
            picture.save(tmp_path / split / name / f"0.{kind}", **({"lossless": True} if kind == "webp" else {}))
    splits = open_source(DataSettings(source=f"folder:{tmp_path}"))
    assert (splits.train.read(0).shape[0], splits.evaluation.read(0).shape[0]) == (1, 3)
    found = find_duplicates({"train": splits.train, "test": splits.evaluation})
    assert between(found, "train", "test").num_images == 2
    assert crossing(splits.train, splits.evaluation).startswith("2 images of the 3 ")


@given(st.data(), st.integers(0, 2), st.integers(0, 11))
def test_colour_is_grey_only_where_all_channels_are_equal(data, channel, place):
    values = data.draw(st.lists(st.integers(0, 255), min_size=12, max_size=12))
    grey = np.array(values, dtype=np.uint8).reshape(1, 3, 4)
    colour = np.repeat(grey, 3, axis=0)
    assert digest(colour) == digest(grey)
    colour[channel].flat[place] ^= 1
    assert digest(colour) not in (digest(grey), *(digest(colour[at : at + 1]) for at in range(3)))


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
    found = between(find_duplicates({"some": some}), "some", "some")
    assert found.num_images == 2
    assert {chosen[index] for pair in found.examples for index in (pair.earlier.index, pair.later.index)} == set(twice)


@pytest.mark.slow
def test_cifar_100_has_the_duplicates_it_is_known_for(shared):
    splits = open_source(DataSettings(source=f"parquet:{shared('data/cifar100')}"))
    found = find_duplicates({"train": splits.train, "test": splits.evaluation})
    counts = {(one.earlier, one.later): one.num_images for one in found}
    assert counts == {("train", "train"): 14, ("train", "test"): 10, ("test", "test"): 2}
    warning = crossing(splits.train, splits.evaluation)
    assert warning.startswith("10 images of the 10,000 ")
