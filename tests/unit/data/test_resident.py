"""Sets that live on a device: batches must be those that a loader without this would make, bit for bit."""

import numpy as np
import pytest
import torch

from crossdistill.data import TrainLoader, open_source, resident
from crossdistill.data.feed import Batches, Feed
from crossdistill.data.resident import Resident
from crossdistill.errors import InputError
from crossdistill.settings import AugmentSettings, DataSettings

HERE = torch.device("cpu")
EVERYTHING = AugmentSettings(
    crop="resized",
    flip=0.5,
    interpolation="random",
    rand_augment="rand-m9-mstd0.5-inc1",
    color_jitter=0.3,
    erase=0.5,
    mixup=0.8,
    cutmix=1.0,
    mix_probability=0.8,
)
CHANGES = {
    "nothing": AugmentSettings(crop="none", flip=0.0),
    "padding": AugmentSettings(crop="pad", flip=0.5),
    "crops": AugmentSettings(crop="resized", flip=0.5, interpolation="random"),
    "RandAugment": AugmentSettings(crop="none", flip=0.0, rand_augment="rand-m9-n3-p1"),
    "jitter": AugmentSettings(crop="none", flip=0.0, color_jitter=0.4),
    "erasing": AugmentSettings(crop="none", flip=0.0, erase=0.7),
    "mixup": AugmentSettings(crop="none", flip=0.0, mixup=0.8),
    "cutmix": AugmentSettings(crop="none", flip=0.0, cutmix=1.0),
    "everything": EVERYTHING,
}


def raiser(error):
    def fail(*given):
        raise error("out of memory")

    return fail


@pytest.fixture
def tiles(tmp_path, write_tree):
    """Forty files of one size."""
    write_tree(tmp_path / "train", {"a": 14, "b": 14, "c": 12})
    write_tree(tmp_path / "val", {"a": 1, "b": 1, "c": 1}, first_seed=200)
    return open_source(DataSettings(source=f"folder:{tmp_path}")).train


def loader(source, spec, augment=EVERYTHING, *, ids=None, targets=None, **options):
    views = {"student": spec(12), "teacher0": spec(12), "teacher1": spec(9, mean=0.2)}
    options = {"seed": 3, "batch_size": 8, "augment_device": HERE, "max_corrupt_share": 0.5, "workers": 0} | options
    ids = np.arange(len(source.targets)) if ids is None else ids
    return TrainLoader(source, ids, source.targets if targets is None else targets, views, augment, **options)


def before(made):
    """The same loader without a set on the device."""
    assert isinstance(made._feed, Resident)
    dataset = Batches(made._feed._source, made._assembly)
    made._feed = Feed(dataset, len(made.ids), workers=0, max_corrupt_share=0.5)
    return made


def grouped(made, size):
    """The same loader, changing so many micro-batches together."""
    made._feed._group_size = size
    return made


def assert_same(steps, expected):
    assert [len(step) for step in steps] == [len(step) for step in expected]
    pairs = [pair for step, other in zip(steps, expected, strict=True) for pair in zip(step, other, strict=True)]
    assert pairs
    for one, other in pairs:
        assert one.epoch == other.epoch
        assert torch.equal(one.samples, other.samples)
        assert torch.equal(one.sample_id, other.sample_id)
        assert torch.equal(one.target, other.target)
        assert one.images.keys() == other.images.keys()
        assert all(torch.equal(one.images[view], other.images[view]) for view in one.images)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("group_size", [None, 3])
def test_batches_are_those_of_the_path_through_the_host(tiles, spec, name, group_size):
    own = grouped(loader(tiles, spec, CHANGES[name]), group_size)
    other = before(loader(tiles, spec, CHANGES[name]))
    for epoch in (0, 1):
        assert_same(list(own.epoch(epoch)), list(other.epoch(epoch)))


@pytest.mark.parametrize("group_size", [None, 4])
@pytest.mark.parametrize(
    "options",
    [
        {"balanced": True, "ids": np.arange(3, 33)},
        {"device_batch_size": 3, "batch_size": 7},
        {"cycle_epochs": 2},
        {"batch_size": 64},
    ],
    ids=["class balanced", "odd micro-batches", "epochs that come again", "one step"],
)
def test_so_they_are_however_steps_are_made(tiles, spec, options, group_size):
    own, other = grouped(loader(tiles, spec, **options), group_size), before(loader(tiles, spec, **options))
    for epoch in (2, 3):
        assert_same(list(own.epoch(epoch)), list(other.epoch(epoch)))


