import pickle
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdistill.data.sources.row_groups import RowGroups
from crossdistill.errors import InputError

CELLS = [bytes([row]) * 1000 for row in range(23)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three files of 10, 6 and 7 rows in row groups of at most 4: ten pieces of up to 4,000 bytes."""
    folder = tmp_path_factory.mktemp("shards")
    parts = {"a": CELLS[:10], "b": CELLS[10:16], "c": CELLS[16:]}
    for name, cells in parts.items():
        pq.write_table(pa.table({"image": cells, "label": [0] * len(cells)}), folder / name, row_group_size=4)
    return [folder / name for name in parts]


@pytest.fixture
def reads(monkeypatch):
    """The row groups that are read from disk."""
    numbers = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, **kwargs: numbers.append(i) or read(self, i, **kwargs)
    )
    return numbers


@settings(deadline=None, max_examples=25)
@given(rows=st.lists(st.integers(0, 22), max_size=40), limit_bytes=st.sampled_from([0, 9_000, 10**6]))
def test_cells_are_those_of_the_whole_column(files, rows, limit_bytes):
    groups = RowGroups(files, "image", limit_bytes=limit_bytes)
    assert [groups[row] for row in rows] == [CELLS[row] for row in rows]


def test_places_and_groups(files):
    groups = RowGroups(files, "image")
    starts = {0: files[0], 10: files[1], 16: files[2]}
    for start, file in starts.items():
        assert groups.place(start) == (file, 0)
    assert groups.place(22) == (files[2], 6)
    assert (
        groups.group_of(list(range(23))).tolist() == [0] * 4 + [1] * 4 + [2] * 2 + [3] * 4 + [4] * 2 + [5] * 4 + [6] * 3
    )


def test_row_groups_are_read_once_while_they_fit(files, reads):
    groups = RowGroups(files, "image")
    for _ in range(2):
        assert [groups[row] for row in range(10)] == CELLS[:10]
    assert reads == [0, 1, 2]


def test_the_one_used_longest_ago_is_dropped(files, reads):
    groups = RowGroups(files, "image", limit_bytes=9_000)  # two of four rows each
    for row in (0, 4, 1, 10, 2, 11):
        groups[row]
    assert reads == [0, 1, 0]  # of the second file the first
    groups[5]
    assert reads == [0, 1, 0, 1]


def test_one_that_is_larger_than_the_limit_is_kept(files, reads):
    groups = RowGroups(files, "image", limit_bytes=0)
    for row in (0, 1, 2, 4, 5):
        groups[row]
    assert reads == [0, 1]


def test_threads_share_what_is_read(files, reads):
    groups = RowGroups(files, "image")
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(groups.__getitem__, [*range(4)] * 20)) == CELLS[:4] * 20
    assert reads == [0]


def test_cells_do_not_travel_to_other_processes(files, reads):
    groups = RowGroups(files, "image")
    size = len(pickle.dumps(groups))
    assert groups[0] == CELLS[0]
    again = pickle.dumps(groups)
    assert len(again) == size
    assert pickle.loads(again)[0] == CELLS[0]
    assert reads == [0, 0]


def test_a_file_that_is_damaged_inside(tmp_path, files):
    path = tmp_path / "damaged.parquet"
    content = bytearray(files[0].read_bytes())
    content[4:200] = b"\xff" * 196
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged\.parquet"):
        RowGroups([path], "image")[0]
