import importlib.util
import shutil
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from crossdistill.data import HeldSource, Stream, open_source, select_stream
from crossdistill.data.shards.labels import ShardClasses
from crossdistill.data.shards.lanes import endless, lane_draws, shard_order, shuffled
from crossdistill.data.shards.names import expand_braces
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings
from samples import shards

FACTS = {"num_train": 8, "class_names": ["ant", "bee"]}
REMOTE = "http://127.0.0.1:9"
"""Nothing is fetched from here: opening a stream reads nothing."""


def open_at(pattern, **settings):
    return open_source(DataSettings(source=f"wds:{pattern}", **settings))


def refused(pattern, message, **settings):
    with pytest.raises(InputError, match=message) as caught:
        open_at(pattern, **settings)
    return caught.value


@pytest.fixture
def local_shard(tmp_path, make_picture):
    members = [m for k, label in enumerate(["ant", "bee"]) for m in shards.sample(str(k), make_picture(k), label)]
    return shards.write(tmp_path / "val-0.tar", members)


def test_braces_stand_for_all_their_words():
    assert expand_braces("a{1..3}.tar") == ["a1.tar", "a2.tar", "a3.tar"]
    assert expand_braces("a{098..101}") == ["a098", "a099", "a100", "a101"]
    assert expand_braces("{x,y}-{2..1}") == ["x-2", "x-1", "y-2", "y-1"]
    assert expand_braces("{a,b{1,2}}") == ["a", "b1", "a", "b2"]
    assert expand_braces("{plain}{1,2}{") == ["{plain}1{", "{plain}2{"]


def test_a_stream_is_what_the_settings_say():
    pattern = f"{REMOTE}/train-{{0..3}}.tar::{REMOTE}/val-{{0..1}}.tar?key=1::{REMOTE}/test-0.tar"
    splits = open_at(pattern, stream=FACTS)
    assert isinstance(splits.train, Stream)
    assert splits.train.shards == tuple(f"{REMOTE}/train-{number}.tar" for number in range(4))
    assert (splits.train.num_train, splits.class_names) == (8, ("ant", "bee"))
    assert (splits.evaluation_name, splits.evaluation.shards) == ("test", (f"{REMOTE}/test-0.tar",))
    assert splits.validation.shards == (f"{REMOTE}/val-0.tar?key=1", f"{REMOTE}/val-1.tar?key=1")
    changed = open_at(pattern, stream=FACTS | {"num_train": 9}).train
    assert len({splits.train.identity(), splits.evaluation.identity(), changed.identity()}) == 3


def test_a_fifth_of_the_shards_is_held_out_where_there_is_nothing_else():
    pattern = f"{REMOTE}/train-{{00..09}}.tar"
    splits = open_at(pattern, stream=FACTS)
    assert (len(splits.train.shards), len(splits.evaluation.shards), splits.evaluation_name) == (8, 2, "val")
    everything = {*splits.train.shards, *splits.evaluation.shards}
    assert everything == {f"{REMOTE}/train-{number:02d}.tar" for number in range(10)}
    assert open_at(pattern, stream=FACTS).evaluation.shards == splits.evaluation.shards
    refused(f"{REMOTE}/train-0.tar", "one remote shard, and none to report on", stream=FACTS)


def test_local_shards_may_be_reported_on_beside_remote_ones(local_shard):
    splits = open_at(f"{REMOTE}/train-{{0..3}}.tar::{local_shard}", stream=FACTS)
    assert isinstance(splits.evaluation, HeldSource)
    assert splits.evaluation.targets.tolist() == [0, 1]
    assert splits.evaluation.class_names == ("ant", "bee")
    refused(f"{REMOTE}/train-0.tar::{local_shard}", "label 'bee' of", stream=FACTS | {"class_names": ["ant", "cow"]})


def test_a_stream_must_be_described():
    action = refused(f"{REMOTE}/train-{{0..3}}.tar", "4 remote training shard.* without data.stream").action
    assert "number of training images" in action
    refused(f"{REMOTE}/train-{{0..3}}.tar", "'ant' twice", stream=FACTS | {"class_names": ["ant", "ant"]})