def test_few_labels_are_mixed_likewise(tiles, spec):
    targets = np.where(np.arange(40) % 3, -1, tiles.targets)
    own, other = grouped(loader(tiles, spec, targets=targets), 2), before(loader(tiles, spec, targets=targets))
    assert_same(list(own.epoch(0)), list(other.epoch(0)))


@pytest.mark.parametrize("group_size", [None, 2])
def test_a_resumed_epoch_goes_on_where_it_was_left(tiles, spec, group_size):
    whole = list(before(loader(tiles, spec)).epoch(1))
    for step in range(5):
        assert_same(list(grouped(loader(tiles, spec), group_size).epoch(1, start_step=step)), whole[step:])


def test_which_batches_are_changed_together_does_not_depend_on_where_an_epoch_is_resumed(tiles, spec, monkeypatch):
    """On an accelerator rounding may depend on it."""
    groups = []
    monkeypatch.setattr(Resident, "_made", noting(Resident._made, groups))
    list(grouped(loader(tiles, spec), 2).epoch(0))
    whole, groups[:] = list(groups), []
    list(grouped(loader(tiles, spec), 2).epoch(0, start_step=3))
    assert groups == whole[1:]


def noting(method, groups):
    def made(self, requests, drawn):
        groups.append([samples.tolist() for _, samples in requests])
        return method(self, requests, drawn)

    return made


@pytest.mark.parametrize("group_size", [None, 3])
def test_two_processes_see_together_what_one_sees(tiles, spec, group_size):
    whole = list(before(loader(tiles, spec)).epoch(0))
    ranks = [list(grouped(loader(tiles, spec, rank=rank, world_size=2), group_size).epoch(0)) for rank in (0, 1)]
    for step, (expected,) in enumerate(whole):
        parts = [batch for rank in ranks for batch in rank[step]]
        assert torch.equal(torch.cat([part.images["teacher1"] for part in parts]), expected.images["teacher1"])
        assert torch.equal(torch.cat([part.target for part in parts]), expected.target)


@pytest.mark.parametrize("group_size", [None, 3])
def test_images_that_cannot_be_kept_are_treated_as_before(tmp_path, tiles, spec, make_picture, group_size):
    assert tiles.image_size == (12, 12)  # decided while all images are alike
    (tmp_path / "train" / "a" / "003.png").write_bytes(b"broken")
    (tmp_path / "train" / "b" / "002.png").unlink()
    make_picture(7, (9, 14)).save(tmp_path / "train" / "c" / "001.png")
    own, other = grouped(loader(tiles, spec), group_size), before(loader(tiles, spec))
    for epoch in (0, 1):
        assert_same(list(own.epoch(epoch)), list(other.epoch(epoch)))
    assert own.corrupt == other.corrupt
    assert {path[-9:] for path in own.corrupt} == {"a/003.png", "b/002.png"}


def test_too_many_unreadable_images_stop_the_run(tmp_path, tiles, spec):
    for index in (4, 9):
        (tmp_path / "train" / "b" / f"{index:03d}.png").write_bytes(b"")
    message = r"(?s)2 of 40 images cannot be read \(5\.0%\), first .*b/00\d\.png .*at most 4\.0%.*max_corrupt_share"
    with pytest.raises(InputError, match=message):
        list(loader(tiles, spec, max_corrupt_share=0.04).epoch(0))


def test_a_batch_without_any_readable_image_is_left_out(tmp_path, tiles, spec):
    for index in range(2):
        (tmp_path / "train" / "a" / f"{index:03d}.png").write_bytes(b"")
    options = {"ids": np.array([0, 1]), "max_corrupt_share": 1.0}
    assert list(loader(tiles, spec, **options).epoch(0)) == [[]]


