import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch

from crossdistill.data import EvalLoader, TrainLoader, open_source
from crossdistill.data.feed import Answer, pins
from crossdistill.data.pixels import centre_view, normalise
from crossdistill.errors import InputError
from crossdistill.settings import AugmentSettings, DataSettings

DIGITS = open_source(DataSettings(source="digits"))


@pytest.fixture
def photos(tmp_path, write_tree):
    """Forty files of two sizes, which are not held in memory."""
    write_tree(tmp_path / "train", {"a": 20})
    write_tree(tmp_path / "train", {"b": 20}, size=(15, 11), first_seed=100)
    write_tree(tmp_path / "val", {"a": 6, "b": 7}, first_seed=200)
    return open_source(DataSettings(source=f"folder:{tmp_path}"))


def train_loader(splits, views, *, ids=None, augment=None, **options):
    ids = np.arange(len(splits.train.targets)) if ids is None else ids
    options = {"seed": 0, "batch_size": 8} | options
    return TrainLoader(splits.train, ids, splits.train.targets, views, augment or AugmentSettings(), **options)


def flat(steps):
    return [batch for step in steps for batch in step]


def assert_same(first, second):
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.sample_id, other.sample_id)
        assert torch.equal(one.target, other.target)
        assert one.images.keys() == other.images.keys()
        assert all(torch.equal(one.images[view], other.images[view]) for view in one.images)
        assert one.epoch == other.epoch


@pytest.mark.parametrize("batch_size", [7, 8])
def test_a_plan_names_the_samples_of_an_epoch_and_any_pairs_of_it_can_be_had_alone(photos, spec, batch_size):
    augment = AugmentSettings(crop="resized", mixup=0.8, cutmix=1.0, erase=0.5, rand_augment="rand-m9-mstd0.5-inc1")
    options = {"batch_size": batch_size, "device_batch_size": 4, "augment": augment, "balanced": True, "workers": 0}
    loader = train_loader(photos, {"student": spec(16)}, ids=np.arange(3, 26), **options)
    plan, steps = loader.plan(2), list(loader.epoch(2))
    assert [[part[:, 0].tolist() for part in step] for step in plan] == [
        [batch.sample_id.tolist() for batch in step] for step in steps
    ]
    occurrences = {}
    for sample, occurrence in np.concatenate([part for step in plan for part in step]).tolist():
        occurrences.setdefault(sample, []).append(occurrence)
    assert max(map(len, occurrences.values())) > 1
    assert all(len(set(own)) == len(own) for own in occurrences.values())
    for part, batch in zip((part for step in plan for part in step), flat(steps), strict=True):
        for start in range(0, len(part), 2):
            own = slice(start, start + 2)
            alone = loader.batch(2, part[own])
            assert alone.sample_id.tolist() == batch.sample_id[own].tolist()
            assert torch.equal(alone.target, batch.target[own])
            assert torch.equal(alone.images["student"], batch.images["student"][own])


def test_batches_are_complete(spec):
    loader = train_loader(DIGITS, {"student": spec(16), "teacher0": spec(12)}, batch_size=64)
    assert loader.steps_per_epoch == 1437 // 64
    steps = list(loader.epoch(3))
    assert len(steps) == loader.steps_per_epoch
    assert {len(step) for step in steps} == {1}
    for batch in flat(steps):
        assert batch.epoch == 3
        assert batch.images["student"].shape == (64, 3, 16, 16)
        assert batch.images["teacher0"].shape == (64, 3, 12, 12)
        assert batch.images["student"].dtype == torch.float32
        assert batch.target.dtype == batch.sample_id.dtype == torch.int64
        assert batch.target.tolist() == DIGITS.train.targets[batch.sample_id.numpy()].tolist()
    assert len(set(torch.cat([batch.sample_id for batch in flat(steps)]).tolist())) == 22 * 64


@pytest.mark.parametrize("crop", ["none", "pad", "resized"])
def test_workers_do_not_change_batches(photos, spec, crop):
    views = {"student": spec(16), "teacher0": spec(16), "teacher1": spec(10, mean=0.1)}
    alone, helped = (
        train_loader(photos, views, augment=AugmentSettings(crop=crop), workers=workers) for workers in (0, 2)
    )
    for epoch in (0, 1):
        assert_same(flat(alone.epoch(epoch)), flat(helped.epoch(epoch)))
    batch = flat(helped.epoch(0))[0]
    assert batch.images["student"] is batch.images["teacher0"]