def test_a_split_is_of_one_kind(local_shard):
    local_train = local_shard.with_name("train-0.tar")
    shutil.copy(local_shard, local_train)
    refused(f"{local_train}::{REMOTE}/val-0.tar", r"\(val\): remote shards, while the training shards are local")
    refused(f"{local_train}::{REMOTE}/train-1.tar", "1 local and 1 remote shards in one split", stream=FACTS)
    refused(f"{REMOTE}/train-1.tar::{local_shard}::{REMOTE}/val-1.tar", "1 local and 1 remote", stream=FACTS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit_train": 4}, "data.limit_train=4"),
        ({"labels_per_class": 2}, "data.labels_per_class=2"),
        ({"sampling": "class_balanced"}, "data.sampling=class_balanced"),
    ],
)
def test_what_needs_all_labels_is_refused_for_streams(settings, message):
    stream = open_at(f"{REMOTE}/train-{{0..3}}.tar", stream=FACTS).train
    given = DataSettings(source="x", **settings)
    with pytest.raises(InputError, match=f"{message} for wds:.*remote shards"):
        select_stream(stream, given, select_best=False)
    with pytest.raises(InputError, match=r"train.select=best with data.val_share=0.1"):
        select_stream(stream, DataSettings(source="x"), select_best=True)


def test_all_images_of_a_stream_are_chosen():
    stream = open_at(f"{REMOTE}/train-{{0..3}}.tar", stream=FACTS).train
    chosen = select_stream(stream, DataSettings(source="x"), select_best=False)
    assert chosen.train_ids.tolist() == list(range(8))
    assert chosen.labelled.all()
    assert not len(chosen.val_ids)
    for ask in (lambda: stream.targets, lambda: stream.read(3), lambda: stream.describe(3)):
        with pytest.raises(InputError, match="remote shards, which are read once"):
            ask()


@pytest.mark.parametrize(("missing", "message"), [("webdataset", "crossdistill.data."), ("curl", "install curl")])
def test_what_fetches_must_be_installed(monkeypatch, missing, message):
    find_spec, which = importlib.util.find_spec, shutil.which
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find_spec(name))
    monkeypatch.setattr(shutil, "which", lambda name: None if name == missing else which(name))
    refused(f"{REMOTE}/train-{{0..3}}.tar", message, stream=FACTS)


def test_labels_are_numbers_or_names():
    classes = ShardClasses.of_names(["ant", "1", "bee"])
    assert [classes.target(text, "x") for text in ("ant", "bee", "0", "01", "2", "+2")] == [0, 2, 0, 1, 2, 2]
    for text in ("3", "-1", "be"):
        with pytest.raises(InputError, match=f"label '.?{text[-1]}.?' of x"):
            classes.target(text, "x")


def test_shards_come_in_another_order_each_epoch():
    names = [str(number) for number in range(50)]
    orders = [shard_order(names, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == sorted(names) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert shard_order(names, seed=1, epoch=1) == orders[3]


def test_the_buffer_gives_every_sample_once_and_mixes_near_ones():
    order = list(shuffled(range(5000), lane_draws(0, 0, 0), 100))
    assert sorted(order) == list(range(5000))
    assert order == list(shuffled(range(5000), lane_draws(0, 0, 0), 100))
    # What waits is left out with probability 1/100 at each draw, so a sample comes out some 100 places after it came.
    delays = np.argsort(order) + 100 - np.arange(5000)
    assert np.mean(delays[:4500]) == pytest.approx(100, abs=4 * 100 / np.sqrt(4500))
    assert order != list(shuffled(range(5000), lane_draws(0, 1, 0), 100))
    assert order != list(shuffled(range(5000), lane_draws(0, 0, 1), 100))
    assert sorted(shuffled(range(7), lane_draws(0, 0, 0), 100)) == list(range(7))


def test_shards_are_read_again_when_they_end():
    stock = {"a": [1, 2], "b": [], "c": [3]}
    samples = list(islice(endless("abc", stock.__getitem__, first=0, draws=lane_draws(0, 0, 0)), 9))
    assert Counter(samples) == Counter({(again, one): 1 for again in range(3) for one in (1, 2, 3)})
    resumed = list(islice(endless("abc", stock.__getitem__, first=1, draws=lane_draws(0, 0, 0)), 4))
    assert resumed[0] == (0, 3)
    assert {again for again, _ in resumed[1:]} == {1}
    with pytest.raises(InputError, match="shards b, b, which hold no sample"):
        next(endless("bb", stock.__getitem__, first=1, draws=lane_draws(0, 0, 0)))