def test_each_image_is_decoded_once_and_only_when_it_is_needed(tiles, spec, monkeypatch):
    reads, read = [], tiles.source.read
    monkeypatch.setattr(type(tiles.source), "read", lambda self, index: reads.append(index) or read(index))
    own = loader(tiles, spec)
    next(own.epoch(0))
    assert len(reads) == 8
    for epoch in range(3):
        list(own.epoch(epoch))
    assert len(reads) == len(set(reads)) <= 40


def test_batches_belong_to_the_caller(tiles, spec):
    own = loader(tiles, spec, CHANGES["nothing"])
    first = next(own.epoch(0))[0].images["student"]
    kept = first.clone()
    first.zero_()
    assert torch.equal(next(own.epoch(0))[0].images["student"], kept)


def test_answers_come_in_the_order_of_the_requests_of_whatever_epoch(tiles, spec):
    own, other = grouped(loader(tiles, spec), 3), before(loader(tiles, spec))
    requests = [(epoch, part) for epoch in (0, 4) for step in own.plan(epoch, drop_last=False) for part in step]
    assert_same([list(own.answers(requests[::-1]))], [list(other.answers(requests[::-1]))])


def test_views_share_tensors_in_groups_too(tiles, spec):
    for (batch,) in grouped(loader(tiles, spec), 3).epoch(0):
        assert batch.images["student"] is batch.images["teacher0"]


def test_sets_that_are_too_large_or_stay_on_the_host_have_no_place_there(tmp_path, tiles, write_tree, spec):
    assert not isinstance(loader(tiles, spec, augment_device=None)._feed, Resident)
    write_tree(tmp_path / "large" / "train", {"a": 4, "b": 4}, size=(40, 40))
    write_tree(tmp_path / "large" / "val", {"a": 1, "b": 1}, size=(40, 40))
    large = open_source(DataSettings(source=f"folder:{tmp_path / 'large'}")).train
    assert not isinstance(loader(large, spec)._feed, Resident)  # of each image only a small part is used


def test_draws_are_bounded_in_memory(tiles, spec, monkeypatch):
    """However long an epoch is, draws are made for a part of it at once."""
    monkeypatch.setattr("crossdistill.data.resident._DRAWN_TOGETHER", 10)
    own, other = grouped(loader(tiles, spec), 2), before(loader(tiles, spec))
    drawn = []
    monkeypatch.setattr(Resident, "_drawn", counting(Resident._drawn, drawn))
    assert_same(list(own.epoch(0)), list(other.epoch(0)))
    assert drawn == [2, 2, 1]


def counting(method, drawn):
    return lambda self, requests: drawn.append(len(requests)) or method(self, requests)


def test_groups_fit_in_memory(tiles, spec):
    own = loader(tiles, spec)._feed
    own._device = torch.device("meta")  # any that is not the CPU
    batches = [(0, np.zeros((8, 2), dtype=np.int64))]
    assert own._fitting(batches) == 16
    image = 4 * (3 * 12 * 12 + 3 * 9 * 9) + 8 * 3
    many = 32 * 2**20 // image // 5
    assert own._fitting([(0, np.zeros((many, 2), dtype=np.int64))]) == 5
    assert own._fitting([(0, np.zeros((6 * many, 2), dtype=np.int64))]) == 1


def test_a_device_without_room_for_the_set_gets_each_batch_on_its_own(tiles, spec, monkeypatch):
    expected = [list(before(loader(tiles, spec)).epoch(epoch, start_step=epoch)) for epoch in (0, 1)]

    monkeypatch.setattr(resident, "_Pixels", raiser(torch.OutOfMemoryError))
    made = loader(tiles, spec)
    with pytest.warns(UserWarning, match=r"cpu has no room for the 40 images of .*; each batch"):
        assert_same(list(made.epoch(0)), expected[0])
    assert_same(list(made.epoch(1, start_step=1)), expected[1])
    assert isinstance(made._feed._feed, Feed)


def test_what_cannot_be_read_is_listed_without_room_as_well(tiles, spec, monkeypatch):
    path = tiles.source.paths[3]
    path.write_bytes(b"broken")
    monkeypatch.setattr(resident, "_Pixels", raiser(torch.OutOfMemoryError))
    made = loader(tiles, spec)
    with pytest.warns(UserWarning, match="no room"):
        list(made.epoch(0))
    assert list(made.corrupt) == [str(path)]
