import pytest

from crossdistill.data import open_source
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digit", "did you mean 'digits'"),
        ("foler:/photos", "did you mean 'folder'"),
        ("zzz", "known: digits, folder, parquet"),
        ("hf:cifar100", "not supported yet"),
        ("wds:shards-{0..9}.tar", "not supported yet"),
        ("cifar100", "not supported yet"),
        ("folder:", "add the path"),
        ("parquet", "add the path"),
    ],
)
def test_unknown_sources(source, message):
    with pytest.raises(InputError, match=message) as caught:
        open_source(DataSettings(source=source))
    assert repr(source) in str(caught.value)


def test_a_bare_path_is_told_its_word(tmp_path, write_parquet):
    with pytest.raises(InputError, match=f"did you mean 'folder:{tmp_path}'"):
        open_source(DataSettings(source=str(tmp_path)))
    path = write_parquet(tmp_path / "x.parquet", [0, 1])
    for bare in (path, tmp_path):
        with pytest.raises(InputError, match=f"did you mean 'parquet:{bare}'"):
            open_source(DataSettings(source=str(bare)))
