"""Evaluation is decoded once; every pass gives the same batches as if it were not."""

import pickle
from multiprocessing import active_children

import numpy as np
import pytest
import torch

from crossdistill.data import EvalLoader, HeldSource, TrainLoader, open_source
from crossdistill.settings import AugmentSettings, DataSettings
from samples.counting import Counting


@pytest.fixture
def mixed(tmp_path, write_tree):
    """Images of two sizes, some of them grey: such sets are not held as they are."""
    write_tree(tmp_path / "train", {"a": 6, "b": 1}, size=(15, 11))
    write_tree(tmp_path / "train" / "more", {"x": 1})
    write_tree(tmp_path / "grey", {"b": 7}, mode="L", size=(9, 13), first_seed=50)
    for path in (tmp_path / "grey" / "b").iterdir():
        path.rename(tmp_path / "train" / "b" / f"g{path.name}")
    write_tree(tmp_path / "val", {"a": 1, "b": 1, "more": 1})
    return Counting(open_source(DataSettings(source=f"folder:{tmp_path}")).train.source)


def loader(source, spec, *, limit_bytes=2**29, views=None, **options):
    views = views or {"student": spec(10, crop_pct=0.9), "teacher0": spec(10, mean=0.1, crop_pct=0.9)}
    options = {"batch_size": 4, "workers": 0, "max_corrupt_share": 0.9} | options
    return EvalLoader(HeldSource(source, limit_bytes=limit_bytes), views, **options)


def assert_same(batches, expected):
    batches, expected = list(batches), list(expected)
    assert len(batches) == len(expected) > 0
    for one, other in zip(batches, expected, strict=True):
        assert torch.equal(one.samples, other.samples)
        assert torch.equal(one.sample_id, other.sample_id)
        assert torch.equal(one.target, other.target)
        assert one.images.keys() == other.images.keys()
        assert all(torch.equal(one.images[view], other.images[view]) for view in one.images)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_every_pass_gives_the_batches_of_a_loader_that_keeps_nothing(mixed, spec, workers):
    expected = list(loader(mixed, spec, limit_bytes=0))
    own = loader(mixed, spec, workers=workers)
    for _ in range(3):
        assert_same(own, expected)


def test_images_are_decoded_in_the_first_pass_only(mixed, spec):
    own = loader(mixed, spec)
    for _ in range(3):
        list(own)
    assert sorted(mixed.reads) == list(range(15))


def test_workers_share_what_they_decode(tmp_path, mixed, spec):
    own = loader(mixed, spec, workers=2)
    expected = list(own)
    for path in mixed.source.paths:
        path.unlink()  # from here on nothing can be decoded
    assert_same(own, expected)
    assert own.corrupt == {}


def test_workers_end_once_there_is_nothing_left_to_decode(mixed, spec):
    own, before = loader(mixed, spec, workers=2), len(active_children())
    list(own)
    assert len(active_children()) == before + 2
    list(own)
    assert len(active_children()) == before


