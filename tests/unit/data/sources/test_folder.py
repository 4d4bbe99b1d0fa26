import numpy as np
import pytest

from crossdistill.data import EvalLoader, open_source, select_training
from crossdistill.data.sources.folder import open_folder
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings

SETTINGS = DataSettings(source="folder:")


def open_at(path, **settings):
    return open_source(DataSettings(source=f"folder:{path}", **settings))


@pytest.mark.parametrize(
    ("folders", "name"), [(["train", "val"], "val"), (["train", "test"], "test"), (["train", "val", "test"], "test")]
)
def test_split_folders(tmp_path, write_tree, folders, name):
    for number, folder in enumerate(folders):
        write_tree(tmp_path / folder, {"dog": 2, "cat": 3 + number}, first_seed=10 * number)
    splits = open_at(tmp_path)
    assert splits.class_names == splits.evaluation.class_names == ("cat", "dog")
    assert splits.evaluation_name == name
    assert splits.train.targets.tolist() == [0, 0, 0, 1, 1]
    assert len(splits.evaluation.targets) == 5 + len(folders) - 1
    assert splits.evaluation.describe(0) == str(tmp_path / name / "cat" / "000.png")


def test_val_beside_test_is_for_choosing_the_best_epoch(tmp_path, write_tree):
    for number, folder in enumerate(["train", "val", "test"]):
        write_tree(tmp_path / folder, {"cat": 2, "dog": 1 + number}, first_seed=10 * number)
    splits = open_at(tmp_path)
    assert splits.validation.targets.tolist() == [0, 0, 1, 1]
    assert splits.validation.class_names == splits.class_names
    assert splits.validation.describe(3) == str(tmp_path / "val" / "dog" / "001.png")
    assert splits.validation.read_batch(np.arange(4)).images.shape == (4, 3, 12, 12)


@pytest.mark.parametrize("folders", [["train", "val"], ["train", "test"], ["train"]])
def test_no_validation_split_without_both(tmp_path, write_tree, folders):
    for folder in folders:
        write_tree(tmp_path / folder, {"cat": 2, "dog": 2})
    assert open_at(tmp_path).validation is None


@pytest.mark.parametrize("below", ["", "train"])
def test_one_tree_is_split_for_good(tmp_path, write_tree, below):
    write_tree(tmp_path / below, {"a": 20, "b": 10})
    splits = open_folder(tmp_path, SETTINGS)
    assert splits.evaluation_name == "val"
    assert np.bincount(splits.train.targets).tolist() == [16, 8]
    assert np.bincount(splits.evaluation.targets).tolist() == [4, 2]
    everything = {str(path) for path in tmp_path.rglob("*.png")}
    assert {
        source.describe(i) for source in (splits.train, splits.evaluation) for i in range(len(source))
    } == everything
    assert [splits.train.describe(i) for i in range(24)] == [
        open_folder(tmp_path, SETTINGS).train.describe(i) for i in range(24)
    ]


def test_images_are_read_in_the_order_of_their_paths(tmp_path, write_tree, make_picture):
    write_tree(tmp_path / "train", {"a": 2, "b": 1})
    write_tree(tmp_path / "val", {"a": 1, "b": 1})
    splits = open_at(tmp_path)
    for index in range(3):
        np.testing.assert_array_equal(splits.train.read(index).permute(1, 2, 0), np.asarray(make_picture(index)))
    assert (splits.train.image_size, splits.train.num_channels, splits.train.mirror_safe) == ((12, 12), 3, True)


def test_what_counts_as_an_image(tmp_path, write_tree, make_picture):
    write_tree(tmp_path / "a", {"deeper": 1})
    write_tree(tmp_path, {"b": 2, ".cache": 1})
    make_picture(9).save(tmp_path / "a" / "UPPER.JPEG")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    make_picture(9).save(tmp_path / "a" / ".hidden.png")
    write_tree(tmp_path / "a" / "x", {".trash": 1})
    splits = open_at(tmp_path)
    assert splits.class_names == ("a", "b")
    assert len(splits.train.targets) + len(splits.evaluation.targets) == 4


