"""``crossdistill store`` and the runs that take a store up: written, gone on with, appended to, checked and refused."""

import json
import os
import re
import resource
import shlex
import shutil
import signal
import time
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from PIL import Image

from crossdistill import cli
from crossdistill.errors import InputError
from crossdistill.models import build
from crossdistill.runs.stores import evaluation_of
from crossdistill.store import Keep, Manifest, Store, StoreWriter
from crossdistill.store import read as reads
from crossdistill.store import write as writes
from samples import image_folder, launch, stores

MESSAGE = re.compile(
    r"^ *given: (?P<given>.*?)\n +expected: (?P<expected>.*?)\nwhat to do: (?P<action>.*)\n", re.M | re.S
)
ASKED = "--data digits data.limit_train=96 allow_untrained_teacher=true --device cpu --batch-size 32"
WRITE = f"store --teacher {{cnn}} teachers.0.image_size=24 {ASKED} --shard-size 32"
TRAIN = f"--student mixer_tiny --image-size 16 {ASKED} train.log_every=1"
MIX = "data.augment.mixup=0.8"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Teachers nobody trained, folders of images, and stores of two epochs of three shards: plain, and mixed."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("world")
    at = SimpleNamespace(root=root, pets=image_folder.make(root / "pets", ["ant", "bee", "cat"], num_images=12))
    for kind, num_classes, name in (("cnn", 10, "cnn"), ("vit", 10, "vit"), ("cnn", 3, "three")):
        path = root / f"{name}.safetensors"
        safetensors.torch.save_file(stores.network(kind, num_classes).net.state_dict(), path)
        setattr(at, name, f"{stores.NETWORKS[kind][0]}@{path}")
    at.plain, at.mixed = root / "plain", root / "mixed"
    for out, more in ((at.plain, ""), (at.mixed, MIX)):
        assert run(at, f"{WRITE} --epochs 2 --out {out} {more} --json") == 0
    return at


def run(world, line):
    return cli.run(shlex.split(line.format(**vars(world))))


def files(store):
    """What every shard holds; the header of a file names the same facts in any order."""
    found = {}
    for path in sorted(store.glob("epoch-*/*")):
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        found[path.relative_to(store).as_posix()] = (json.loads(content[8:end]), content[end:])
    return found


@pytest.fixture
def refused(world, capsys):
    def check(line):
        capsys.readouterr()
        code = run(world, line)
        printed = capsys.readouterr()
        assert code == cli.EXIT_BAD_INPUT, printed.err
        assert "Traceback" not in printed.err
        found = MESSAGE.search(printed.err)
        assert found, printed.err
        assert printed.err.endswith(found[0]), "nothing comes after the message"
        return found

    return check


@pytest.fixture
def copy(world, tmp_path):
    return shutil.copytree(world.plain, tmp_path / "store")


def test_a_run_from_a_store_tells_of_its_teacher_what_was_measured_when_it_answered(world, tmp_path, capsys):
    assert run(world, f"distill --teacher {{plain}} {TRAIN} --epochs 2 --out {tmp_path / 'run'} --baseline --json") == 0
    results = json.loads(capsys.readouterr().out)
    facts = Store.open(world.plain).manifest.facts
    row = results["rows"][-1]
    assert (row["role"], row["name"]) == ("teacher", "test_resnet (stored)")
    assert row["top1_mean"] == facts["evaluation"]["top1"]
    assert row["gmacs"] == facts["cost"]["gmacs"] > 0
    assert results["identity"]["teacher_sha256"] == Store.open(world.plain).fingerprint()
    assert "test_resnet (stored)" in (tmp_path / "run" / "report.html").read_text()


def test_several_seeds_share_the_images_of_a_store_whose_epochs_may_come_again(world, tmp_path, capsys):
    more = "--epochs 3 data.cycle_epochs=2 --seeds 0,1 data.seed=0 train.eval_every=3"
    assert run(world, f"distill --teacher {{plain}} {TRAIN} {more} --out {tmp_path / 'run'} --json") == 0
    assert [one["seed"] for one in json.loads(capsys.readouterr().out)["rows"][0]["runs"]] == [0, 1]
    assert len(launch.outcome(tmp_path / "run" / "kd" / "seed-1")["losses"]) == 9


def test_images_that_are_not_mixed_may_be_fewer_than_are_stored(world, tmp_path):
    more = "data.limit_train=40 --batch-size 20 train.select=best"
    assert run(world, f"distill --teacher {{plain}} {TRAIN} --epochs 1 {more} --out {tmp_path / 'run'} --json") == 0