def test_an_image_that_cannot_be_read_keeps_no_worker(mixed, spec):
    mixed.source.paths[5].write_bytes(b"broken")
    own, before = loader(mixed, spec, workers=2), len(active_children())
    list(own)
    assert_same(own, loader(mixed, spec, limit_bytes=0))
    assert len(active_children()) == before
    assert list(own.corrupt) == [str(mixed.source.paths[5])]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_that_is_broken_off_leaves_the_next_one_right(mixed, spec, workers):
    expected = list(loader(mixed, spec, limit_bytes=0))
    own = loader(mixed, spec, workers=workers)
    for taken in (1, 3):
        assert_same([batch for batch, _ in zip(own, range(taken), strict=False)], expected[:taken])
    for _ in range(2):
        assert_same(own, expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_read_is_tried_and_listed_in_every_pass(mixed, spec, workers):
    mixed.source.paths[5].write_bytes(b"broken")
    own = loader(mixed, spec, workers=workers)
    for _ in range(2):
        assert_same(own, loader(mixed, spec, limit_bytes=0))
        assert list(own.corrupt) == [str(mixed.source.paths[5])]


def test_views_of_another_size_are_kept_beside_each_other(mixed, spec):
    views = {"student": spec(10), "teacher0": spec(7), "teacher1": spec(10, mean=0.0), "teacher2": spec(10)}
    own, expected = loader(mixed, spec, views=views), list(loader(mixed, spec, views=views, limit_bytes=0))
    for _ in range(2):
        assert_same(own, expected)
    assert len(own._feed._dataset.views._memories) == 2
    first = next(iter(own)).images
    assert first["student"] is first["teacher2"]


def test_grey_models_see_grey_images(tmp_path, write_tree, spec):
    write_tree(tmp_path / "train", {"a": 3, "b": 3}, mode="L", size=(12, 14))
    write_tree(tmp_path / "val", {"a": 1, "b": 1}, mode="L")
    source = open_source(DataSettings(source=f"folder:{tmp_path}")).train.source
    for channels in (1, 3):
        views = {"student": spec(8, channels)}
        own = loader(source, spec, views=views)
        for _ in range(2):
            assert_same(own, loader(source, spec, views=views, limit_bytes=0))


def test_an_image_of_more_channels_than_the_others_is_read_each_time(tmp_path, write_tree, make_picture, spec):
    write_tree(tmp_path / "train", {"a": 100, "b": 100}, mode="L", size=(4, 4))
    write_tree(tmp_path / "val", {"a": 1, "b": 1}, mode="L", size=(4, 4))
    make_picture(0, (4, 4)).save(tmp_path / "train" / "a" / "001.png")  # none of those that are looked at beforehand
    source = open_source(DataSettings(source=f"folder:{tmp_path}")).train.source
    assert source.num_channels == 1
    views = {"student": spec(4)}
    own = loader(source, spec, views=views, batch_size=64)
    for _ in range(2):
        assert_same(own, loader(source, spec, views=views, batch_size=64, limit_bytes=0))


def test_only_what_fits_is_kept(mixed, spec):
    num_bytes = 15 * 3 * 10 * 10
    assert loader(mixed, spec, limit_bytes=num_bytes)._feed._dataset.views is not None
    assert loader(mixed, spec, limit_bytes=num_bytes - 1)._feed._dataset.views is None
    halves = [loader(mixed, spec, limit_bytes=num_bytes - 1, rank=rank, world_size=2) for rank in (0, 1)]
    assert all(half._feed._dataset.views is not None for half in halves)
    assert_same(
        [batch for half in halves for batch in half],
        [batch for rank in (0, 1) for batch in loader(mixed, spec, limit_bytes=0, rank=rank, world_size=2)],
    )


def test_what_a_source_holds_counts_towards_the_limit(tmp_path, write_tree, spec):
    write_tree(tmp_path / "train", {"a": 5, "b": 5})
    write_tree(tmp_path / "val", {"a": 1, "b": 1})
    source = open_source(DataSettings(source=f"folder:{tmp_path}")).train.source
    decoded, prepared = 10 * 3 * 12 * 12, 10 * 3 * 10 * 10
    both = loader(source, spec, limit_bytes=decoded + prepared)
    assert both._feed._dataset.views is not None
    one = loader(source, spec, limit_bytes=decoded + prepared - 1)
    assert one._feed._dataset.views is None
    assert_same(one, both)


def test_some_images_of_a_source_that_is_trained_on_too(mixed, spec):
    held, ids = HeldSource(mixed), np.array([9, 2, 14, 3])
    train = TrainLoader(
        held, np.arange(15), held.targets, {"student": spec(10)}, AugmentSettings(), seed=0, batch_size=4, workers=0
    )
    list(train.epoch(0))
    own = EvalLoader(held, {"student": spec(10)}, batch_size=3, ids=ids, workers=0)
    for _ in range(2):
        assert torch.cat([batch.sample_id for batch in own]).tolist() == [2, 3, 9, 14]
        assert_same(own, loader(mixed, spec, views={"student": spec(10)}, limit_bytes=0, ids=ids, batch_size=3))


def test_a_process_that_is_not_forked_does_without(mixed, spec):
    own = loader(mixed.source, spec)
    expected = list(own)
    dataset = pickle.loads(pickle.dumps(own._feed._dataset))
    assert dataset.views is None
    samples = expected[0].samples.numpy()
    assert_same([dataset[(0, samples)].made], expected[:1])


def test_nobody_to_evaluate_is_no_trouble(mixed, spec):
    assert list(loader(mixed, spec, ids=np.array([3]), rank=1, world_size=2)) == []