def test_mixed_sizes_and_channels_are_no_common_shape(tmp_path, write_tree):
    write_tree(tmp_path / "train", {"a": 1})
    write_tree(tmp_path / "train", {"b": 1}, size=(5, 6), mode="L")
    write_tree(tmp_path / "val", {"a": 1, "b": 1})
    train = open_at(tmp_path).train
    assert train.image_size is None
    assert train.num_channels is None
    assert not train.in_memory


def test_missing_path(tmp_path):
    with pytest.raises(InputError, match=r"photos, which does not exist"):
        open_at(tmp_path / "photos")
    (tmp_path / "photos").write_text("")
    with pytest.raises(InputError, match="is a file"):
        open_at(tmp_path / "photos")


def test_empty_folder(tmp_path):
    with pytest.raises(InputError, match="holds nothing") as caught:
        open_at(tmp_path)
    assert caught.value.action == "sort the images by class"


def test_images_without_class_folders(tmp_path, make_picture):
    make_picture(0).save(tmp_path / "x.png")
    message = "(?s)1 images but no class folder.*sort the images by class, or set data.unlabelled=true to pretrain"
    with pytest.raises(InputError, match=message):
        open_at(tmp_path)


def test_class_without_image(tmp_path, write_tree):
    write_tree(tmp_path, {"a": 2, "b": 2, "empty": 0})
    with pytest.raises(InputError, match=r"empty, which holds no image"):
        open_at(tmp_path)


def test_one_class_only(tmp_path, write_tree):
    write_tree(tmp_path, {"alone": 5})
    with pytest.raises(InputError, match="only one class, 'alone'"):
        open_at(tmp_path)


def test_splits_of_different_classes(tmp_path, write_tree):
    write_tree(tmp_path / "train", {"a": 1, "b": 1, "cat": 1})
    write_tree(tmp_path / "val", {"a": 1, "b": 1, "kat": 1})
    with pytest.raises(InputError, match=r"'cat' only in .*train; 'kat' only in .*val"):
        open_at(tmp_path)


def test_a_validation_split_of_other_classes(tmp_path, write_tree):
    for folder, other in (("train", "cat"), ("test", "cat"), ("val", "kat")):
        write_tree(tmp_path / folder, {"a": 1, other: 1})
    with pytest.raises(InputError, match=r"'cat' only in .*train; 'kat' only in .*val"):
        open_at(tmp_path)


def test_a_class_of_one_image_cannot_be_split(tmp_path, write_tree):
    write_tree(tmp_path, {"a": 5, "rare": 1})
    with pytest.raises(InputError, match="class 'rare' with 1 image"):
        open_at(tmp_path)


def test_splits_by_settings(tmp_path, write_tree):
    for number, folder in enumerate(["train", "val", "test", "extra"]):
        write_tree(tmp_path / folder, {"cat": 2, "dog": 1 + number}, first_seed=10 * number)
    splits = open_at(tmp_path, train_split="extra", evaluation_split="validation")
    assert (len(splits.train.targets), len(splits.evaluation.targets)) == (6, 4)
    assert (splits.evaluation_name, splits.validation) == ("val", None)
    assert len(open_at(tmp_path, evaluation_split="extra").validation.targets) == 4
    with pytest.raises(InputError, match="extra, test, train, val"):
        open_at(tmp_path, train_split="more")


def test_a_split_that_is_not_used_is_not_read(tmp_path, write_tree):
    for folder in ("train", "test"):
        write_tree(tmp_path / folder, {"cat": 2, "dog": 2})
    (tmp_path / "unlabelled").mkdir()
    assert open_at(tmp_path).evaluation_name == "test"
    with pytest.raises(InputError, match="unlabelled, which holds nothing"):
        open_at(tmp_path, train_split="unlabelled")


