"""What is said of stores that lost something: shards, their manifest, or whole epochs, and how each is mended."""

import json
import shlex
import shutil
import sys
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from crossdistill import cli
from crossdistill.store import Store
from samples import stores

ASKED = "--data digits data.limit_train=96 allow_untrained_teacher=true --device cpu --batch-size 32"
WRITE = f"store --teacher {{net}} --image-size 24 {ASKED} --shard-size 4"
TRAIN = f"distill --student mixer_tiny --image-size 16 {ASKED} --method kd"
SHARD = "epoch-0001/shard-00003.safetensors"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A network nobody trained, and a store of two epochs of 24 shards, begun as one job of two."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("world")
    at = SimpleNamespace(weights=root / "net.safetensors", plain=root / "plain")
    safetensors.torch.save_file(stores.network("cnn").net.state_dict(), at.weights)
    at.net = f"{stores.NETWORKS['cnn'][0]}@{at.weights}"
    first, both = (f"{WRITE} --epochs 2 --out {at.plain} {more} --json" for more in ("--part 1/2", ""))
    before, sys.argv = sys.argv, ["/bin/crossdistill", *shlex.split(first.format(net=at.net))]
    try:
        assert [cli.run(shlex.split(line.format(net=at.net))) for line in (first, both)] == [0, 0]
    finally:
        sys.argv = before
    return at


@pytest.fixture
def run(world, capsys):
    """Exit code, and what is printed on standard output and error, in one line each."""

    def call(line):
        capsys.readouterr()
        code = cli.run(shlex.split(line.format(net=world.net)))
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, " ".join(printed.out.split()), " ".join(printed.err.split())

    return call


@pytest.fixture
def copy(world, tmp_path):
    return shutil.copytree(world.plain, tmp_path / "store")


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def made_again(world, epochs):
    return f"`crossdistill {WRITE.format(net=world.net)} --epochs {epochs} --out {world.plain} --json`"


def test_the_image_size_of_all_teachers_is_an_option_and_one_can_differ(world, run, tmp_path):
    (network,) = Store.open(world.plain).manifest.identity["teacher"]["networks"]
    assert network["image_size"] == [24, 24]
    line = f"{WRITE} teachers.0.image_size=32 --epochs 1 --out {tmp_path / 'store'} --json"
    assert run(line)[0] == 0
    (network,) = Store.open(tmp_path / "store").manifest.identity["teacher"]["networks"]
    assert network["image_size"] == [32, 32]


def test_where_nothing_is_to_be_written_that_is_said_and_how_every_byte_is_checked(run, copy):
    flip(copy / SHARD)
    code, said, _ = run(f"{WRITE} --epochs 2 --out {copy}")
    assert code == 0
    assert "written: nothing to write: all 2 epochs are there" in said
    assert f"store: 2 epochs present in {copy}; `crossdistill store --verify {copy}` checks every byte" in said
    assert "whole" not in said


def test_a_shard_that_cannot_be_opened_is_written_anew_and_named(run, copy):
    (copy / SHARD).write_bytes((copy / SHARD).read_bytes()[:-9])
    (copy / "epoch-0000" / "shard-00000.safetensors").unlink()  # one that was never there is not worth a word
    code, said, _ = run(f"{WRITE} --epochs 2 --out {copy} --json")
    found = json.loads(said)
    assert (code, found["images_written"]) == (0, 8)
    assert [text for text in found["warnings"] if "anew" in text] == [
        "epoch 1 shard 3 could not be read and was written anew"
    ]


def test_damage_found_in_training_is_answered_with_three_commands(world, run, copy, tmp_path):
    flip(copy / SHARD)
    code, _, said = run(f"{TRAIN} --teacher {copy} --epochs 2 --out {tmp_path / 'run'}")
    assert code == cli.EXIT_BAD_INPUT
    again = f"then {made_again(world, 2)}, which writes what is missing, then this command with --resume"
    assert f"what to do: `crossdistill store --verify {copy} --remove-damaged`, {again}" in said


@pytest.mark.parametrize("epoch", [0, 1])
def test_the_three_commands_mend_a_store_and_the_run_goes_on(run, copy, tmp_path, epoch):
    flip(copy / f"epoch-000{epoch}" / "shard-00009.safetensors")
    line = f"{TRAIN} --teacher {copy} --epochs 2 --out {tmp_path / 'run'}"
    assert run(line)[0] == cli.EXIT_BAD_INPUT
    assert run(f"store --verify {copy} --remove-damaged")[0] == cli.EXIT_BAD_INPUT
    assert run(f"{WRITE} --epochs 2 --out {copy}")[0] == 0
    assert run(f"{line} --resume --json")[0] == 0