def test_workers_do_not_change_held_batches(spec):
    ids = np.arange(100, 164)
    alone, helped = (train_loader(DIGITS, {"student": spec(12)}, ids=ids, workers=workers) for workers in (0, 2))
    assert_same(flat(alone.epoch(0)), flat(helped.epoch(0)))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_where_it_was_left(photos, spec, workers):
    loader = train_loader(photos, {"student": spec(8)}, workers=workers, device_batch_size=4)
    whole = list(loader.epoch(2))
    left = loader.epoch(2)
    next(left)
    assert_same(flat(loader.epoch(2, start_step=3)), flat(whole[3:]))
    assert list(loader.epoch(2, start_step=5)) == []


def test_processes_and_micro_batches_add_up_to_one(spec):
    options = {"batch_size": 64, "ids": np.arange(0, 1400, 2)}
    one = list(train_loader(DIGITS, {"student": spec(8)}, **options).epoch(1))
    loaders = [
        train_loader(DIGITS, {"student": spec(8)}, rank=rank, world_size=2, device_batch_size=12, **options)
        for rank in (0, 1)
    ]
    for step, shares in zip(one, zip(*(loader.epoch(1) for loader in loaders), strict=True), strict=True):
        parts = flat(shares)
        assert [len(part) for part in parts] == [10, 10, 12] * 2
        assert torch.equal(torch.cat([part.images["student"] for part in parts]), step[0].images["student"])
        assert torch.equal(torch.cat([part.sample_id for part in parts]), step[0].sample_id)


def test_epochs_differ(spec):
    loader = train_loader(DIGITS, {"student": spec(8)})
    orders = [torch.cat([batch.sample_id for batch in flat(loader.epoch(epoch))]).tolist() for epoch in range(3)]
    assert all(first != second for first, second in pairwise(orders))


def test_a_set_smaller_than_the_batch_is_one_step(spec):
    loader = train_loader(DIGITS, {"student": spec(8)}, ids=np.array([5, 1000, 7]), batch_size=64)
    assert loader.steps_per_epoch == 1
    (batch,) = flat(loader.epoch(0))
    assert sorted(batch.sample_id.tolist()) == [5, 7, 1000]


def test_the_generator_of_training_is_left_alone(spec):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    next(iter(train_loader(DIGITS, {"student": spec(8)}).epoch(0)))
    next(iter(EvalLoader(DIGITS.evaluation, {"student": spec(8)}, batch_size=8)))
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_is_every_image_once_in_order(photos, spec):
    wanted = spec(10, crop_pct=0.9)
    loader = EvalLoader(photos.evaluation, {"student": wanted}, batch_size=5, workers=0)
    batches = list(loader)
    assert len(loader) == len(batches) == 3
    assert torch.cat([batch.sample_id for batch in batches]).tolist() == list(range(13))
    assert torch.cat([batch.target for batch in batches]).tolist() == [0] * 6 + [1] * 7
    images = torch.cat([batch.images["student"] for batch in batches])
    for index, image in enumerate(images):
        assert torch.equal(image, normalise(centre_view(photos.evaluation.read(index), wanted), wanted))
    assert_same(list(loader), batches)
    assert_same(list(EvalLoader(photos.evaluation, {"student": wanted}, batch_size=5, workers=2)), batches)


def test_processes_share_out_evaluation(spec):
    def ids(**options):
        loader = EvalLoader(DIGITS.evaluation, {"student": spec(8)}, batch_size=7, **options)
        return torch.cat([batch.sample_id for batch in loader]).tolist()

    assert ids(rank=0, world_size=3) + ids(rank=1, world_size=3) + ids(rank=2, world_size=3) == list(range(360))
    assert ids(ids=np.array([9, 4, 30])) == [4, 9, 30]


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_images_are_left_out_and_listed(tmp_path, photos, spec, workers):
    broken = tmp_path / "train" / "a" / "003.png"
    broken.write_bytes(broken.read_bytes()[:40])
    (tmp_path / "val" / "b" / "000.png").write_bytes(b"")
    loader = train_loader(photos, {"student": spec(8)}, workers=workers, max_corrupt_share=0.1)
    batches = flat(loader.epoch(0))
    assert sorted(len(batch) for batch in batches) == [7, 8, 8, 8, 8]
    assert all(len(batch.images["student"]) == len(batch.target) == len(batch.sample_id) for batch in batches)
    assert 3 not in torch.cat([batch.sample_id for batch in batches])
    assert list(loader.corrupt) == [str(broken)]
    assert loader.corrupt[str(broken)]
    evaluation = EvalLoader(
        photos.evaluation, {"student": spec(8)}, batch_size=5, workers=workers, max_corrupt_share=0.1
    )
    assert torch.cat([batch.sample_id for batch in evaluation]).tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]
    assert list(evaluation.corrupt.values()) == ["not an image of a known format"]