def test_other_words_for_splits(tmp_path, write_tree):
    for folder in ("training", "testing", "validation"):
        write_tree(tmp_path / folder, {"cat": 2, "dog": 2})
    splits = open_at(tmp_path)
    assert (splits.evaluation_name, len(splits.validation.targets)) == ("test", 4)


@pytest.mark.parametrize("folders", [["val", "test"], ["test", "extra"], ["val", "test", "extra"]])
def test_splits_without_one_to_train_on(tmp_path, write_tree, folders):
    for folder in folders:
        write_tree(tmp_path / folder, {"cat": 2, "dog": 2})
    with pytest.raises(InputError, match=f"with the splits {', '.join(sorted(folders))}\n.*a split named train"):
        open_at(tmp_path)
    assert open_at(tmp_path, train_split=folders[-1]).class_names == ("cat", "dog")


@pytest.mark.parametrize("word", ["train", "Test", "dev"])
def test_a_class_may_be_called_as_a_split_is(tmp_path, write_tree, word):
    write_tree(tmp_path, {"car": 5, word: 5, "bus": 5})
    splits = open_at(tmp_path)
    assert splits.class_names == tuple(sorted(["car", word, "bus"]))
    assert (len(splits.train.targets), len(splits.evaluation.targets)) == (12, 3)
    write_tree(tmp_path / word, {"cat": 2, "dog": 2})
    if word == "train":
        assert open_at(tmp_path).class_names == ("cat", "dog")
    else:
        with pytest.raises(InputError, match="a split named train"):
            open_at(tmp_path)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train"], "train, which holds 3 images but no class folder"),
        (["train", "val"], "train, which holds 3 images but no class folder"),
        (["train", "test", "extra"], "train, which holds 3 images but no class folder"),
        (["test", "val"], "with the splits test, val"),
    ],
)
def test_splits_without_class_folders_are_no_classes(tmp_path, write_tree, folders, message):
    write_tree(tmp_path, dict.fromkeys(folders, 3))
    with pytest.raises(InputError, match=message):
        open_at(tmp_path)


@pytest.mark.parametrize("words", [("train", "training"), ("val", "validation"), ("Test", "test")])
def test_two_folders_of_one_split(tmp_path, write_tree, words):
    for folder in {"train", "val", *words}:
        write_tree(tmp_path / folder, {"cat": 2, "dog": 2})
    with pytest.raises(InputError, match=f"folder .* with '{words[0]}' and '{words[1]}', which both mean the split"):
        open_at(tmp_path)


@pytest.mark.parametrize("target", ["..", ".", "../..", "../../..", "more/.."])
def test_links_that_lead_up_again_are_not_followed(tmp_path, write_tree, target):
    root = write_tree(tmp_path / "around" / "set", {"cat": 5, "dog": 5})
    write_tree(tmp_path / "around" / "other", {"bird": 3})
    write_tree(root / "cat" / "more", {"deep": 5})
    (root / "cat" / "up").symlink_to(target, target_is_directory=True)
    splits = open_at(root)
    assert np.bincount(np.concatenate([splits.train.targets, splits.evaluation.targets])).tolist() == [10, 5]


def test_a_folder_counts_once_in_a_class(tmp_path, write_tree):
    root, far = tmp_path / "set", write_tree(tmp_path / "far", {"birds": 6, "cats": 5})
    write_tree(root, {"dog": 5})
    write_tree(root / "cat", {"own": 5})
    for name in ("again", "once"):
        (root / "cat" / name).symlink_to(far / "cats", target_is_directory=True)
    (root / "cat" / "own" / "beside").symlink_to(root / "cat" / "own", target_is_directory=True)
    (far / "cats" / "up").symlink_to(far, target_is_directory=True)
    (root / "bird").symlink_to(far / "birds", target_is_directory=True)
    (far / "birds" / "up").symlink_to("..", target_is_directory=True)
    splits = open_at(root)
    counts = np.bincount(np.concatenate([splits.train.targets, splits.evaluation.targets]))
    # The link in far/cats leads up from there, but not from the class: it is where far/birds is found.
    assert dict(zip(splits.class_names, counts.tolist(), strict=True)) == {"bird": 6, "cat": 5 + 5 + 6, "dog": 5}