def test_a_dry_run_says_how_large_the_whole_will_be_and_writes_nothing(world, tmp_path, capsys):
    assert run(world, f"{WRITE} --epochs 50 --out {tmp_path / 'store'} --dry-run --json") == 0
    found = json.loads(capsys.readouterr().out)
    assert not list(tmp_path.iterdir())
    assert found["bytes_per_image"] == 10 * 2 + 4 + 4 + 2  # logits, shift, id, occurrence
    assert found["total_bytes"] == 50 * 96 * found["bytes_per_image"]
    assert found["images_per_second"] > 0
    assert run(world, f"{WRITE} --epochs 2 --top-k 3 --embeddings --out {tmp_path / 'store'} --dry-run") == 0
    width = build("timm/test_resnet", num_classes=10).spec.embedding_dim
    assert f"{3 * 2 + 3 + 2 + 4 + 4 + 2 + 2 * width:,} bytes an image" in capsys.readouterr().out


def test_what_is_there_stays_and_more_epochs_are_appended(world, copy, capsys):
    before = launch.fingerprints(copy)
    assert run(world, f"{WRITE} --epochs 3 --batch-size 16 --out {copy} --json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_epochs"], found["images_written"], found["missing_shards"]) == (3, 96, 0)
    after = launch.fingerprints(copy)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 3
    assert run(world, f"{WRITE} --epochs 3 --out {copy} --json") == 0
    assert json.loads(capsys.readouterr().out)["images_written"] == 0


def test_jobs_write_parts_of_one_store(world, tmp_path, capsys):
    for index, missing in ((2, 3), (1, 0)):
        assert run(world, f"{WRITE} --epochs 2 --part {index}/2 --out {tmp_path} --json") == 0
        assert json.loads(capsys.readouterr().out)["missing_shards"] == missing
    assert files(tmp_path) == files(world.plain)


def test_two_processes_write_one_store(world, tmp_path):
    words = shlex.split(f"{WRITE} --epochs 2 --out {tmp_path / 'store'} --json".format(**vars(world)))
    done = launch.run(*words, num_processes=2)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images_written"] == 192  # printed once, of both
    assert files(tmp_path / "store") == files(world.plain)


def test_a_killed_writer_leaves_whole_shards_and_the_same_command_goes_on(world, tmp_path):
    out = tmp_path / "store"
    words = shlex.split(f"{WRITE} --epochs 60 --out {out}".format(**vars(world)))
    process = launch.start(*words)
    give_up = time.monotonic() + 120
    while len(list(out.glob("epoch-*/shard-*"))) < 4 and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert launch.finish(process).returncode == -signal.SIGKILL
    assert 4 <= len(files(out)) < 180
    assert run(world, f"{WRITE} --epochs 2 --out {out} --json") == 0
    whole = files(world.plain)
    assert {name: content for name, content in files(out).items() if name in whole} == whole


@pytest.fixture
def counted(monkeypatch):
    """What functions were called with, by their place."""

    def count(owner, name):
        method, calls = getattr(owner, name), []
        monkeypatch.setattr(owner, name, lambda *given: (calls.append(given), method(*given))[1])
        return calls

    return count


def test_every_header_is_looked_at_once_before_a_run_and_in_a_pass(world, copy, counted):
    places = [(epoch, shard) for epoch in range(2) for shard in range(3)]
    read, written = counted(reads, "check_header"), counted(writes, "check_header")
    stores.parts_of(copy)
    assert [call[2:] for call in read] == places
    read.clear()
    opened = counted(writes, "remove_abandoned")
    assert run(world, f"{WRITE} --epochs 2 --out {copy}") == 0
    assert [call[2:] for call in written] == places
    assert read == []
    assert len(opened) == 3  # the store's folder and its epochs', once
    (copy / "epoch-0001" / SHARD).unlink()
    written.clear()
    assert run(world, f"{WRITE} --epochs 2 --out {copy}") == 0
    assert [call[2:] for call in written] == [*places, (1, 1)]


def stopping_after(monkeypatch, owner, name, count):
    """The method sends this process an interruption when it is called for the ``count``-th time."""
    method, calls = getattr(owner, name), []

    def stop(*arguments, **more):
        calls.append(arguments)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGINT)
        return method(*arguments, **more)

    monkeypatch.setattr(owner, name, stop)


