import io
import multiprocessing
import subprocess

import numpy as np
import pytest
import torch

from crossdistill.data import (
    EvalLoader,
    MultiViewTransform,
    StreamEvalLoader,
    StreamLoader,
    TrainTransform,
    eval_loader,
    open_source,
    resolve_views,
)
from crossdistill.data.shards import fetch as fetching
from crossdistill.data.shards.fetch import fetch
from crossdistill.data.sources.decode import decode
from crossdistill.errors import InputError
from crossdistill.settings import AugmentSettings, DataSettings, ViewSettings
from samples import shards

pytest.importorskip("webdataset")
NUM_SHARDS, EACH = 4, 6


@pytest.fixture(autouse=True)
def quick(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetching, "PAUSES", (0.0, 0.0, 0.0))


@pytest.fixture
def folder(tmp_path, write_tree):
    """Four training shards of six samples, and two validation shards, of pictures of two sizes."""
    write_tree(tmp_path / "tree" / "train", {"ant": NUM_SHARDS * EACH // 2})
    write_tree(tmp_path / "tree" / "train", {"bee": NUM_SHARDS * EACH // 2}, size=(15, 11), first_seed=50)
    write_tree(tmp_path / "tree" / "val", {"ant": 4, "bee": 5}, first_seed=100)
    for split, num_shards in (("train", NUM_SHARDS), ("val", 2)):
        shards.from_folder(tmp_path / "tree" / split, tmp_path / "shards", num_shards=num_shards, split=split)
    return tmp_path / "shards"


@pytest.fixture
def server(folder):
    with shards.serving(folder) as server:
        yield server


def open_remote(server, *, num_train=NUM_SHARDS * EACH, class_names=("ant", "bee")):
    pattern = f"{server.address}/train-{{000..{NUM_SHARDS - 1:03d}}}.tar::{server.address}/val-{{000..001}}.tar"
    return open_source(
        DataSettings(source=f"wds:{pattern}", stream={"num_train": num_train, "class_names": class_names})
    )


def open_local(folder):
    return open_source(DataSettings(source=f"wds:{folder}"))


def train_loader(server, spec, *, num_train=NUM_SHARDS * EACH, views=None, **options):
    stream = open_remote(server, num_train=num_train).train
    options = {"seed": 0, "batch_size": 8, "workers": 0, "augment": AugmentSettings(flip=0.5)} | options
    return StreamLoader(stream, views or {"student": spec(8)}, **options)


def flat(steps):
    return [batch for step in steps for batch in step]


def ids_of(batches):
    return torch.cat([batch.sample_id for batch in batches]).tolist()


def own_ids(server, number):
    """The ids of the samples of a training shard."""
    return {sample.sample_id for sample in fetch(f"{server.address}/train-{number:03d}.tar")}


def assert_same(first, second):
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.sample_id, other.sample_id)
        assert torch.equal(one.target, other.target)
        assert all(torch.equal(one.images[view], other.images[view]) for view in one.images)


def test_an_epoch_is_every_sample_once_augmented_as_its_id_says(folder, server, spec):
    local, views = open_local(folder).train, {"student": spec(8), "teacher0": spec(10, mean=0.1)}
    loader = train_loader(server, spec, views=views)
    assert (loader.steps_per_epoch, len(loader.ids), loader.augment.crop) == (3, 24, "resized")
    steps = list(loader.epoch(5))
    assert [[len(batch) for batch in step] for step in steps] == [[8]] * 3
    numbers = {
        sample.sample_id: int(local_index)
        for local_index, sample in enumerate(
            sample for number in range(NUM_SHARDS) for sample in fetch(f"{server.address}/train-{number:03d}.tar")
        )
    }
    batches = flat(steps)
    assert sorted(ids_of(batches)) == sorted(numbers)
    transform = TrainTransform(views, loader.augment, 0)
    for batch in batches:
        assert batch.epoch == 5
        indices = [numbers[one] for one in batch.sample_id.tolist()]
        assert batch.target.tolist() == local.targets[indices].tolist()
        for row, index in enumerate(indices):
            expected = transform(local.read(index)[None], batch.sample_id.numpy()[[row]], 5)
            assert all(torch.equal(batch.images[view][row], expected[view][0]) for view in views)


def test_views_for_pretraining_are_those_of_a_samples_id(folder, server, spec):
    looks = resolve_views(ViewSettings(crops=2, patches=3), image_size=16, source=open_local(folder).train)
    made = MultiViewTransform(spec(16), spec(16), looks, seed=2)
    batches = flat(train_loader(server, spec, transform=made, workers=2).epoch(1))
    on_device = train_loader(server, spec, transform=made, workers=2, augment_device=torch.device("cpu"))
    assert_same(flat(on_device.epoch(1)), batches)
    addresses = [f"{server.address}/train-{number:03d}.tar" for number in range(NUM_SHARDS)]
    samples = {one.sample_id: one for address in addresses for one in fetch(address)}
    for batch in batches:
        for row, (index, again) in enumerate(batch.samples.tolist()):
            image = decode(io.BytesIO(samples[index].image()), "here")
            expected = made(image[None], np.array([index]), 1, np.array([again]))
            assert all(torch.equal(batch.images[view][row], expected[view][0]) for view in expected)


def test_epochs_are_the_same_again_and_differ_from_each_other(server, spec):
    loader = train_loader(server, spec)
    first = flat(loader.epoch(0))
    assert_same(flat(train_loader(server, spec).epoch(0)), first)
    assert_same(flat(loader.epoch(0)), first)
    assert ids_of(flat(loader.epoch(1))) != ids_of(first)
    assert ids_of(flat(train_loader(server, spec, seed=1).epoch(0))) != ids_of(first)


def test_epochs_come_again(server, spec):
    cyclic, plain = train_loader(server, spec, cycle_epochs=2), train_loader(server, spec)
    batches = flat(cyclic.epoch(3))
    assert_same(batches, flat(plain.epoch(1)))
    assert {batch.epoch for batch in batches} == {1}


def test_workers_share_out_whole_shards(server, spec):
    loader = train_loader(server, spec, workers=2, batch_size=4)
    batches = flat(loader.epoch(0))
    assert sorted(ids_of(batches)) == sorted(set().union(*(own_ids(server, number) for number in range(NUM_SHARDS))))
    lanes = [set(ids_of(batches[lane::2])) for lane in range(2)]
    for number in range(NUM_SHARDS):
        assert any(own_ids(server, number) <= lane for lane in lanes)
    assert_same(flat(train_loader(server, spec, workers=2, batch_size=4).epoch(0)), batches)


def test_processes_share_out_whole_shards(server, spec):
    options = {"world_size": 2, "device_batch_size": 2}
    parts = [flat(train_loader(server, spec, rank=rank, **options).epoch(3)) for rank in (0, 1)]
    assert [len(batch) for batch in parts[0]] == [2] * 6
    assert not set(ids_of(parts[0])) & set(ids_of(parts[1]))
    assert len(set(ids_of(parts[0]) + ids_of(parts[1]))) == 24
    with pytest.raises(InputError, match=r"4 remote training shard\(s\) for 5 processes"):
        train_loader(server, spec, world_size=5, batch_size=10)


def test_a_resumed_epoch_passes_over_whole_shards(server, spec):
    loader = train_loader(server, spec)
    server.requests.clear()
    flat(loader.epoch(2))
    order = list(server.requests)
    server.requests.clear()
    rest = list(loader.epoch(2, start_step=2))
    assert [len(step) for step in rest] == [1]
    assert server.requests == order[2:]  # 16 of 24 samples were seen, so two whole shards of six
    assert not set(ids_of(flat(rest))) & set().union(*(own_ids(server, int(name[6:9])) for name in order[:2]))
    assert list(loader.epoch(2, start_step=3)) == []


def test_an_epoch_longer_than_the_shards_begins_again_with_other_changes(server, spec):
    loader = train_loader(server, spec, num_train=48)
    batches = flat(loader.epoch(0))
    assert len(batches) == 6
    first, second = batches[:3], batches[3:]
    assert sorted(ids_of(first)) == sorted(ids_of(second))
    images = [
        dict(zip(ids_of(part), torch.cat([b.images["student"] for b in part]), strict=True)) for part in (first, second)
    ]
    assert not any(torch.equal(images[0][one], images[1][one]) for one in images[0])


def test_a_set_smaller_than_the_batch_is_one_step(server, spec):
    loader = train_loader(server, spec, num_train=5, batch_size=8)
    assert loader.steps_per_epoch == 1
    assert [len(batch) for batch in flat(loader.epoch(0))] == [5]


def test_pixels_may_be_changed_in_this_process(server, spec):
    augment = AugmentSettings(flip=0.5, mixup=0.8)
    expected = flat(train_loader(server, spec, augment=augment).epoch(0))
    assert expected[0].target.shape == (8, 2)
    on_device = train_loader(server, spec, augment=augment, augment_device=torch.device("cpu"), workers=2)
    one_lane = train_loader(server, spec, augment=augment, augment_device=torch.device("cpu"), workers=1)
    assert_same(flat(one_lane.epoch(0)), expected)
    assert [batch.target.shape for batch in flat(on_device.epoch(0))] == [(8, 2)] * 3


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_evaluation_is_every_sample_once(folder, server, spec, workers):
    views = {"student": spec(10, crop_pct=0.9)}
    splits, local = open_remote(server), open_local(folder).evaluation
    loader = eval_loader(splits.evaluation, views, batch_size=4, workers=workers)
    assert isinstance(loader, StreamEvalLoader)
    expected = next(iter(EvalLoader(local, views, batch_size=9, workers=0)))
    for _ in range(2):
        batches = list(loader)
        images = torch.cat([batch.images["student"] for batch in batches])
        targets = torch.cat([batch.target for batch in batches])
        if workers < 2:
            assert [len(batch) for batch in batches] == [4, 4, 1]
            assert torch.equal(images, expected.images["student"])
            assert torch.equal(targets, expected.target)
        else:
            assert sorted(images.flatten(1).sum(1).tolist()) == sorted(
                expected.images["student"].flatten(1).sum(1).tolist()
            )
            assert sorted(targets.tolist()) == sorted(expected.target.tolist())


def test_processes_share_out_evaluation(server, spec):
    evaluation, views = open_remote(server).evaluation, {"student": spec(8)}
    parts = [
        list(StreamEvalLoader(evaluation, views, batch_size=4, workers=0, rank=rank, world_size=3)) for rank in range(3)
    ]
    assert [sum(map(len, part)) for part in parts] == [5, 4, 0]


def test_a_connection_that_breaks_is_taken_up_where_it_broke(server, spec):
    expected = flat(train_loader(server, spec).epoch(0))
    server.broken = {"train-001.tar": 2, "train-003.tar": 1}
    server.requests.clear()
    assert_same(flat(train_loader(server, spec).epoch(0)), expected)
    assert sorted(server.requests) == [
        *["train-000.tar", *["train-001.tar"] * 3],
        *["train-002.tar", *["train-003.tar"] * 2],
    ]


@pytest.mark.parametrize("after", [0, 1536, 2048, 4096, 6000])
def test_wherever_a_connection_breaks_no_sample_is_lost_or_doubled(server, after):
    address = f"{server.address}/train-000.tar"
    expected = list(fetch(address))
    server.broken, server.after = {"train-000.tar": 2}, after
    assert list(fetch(address)) == expected
    assert [set(sample.members) for sample in expected] == [{"png", "cls"}] * EACH


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_cannot_be_fetched_is_named(server, spec, workers):
    server.broken, server.after = {"train-002.tar": 1000}, 700
    loader = train_loader(server, spec, workers=workers)
    with pytest.raises(InputError, match=r"train-002\.tar: the connection broke"):
        flat(loader.epoch(0))
    assert server.requests.count("train-002.tar") == 4


def test_a_shard_that_is_not_there_is_not_asked_for_again(folder, server, spec):
    (folder / "train-002.tar").unlink()
    with pytest.raises(InputError, match=r"train-002\.tar: the server refuses it, or does not have it"):
        flat(train_loader(server, spec).epoch(0))
    assert server.requests.count("train-002.tar") == 1


def test_a_server_that_does_not_answer(spec):
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9/x\.tar: its server does not answer"):
        list(fetch("http://127.0.0.1:9/x.tar"))


def test_shards_that_are_broken_on_the_server(folder, server):
    path, address = folder / "train-000.tar", f"{server.address}/train-000.tar"
    content = path.read_bytes()
    path.write_bytes(content[:2000])
    with pytest.raises(InputError, match=r"train-000\.tar: "):
        list(fetch(address))
    path.write_bytes(b"<html>moved</html>" * 100)
    with pytest.raises(InputError, match=r"train-000\.tar: "):
        list(fetch(address))
    damaged = bytearray(content + bytes(20_000))
    damaged[2048 + 3] ^= 0xFF  # the header of the third member
    path.write_bytes(damaged + b"\1" * 512)
    with pytest.raises(InputError, match=r"train-000\.tar: a header in it is broken"):
        list(fetch(address))


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_cannot_be_read_are_left_out_and_listed(folder, server, spec, workers):
    members = [("a.png", b"no image"), ("a.cls", b"0"), ("b.cls", b"1"), ("c.png", b"\x89PNG")]
    whole = shards.from_folder(folder.parent / "tree" / "val", folder / "more", num_shards=1, split="x")[0]
    (folder / "train-000.tar").write_bytes(whole.read_bytes())
    shards.write(folder / "train-001.tar", members)
    loader = train_loader(server, spec, num_train=24, max_corrupt_share=0.2, workers=workers)
    batches = flat(loader.epoch(0))
    assert sum(map(len, batches)) == 24 - 3
    assert {where[-9:]: reason for where, reason in loader.corrupt.items()} == {
        "ample 'a'": "not an image of a known format",
        "ample 'b'": "no image",
        "ample 'c'": "not an image of a known format",
    }
    strict = train_loader(server, spec, num_train=24, max_corrupt_share=0.1, workers=workers)
    with pytest.raises(InputError, match=r"3 of 24 images cannot be read \(12\.5%\)"):
        flat(strict.epoch(0))


def test_evaluation_counts_what_it_could_not_read(folder, server, spec):
    shards.write(folder / "val-001.tar", [("a.png", b"no image"), ("a.cls", b"0")])
    evaluation, views = open_remote(server).evaluation, {"student": spec(8)}
    loader = StreamEvalLoader(evaluation, views, batch_size=4, workers=0, max_corrupt_share=0.2)
    assert sum(map(len, loader)) == 5
    assert list(loader.corrupt) == [f"{server.address}/val-001.tar, sample 'a'"]
    strict = StreamEvalLoader(evaluation, views, batch_size=4, workers=0)
    with pytest.raises(InputError, match=r"1 of 6 images cannot be read"):
        list(strict)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_label_that_is_no_class_is_bad_input(folder, server, spec, workers, make_picture):
    shards.write(folder / "train-002.tar", shards.sample("x", make_picture(0), 2))
    loader = train_loader(server, spec, workers=workers)
    with pytest.raises(InputError, match=r"label '2' of http.*train-002\.tar, sample 'x'"):
        flat(loader.epoch(0))


def test_colour_images_for_a_grey_model_are_named(server, spec):
    loader = train_loader(server, spec, views={"student": spec(8, 1)})
    with pytest.raises(InputError, match=r"train-00\d\.tar, sample '\d+' has three channels"):
        flat(loader.epoch(0))


def test_ids_are_the_same_on_every_server(folder, server):
    with shards.serving(folder) as other:
        ids = [[sample.sample_id for sample in fetch(f"{one.address}/val-000.tar?x=1")] for one in (server, other)]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 5
    assert all(0 <= one < 2**63 for one in ids[0])
    assert max(ids[0]) > 2**40


def test_nothing_is_left_behind_when_an_epoch_is_left(server, spec):
    for workers in (0, 2):
        steps = train_loader(server, spec, workers=workers, batch_size=4).epoch(0)
        next(steps)
        steps.close()
    assert not [one for one in multiprocessing.active_children() if "DataLoader" in one.name]
    running = subprocess.run(
        ["ps", "-o", "args", "--ppid", str(multiprocessing.current_process().pid)], capture_output=True
    )
    assert b"curl" not in running.stdout


def test_the_generator_of_training_is_left_alone(server, spec):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    next(iter(train_loader(server, spec).epoch(0)))
    assert torch.equal(torch.get_rng_state(), state)