def test_image_files_of_every_kind_count(tmp_path, write_tree, make_picture):
    write_tree(tmp_path, {"a": 1, "b": 5})
    for suffix in ("gif", "tga", "jp2", "jfif"):
        make_picture(0).save(tmp_path / "a" / f"x.{suffix}")
    (tmp_path / "a" / "page.pdf").write_bytes(b"%PDF-")
    splits = open_at(tmp_path)
    assert np.bincount(np.concatenate([splits.train.targets, splits.evaluation.targets])).tolist() == [5, 5]
    for source in (splits.train, splits.evaluation):
        assert not source.read_batch(np.arange(len(source.targets))).corrupt


def test_images_without_classes(tmp_path, write_tree, make_picture):
    write_tree(tmp_path, {"b": 3, "a": 2, ".hidden": 1})
    write_tree(tmp_path / "a", {"deeper": 1}, first_seed=20)
    make_picture(30).save(tmp_path / "top.png")
    (tmp_path / "notes.txt").write_text("no image")
    splits = open_at(tmp_path, unlabelled=True)
    train = splits.train
    expected = sorted(path for path in tmp_path.rglob("*.png") if ".hidden" not in str(path))
    assert [train.describe(index) for index in range(7)] == list(map(str, expected))
    assert train.targets.tolist() == [-1] * 7
    assert (splits.class_names, train.image_size, train.mirror_safe) == ((), (12, 12), True)
    np.testing.assert_array_equal(train.read(6).permute(1, 2, 0), np.asarray(make_picture(30)))


def test_nothing_is_reported_on_where_images_have_no_classes(tmp_path, write_tree, spec):
    write_tree(tmp_path / "train", {"a": 2, "b": 2})
    write_tree(tmp_path / "test", {"a": 1, "b": 1})
    splits = open_at(tmp_path, unlabelled=True)
    assert (len(splits.train.targets), len(splits.evaluation.targets), splits.evaluation_name) == (6, 0, "none")
    assert splits.validation is None
    assert list(EvalLoader(splits.evaluation, {"student": spec(8)}, batch_size=4)) == []


@pytest.mark.parametrize("count", [1, 5])
def test_any_number_of_images_without_classes_will_do(tmp_path, write_tree, count):
    write_tree(tmp_path, {"alone": count})
    splits = open_at(tmp_path, unlabelled=True)
    chosen = select_training(splits.train.targets, DataSettings(source="folder:"), 0, False, splits.class_names)
    assert chosen.train_ids.tolist() == list(range(count))
    assert not chosen.labelled.any()


def test_a_folder_without_any_image(tmp_path, write_tree):
    write_tree(tmp_path, {"empty": 0})
    with pytest.raises(InputError, match="which holds no image"):
        open_at(tmp_path, unlabelled=True)
    with pytest.raises(InputError, match="which does not exist"):
        open_at(tmp_path / "photos", unlabelled=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_split": "extra"}, r"data.train_split='extra' with data.unlabelled=true(.|\n)*folder:PATH/train"),
        ({"evaluation_split": "val"}, "data.evaluation_split='val' with data.unlabelled=true"),
        ({"first_per_class": 3}, "data.first_per_class=3 with data.unlabelled=true"),
        ({"labels_per_class": 4}, "data.labels_per_class=4 with data.unlabelled=true"),
        ({"sampling": "class_balanced"}, "data.sampling='class_balanced' with data.unlabelled=true"),
    ],
)
def test_settings_that_need_classes(tmp_path, write_tree, settings, message):
    write_tree(tmp_path, {"a": 2, "b": 2})
    with pytest.raises(InputError, match=message):
        open_at(tmp_path, unlabelled=True, **settings)