def test_a_batch_without_any_readable_image_is_left_out(tmp_path, photos, spec):
    for index in range(5):
        (tmp_path / "val" / "a" / f"{index:03d}.png").write_bytes(b"")
    loader = EvalLoader(photos.evaluation, {"student": spec(8)}, batch_size=5, workers=0, max_corrupt_share=0.5)
    assert [len(batch) for batch in loader] == [5, 3]
    alone = train_loader(photos, {"student": spec(8)}, ids=np.array([0, 1]), workers=0, max_corrupt_share=1.0)
    for index in range(2):
        (tmp_path / "train" / "a" / f"{index:03d}.png").write_bytes(b"")
    assert list(alone.epoch(0)) == [[]]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_corrupt_images_stop_the_run(tmp_path, photos, spec, workers):
    for index in (4, 9):
        (tmp_path / "train" / "b" / f"{index:03d}.png").write_bytes(b"")
    loader = train_loader(photos, {"student": spec(8)}, workers=workers, max_corrupt_share=0.04)
    message = r"(?s)2 of 40 images cannot be read \(5\.0%\), first .*b/00\d\.png .*at most 4\.0%.*max_corrupt_share"
    with pytest.raises(InputError, match=message):
        flat(loader.epoch(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_input_found_by_a_worker_is_raised_in_the_parent(tmp_path, write_tree, make_picture, spec, workers):
    for split in ("train", "val"):
        write_tree(tmp_path / split, {"a": 100, "b": 100}, mode="L", size=(4, 4))
    colour = tmp_path / "train" / "a" / "001.png"  # between two of those that are looked at when the loader is made
    make_picture(0, (4, 4)).save(colour)
    loader = train_loader(
        open_source(DataSettings(source=f"folder:{tmp_path}")), {"student": spec(4, 1)}, workers=workers
    )
    with pytest.raises(InputError, match="three channels") as caught:
        flat(loader.epoch(0))
    assert str(colour) in caught.value.given
    assert caught.value.action == "save the images as grey, or build the model for three channels"


def test_channels_are_checked_before_anything_is_read(photos, spec):
    with pytest.raises(InputError, match=r"000\.png .*three channels.*built for 1"):
        train_loader(photos, {"student": spec(8, 1)})
    with pytest.raises(InputError, match=r"three channels"):
        EvalLoader(photos.evaluation, {"student": spec(8, 1)}, batch_size=4)


def test_sizes_are_checked_when_the_loader_is_made(spec):
    with pytest.raises(InputError, match="batch_size=9 over 2 processes"):
        train_loader(DIGITS, {"student": spec(8)}, batch_size=9, world_size=2)
    with pytest.raises(InputError, match="0 training images"):
        train_loader(DIGITS, {"student": spec(8)}, ids=np.array([], dtype=np.int64))


def test_cifar100_from_disk_to_batches(shared, spec):
    splits = open_source(DataSettings(source=f"parquet:{shared('data/cifar100')}"))
    options = {"ids": np.arange(0, 50_000, 200), "batch_size": 50}
    loader = train_loader(splits, {"student": spec(32), "teacher0": spec(64)}, **options)
    assert (loader.augment.crop, loader.augment.flip) == ("pad", 0.5)
    batches = flat(loader.epoch(0))
    assert [batch.images["teacher0"].shape for batch in batches] == [(50, 3, 64, 64)] * 5
    assert_same(flat(train_loader(splits, {"student": spec(32), "teacher0": spec(64)}, **options).epoch(0)), batches)
    assert loader.corrupt == {}


def test_workers_that_are_started_afresh_can_be_sent_everything(photos, spec):
    """Where processes are not forked, what they work with is pickled."""
    for splits in (photos, DIGITS):
        loader = train_loader(splits, {"student": spec(8)}, workers=0)
        expected = flat(loader.epoch(0))
        loader._feed._dataset = pickle.loads(pickle.dumps(loader._feed._dataset))
        loader._feed._loader = loader._feed._new_loader()
        assert_same(flat(loader.epoch(0)), expected)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_limit_of_corrupt_images_is_that_of_one_process_whatever_their_number(tmp_path, photos, spec, world_size):
    for index in range(0, 20, 2):
        for name in ("a", "b"):
            (tmp_path / "train" / name / f"{index:03d}.png").write_bytes(b"broken")
    allowed, refused = (
        train_loader(photos, {"student": spec(8)}, world_size=world_size, workers=0, max_corrupt_share=share)
        for share in (0.9, 0.25)
    )
    assert flat(allowed.epoch(0))
    with pytest.raises(InputError, match="cannot be read"):
        list(refused.epoch(0))


def test_the_images_that_fill_no_step_can_be_had_as_one_more(photos, spec):
    loader = train_loader(photos, {"student": spec(8)}, ids=np.arange(21), workers=0)
    plan, whole = loader.plan(1), loader.plan(1, drop_last=False)
    assert [[len(part) for part in step] for step in whole] == [[8], [8], [5]]
    assert all(np.array_equal(one[0], other[0]) for one, other in zip(plan, whole, strict=False))
    assert sorted(np.concatenate([part for step in whole for part in step])[:, 0].tolist()) == list(range(21))
    ranks = [
        train_loader(photos, {"student": spec(8)}, ids=np.arange(21), rank=rank, world_size=2).plan(1, drop_last=False)
        for rank in (0, 1)
    ]
    for step, shares in zip(whole, zip(*ranks, strict=True), strict=True):
        parts = [part for share in shares for part in share]
        assert np.array_equal(np.concatenate(parts), np.concatenate(step))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_any_epochs_come_in_the_order_they_are_asked_for(photos, spec, workers):
    loader = train_loader(photos, {"student": spec(8)}, workers=workers)
    steps = {epoch: flat(loader.epoch(epoch)) for epoch in (0, 3)}
    requests = [(epoch, step[0]) for epoch in (3, 0) for step in loader.plan(epoch)]
    assert_same(list(loader.answers(requests)), steps[3] + steps[0])
    assert list(loader.answers([])) == []


def test_what_cannot_be_read_is_left_out_of_answers(tmp_path, photos, spec):
    for index in range(2):
        (tmp_path / "train" / "a" / f"{index:03d}.png").write_bytes(b"")
    loader = train_loader(photos, {"student": spec(8)}, workers=0, max_corrupt_share=1.0)
    samples = np.array([[0, 0], [1, 0], [2, 0], [3, 0]])
    nothing, batch = loader.answers([(0, samples[:2]), (0, samples[1:])])
    assert nothing is None
    assert batch.sample_id.tolist() == [2, 3]


def test_epochs_come_again(photos, spec):
    augment = AugmentSettings(crop="resized", mixup=0.8)
    plain, cyclic = (
        train_loader(photos, {"student": spec(8)}, augment=augment, workers=0, cycle_epochs=cycle)
        for cycle in (None, 2)
    )
    for epoch in range(5):
        batches = flat(cyclic.epoch(epoch))
        assert_same(batches, flat(plain.epoch(epoch % 2)))
        assert {batch.epoch for batch in batches} == {epoch % 2}
        assert np.array_equal(cyclic.plan(epoch), plain.plan(epoch % 2))
        assert_same([cyclic.batch(epoch, cyclic.plan(epoch)[0][0])], batches[:1])


@pytest.mark.parametrize("on_device", [False, True])
def test_batches_are_pinned_whole(photos, spec, on_device, monkeypatch):
    """There is no GPU to pin memory for here, so what would be pinned is noted."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    views = {"student": spec(8), "teacher0": spec(8), "teacher1": spec(6)}
    loader = train_loader(photos, views, augment_device=torch.device("cpu") if on_device else None, workers=0)
    samples = loader.plan(0)[0][0]
    answer = loader._feed._dataset[(0, samples)]
    made = answer.pin_memory().made
    batch = loader._assembly.complete(made, None)
    assert_same([batch], [loader.batch(0, samples)])
    assert batch.images["student"] is batch.images["teacher0"]
    assert len(pinned) == (2 if on_device else 4)
    assert Answer(None, {"here": "broken"}).pin_memory().corrupt == {"here": "broken"}


def test_memory_is_pinned_where_batches_may_go_to_a_gpu(monkeypatch):
    assert not pins(None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pins(None)
    assert pins(torch.device("cuda"))
    assert not pins(torch.device("cpu"))