def test_an_interrupted_writer_says_that_it_can_go_on(world, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stopping_after(patch, StoreWriter, "write", 4)
        assert run(world, f"{WRITE} --epochs 2 --out {tmp_path}") == cli.EXIT_INTERRUPTED
    assert "the same command goes on" in capsys.readouterr().err
    assert len(files(tmp_path)) == 4
    assert run(world, f"{WRITE} --epochs 2 --out {tmp_path} --json") == 0
    assert files(tmp_path) == files(world.plain)


def test_a_run_from_a_store_resumes_bit_for_bit(world, tmp_path, monkeypatch):
    line = f"distill --teacher {{mixed}} {TRAIN} {MIX} --epochs 2 --json --out {tmp_path}"
    assert run(world, f"{line}/whole") == 0
    with monkeypatch.context() as patch:
        stopping_after(patch, Store, "read", 4)
        assert run(world, f"{line}/again") == cli.EXIT_INTERRUPTED
    assert 0 < launch.last_step(tmp_path / "again") < 6
    assert run(world, f"{line}/again --resume") == 0
    assert launch.outcome(tmp_path / "again") == launch.outcome(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_train_from_a_store_what_one_does(world, tmp_path):
    more = f"{MIX} train.optimizer=sgd train.lr=0.02 --epochs 2 --json"
    line = f"distill --teacher {{mixed}} {TRAIN} {more} --out {tmp_path}"
    assert run(world, f"{line}/one") == 0
    done = launch.run(*shlex.split(f"{line}/two".format(**vars(world))), num_processes=2)
    assert done.returncode == 0, done.stderr
    one, two = (safetensors.torch.load_file(tmp_path / n / "student" / "model.safetensors") for n in ("one", "two"))
    for name, tensor in one.items():  # gradients are added up in another order, see test_processes.py
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=2e-6)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


DAMAGES = {"truncated": truncate, "one bit": flip, "another shard": lambda p: shutil.copy(p.with_name(OTHER), p)}
SHARD, OTHER = "shard-00001.safetensors", "shard-00002.safetensors"


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_refused_and_mended(world, refused, copy, damage, tmp_path, capsys):
    DAMAGES[damage](copy / "epoch-0001" / SHARD)
    (copy / "epoch-0000" / OTHER).unlink()
    found = refused(f"store --verify {copy}")
    assert "1 damaged shard (epoch 1 shard 1:" in found["given"]
    assert "1 missing shard (epoch 0 shard 2)" in found["given"]
    assert "--remove-damaged" in found["action"]
    trained = refused(f"distill --teacher {copy} {TRAIN} --epochs 2 --out {tmp_path / 'run'}")
    assert "epoch 0 shard 2" in trained["given"]
    assert "now removed" in refused(f"store --verify {copy} --remove-damaged")["given"]
    assert run(world, f"{WRITE} --epochs 2 --out {copy} --json") == 0
    assert json.loads(capsys.readouterr().out)["images_written"] == 64  # two shards, and no others
    assert run(world, f"store --verify {copy}") == 0
    assert files(copy) == files(world.plain)


def test_a_changed_bit_stops_the_run_that_reads_it(refused, copy, tmp_path):
    flip(copy / "epoch-0001" / SHARD)
    found = refused(f"distill --teacher {copy} {TRAIN} --epochs 2 --out {tmp_path / 'run'} --json")
    assert "whose shard 1 of epoch 1 cannot be used" in found["given"]
    assert "--verify" in found["action"]


def test_a_full_disk_keeps_what_is_written(world, refused, copy):
    """A limit of the system on the size of files stands in for a full disk."""
    before = files(copy)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        found = refused(f"{WRITE} --epochs 3 --out {copy} --json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot write below" in found["given"]
    assert "make room and give the same again" in found["action"]
    assert files(copy) == before
    assert run(world, f"{WRITE} --epochs 3 --out {copy} --json") == 0


D = f"distill --teacher {{plain}} {TRAIN} --epochs 2 --out {{root}}/never"
M = f"distill --teacher {{mixed}} {TRAIN} {MIX} --epochs 2 --out {{root}}/never"
W = f"{WRITE} --epochs 2 --out {{plain}}"
CASES = {
    # runs
    "more epochs": (D + " --epochs 3", "3 epochs .* of which 2 epochs are whole", "--epochs 3 .*data.cycle_epochs=2"),
    "more epochs than come again": (D + " --epochs 9 data.cycle_epochs=3", "3 epochs", "data.cycle_epochs=2"),
    "seed": (D + " --seeds 1", "images of seed 1 .* seed 0", "data.seed=0"),
    "seeds": (D + " --seeds 0,1", "images of seeds 0, 1 .* seed 0", "data.seed=0"),
    "augmentation": (D + " data.augment.flip=0.5", "images.augment.flip: stored 0.0, now 0.5", "another folder"),
    "mixing": (D + f" {MIX}", "images.augment.mixup: stored 0.0, now 0.8", "another folder"),
    "sampling": (
        D + " data.sampling=class_balanced",
        "images.sampling: stored 'shuffled', now 'class_bal",
        "another folder",
    ),
    "more images": (D + " data.limit_train=120", "120 training images, 24 of them without an answer", "all images"),
    "mixed with others": (M + " data.limit_train=80", "order.num_images: stored 96, now 80", "another folder"),
    "mixed with unlabelled": (
        M + " data.labels_per_class=2",
        "which images have a label differs",
        "labels_per_class to `store`",
    ),
    "mixed in odd steps": (
        M + " --batch-size 31",
        "stored 'of every two images', now 'within steps of 31",
        "another folder",
    ),
    "classes": (D + " --data folder:{pets} data.limit_train=null", "10 classes for data of 3", "these data"),
    "class map": (D + " --class-map names", "with class_map='names'", "leave out class_map here"),
    "size of the teacher": (D + " teachers.0.image_size=32", "with image_size=32", "leave out image_size here"),
    "weights of the teacher": (D + " teachers.0.init=pretrained", "with init='pretrained'", "leave out init"),
    "arguments of the teacher": (D + " teachers.0.args.depth=2", r"with args=\{'depth': 2\}", "leave out args"),
    "one of several": (D + " --teacher {cnn}", "as one of 2 teachers", "--teacher ONE --teacher OTHER"),
    "compiled": (D + " train.compile_teacher=true", "runs no network", "train.compile_teacher=false"),
    "stages": (D + " --method fitnet", "test_resnet .stored., which holds logits", "live teacher.*dist, dkd, kd, ofa"),
    "embeddings": (D + " --method rkd", "which needs embedding", "--embeddings"),
    "student": (D + " --student {plain}", "a store of a teacher's answers and no network", "give the network"),
    "evaluate": ("evaluate {plain} --data digits", "a store of a teacher's answers", "give the network"),
    "predict": ("predict {plain} image.png", "a store of a teacher's answers", "give the network"),
    # the store command
    "append of another teacher": (W + " --teacher {vit}", "the teacher's weights differ", "another folder"),
    "append with other arguments": (
        W + " teachers.0.args.act_layer=relu",
        "networks.0.args.act_layer: stored 'unset', now 'relu'",
        "another folder",
    ),
    "append at another size": (W + " teachers.0.image_size=32", "image_size.0: stored 24, now 32", "another folder"),
    "append in another precision": (W + " --precision bf16", "precision: stored 'fp32', now 'bf16'", "another folder"),
    "append of another seed": (W + " --seed 3", "images.seed: stored 0, now 3", "another folder"),
    "append of other images": (W + " data.limit_train=90", "order.num_images: stored 96, now 90", "another folder"),
    "append with less": (W + " --top-k 3", "keep.top_k: stored None, now 3", "another folder"),
    "append in other shards": (W + " --shard-size 50", "shard_size: stored 32, now 50", "another folder"),
    "something else": (W + " --out {pets}", "which holds something else", "another --out"),
    "guesses": (W + " allow_untrained_teacher=false --out {root}/never", "guessing gives 10.0%", "allow_untrained"),
    "store of a store": (W + " --teacher {plain} --out {root}/never", "a store of a teacher's answers", "give the net"),
    "class count": (W + " --teacher {three} --out {root}/never", "3", "train"),
    "no epochs": (W + " --epochs 0", "--epochs 0", "a larger number"),
    "more epochs than are shown": (
        W + " --epochs 3 data.cycle_epochs=2",
        "--epochs 3 with data.cycle_epochs=2",
        "--epochs 2, or leave out",
    ),
    "no classes": (W + " --top-k 0 --out {root}/never", "--top-k 0", "a larger number"),
    "part": (W + " --part 3/2", "--part 3/2", "number the jobs from 1"),
    "part of what": (W + " --part half", "--part 'half'", "number the jobs from 1"),
    "key": (W + " train.lr=0.1", "unknown key 'train.lr'", "known"),
    "nothing": ("store --epochs 2", "without --teacher, --data, --out", "give these"),
    "no store": ("store --verify {pets}", "manifest.json cannot be read", "check the path"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_refused_with_the_difference_and_what_to_do(world, refused, case):
    line, given, action = CASES[case]
    before = launch.fingerprints(world.plain)
    found = refused(line)
    assert re.search(given, found["given"]), found["given"]
    assert re.search(action, found["action"]), found["action"]
    assert not (world.root / "never").exists()
    assert launch.fingerprints(world.plain) == before


NETWORK = """
import timm
def build(num_classes):
    return timm.create_model("test_vit", num_classes=num_classes, img_size=32, act_layer="gelu")
"""


@pytest.mark.parametrize(
    "keep", ["", *(pytest.param(one, marks=pytest.mark.slow) for one in ("--embeddings --top-k 2", "--precision bf16"))]
)
def test_a_teacher_whose_code_was_changed_is_asked_again_and_refused(world, refused, tmp_path, keep):
    """Its weights are the same, and so are its name, arguments and view."""
    code, out = tmp_path / "net.py", tmp_path / "store"
    code.write_text(NETWORK)
    line = f"store --teacher file:{code}:build teachers.0.init={{root}}/vit.safetensors {ASKED} --shard-size 32"
    line += f" --allow-code {keep}"
    assert run(world, f"{line} --epochs 1 --out {out}") == 0
    before = launch.fingerprints(out)
    assert run(world, f"{line} --epochs 1 --batch-size 20 --out {out}") == 0  # other batches only round otherwise
    code.write_text(NETWORK.replace("gelu", "relu"))
    found = refused(f"{line} --epochs 2 --out {out}")
    assert re.search(r"stored by another network, code or version.* off by up to \d", found["given"], re.S)
    assert "another folder" in found["action"]
    assert launch.fingerprints(out) == before


def test_a_teacher_measured_otherwise_than_the_student_is_said_to_be(world, tmp_path, capsys):
    more = "data.eval_crop_pct=0.8 --epochs 1"
    assert run(world, f"distill --teacher {{plain}} {TRAIN} {more} --out {tmp_path / 'run'} --json") == 0
    (warning,) = (text for text in json.loads(capsys.readouterr().out)["warnings"] if "was measured when" in text)
    assert "data.eval_crop_pct=null and not 0.8" in warning


def test_pictures_that_were_changed_in_place_are_noticed(world, refused, tmp_path):
    pets = shutil.copytree(world.pets, tmp_path / "pets")
    more = f"--data folder:{pets} data.limit_train=null --epochs 1"
    store = f"store --teacher {{three}} teachers.0.image_size=24 {ASKED} {more} --out {tmp_path / 'store'}"
    assert run(world, store) == 0
    for path in (pets / "train").rglob("*.png"):
        with Image.open(path) as image:
            changed = image.point(lambda value: value // 2)
        changed.save(path)
    train = f"distill --teacher {tmp_path / 'store'} {TRAIN} {more} --out {tmp_path / 'run'}"
    for line in (train, store):
        found = refused(line)
        assert "pixels of the training images differ" in found["given"]
        assert "as they were when they were stored" in found["action"]


def test_a_remote_stream_is_refused(refused, tmp_path):
    stream = "data.stream.num_train=8 data.stream.class_names=[a,b]"
    data = f"--data wds:http://127.0.0.1:9/train-{{{{0..1}}}}.tar {stream}"
    found = refused(f"store --teacher {{cnn}} {data} --epochs 1 --out {tmp_path / 'store'}")
    assert "a remote stream" in found["given"]
    assert "local disk" in found["action"]


def test_unreadable_images_are_left_out_of_store_and_run(world, tmp_path, capsys):
    pets = shutil.copytree(world.pets, tmp_path / "pets")
    broken = pets / "train" / "bee" / "3.png"
    content = broken.read_bytes()
    broken.write_bytes(content[:60])
    write = f"store --teacher {{three}} teachers.0.image_size=24 --data folder:{pets} --batch-size 8 --epochs 1"
    write += f" allow_untrained_teacher=true --device cpu {MIX} --out {tmp_path / 'store'} --json"
    train = f"distill --teacher {tmp_path / 'store'} --student mixer_tiny --image-size 16 --data folder:{pets} {MIX}"
    train += " --batch-size 8 --epochs 1 allow_untrained_teacher=true --device cpu --json"
    assert run(world, write) == cli.EXIT_BAD_INPUT
    assert "cannot be read" in capsys.readouterr().err
    assert run(world, f"{write} data.max_corrupt_share=0.1") == 0
    assert list(json.loads(capsys.readouterr().out)["skipped"]) == [str(broken)]
    assert run(world, f"store --verify {tmp_path / 'store'}") == 0
    assert run(world, f"{train} data.max_corrupt_share=0.1 --out {tmp_path / 'run'}") == 0
    Image.new("RGB", (8, 8)).save(broken)  # what is mended meanwhile was never answered
    capsys.readouterr()
    assert run(world, f"{train} data.max_corrupt_share=0.1 --out {tmp_path / 'other'}") == cli.EXIT_BAD_INPUT
    assert "36 training images, 1 of them without an answer" in capsys.readouterr().err


def test_an_image_that_could_not_be_read_in_a_later_epoch_is_known_before_the_run(world, refused, tmp_path, capsys):
    pets = shutil.copytree(world.pets, tmp_path / "pets")
    broken = pets / "train" / "bee" / "3.png"
    content = broken.read_bytes()
    common = f"--data folder:{pets} --batch-size 8 allow_untrained_teacher=true --device cpu --json"
    write = f"store --teacher {{three}} teachers.0.image_size=24 {common} --shard-size 8 --out {tmp_path / 'store'}"
    write += " data.max_corrupt_share=0.1"
    train = f"distill --teacher {tmp_path / 'store'} --student mixer_tiny --image-size 16 {common} --epochs 3"
    assert run(world, f"{write} --epochs 1") == 0
    broken.write_bytes(content[:60])
    assert run(world, f"{write} --epochs 2") == 0
    mended = f"{train} --out {tmp_path / 'run'}"
    broken.write_bytes(content)
    assert run(world, f"{write} --epochs 3") == 0
    found = refused(mended)
    assert f"36 training images, 1 of them without an answer in epoch 1 of store {tmp_path / 'store'}" in found["given"]
    named = re.search(r"shard (\d) of epoch 1 was written while this image could not be read: remove (\S+)", found[3])
    assert named[2] == f"epoch-0001/shard-0000{named[1]}.safetensors"
    (tmp_path / "store" / named[2]).unlink()
    capsys.readouterr()
    assert run(world, f"{write} --epochs 3") == 0
    assert 0 < json.loads(capsys.readouterr().out)["images_written"] <= 8
    assert run(world, mended) == 0


def test_an_image_that_comes_more_often_than_a_store_can_count_is_refused(world, refused, tmp_path, monkeypatch):
    pets = shutil.copytree(world.pets, tmp_path / "pets")
    for path in sorted((pets / "train" / "cat").iterdir())[3:]:
        path.unlink()
    write = f"store --teacher {{three}} teachers.0.image_size=24 --data folder:{pets} data.sampling=class_balanced"
    write += " --batch-size 8 --epochs 1 allow_untrained_teacher=true --device cpu --dry-run"
    monkeypatch.setattr("crossdistill.runs.store_pass.LARGEST_OCCURRENCE", 2)
    assert run(world, f"{write} --out {tmp_path / 'store'}") == 0
    monkeypatch.setattr("crossdistill.runs.store_pass.LARGEST_OCCURRENCE", 1)
    found = refused(f"{write} --out {tmp_path / 'store'}")
    assert "shows an image 3 times an epoch" in found["given"]
    assert "at most 2 times" in found["expected"]
    assert "data.sampling=shuffled" in found["action"]


@pytest.mark.parametrize(
    ("section", "without", "words"),
    [("identity", "images", "the seed of its images"), ("facts", "evaluation", "how good its teacher is")],
)
def test_a_store_of_another_writer_that_says_too_little_is_refused(
    world, refused, copy, tmp_path, section, without, words
):
    tree = json.loads((copy / "manifest.json").read_bytes())
    del tree[section][without]
    sizes = (tree[name] for name in ("num_classes", "num_samples", "shard_size"))
    StoreWriter.open(tmp_path / "bare", Manifest(tree["identity"], tree["facts"], *sizes, Keep(**tree["keep"])))
    if section == "facts":
        with pytest.raises(InputError, match=words):
            evaluation_of(Store.open(tmp_path / "bare"))
        found = refused(f"{WRITE} --epochs 2 --out {tmp_path / 'bare'}")
    else:
        found = refused(f"distill --teacher {tmp_path / 'bare'} {TRAIN} --epochs 1 --out {tmp_path / 'run'}")
    assert f"whose manifest does not describe {words} (KeyError: '{without}')" in found["given"]
    assert "store the teacher's answers again" in found["action"]