def test_an_incomplete_store_names_the_command_that_made_it(world, run, copy, tmp_path):
    code, _, said = run(f"{TRAIN} --teacher {copy} --epochs 5 --out {tmp_path / 'run'}")
    assert code == cli.EXIT_BAD_INPUT
    assert f"append with {made_again(world, 5)}" in said


def test_all_damage_is_listed_in_json_and_the_first_of_it_in_words(world, run, copy):
    damaged = sorted((copy / "epoch-0001").iterdir())[:23]
    for path in damaged:
        flip(path)
    (copy / "epoch-0001" / "shard-00023.safetensors").unlink()
    code, _, said = run(f"store --verify {copy}")
    assert code == cli.EXIT_BAD_INPUT
    assert f"store {copy}: 2 epochs begun, the first 1 whole; 23 damaged shards (epoch 1 shard 0:" in said
    assert "epoch 1 shard 19:" in said
    assert "epoch 1 shard 20:" not in said
    assert "; and 3 more (--json lists all)) and 1 missing shard (epoch 1 shard 23)" in said
    assert made_again(world, 2) in said
    code, out, _ = run(f"store --verify {copy} --json")
    found = json.loads(out)
    assert code == cli.EXIT_BAD_INPUT
    assert (found["kind"], found["num_whole_epochs"], found["num_begun_epochs"]) == ("store_verified", 1, 2)
    assert [(one["epoch"], one["shard"]) for one in found["damaged"]] == [(1, number) for number in range(23)]
    assert all("is not what was written" in one["why"] for one in found["damaged"])
    assert found["missing"] == [{"epoch": 1, "shard": 23}]
    assert set(found["error"]) == {"given", "expected", "what to do"}


def test_a_sound_store_is_verified_with_the_same_keys(world, run):
    code, out, _ = run(f"store --verify {world.plain} --json")
    found = json.loads(out)
    assert (code, found["num_whole_epochs"], found["damaged"], found["missing"]) == (0, 2, [], [])


@pytest.mark.parametrize("command", ["store", "verify", "distill", "evaluate"])
def test_a_store_that_lost_its_manifest_is_known_for_one(run, copy, tmp_path, command):
    (copy / "manifest.json").unlink()
    lines = {
        "store": f"{WRITE} --epochs 2 --out {copy}",
        "verify": f"store --verify {copy}",
        "distill": f"{TRAIN} --teacher {copy} --epochs 2 --out {tmp_path / 'run'}",
        "evaluate": f"evaluate {copy} --data digits",
    }
    code, _, said = run(lines[command])
    assert code == cli.EXIT_BAD_INPUT
    assert f"given: {copy}, a store without its manifest.json expected: the manifest as it was written" in said
    assert "what to do: restore it from a backup, or store the answers anew in another folder" in said
    assert not (copy / "manifest.json").exists()


@pytest.mark.parametrize(
    ("line", "given", "expected"),
    [
        (WRITE + " --epochs 1 --top-k 10 --out {out}", "--top-k 10 for 10 classes", "1 to 9"),
        (WRITE + " --epochs 1 --out {out} --remove-damaged", "--remove-damaged without --verify STORE", "both"),
        ("store --verify {out} --epochs 3 --top-k 2", "--verify {out} with --epochs, --top-k", "--verify STORE alone"),
        ("store --verify {out} data.seed=1", "--verify {out} with data.seed=1", "--verify STORE alone"),
    ],
)
def test_options_that_have_no_meaning_are_refused(run, tmp_path, line, given, expected):
    out = tmp_path / "never"
    code, _, said = run(line.replace("{out}", str(out)))
    assert code == cli.EXIT_BAD_INPUT
    assert f"given: {given.replace('{out}', str(out))} expected: {expected}" in said
    assert not out.exists()


def test_a_dry_run_only_says_about_how_much_there_will_be(run, tmp_path):
    code, said, _ = run(f"{WRITE} --epochs 9 --out {tmp_path / 'store'} --dry-run")
    assert code == 0
    assert "whole: 9 epochs: about " in said
    assert "time: about " in said
