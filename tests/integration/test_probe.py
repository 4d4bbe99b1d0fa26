"""``crossdistill probe``: each way of measuring a representation, by run folder, timm folder and checkpoint."""

import json
import shlex
import subprocess
import sys

import pytest
import safetensors.torch
import torch
import yaml

from crossdistill import cli
from crossdistill.models import build
from crossdistill.selfsup import pretrain
from samples import launch
from samples.pretraining import QUICK, textures

COMMANDS = ("knn", "linear", "few-shot", "semi")
NAMES = ["dots", "noise", "stripes"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A pretrained run on three kinds of textures, random weights with five classes, and class names in a file."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("probe")
    data = textures(root / "data")
    overrides = ["student.image_size=32", "probe.linear=false", *QUICK]
    pretrain("timm/test_resnet", f"folder:{data}", root / "run", overrides=overrides, quiet=True)
    five = build("timm/test_resnet", num_classes=5, image_size=32)
    safetensors.torch.save_file(five.net.state_dict(), root / "five.safetensors")
    (root / "novel.txt").write_text("stripes\ndots\n")
    (root / "wrong.txt").write_text("stripe\n")
    (root / "flat").mkdir()
    return root


@pytest.fixture
def probe(world, capsys):
    """Run ``crossdistill probe``, with {root} for the world's folder; the exit code and what was printed."""

    def run(line):
        capsys.readouterr()
        code = cli.run(["probe", *shlex.split(line.format(root=world))])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out, " ".join(printed.err.split())

    return run


@pytest.fixture
def found(probe):
    """What a probe that must succeed gives as JSON."""

    def run(line):
        code, out, err = probe(f"{line} --json --device cpu")
        assert code == 0, err
        return json.loads(out)

    return run


def test_neighbours_give_what_the_run_measured(found, world):
    measured = found("knn {root}/run")
    results = json.loads((world / "run" / "results.json").read_text())
    assert measured["top1"] == results["rows"][0]["top1_mean"]
    assert (measured["num_train"], measured["num_samples"], measured["split"]) == (72, 36, "test")
    assert found("knn {root}/run data.limit_train=30 --neighbours 3")["num_train"] == 30
    one = found("knn {root}/run --neighbours 1")["top1"]
    assert found("knn {root}/run --temperature 1e-6")["top1"] == one != measured["top1"]


def test_two_processes_give_what_one_gives(found, world):
    """37 of 72 training images and 36 test images do not divide alike."""
    line = ["probe", "knn", world / "run", "data.limit_train=37", "--device", "cpu", "--json"]
    done = launch.run(*line, num_processes=2)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == found("knn {root}/run data.limit_train=37")


@pytest.mark.parametrize("model", ["{root}/run", "timm/test_resnet@{root}/five.safetensors"])
def test_the_network_with_its_probe_is_a_model_of_these_classes(found, world, model, tmp_path, capsys):
    """Also where the network had another number of classes before."""
    size = "" if model.endswith("run") else "--image-size 32"
    more = f"--data folder:{{root}}/data {size} --epochs 10 --rates 0.01,0.1,1 --out {tmp_path}/t"
    measured = found(f"linear {model} {more}")
    assert measured["rate"] in (0.01, 0.1, 1)
    assert measured["train_top1"] > 1 / 3
    assert cli.run(["evaluate", f"{tmp_path}/t", "--data", f"folder:{world}/data", "--device", "cpu", "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated["top1"] == pytest.approx(measured["top1"])
    assert [one["class"] for one in evaluated["per_class"]] == NAMES


def test_the_same_probe_twice(found):
    line = "linear {root}/run --epochs 5 --seed 3"
    assert found(line) == found(line)


@pytest.mark.parametrize(
    ("model", "seen"),
    [
        ("{root}/run", "yes"),
        ("timm/test_resnet@{root}/run", "yes"),
        ("timm/test_resnet@{root}/five.safetensors", "unknown"),
    ],
)
def test_few_shots_of_named_classes_say_what_pretraining_saw(found, model, seen):
    more = "--image-size 32 --data folder:{root}/data"
    measured = found(f"few-shot {model} {more} --classes {{root}}/novel.txt --ways 2 --shots 2 --episodes 9")
    assert measured["classes"] == ["stripes", "dots"]
    assert measured["classes_seen_in_pretraining"] == seen
    assert 0 <= measured["accuracy"] <= 1
    assert (measured["episodes"], measured["num_classes"]) == (9, 2)


@pytest.mark.parametrize(("classes", "seen"), [(["ant", "bee"], "no"), (["ant", "dots"], "some")])
def test_few_shots_of_other_classes(found, world, tmp_path, classes, seen):
    for split in ("train", "test"):
        for name, other in zip(classes, NAMES, strict=False):
            target = tmp_path / split / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(world / "data" / split / other)
    measured = found(f"few-shot {{root}}/run --data folder:{tmp_path} --ways 2 --episodes 3")
    assert measured["classes_seen_in_pretraining"] == seen


def test_few_labels_make_a_run(found, probe, tmp_path):
    line = f"semi {{root}}/run --share 0.25 --out {tmp_path}/semi --batch-size 6 train.epochs=2 train.milestones=[1]"
    results = found(line)
    assert results["semi_supervised"]["num_labels"] == results["data"]["num_labelled"] == 18
    assert results["rows"][0]["top1_mean"] == results["semi_supervised"]["top1_mean"]
    config = yaml.safe_load((tmp_path / "semi" / "config.yaml").read_text())
    assert (config["student"]["new_classifier"], config["train"]["classifier_lr"]) == (True, 0.5)
    assert (config["data"]["limit_train"], config["train"]["batch_size"]) == (18, 6)
    code, _, err = probe(line)
    assert code == 2, err
    code, out, _ = probe(f"{line} --resume --device cpu")
    assert code == 0
    assert "18 labels: top-1" in out


def test_listed_images_are_those_with_labels(found, tmp_path):
    (tmp_path / "list.txt").write_text("dots-3.png\nnoise-1.png\nstripes/stripes-0.png\nstripes-9.png\n")
    quick = "train.epochs=1 train.milestones=[1]"
    results = found(f"semi {{root}}/run --list {tmp_path}/list.txt --out {tmp_path}/semi {quick}")
    assert results["semi_supervised"]["num_labels"] == results["data"]["num_train"] == 4


def test_a_dry_run_of_few_labels_writes_nothing(probe, tmp_path):
    code, out, err = probe(f"semi {{root}}/run --share 0.5 --out {tmp_path}/semi --dry-run --device cpu")
    assert code == 0, err
    assert "36 to train on" in out
    assert not (tmp_path / "semi").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("knn {root}/run --neighbours 3", ("test_resnet on folder:", "3 nearest of 72 training images vote", "top-1")),
        ("linear {root}/run --epochs 2 --out {root}/shown", ("a linear probe of rate", "a teacher by that name")),
        ("few-shot {root}/run --ways 3 --episodes 4", ("3-way 1-shot", "95 % interval", "these 3 classes: yes")),
    ],
)
def test_people_read_sentences(probe, line, words):
    code, out, err = probe(f"{line} --device cpu")
    assert code == 0, err
    for phrase in words:
        assert phrase in " ".join(out.split())


@pytest.mark.parametrize("command", ["knn", "linear --epochs 2", "few-shot --ways 2 --episodes 3"])
def test_random_weights_are_what_to_compare_with(probe, command):
    line = f"{command} timm/test_resnet --data folder:{{root}}/data --image-size 32 --device cpu"
    code, _, err = probe(line)
    assert code == 2
    assert "whose weights would be random" in err
    code, _, err = probe(f"{line} --allow-random")
    assert code == 0, err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("knn {root}/five.safetensors", "config.json"),
        ("knn timm/test_resnet@{root}/five.safetensors", "without --data"),
        ("knn {root}/run --neighbours 73", "73 neighbours of 72 images in the bank"),
        ("knn {root}/run --temperature 0", "a temperature above 0"),
        ("knn {root}/run data.unlabelled=true", "where labels are asked for"),
        ("knn {root}/run train.lr=1", "settings of the data"),
        ("linear {root}/run --rates 0.1,fast", "--rates '0.1,fast'"),
        ("linear {root}/run --rates 0.1,-1", "learning rates above 0"),
        ("few-shot {root}/run --ways 4", "3 of 3 classes with 2 images or more, for 4 ways"),
        ("few-shot {root}/run --ways 2 --shots 12", "0 of 3 classes with 13 images or more"),
        ("few-shot {root}/run --ways 1", "ways of 2 or more"),
        ("few-shot {root}/run --ways 2 --novel 4", "--novel 4"),
        ("few-shot {root}/run --ways 2 --classes {root}/wrong.txt", "did you mean 'stripes'?"),
        ("few-shot {root}/run --ways 2 --classes {root}/novel.txt --novel 2", "drop one"),
        ("semi {root}/run --share 2 --out {root}/none", "--share 2"),
        ("semi {root}/run --list {root}/novel.txt --out {root}/none", "which none of 72 training images is called"),
        ("semi timm/test_resnet --data folder:{root}/data --out {root}/none", "whose weights would be random"),
        ("semi {root}/run --share 0.5 --out {root}/none train.schedule=cosine", "milestones of the step schedule"),
    ],
)
def test_bad_input(probe, world, line, words):
    code, _, err = probe(line)
    assert code == 2, err
    assert words in err
    assert not (world / "none").exists()


def test_help_has_an_example_and_needs_no_torch():
    code = (
        "import sys; from crossdistill import cli\n"
        f"codes = [cli.run(['probe', name, '--help']) for name in {COMMANDS}]\n"
        "print(codes, sorted({'torch', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[0, 0, 0, 0] []\n")
    for name in COMMANDS:
        assert f"crossdistill probe {name} runs/pretrained" in " ".join(done.stdout.split())
