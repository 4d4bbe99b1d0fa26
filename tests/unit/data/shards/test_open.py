import json
import pickle
import tarfile

import numpy as np
import pytest
import torch

from crossdistill.data import CorruptImage, TrainLoader, open_source
from crossdistill.data.shards import index as shard_index
from crossdistill.data.shards.index import read_index
from crossdistill.data.shards.source import TarFiles
from crossdistill.errors import InputError
from crossdistill.settings import AugmentSettings, DataSettings
from samples import shards


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """An empty cache folder of the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def write_shard(make_picture):
    """Write samples with the given labels: ``write_shard(path, [0, 1])``; sample k shows picture ``first_seed`` + k."""

    def write(path, labels, *, first_seed=0, size=(12, 12), **options):
        members = []
        for index, label in enumerate(labels):
            members += shards.sample(f"{index:04d}", make_picture(first_seed + index, size), label, **options)
        return shards.write(path, members)

    return write


def open_at(pattern, **settings):
    return open_source(DataSettings(source=f"wds:{pattern}", **settings))


@pytest.fixture
def both(tmp_path, write_tree):
    """A folder source, and local shards written from it."""
    for split, counts, seed in (("train", {"a": 9, "b": 8, "c": 6}, 0), ("val", {"a": 3, "b": 2, "c": 2}, 100)):
        write_tree(tmp_path / "tree" / split, counts, first_seed=seed)
        num_shards = 3 if split == "train" else 1
        shards.from_folder(tmp_path / "tree" / split, tmp_path / "shards", num_shards=num_shards, split=split)
    (tmp_path / "shards" / "classes.txt").write_text("a\nb\nc\n")
    return open_source(DataSettings(source=f"folder:{tmp_path / 'tree'}")), open_at(tmp_path / "shards")


def test_shards_hold_what_the_folder_held_that_they_were_written_from(both):
    folder, found = both
    assert found.class_names == folder.class_names == ("a", "b", "c")
    assert found.evaluation_name == folder.evaluation_name == "val"
    order = [index for shard in range(3) for index in range(shard, 23, 3)]
    assert found.train.targets.tolist() == folder.train.targets[order].tolist()
    for index, there in enumerate(order):
        assert torch.equal(found.train.read(index), folder.train.read(there))
    assert found.evaluation.targets.tolist() == folder.evaluation.targets.tolist()
    assert (found.train.num_channels, found.train.image_size, found.train.in_memory) == (3, (12, 12), True)
    assert found.train.describe(8).endswith("train-001.tar, sample '000001'")


def test_imagenette_in_shards_is_the_imagenette_of_parquet(shared, tmp_path):
    rows = open_source(DataSettings(source=f"parquet:{shared('data/imagenette-128')}")).evaluation
    chosen = np.arange(0, 900, 30)
    members = [
        member
        for index in chosen
        for member in (
            (f"{index:05d}.jpg", rows.source.file(int(index)).getvalue()),
            (f"{index:05d}.json", json.dumps({"label": rows.class_names[rows.targets[index]]}).encode()),
        )
    ]
    shards.write(tmp_path / "train-0.tar", members)
    shards.write(tmp_path / "val-0.tar", members)
    found = open_at(tmp_path).evaluation
    names = [rows.class_names[target] for target in rows.targets[chosen]]
    assert [found.class_names[target] for target in found.targets] == names
    assert found.image_size is None
    for index, there in enumerate(chosen):
        assert torch.equal(found.read(index), rows.read(int(there)))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_is_read(tmp_path, make_picture, form):
    keys = ["a/0", "ü/1", "./2"]
    if form != tarfile.USTAR_FORMAT:
        keys.append("long/" * 40 + "3")
    members = [m for seed, key in enumerate(keys) for m in shards.sample(key, make_picture(seed), seed % 2)]
    path = shards.write(
        tmp_path / "train-0.tar", [("__meta__/notes.txt", b"x"), ("README.md", b"x"), *members], form=form
    )
    shards.write(tmp_path / "test-0.tar", members)
    train = open_at(tmp_path).train
    for seed, key in enumerate(keys):
        np.testing.assert_array_equal(train.read(seed).permute(1, 2, 0), np.asarray(make_picture(seed)))
        assert train.describe(seed) == f"{path}, sample {key!r}"


def test_what_webdataset_writes_is_read(tmp_path, make_picture):
    webdataset = pytest.importorskip("webdataset")
    for split in ("train", "test"):
        with webdataset.TarWriter(str(tmp_path / f"{split}-0.tar")) as writer:
            for seed in range(4):
                writer.write({"__key__": f"{seed:04d}", "png": make_picture(seed), "cls": seed % 2, "json": {"a": 1}})
    train = open_at(tmp_path).train
    assert train.targets.tolist() == [0, 1, 0, 1]
    for seed in range(4):
        np.testing.assert_array_equal(train.read(seed).permute(1, 2, 0), np.asarray(make_picture(seed)))


def test_patterns_name_shards_in_every_way(tmp_path, write_shard):
    for number in range(9, 12):
        write_shard(tmp_path / f"train-{number:03d}.tar", [0, 1], first_seed=number)
    write_shard(tmp_path / "test-0.tar", [1, 0, 1])
    for pattern in (
        tmp_path,
        f"{tmp_path}/*.tar",
        f"{tmp_path}/train-{{009..011}}.tar::{tmp_path}/test-0.tar",
        f"{tmp_path}/{{train-*,test-0}}.tar",
        f"{tmp_path}/train-0{{09,1?}}.tar::{tmp_path}/test-?.tar::{tmp_path}/test-0.tar",
    ):
        splits = open_at(pattern)
        assert (len(splits.train.targets), len(splits.evaluation.targets), splits.evaluation_name) == (6, 3, "test")
        assert [splits.train.describe(index).partition(",")[0][-7:] for index in (0, 2, 4)] == [
            "009.tar",
            "010.tar",
            "011.tar",
        ]


def test_splits_are_folders_too(tmp_path, write_shard):
    write_shard(tmp_path / "train" / "0000.tar", [0, 1])
    write_shard(tmp_path / "validation" / "0000.tar", [1])
    splits = open_at(tmp_path)
    assert (splits.evaluation_name, splits.evaluation.targets.tolist()) == ("val", [1])


def test_shards_without_a_split_are_split_for_good(tmp_path, write_shard):
    write_shard(tmp_path / "shard-000.tar", [0, 1] * 5)
    write_shard(tmp_path / "shard-001.tar", [0, 1] * 5, first_seed=10)
    splits = open_at(tmp_path)
    assert np.bincount(splits.train.targets).tolist() == np.bincount([0, 1] * 8).tolist()
    assert np.bincount(splits.evaluation.targets).tolist() == [2, 2]
    wheres = {one.describe(i) for one in (splits.train, splits.evaluation) for i in range(len(one.targets))}
    assert len(wheres) == 20


@pytest.mark.parametrize(
    ("labels", "class_names", "targets"),
    [
        ([30, 7, 7], ("7", "30"), [1, 0, 0]),
        (["dog", "cat", "dog"], ("cat", "dog"), [1, 0, 1]),
    ],
)
def test_classes_are_those_that_occur(tmp_path, write_shard, labels, class_names, targets):
    write_shard(tmp_path / "train-0.tar", labels)
    write_shard(tmp_path / "test-0.tar", labels[:1])
    splits = open_at(tmp_path)
    assert (splits.class_names, splits.train.targets.tolist()) == (class_names, targets)
    assert splits.evaluation.targets.tolist() == targets[:1]


def test_a_file_beside_the_shards_names_the_classes(tmp_path, write_shard):
    (tmp_path / "classes.txt").write_text("zebra\nape\nunseen\n\n")
    write_shard(tmp_path / "train-0.tar", [1, "zebra", 1])
    write_shard(tmp_path / "test-0.tar", ["ape"])
    splits = open_at(tmp_path)
    assert splits.class_names == ("zebra", "ape", "unseen")
    assert splits.train.targets.tolist() == [1, 0, 1]
    assert splits.evaluation.targets.tolist() == [1]
    write_shard(tmp_path / "test-0.tar", [3])
    with pytest.raises(InputError, match=r"label '3' of .*test-0\.tar, sample '0000'"):
        open_at(tmp_path)
    (tmp_path / "classes.txt").write_text("zebra\nape\nape\n")
    with pytest.raises(InputError, match="'ape' twice"):
        open_at(tmp_path)
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match=r"classes\.txt"):
        open_at(tmp_path)


def test_labels_in_json_and_text(tmp_path, make_picture):
    image = shards.sample("a", make_picture(0), 0)[0][1]
    members = [
        *(("a.jpg", image), ("a.json", b'{"label": "cat", "width": 12}')),
        *(("b.jpg", image), ("b.txt", b"dog\n")),
        *(("c.jpg", image), ("c.cls", b" cat "), ("c.json", b'{"label": "dog"}')),
        *(("d.jpg", image), ("d.json", b"[]"), ("d.txt", b"dog")),
        *(("e.png", b"mask"), ("e.JPG", image), ("e.cls", b"dog")),
    ]
    shards.write(tmp_path / "train-0.tar", members)
    shards.write(tmp_path / "test-0.tar", members)
    train = open_at(tmp_path).train
    assert [train.class_names[target] for target in train.targets] == ["cat", "dog", "cat", "dog", "dog"]
    assert train.read(4).shape == (3, 12, 12)


def test_the_index_is_kept_between_runs(tmp_path, write_shard, cache, monkeypatch):
    path = write_shard(tmp_path / "train-0.tar", [0, 1, 1])
    first = read_index(path)
    (kept,) = (cache / "crossdistill" / "shards").iterdir()
    monkeypatch.setattr(shard_index, "_build", lambda path: pytest.fail("it was read again"))
    again = read_index(path)
    for name in ("keys", "offsets", "sizes", "labels"):
        assert getattr(again, name).tolist() == getattr(first, name).tolist()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    write_shard(path, [1, 0, 0, 1])
    assert read_index(path).labels.tolist() == [b"1", b"0", b"0", b"1"]
    assert list((cache / "crossdistill" / "shards").iterdir()) == [kept]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 broken", "cut", "pickle", "short"])
def test_a_broken_index_is_made_anew(tmp_path, write_shard, cache, damage):
    path = write_shard(tmp_path / "train-0.tar", [0, 1, 1])
    whole = read_index(path)
    (kept,) = (cache / "crossdistill" / "shards").iterdir()
    content = kept.read_bytes()
    with np.load(kept) as arrays:
        arrays = dict(arrays)
    if damage == "cut":
        kept.write_bytes(content[: len(content) // 2])
    elif damage == "pickle":
        np.savez(kept, **(arrays | {"labels": np.array([{}, {}, {}], dtype=object)}))
    elif damage == "short":
        np.savez(kept, **(arrays | {"offsets": arrays["offsets"][:2]}))
    else:
        kept.write_bytes(damage)
    assert read_index(path).offsets.tolist() == whole.offsets.tolist()
    with np.load(kept, allow_pickle=False) as arrays:
        assert arrays["labels"].tolist() == [b"0", b"1", b"1"]


def test_without_a_cache_folder_everything_works(tmp_path, write_shard, monkeypatch):
    path = write_shard(tmp_path / "train-0.tar", [0, 1])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(read_index(path).keys) == 2
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(shard_index.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert len(read_index(path).keys) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_epochs_do_not_depend_on_workers(both, spec, workers):
    _, splits = both

    def epochs(workers):
        splits.train.limit_bytes = 0  # nothing is held, so that every image is read from its shard
        loader = TrainLoader(
            splits.train,
            np.arange(23),
            splits.train.targets,
            {"student": spec(10)},
            AugmentSettings(crop="resized"),
            seed=0,
            batch_size=4,
            workers=workers,
        )
        return [batch for epoch in range(2) for step in loader.epoch(epoch) for batch in step]

    for alone, helped in zip(epochs(0), epochs(workers), strict=True):
        assert torch.equal(alone.sample_id, helped.sample_id)
        assert torch.equal(alone.target, helped.target)
        assert torch.equal(alone.images["student"], helped.images["student"])


def test_open_files_stay_behind_when_pickled(both):
    source = both[1].train.source
    expected = source.read(5)
    copied = pickle.loads(pickle.dumps(source))
    assert torch.equal(copied.read(5), expected)


def test_few_files_are_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("crossdistill.data.shards.source._MOST_OPEN", 3)
    paths = [tmp_path / f"{number}" for number in range(8)]
    for path in paths:
        path.write_bytes(path.name.encode() * 4)
    files = TarFiles(paths)
    for number in [*range(8), 2, 7, 0]:
        assert files.read(number, 1, 2) == str(number).encode() * 2
    assert list(files._kept) == [2, 7, 0]


def test_a_shard_that_changes_under_the_source(tmp_path, write_shard):
    path = write_shard(tmp_path / "train-0.tar", [0, 1])
    write_shard(tmp_path / "test-0.tar", [0, 1])
    train, later = open_at(tmp_path).train.source, open_at(tmp_path).train.source
    with path.open("r+b") as file:
        file.truncate(600)
    with pytest.raises(CorruptImage, match=r"train-0\.tar, sample '0001': the shard has become shorter"):
        train.read(1)
    path.unlink()
    with pytest.raises(InputError, match=r"train-0\.tar: No such file"):
        later.read(0)


def test_a_broken_image_is_corrupt(tmp_path, write_shard):
    shards.write(tmp_path / "train-0.tar", [("x.png", b"no"), ("x.cls", b"0"), ("y.png", b"no"), ("y.cls", b"1")])
    write_shard(tmp_path / "test-0.tar", [0])
    with pytest.raises(CorruptImage, match=r"train-0\.tar, sample 'y': not an image of a known format"):
        open_at(tmp_path).train.read(1)


def refused(pattern, message, **settings):
    with pytest.raises(InputError, match=message) as caught:
        open_at(pattern, **settings)
    return caught.value


def test_shards_that_are_not_there(tmp_path, write_shard):
    write_shard(tmp_path / "train-0.tar", [0, 1])
    refused(tmp_path / "gone.tar", r"gone\.tar, which does not exist")
    refused(f"{tmp_path}/x-*.tar", r"x-\*\.tar, which no file matches")
    refused(f"{tmp_path}/train-{{0..3}}.tar", r"train-1\.tar, which does not exist \(3 of 4 are missing\)")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"empty, which holds no \.tar file")
    refused("::", "shards, such as")


def test_shards_that_are_fetched_by_commands_are_refused(tmp_path):
    for pattern in (f"pipe:touch {tmp_path}/made", "s3://bucket/train-0.tar", "ftp://host/train-0.tar"):
        refused(pattern, "begins with http")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [100, 512, 600, 1536, 1540])
def test_truncated_shards(tmp_path, write_shard, keep):
    path = write_shard(tmp_path / "train-0.tar", [0, 1])
    path.write_bytes(path.read_bytes()[:keep])
    refused(tmp_path, rf"{path}, byte \d+: .*the file ends")


def test_a_shard_that_ends_between_two_members(tmp_path, write_shard):
    path = write_shard(tmp_path / "train-0.tar", [0, 1])
    with tarfile.open(path) as archive:
        second = archive.getmembers()[2]
    path.write_bytes(path.read_bytes()[: second.offset])
    refused(tmp_path, rf"{path}, byte {second.offset}: the file ends here")
    path.write_bytes(b"")
    refused(tmp_path, rf"{path}, byte 0: the file is empty")


def test_a_broken_header_is_not_the_end(tmp_path, write_shard):
    path = write_shard(tmp_path / "train-0.tar", [0, 1])
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        third = archive.getmembers()[2]
    content[third.offset + 3] ^= 0xFF
    path.write_bytes(content)
    refused(tmp_path, rf"{path}, byte {third.offset}: no tar header")


@pytest.mark.parametrize("name", ["train-0.tar.gz", "train-0.tgz", "train-0.tar"])
def test_compressed_shards(tmp_path, name):
    with tarfile.open(tmp_path / name, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    for pattern in (tmp_path / name, tmp_path) if name != "train-0.tgz" else (tmp_path / name,):
        assert "unpack it" in refused(pattern, rf"{name}, which is compressed \(.*gz").action


def test_a_shard_that_cannot_be_read(tmp_path):
    (tmp_path / "train-0.tar" / "x").mkdir(parents=True)
    refused(f"{tmp_path}/train-?.tar", r"train-0\.tar: Is a directory")


def test_incomplete_samples(tmp_path, make_picture):
    whole = shards.sample("a", make_picture(0), 0) + shards.sample("b", make_picture(1), 1)
    path = tmp_path / "train-0.tar"
    shards.write(path, [*whole, ("c.cls", b"1"), ("d.cls", b"1")])
    refused(path, r"2 of 4 samples without image, the first is 'c'")
    shards.write(path, [*whole, ("c.png", b""), ("d.png", b""), ("d.cls", b" ")])
    refused(path, r"2 of 4 samples without label, the first is 'c'")
    shards.write(path, [*whole, *whole[:1]])
    refused(path, r"1 member\(s\) twice under one key, the first is 'a\.png'")
    shards.write(path, [("README.md", b"nothing")])
    refused(path, "without any sample")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, -1, -2], r"label '-1' of .*train-0\.tar, sample '0001'"),
        ([3, 3, 3], "only one class, '3'"),
        (["cat", 1, 2], r"some labels are numbers \(1\), others text \('cat'\)"),
    ],
)
def test_wrong_labels(tmp_path, write_shard, labels, message):
    write_shard(tmp_path / "train-0.tar", labels)
    write_shard(tmp_path / "test-0.tar", [0])
    refused(tmp_path, message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.cls", b"\xff\xfe", "utf-8"),
        ("a.json", b"{", "Expecting"),
        ("a.json", b'{"label": [1]}', r"label \[1\]"),
        ("a.json", b'{"label": "\\ud800"}', "surrogates"),
    ],
)
def test_labels_that_are_no_text(tmp_path, make_picture, name, content, message):
    image = shards.sample("a", make_picture(0), 0)[0]
    shards.write(tmp_path / "train-0.tar", [image, (name, content)])
    refused(tmp_path, rf"train-0\.tar, sample 'a': .*{message}")


def test_labels_that_training_does_not_know(tmp_path, write_shard):
    write_shard(tmp_path / "train-0.tar", ["ant", "bee"])
    write_shard(tmp_path / "test-0.tar", ["ant", "bea"])
    assert "did you mean 'bee'" in refused(tmp_path, r"label 'bea' of .*test-0\.tar, sample '0001'").action


def test_facts_of_a_stream_are_for_streams(tmp_path, write_shard):
    write_shard(tmp_path / "train-0.tar", [0, 1])
    refused(tmp_path, "local", stream={"num_train": 2, "class_names": ["a", "b"]})
