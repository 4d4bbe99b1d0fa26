"""Bad input on the command line: exit code 2, and three lines that say what was given, expected, and to be done."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import safetensors.torch
import timm
import torch

from crossdistill import cli
from crossdistill.engine import checkpoint
from samples import image_folder, launch

MESSAGE = re.compile(
    r"^ +given: (?P<given>.*?)\n +expected: (?P<expected>.*?)\nwhat to do: (?P<action>.*)\n", re.M | re.S
)
TRAIN = "train --model mixer_tiny --data digits --limit-train 60 --steps 2 --image-size 16 --device cpu"
DISTILL = "distill --student mixer_tiny --data digits --limit-train 60 --steps 2 --image-size 16 --device cpu"
ON_FOLDER = "train --model mixer_tiny --steps 2 --image-size 16 --device cpu"


class Creates:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Real things to be wrong about: trained runs, checkpoints good and bad, folders of images."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("world")
    at = SimpleNamespace(root=root, teacher=root / "teacher", three=root / "three")
    learn = "train --model mixer_tiny --data digits --limit-train 400 --steps 24 --image-size 16 train.lr=5e-3"
    assert cli.run([*learn.split(), "--out", str(at.teacher), "--json"]) == 0
    at.pets = image_folder.make(root / "pets", ["ant", "bee", "cat"])
    at.others = image_folder.make(root / "others", ["ant", "bee", "dog"])
    three = f"{ON_FOLDER} --data folder:{at.pets} --out {at.three} --json"
    assert cli.run(three.split()) == 0
    at.thousand, at.truncated = root / "thousand.safetensors", root / "truncated.safetensors"
    safetensors.torch.save_file(timm.create_model("mixer_tiny", img_size=16).state_dict(), at.thousand)
    at.bare = root / "bare.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), at.bare)
    at.guesser = root / "guesser.safetensors"
    always_zero = timm.create_model("mixer_tiny", img_size=16, num_classes=10).state_dict()
    always_zero |= {"head.weight": torch.zeros(10, 64), "head.bias": torch.eye(10)[0].clone()}
    safetensors.torch.save_file(always_zero, at.guesser)
    at.truncated.write_bytes(at.thousand.read_bytes()[:-1000])
    at.pickle, at.created = root / "pickle.pth", root / "created"
    torch.save({"state_dict": {}, "more": Creates(at.created)}, at.pickle)
    return at


@pytest.fixture
def refused(world, tmp_path, capsys):
    """Run a command line (words in braces are the world's) that must be refused; the three parts of the message."""

    def run(line, *, out=None):
        words = shlex.split(line.format(**vars(world)))
        if words[0] in ("train", "distill"):
            words += ["--out", str(out or tmp_path / "out")]
        capsys.readouterr()
        code = cli.run(words)
        printed = capsys.readouterr()
        assert code == cli.EXIT_BAD_INPUT == 2, printed.err
        assert "Traceback" not in printed.err
        found = MESSAGE.search(printed.err)
        assert found, printed.err
        assert printed.err.endswith(found[0]), "nothing comes after the message"
        return SimpleNamespace(**found.groupdict(), out=printed.out, err=printed.err)

    return run


CASES = {
    # unknown names, each with the nearest
    "model": (f"{TRAIN} --model resnet81", "'resnet81'", "a model of timm", "'resnet18'"),
    "student": (f"{DISTILL} --teacher {{teacher}} --student mixer_tinny", "'mixer_tinny'", "a model", "'mixer_tiny'"),
    "stage": (f"{TRAIN} student.stages=[stemm]", "stage 'stemm' of mixer_tiny", "named_modules", "'stem'"),
    "stage no cut": (f"{TRAIN} student.stages=[blocks.0.norm1]", "blocks.0.norm1", "one tensor", "be found"),
    "stages as text": (f"{TRAIN} student.stages=stem", "student.stages", "tuple", "change student.stages"),
    "coverage": ("models resnett81* --coverage", "'resnett81*'", "matches a name", "resnet"),
    "method": (f"{DISTILL} --teacher {{teacher}} --method kdd", "method 'kdd'", "registered method", "'kd' or 'rkd'"),
    "key": (f"{TRAIN} train.lrr=1", "'train.lrr'", "a key of the settings", "'lr'"),
    "branch of keys": (f"{TRAIN} trian.lr=1", "'trian'", "a key", "'train'"),
    "option of a method": (
        f"{DISTILL} --teacher {{teacher}} --method ofa method.gama=2",
        "'method.gama'",
        "a key",
        "'gamma'",
    ),
    "data source": (f"{TRAIN} --data digit", "data source 'digit'", "folder:PATH", "'digits'"),
    "data without its kind": (f"{TRAIN} --data {{pets}}", "data source '{pets}'", "folder:PATH", "'folder:{pets}'"),
    "optimiser": (f"{TRAIN} train.optimizer=adamm", "optimizer 'adamm'", "timm", "'adam'"),
    "argument of the constructor": (
        f"{TRAIN} student.args.deep=3",
        "'deep'",
        "its constructor takes",
        "correct or drop",
    ),
    "command": ("distil", "'distil'", "crossdistill [OPTIONS] ", "crossdistill --help"),
    "option": ("train --lrr 1", "crossdistill train: no such option", "[OPTIONS]", "crossdistill train --help"),
    "recipe": ("recipes show digits/teachr", "'digits/teachr'", "name of a recipe", "'digits/teacher'"),
    "pattern of models": ("models resnet81", "'resnet81'", "matches", "'resnet18'"),
    # values
    "no value": (f"{TRAIN} train.lr", "override 'train.lr'", "key=value", "equals sign"),
    "a word for a number": (f"{TRAIN} train.lr=fast", "train.lr = 'fast'", "a valid number", "change train.lr"),
    "out of range": (
        f"{TRAIN} train.batch_size=0",
        "train.batch_size = 0",
        "greater than or equal to 1",
        "train.batch_size",
    ),
    "option out of range": (f"{TRAIN} --batch-size 0", "--batch-size 0", "a whole number from 1 on", "a larger number"),
    "not a choice": (f"{TRAIN} --device gpu", "device = 'gpu'", "'auto', 'cpu' or 'cuda'", "change device"),
    "not a number": (f"{TRAIN} --epochs many", "'--epochs'", "crossdistill train [OPTIONS]", "--help"),
    "a size too small": (
        f"{TRAIN} --image-size 2",
        "student.image_size = 2",
        "greater than or equal to 4",
        "image_size",
    ),
    "two lengths": (f"{TRAIN} --epochs 2", "train.epochs=2 and train.steps=2", "one of them", "--epochs or --steps"),
    "words as seeds": (f"{TRAIN} --seeds 0,x", "--seeds '0,x'", "whole numbers from 0, with commas", "--seeds 0,1,2"),
    "a seed twice": (f"{TRAIN} --seeds 1,1", "seeds (1, 1)", "different whole numbers", "correct the seeds"),
    "a negative seed": (f"{TRAIN} --seeds=-1", "seeds (-1,)", "whole numbers from 0", "correct the seeds"),
    "a seed as a setting": (f"{TRAIN} seed=3", "seed=", "seeds in one place", "--seeds"),
    "fewer images than classes": (f"{TRAIN} --limit-train 5", "data.limit_train=5", "10 (one image a class)", "change"),
    # teacher and method
    "no teacher": (f"{DISTILL}", "missing option '--teacher'", "crossdistill distill [OPTIONS]", "--help"),
    "a baseline of nothing": (f"{TRAIN} --baseline", "no such option", "crossdistill train", "--help"),
    "a teacher for no method": (
        f"{DISTILL} --teacher {{teacher}} --method none",
        "teacher '{teacher}'",
        "one of them",
        "choose another method",
    ),
    "a stage that is not there": (
        f"{DISTILL} --teacher {{teacher}} --method ofa method.stages=[7]",
        "stages=[7]",
        "from 1 to 4: student 'mixer_tiny' has 4 stages",
        "leave out",
    ),
    "a network without the stages to be fused": (
        f"{DISTILL} --teacher {{teacher}} --method fbt student.stages=[stem]",
        "student 'mixer_tiny' with 1 stage",
        "two stages or more",
        "methods that serve this pair: at, bow, cc, crd, dist, dkd, fitnet, hybrid, kd, mgd, ofa, reviewkd, rkd, rsd",
    ),
    "a live network of other classes": (
        f"{DISTILL} --teacher {{teacher}} --method fbt --class-map names",
        "method FBT, which needs embedding, logits, modules, stages, and teacher mixer_tiny",
        "a teacher that also holds modules",
        "methods that serve this pair: at, ",
    ),
    "a stage that no feature method finds": (
        f"{DISTILL} --teacher {{teacher}} --method fitnet method.stages=[0]",
        "stages=[0]",
        "from 1 to 4",
        "leave out",
    ),
    "a negative weight": (
        f"{DISTILL} --teacher {{teacher}} --method rsd method.weight=-1",
        "weight=-1",
        "weight of 0 or more",
        "choose another weight",
    ),
    "a temperature out of its range": (
        f"{DISTILL} --teacher {{teacher}} --method fbt method.nce_temperature=0",
        "nce_temperature=0",
        "from 0.01 to 1",
        "choose another nce_temperature",
    ),
    "a part of a sum that does not exist": (
        f"{DISTILL} --teacher {{teacher}} --method hybrid 'method.methods={{{{kdd: {{{{}}}}}}}}'",
        "method 'kdd'",
        "registered method",
        "'kd' or 'rkd'",
    ),
    "a teacher at chance": (
        f"{DISTILL} --teacher mixer_tiny@{{guesser}} teachers.0.image_size=16",
        "accuracy 10.0% on 360 images of 10 classes, where guessing gives 10.0%",
        "more than 14.7%, three standard errors",
        "allow_untrained_teacher=true",
    ),
    "a teacher of other classes": (
        f"{DISTILL} --teacher {{teacher}} --data folder:{{pets}}",
        "{teacher} with a head of 10 classes",
        "3 classes, as the data have",
        "crossdistill train --model mixer_tiny --init {teacher} --image-size 16 --data",
    ),
    "an ensemble of different classes": (
        f"{DISTILL} --teacher {{teacher}} --teacher {{three}}",
        "{three} with a head of 3 classes",
        "10 classes",
        "--init {three}",
    ),
    "evaluation on other data": (
        "evaluate {teacher} --data folder:{pets}",
        "{teacher} with a head of 10 classes",
        "3 classes, as the data have",
        "--init {teacher}",
    ),
    "evaluation on classes of other names": (
        "evaluate {three} --data folder:{others}",
        "{three} with classes 'ant', 'bee', 'cat'",
        "'ant', 'bee', 'dog'",
        "--init {three}",
    ),
    "evaluation of nothing": ("evaluate {root}/none --data digits", "{root}/none", "run folder", "check the path"),
    "evaluation of random weights": (
        "evaluate mixer_tiny --data digits",
        "'mixer_tiny'",
        "a trained model",
        "train it",
    ),
    "evaluation on no data": ("evaluate mixer_tiny@{thousand}", "without --data", "images", "--data folder:PATH"),
    # checkpoints
    "a head of another size": (
        f"{TRAIN} --model mixer_tiny@{{thousand}}",
        "{thousand} with a head of 1000 classes",
        "10 classes, as the data have",
        "crossdistill train --model mixer_tiny --init {thousand} --data",
    ),
    "pretrained weights with another head": (
        f"{DISTILL} --teacher test_resnet@pretrained",
        "test_resnet@pretrained, whose head has 1000 classes, for data of 10",
        "the data's classes",
        "crossdistill train --model test_resnet --init pretrained --data",
    ),
    "another architecture": (
        f"{TRAIN} --model resmlp_tiny@{{thousand}}",
        "{thousand}, which lacks 'blocks.0.",
        "the weights of resmlp_tiny",
        "name the architecture",
    ),
    "a run of another architecture": (
        f"{TRAIN} --model test_vit@{{teacher}}",
        "{teacher}, a checkpoint of 'mixer_tiny'",
        "a checkpoint of 'test_vit'",
        "mixer_tiny@{teacher}",
    ),
    "start weights of another architecture": (
        f"{TRAIN} --model resmlp_tiny --init {{teacher}}",
        "{teacher}, which lacks",
        "the weights of resmlp_tiny",
        "says it is 'mixer_tiny'",
    ),
    "a truncated file": (
        f"{TRAIN} --model mixer_tiny@{{truncated}}",
        "{truncated}, which cannot be read",
        "a complete safetensors file",
        "truncated",
    ),
    "no file": (f"{TRAIN} --model mixer_tiny@{{root}}/none.pth", "'{root}/none.pth'", "run folder", "check the path"),
    # images
    "no folder": (
        f"{TRAIN} --data folder:{{root}}/none",
        "{root}/none, which does not exist",
        "one folder a class",
        "path",
    ),
    "prediction of no image": ("predict {three} {root}/none.png", "{root}/none.png: No such file", "readable", "check"),
    "prediction of a text": (
        "predict {three} {pets}/../thousand.safetensors",
        "not an image",
        "readable image",
        "check",
    ),
    "prediction without images": ("predict {three}", "missing argument 'IMAGE'", "crossdistill predict", "--help"),
    "prediction without classes": (
        "predict test_resnet@{bare} {pets}/val/ant/0.png",
        "bare.safetensors, which carries no names of classes to choose from",
        "a run folder",
        "give one",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_command_line_is_refused(case, refused, world, tmp_path):
    line, *expected = CASES[case]
    message = refused(line)
    for part, words in zip((message.given, message.expected, message.action), expected, strict=True):
        assert words.format(**vars(world)) in part
    assert not (tmp_path / "out" / "config.yaml").exists(), "what is refused leaves no run behind"


def test_a_pickle_is_not_run(refused, world):
    message = refused(f"{TRAIN} --model mixer_tiny@{{pickle}}")
    assert f"{world.pickle}, a pickle that holds more than tensors" in message.given
    assert "unpickling could run any code" in message.expected
    assert "safetensors" in message.action
    assert not world.created.exists()
    torch.load(world.pickle, weights_only=False)["more"].close()
    assert world.created.exists(), "the pickle would have done it"
    world.created.unlink()


def test_the_command_that_a_message_names_works(refused, world, tmp_path):
    """A thousand-way head on ten classes: what the message says, with the blanks filled in."""
    message = refused(f"{TRAIN} --model mixer_tiny@{{thousand}}")
    command = message.action.partition("crossdistill ")[2].replace("--data …", "--data digits")
    words = command.replace("--out …", f"--out {tmp_path / 'tuned'}").split()
    assert cli.run([*words, "--image-size", "16", "--steps", "2", "--limit-train", "60", "--json"]) == 0


def test_a_teacher_at_chance_goes_on_where_that_is_allowed(refused, world, tmp_path, capsys):
    guess = f"{DISTILL} --teacher mixer_tiny@{world.guesser} teachers.0.image_size=16"
    line = f"{guess} --out {tmp_path / 'out'}"
    assert cli.run([*line.split(), "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert "warning: a teacher with accuracy" in printed.err
    assert "it has nothing to teach" in printed.out
    assert not (tmp_path / "out").exists()
    refused(guess)
    assert cli.run([*line.split(), "allow_untrained_teacher=true", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert any("it has nothing to teach" in warning for warning in results["warnings"])


def test_folders_that_hold_no_classes(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    message = refused(f"{ON_FOLDER} --data folder:{tmp_path / 'empty'}")
    assert f"folder {tmp_path / 'empty'}, which holds nothing" in message.given
    assert "one folder a class" in message.expected
    assert "sort the images by class" in message.action
    hollow = image_folder.make(tmp_path / "hollow", ["ant", "bee"])
    (hollow / "train" / "cat").mkdir()
    message = refused(f"{ON_FOLDER} --data folder:{hollow}")
    assert f"class folder {hollow / 'train' / 'cat'}, which holds no image" in message.given
    assert ".png" in message.expected
    assert "remove the folder" in message.action


@pytest.mark.parametrize("stray", [False, True], ids=["all in colour", "one in colour"])
def test_colour_for_a_grey_model(stray, refused, tmp_path):
    """The first is seen before training, a stray one where it is met."""
    photos = image_folder.make(tmp_path / "photos", ["ant", "bee"], num_images=80, mode="L" if stray else "RGB")
    odd = photos / "train" / "ant" / ("37.png" if stray else "0.png")
    image_folder.make(tmp_path / "colour", ["ant"], num_images=1, splits=("train",))
    shutil.copy(tmp_path / "colour" / "train" / "ant" / "0.png", odd)
    message = refused(f"{ON_FOLDER} --data folder:{photos} --batch-size 160 student.args.in_chans=1")
    assert f"image {odd}" in message.given
    assert "three channels (colour), the model was built for 1" in message.given
    assert "1 channel" in message.expected
    assert "save the images as grey" in message.action


def test_corrupt_images_are_skipped_up_to_a_share_and_named(refused, tmp_path, capsys):
    photos = image_folder.make(tmp_path / "photos", ["ant", "bee"])
    broken = photos / "train" / "bee" / "2.png"
    broken.write_bytes(broken.read_bytes()[:40])
    message = refused(f"{ON_FOLDER} --data folder:{photos}")
    assert f"1 of 8 images cannot be read (12.5%), first {broken}" in message.given
    assert "at most 1.0%" in message.expected
    assert "data.max_corrupt_share" in message.action
    allowed = f"{ON_FOLDER} --data folder:{photos} --out {tmp_path / 'run'} data.max_corrupt_share=0.2"
    assert cli.run(allowed.split()) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    (warning,) = results["warnings"]
    assert warning.startswith(f"1 unreadable image was left out: {broken} (")
    printed = " ".join(capsys.readouterr().out.split())
    assert "note: 1 unreadable image was left out" in printed


@pytest.mark.parametrize("method", ["none", "kd"])
def test_numbers_that_are_not_finite(method, refused):
    command = TRAIN if method == "none" else f"{DISTILL} --teacher {{teacher}}"
    message = refused(f"{command} --steps 8 --batch-size 15 train.lr=1e30")
    assert re.search(r"loss '(cross_entropy|kd)' is (nan|inf) at step [2-4]", message.given)
    assert message.expected == "finite numbers"
    assert "lower train.lr (now 1e+30)" in message.action
    assert "train.clip_grad" in message.action


def test_a_baseline_in_a_recipe_without_a_teacher(refused, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("description: x\nbaseline: true\nstudent: {name: mixer_tiny}\ndata: {source: digits}\n")
    message = refused(f"recipes run {recipe} --out {tmp_path / 'out'}")
    assert message.given == "--baseline without a teacher"
    assert "distillation" in message.expected
    assert message.action == "drop --baseline"


def test_a_recipe_that_is_no_yaml(refused, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("description: [x\n")
    message = refused(f"recipes run {recipe} --out {tmp_path / 'out'}")
    assert f"recipe {recipe}" in message.given
    assert message.expected == "valid YAML"
    assert "line" in message.action


def test_an_output_that_cannot_be_written(refused, tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    for out in (in_the_way, in_the_way / "run", "/proc/run"):
        message = refused(TRAIN, out=out)
        assert f"cannot write below {out}" in message.given
        assert "a folder that can be written" in message.expected
        assert "give another --out" in message.action


def test_a_folder_that_holds_a_run(refused, world):
    before = launch.fingerprints(world.teacher)
    message = refused(TRAIN, out=world.teacher)
    assert f"{world.teacher}, which holds a run already" in message.given
    assert "a folder without a run" in message.expected
    assert "--resume" in message.action
    assert launch.fingerprints(world.teacher) == before


def test_a_resume_with_other_settings_or_another_teacher(refused, world, tmp_path):
    teacher, out = shutil.copytree(world.teacher, tmp_path / "teacher"), tmp_path / "run"
    command = DISTILL.replace("60", "100")
    assert cli.run([*command.split(), "--teacher", str(teacher), "--out", str(out), "--json"]) == 0
    (out / "results.json").unlink()  # as a run that has yet to finish

    def resume(with_teacher, more=""):
        return refused(f"{command} --teacher {with_teacher} --resume {more}", out=out)

    for more, words in {
        "train.lr=0.5": "other settings (train.lr: was 0.001, now 0.5)",
        "--method dkd": "method.name: was 'kd', now 'dkd'",
        "--seeds 4": "seed: was 0, now 4",
        "--batch-size 50": "train.batch_size: was 128, now 50",
    }.items():
        message = resume(teacher, more)
        assert f"resume from {out} with" in message.given
        assert words in message.given
        assert "started with" in message.expected
        assert "start anew in another folder" in message.action
    assert f"another teacher (teachers.0.name: was '{teacher}'" in resume(world.three).given
    weights = teacher / "student" / "model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    tensors["head.bias"] += 0.01
    safetensors.torch.save_file(tensors, weights, metadata={"format": "pt"})
    assert "with another teacher (teacher: was" in resume(teacher).given


def resumed_in_full(command, out, capsys):
    """Resume a run that stopped for want of room; its accuracy and the bytes of its weights."""
    (kept,) = (out / "checkpoints").glob("step-*")
    assert checkpoint.load(kept).manifest["step"] == 4
    assert not (out / "results.json").exists()
    capsys.readouterr()
    assert cli.run([*command.split(), "--out", str(out), "--resume", "--json"]) == 0
    return launch.outcome(out)


FILLING = f"{TRAIN} --steps 12 --batch-size 15 train.ema_decay=0.9"
"""Four steps an epoch and a checkpoint after each."""


@pytest.fixture(scope="module")
def undisturbed(world):
    assert cli.run([*FILLING.split(), "--out", str(world.root / "undisturbed"), "--json"]) == 0
    return launch.outcome(world.root / "undisturbed")


def assert_no_room(text, out):
    message = MESSAGE.search(text)
    assert message, text
    assert f"checkpoint below {out / 'checkpoints'} could not be written" in message["given"]
    assert re.search(r"[\d,]+ bytes needed, [\d,]+ free", message["given"])
    assert "room" in message["expected"]
    assert "make room, then resume" in message["action"]
    assert "Traceback" not in text


def test_files_that_may_not_grow(undisturbed, tmp_path, capsys):
    """A real limit of the system on the size of files stands in for a full disk."""
    out = tmp_path / "run"
    script = launch.HERE / "file_limit.py"
    done = launch.run(*FILLING.split(), "--out", out, script=script)
    assert done.returncode == 2
    assert_no_room(done.stderr, out)
    assert resumed_in_full(FILLING, out, capsys) == undisturbed


@pytest.fixture
def small_disk(tmp_path):
    """A file system that has room for one checkpoint and not for two, and a call that enlarges it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)

    if sys.platform != "linux" or shutil.which("mount") is None or mount("size=7M").returncode:
        pytest.skip("mounting a small file system needs root on Linux")
    yield folder, lambda: mount("remount,size=64M")
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(small_disk, undisturbed, capsys):
    disk, enlarge = small_disk
    out = disk / "run"
    assert cli.run([*FILLING.split(), "--out", str(out)]) == 2
    assert_no_room(capsys.readouterr().err, out)
    assert enlarge().returncode == 0
    assert resumed_in_full(FILLING, out, capsys) == undisturbed


def test_json_gives_the_error_as_one_object(refused):
    for line in (f"{TRAIN} --model resnet81 --json", "train --lrr 1 --json", "methods kdd --json"):
        message = refused(line)
        error = json.loads(message.out)["error"]
        assert error == {"given": message.given, "expected": message.expected, "what to do": message.action}


@pytest.mark.parametrize("line", [f"{TRAIN} --model resnet81 --json --out out", "distil"])
def test_a_process_of_its_own_says_the_same(line, refused):
    done = launch.run(*line.split())
    message = refused(line)
    assert done.returncode == 2
    assert done.stderr == message.err
    assert done.stdout == message.out
