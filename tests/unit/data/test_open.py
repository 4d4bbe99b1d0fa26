import re

import pytest

from crossdistill.data import open_labelled, open_source
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings, StreamSettings

LABELS = ["cat", "dog"] * 5


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digit", "did you mean 'digits'"),
        ("foler:/photos", "did you mean 'folder'"),
        ("mnits", "did you mean 'mnist'"),
        ("zzz", r"known: cifar10, cifar100, digits, fashion_mnist, folder, hf, idx.*\(14 in all\)"),
        ("zzz:x", "digits, folder:PATH, parquet:PATH, idx:PATH, npz:FILE, hf:ID, wds:PATTERN, mnist, fashion_mnist"),
        ("folder:", "folder:PATH\nwhat to do: add it after the colon"),
        ("parquet", "parquet:PATH\n"),
        ("idx", "idx:PATH\n"),
        ("npz:", "npz:FILE\n"),
        ("hf:", "hf:ID\n"),
        ("wds", "wds:PATTERN\n"),
        ("", "known: cifar10"),
    ],
)
def test_unknown_sources(source, message):
    with pytest.raises(InputError, match=message) as caught:
        open_source(DataSettings(source=source))
    assert repr(source) in str(caught.value)


def told(source):
    """The source that the error about this one proposes."""
    with pytest.raises(InputError) as caught:
        open_source(DataSettings(source=str(source)))
    assert repr(str(source)) in caught.value.given
    return re.fullmatch(r"did you mean '(.*)'\?", caught.value.action)[1]


def test_a_bare_file_is_told_its_word(tmp_path, write_npz, write_parquet):
    for word, path in (
        ("npz", write_npz(tmp_path / "x.npz")),
        ("parquet", write_parquet(tmp_path / "x.parquet", LABELS)),
    ):
        assert told(path) == f"{word}:{path}"
        assert len(open_source(DataSettings(source=told(path))).class_names) == 2


def test_a_bare_folder_is_told_what_opens(tmp_path, write_npz, write_parquet, write_idx, write_tree):
    write_npz(tmp_path / "array" / "x.npz")
    write_parquet(tmp_path / "table" / "data" / "x.parquet", LABELS)
    write_idx(tmp_path / "MNIST" / "raw")
    write_tree(tmp_path / "tree", {"cat": 5, "dog": 5})
    for folder, expected in (
        ("array", f"npz:{tmp_path}/array/x.npz"),
        ("table", f"parquet:{tmp_path}/table"),
        ("MNIST", f"idx:{tmp_path}/MNIST/raw"),
        ("tree", f"folder:{tmp_path}/tree"),
    ):
        assert told(tmp_path / folder) == expected
        assert len(open_source(DataSettings(source=expected)).class_names) == 2


@pytest.mark.parametrize("name", ["empty", "notes.txt"])
def test_a_bare_path_of_no_known_kind(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no images")
    with pytest.raises(InputError, match="check what it holds, which is none of these: class folders, parquet"):
        open_source(DataSettings(source=str(tmp_path / name)))


SOURCES = ["digits", "mnist", "folder:x", "idx:x", "npz:x", "parquet:x", "hf:x"]


@pytest.mark.parametrize("source", SOURCES)
def test_facts_of_a_stream_are_for_shards_only(source):
    settings = DataSettings(source=source, stream=StreamSettings(num_train=10, class_names=("a", "b")))
    with pytest.raises(InputError, match=f"data source '{source}' with data.stream, which describes remote shards"):
        open_source(settings)


@pytest.mark.parametrize("key", ["image_column", "label_column"])
@pytest.mark.parametrize("source", ["digits", "folder:x", "idx:x", "npz:x", "wds:x"])
def test_columns_of_what_has_none(source, key):
    with pytest.raises(InputError, match=rf"data\.{key}='grade' for {source}, which has no columns"):
        open_source(DataSettings(source=source, **{key: "grade"}))


@pytest.mark.parametrize("source", ["digits", "mnist", "parquet:knee", "hf:owner/name", "wds:train.tar"])
def test_only_folders_are_read_without_their_classes(source):
    message = r"with data.unlabelled=true\nexpected: folder:PATH, .*\n.*pretraining does not read the labels of other"
    with pytest.raises(InputError, match=message) as caught:
        open_source(DataSettings(source=source, unlabelled=True))
    assert repr(source) in caught.value.given


def test_images_without_classes_are_refused_where_classes_are_learnt():
    with pytest.raises(InputError, match=r"folder:x with data.unlabelled=true(.|\n)*crossdistill pretrain"):
        open_labelled(DataSettings(source="folder:x", unlabelled=True))
    assert open_labelled(DataSettings(source="digits")).class_names
