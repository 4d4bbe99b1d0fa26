import numpy as np
import pytest

from crossdistill.data import open_source
from crossdistill.data.scan import scan
from crossdistill.data.sources.arrays import ArraySource
from crossdistill.data.summary import Spread, summarise
from crossdistill.settings import DataSettings


@pytest.fixture
def tree(tmp_path, make_picture):
    """Seven images of two formats, three sizes, grey and colour, one class three times as large as the others."""
    pictures = {
        "train/ant/0.png": make_picture(0, (12, 12)),
        "train/ant/1.jpg": make_picture(1, (12, 24)),
        "train/ant/2.png": make_picture(2, (12, 12)),
        "train/bee/0.png": make_picture(3, (12, 12), "L"),
        "train/cow/0.png": make_picture(4, (30, 10)),
        "test/ant/0.png": make_picture(5, (12, 12)),
        "test/bee/0.png": make_picture(6, (12, 12)),
        "test/cow/0.png": make_picture(7, (12, 12)),
    }
    for path, picture in pictures.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / path)
    return tmp_path


def summaries(root, *, quick=False):
    splits = open_source(DataSettings(source=f"folder:{root}"))
    return [summarise(one, scan(one, quick=quick)) for one in (splits.train, splits.evaluation)]


@pytest.mark.parametrize("quick", [False, True])
def test_the_figures_of_a_small_tree(tree, quick):
    train, test = summaries(tree, quick=quick)
    assert (train.num_images, train.num_labelled, train.class_counts) == (5, 5, (3, 1, 1))
    assert (train.smallest, train.largest, train.imbalance) == (1, 0, 3.0)
    assert train.sizes == {(12, 12): 3, (12, 24): 1, (30, 10): 1}
    assert next(iter(train.sizes)) == (12, 12)
    assert train.height == Spread(12, 12, 30)
    assert train.width == Spread(10, 12, 24)
    assert train.aspect == Spread(1 / 3, 1, 2)
    assert train.channels == {3: 4, 1: 1}
    assert train.formats == {"PNG": 4, "JPEG": 1}
    assert train.unreadable == ()
    assert (test.imbalance, test.sizes, test.formats) == (1.0, {(12, 12): 3}, {"PNG": 3})


@pytest.mark.parametrize("quick", [False, True])
def test_what_cannot_be_read_is_named_and_left_out_of_the_figures(tree, quick):
    broken = tree / "train" / "cow" / "0.png"
    broken.write_bytes(b"not a picture")
    train, _ = summaries(tree, quick=quick)
    (corrupt,) = train.unreadable
    assert (corrupt.where, corrupt.reason) == (str(broken), "not an image of a known format")
    assert (train.num_images, train.class_counts) == (5, (3, 1, 1))
    assert train.height == Spread(12, 12, 12)
    assert sum(train.sizes.values()) == sum(train.channels.values()) == sum(train.formats.values()) == 4


def test_a_cut_off_file_is_unreadable_though_its_header_is_whole(tree):
    cut = tree / "train" / "ant" / "1.jpg"
    cut.write_bytes(cut.read_bytes()[:-40])
    thorough, quick = summaries(tree)[0], summaries(tree, quick=True)[0]
    assert [one.where for one in thorough.unreadable] == [str(cut)]
    assert quick.unreadable == ()
    assert sum(thorough.formats.values()) == 4


def test_a_picture_lying_on_its_side_counts_as_it_is_shown(tree, make_picture):
    turned = make_picture(0, (12, 24))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tree / "train" / "ant" / "0.png", exif=exif)
    for quick in (False, True):
        assert summaries(tree, quick=quick)[0].sizes[(24, 12)] == 1


def test_unlabelled_images_and_empty_classes():
    images = np.zeros((4, 3, 2, 2), dtype=np.uint8)
    source = ArraySource("some", images, np.array([1, -1, -1, 1]), ("ant", "bee", "cow"))
    summary = summarise(source, scan(source))
    assert (summary.num_images, summary.num_labelled, summary.class_counts) == (4, 2, (0, 2, 0))
    assert (summary.smallest, summary.largest, summary.imbalance) == (0, 1, None)
    assert (summary.formats, summary.channels, summary.sizes) == ({}, {3: 4}, {(2, 2): 4})


def test_nothing_readable_leaves_no_sizes(tree):
    for path in (tree / "test").rglob("*.png"):
        path.write_bytes(b"")
    _, test = summaries(tree)
    assert (test.height, test.width, test.aspect, test.sizes) == (None, None, None, {})
    assert len(test.unreadable) == 3
