"""Training from tar shards, local and from a web server, through the public functions and the command line."""

import json

import pytest
import torch

import crossdistill
from crossdistill import cli
from samples import image_folder, shards

CLASSES = ["ant", "bee", "cat"]
EACH = 12
SMALL = ["student.image_size=32", "train.epochs=2", "train.batch_size=12", "train.log_every=1", "device=cpu"]
SMALL += ["data.augment.crop=pad", "data.workers=0"]


@pytest.fixture(autouse=True)
def surroundings(tmp_path_factory, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def tree(tmp_path):
    return image_folder.make(tmp_path / "tree", CLASSES, num_images=EACH)


@pytest.fixture
def served(tree, tmp_path):
    pytest.importorskip("webdataset")
    shards.from_folder(tree / "train", tmp_path / "served", num_shards=3, split="train")
    shards.from_folder(tree / "val", tmp_path / "served", num_shards=2, split="val")
    with shards.serving(tmp_path / "served") as server:
        yield server


def losses(out):
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line["losses"] for line in lines if line["kind"] == "train"]


def stream(num_train):
    return f"data.stream={{num_train: {num_train}, class_names: [ant, bee, cat]}}"


def test_local_shards_train_as_the_folder_does(tree, tmp_path):
    for split in ("train", "val"):
        shards.from_folder(tree / split, tmp_path / "shards", num_shards=1, split=split)
    (tmp_path / "shards" / "classes.txt").write_text("\n".join(CLASSES))
    results = [
        crossdistill.train("timm/test_resnet", data, tmp_path / out, overrides=SMALL, quiet=True)
        for data, out in ((f"folder:{tree}", "one"), (f"wds:{tmp_path / 'shards'}", "two"))
    ]
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
    assert len(losses(tmp_path / "one")) == 2 * 3
    assert results[1]["rows"][0]["top1_mean"] == results[0]["rows"][0]["top1_mean"]
    assert results[1]["data"]["num_train"] == 3 * EACH


def test_a_remote_stream_trains_and_evaluates(served, tmp_path):
    data, out = f"wds:{served.address}/train-{{000..002}}.tar::{served.address}/val-{{000..001}}.tar", tmp_path / "run"
    served.broken = {"train-001.tar": 1}
    results = crossdistill.train("timm/test_resnet", data, out, overrides=[*SMALL, stream(36)], quiet=True)
    assert len(losses(out)) == 2 * 3
    assert (results["data"]["num_train"], results["data"]["num_evaluation"]) == (36, 36)
    assert results["data"]["evaluation_split"] == "val"
    measured = crossdistill.evaluate(out)
    assert measured["num_samples"] == 36
    assert measured["top1"] == pytest.approx(results["rows"][0]["top1_mean"])


def test_shards_are_held_out_of_a_stream_on_the_command_line(served, tmp_path, capsys):
    data = f"wds:{served.address}/train-{{000..002}}.tar"
    line = ["train", "--model", "test_resnet", "--data", data, "--out", str(tmp_path / "run"), "--json", *SMALL]
    assert cli.run([*line, stream(24)]) == 0
    results = json.loads(capsys.readouterr().out)
    assert (results["data"]["num_train"], results["data"]["num_evaluation"]) == (24, EACH)
    for more, told in (
        ([], "without data.stream"),
        ([stream(24), "data.limit_train=10"], "data.limit_train=10"),
        ([stream(24), "train.select=best"], "train.select=best with data.val_share"),
        ([stream(24), "train.class_weights=balanced"], "class_weights=balanced"),
        ([stream(24), "data.stream.num_train=0"], "num_train"),
    ):
        assert cli.run([*line[:6], str(tmp_path / "other"), *SMALL, *more]) == 2, more
        assert told in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "other" / "results.json").exists()
