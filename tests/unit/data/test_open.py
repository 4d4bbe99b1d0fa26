import pytest

from crossdistill.data import open_source
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings


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
    ],
)
def test_unknown_sources(source, message):
    with pytest.raises(InputError, match=message) as caught:
        open_source(DataSettings(source=source))
    assert repr(source) in str(caught.value)


def test_a_bare_path_is_told_its_word(tmp_path, write_parquet, write_npz, write_idx):
    array, idx = write_npz(tmp_path / "npz" / "set.npz"), write_idx(tmp_path / "idx")
    (tmp_path / "shard.tar").write_bytes(b"")
    for word, path in (("npz", array), ("idx", idx), ("wds", tmp_path / "shard.tar")):
        with pytest.raises(InputError, match=f"did you mean '{word}:{path}'"):
            open_source(DataSettings(source=str(path)))


def test_a_bare_folder_is_told_its_word(tmp_path, write_parquet):
    with pytest.raises(InputError, match=f"did you mean 'folder:{tmp_path}'"):
        open_source(DataSettings(source=str(tmp_path)))
    path = write_parquet(tmp_path / "x.parquet", [0, 1])
    for bare in (path, tmp_path):
        with pytest.raises(InputError, match=f"did you mean 'parquet:{bare}'"):
            open_source(DataSettings(source=str(bare)))
