"""Training images by the ends of their paths."""

import pytest

from crossdistill.data import open_source
from crossdistill.data.listed import only_listed
from crossdistill.data.open import _open
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings
from samples import image_folder


@pytest.fixture
def source(tmp_path):
    root = image_folder.make(tmp_path / "photos", ["ant", "bee", "honeybee"], num_images=3)
    return _open(DataSettings(source=f"folder:{root}")).train


@pytest.fixture
def listed(source, tmp_path):
    def write(text):
        (tmp_path / "list.txt").write_text(text)
        return only_listed(source, tmp_path / "list.txt")

    return write


def names(subset):
    return ["/".join(subset.describe(index).split("/")[-2:]) for index in range(len(subset))]


def test_names_are_ends_of_paths(listed):
    """``bee/1.png`` is no end of ``honeybee/1.png``, as words go; order and repetition do not count."""
    found = listed("bee/1.png\r\n\ntrain/ant/2.png\n./ant/0.png\nbee\\1.png\n")
    assert names(found) == ["ant/0.png", "ant/2.png", "bee/1.png"]
    assert found.targets.tolist() == [0, 0, 1]
    assert found.class_names == ("ant", "bee", "honeybee")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ant/1.png\nbee/9.png\n", "'bee/9.png' in .*, which none of 9 training images is called"),
        ("ant/1.png\n1.png\n", "'1.png' in .*, which is the end of 3 paths"),
        ("\n", "which has no line"),
        ("ant/1.png\nant/2.png\n", "only one class, 'ant'"),
    ],
)
def test_refusals(listed, text, words):
    with pytest.raises(InputError, match=words):
        listed(text)


def test_a_missing_list_is_refused(source, tmp_path):
    with pytest.raises(InputError, match="No such file"):
        only_listed(source, tmp_path / "none.txt")


def test_the_setting_leaves_evaluation_alone(tmp_path):
    root = image_folder.make(tmp_path / "photos", ["ant", "bee"], num_images=3)
    (tmp_path / "list.txt").write_text("ant/1.png\nbee/2.png\n")
    splits = open_source(DataSettings(source=f"folder:{root}", train_list=str(tmp_path / "list.txt")))
    assert (len(splits.train.targets), len(splits.evaluation.targets)) == (2, 6)
