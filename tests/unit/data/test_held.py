import multiprocessing
import pickle

import numpy as np
import pytest
import torch

from crossdistill.data.held import HeldSource, num_workers
from crossdistill.data.sources.folder import open_folder
from crossdistill.settings import DataSettings
from samples.counting import Counting


@pytest.fixture
def folder(tmp_path, write_tree):
    write_tree(tmp_path / "train", {"a": 5, "b": 5})
    write_tree(tmp_path / "val", {"a": 1, "b": 1})
    return Counting(open_folder(tmp_path, DataSettings(source="folder:")).train)


def test_each_image_is_decoded_once(folder):
    held = HeldSource(folder)
    for ids in ([3, 1, 1], [1, 9, 3]):
        reading = held.read_batch(np.array(ids))
        assert torch.equal(reading.images, torch.stack([folder.source.read(index) for index in ids]))
    assert sorted(folder.reads) == [1, 3, 9]


def test_a_set_over_the_limit_is_not_held(folder):
    assert HeldSource(folder, limit_bytes=10 * 3 * 12 * 12).in_memory
    held = HeldSource(folder, limit_bytes=10 * 3 * 12 * 12 - 1)
    assert not held.in_memory
    for _ in range(2):
        assert held.read_batch(np.array([4, 2])).images.shape == (2, 3, 12, 12)
    assert sorted(folder.reads) == [2, 2, 4, 4]


def test_batches_belong_to_the_caller(folder):
    held = HeldSource(folder)
    before = held.read_batch(np.array([0])).images.clone()
    held.read_batch(np.array([0])).images.zero_()
    assert torch.equal(held.read_batch(np.array([0])).images, before)


def test_corrupt_images_and_other_shapes_are_exceptions(tmp_path, folder, make_picture):
    held = HeldSource(folder)
    assert held.in_memory  # decided while all images are alike
    (tmp_path / "train" / "a" / "002.png").write_bytes(b"broken")
    make_picture(50, (7, 9)).save(tmp_path / "train" / "b" / "001.png")
    for _ in range(2):
        reading = held.read_batch(np.array([1, 2, 6]))
        assert reading.positions.tolist() == [0, 2]
        assert [image.shape for image in reading.images] == [(3, 12, 12), (3, 7, 9)]
        assert [image.where for image in reading.corrupt] == [str(tmp_path / "train" / "a" / "002.png")]
    assert held.read_batch(np.array([2])).images == []
    assert isinstance(held.read_batch(np.array([0, 1])).images, torch.Tensor)


def test_pixels_stay_behind_when_pickled(folder):
    held = HeldSource(folder.source)
    size = len(pickle.dumps(held))
    images = held.read_batch(np.arange(10)).images
    assert len(pickle.dumps(held)) <= size + 100
    assert torch.equal(pickle.loads(pickle.dumps(held)).read_batch(np.arange(10)).images, images)


def test_forked_processes_decode_each_image_once_together(folder):
    held = HeldSource(folder.source)
    held.share()
    process = multiprocessing.get_context("fork").Process(target=held.read_batch, args=(np.array([2, 7]),))
    process.start()
    process.join()
    folder.source.paths = []  # from here on nothing can be decoded
    assert held.read_batch(np.array([7, 2])).images.shape == (2, 3, 12, 12)
    assert held.read_batch(np.array([2])).images.any()


def test_workers_by_default(folder):
    assert num_workers(HeldSource(folder), None) == 0
    assert 1 <= num_workers(HeldSource(folder), None, cheap=False) <= 4
    assert 1 <= num_workers(HeldSource(folder, limit_bytes=1), None) <= 4
    assert num_workers(HeldSource(folder), 3) == 3
