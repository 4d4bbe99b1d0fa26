"""Teachers of other classes through the command line: what they teach, what they are measured at, what is refused."""

import json
import math
import re
import shlex
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import timm
import torch
import yaml
from timm.data import resolve_model_data_config
from torch.nn import functional

from crossdistill import cli, distill, evaluate
from crossdistill.contracts import InputSpec
from crossdistill.data import prepare_image
from oracles import class_maps
from samples import image_folder

MESSAGE = re.compile(r" given: (.*?)\n +expected: (.*?)\nwhat to do: (.*)\n$", re.S)
CLASSES = ["ant", "bee", "crane"]
SIZE = 32
STUDENT = f"--student test_vit --image-size {SIZE} --steps 2 --batch-size 6 --device cpu"
GROUPS = {"ant": [6, 2], "bee": 0, "crane": [1]}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Three classes of images, and bare weights of networks with 7, 1,000 and 3 classes."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("world")
    at = SimpleNamespace(root=root, pets=image_folder.make(root / "pets", CLASSES))
    at.others = image_folder.make(root / "others", ["bee", "tensch", "zzzzz"])
    for word, num_classes in (("seven", 7), ("thousand", 1000), ("three", 3)):
        torch.manual_seed(num_classes)
        net = timm.create_model("test_resnet", num_classes=num_classes)
        setattr(at, word, root / f"{word}.safetensors")
        safetensors.torch.save_file(net.state_dict(), getattr(at, word))
    at.map = root / "map.yaml"
    at.map.write_text(yaml.safe_dump(GROUPS))
    return at


@pytest.fixture
def run(world, tmp_path, capsys):
    """A command line (words in braces are the world's), its exit code, and what it printed."""

    def run(line):
        words = shlex.split(line.format(**vars(world)))
        if words[0] == "distill" and "--out" not in words:
            words += ["--out", str(tmp_path / "out")]
        capsys.readouterr()
        code = cli.run(words)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return SimpleNamespace(code=code, out=printed.out, err=printed.err)

    return run


def mapping(tmp_path, text):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    return path


TEACH = f"distill {STUDENT} --data folder:{{pets}} teachers.0.image_size={SIZE} allow_untrained_teacher=true"
SEVEN = f"{TEACH} --teacher timm/test_resnet@{{seven}}"
THOUSAND = f"{TEACH} --teacher timm/test_resnet@{{thousand}}"

REFUSED = {
    "no map": (SEVEN, "a head of 7 classes", "(a teacher may have others: --class-map)", "fine-tune it first"),
    "no names": (f"{SEVEN} --class-map names", "whose 7 classes have no names", "label_names", "to its number"),
    "not found by name": (
        f"{THOUSAND} --class-map names --data folder:{{others}}",
        "for 'tensch', 'zzzzz'",
        "a teacher class for every class of the data",
        "tensch: did you mean 'tench'",
    ),
    "no file": (f"{SEVEN} --class-map {{root}}/none.yaml", "none.yaml: No such file", "a readable YAML", "the path"),
    "class left out": ("ant: 1\nbee: 2\n", "for 'crane'", "for every class of the data", "map them in a file"),
    "class of nobody": ("ant: 1\nbee: 2\ncrane: 3\ncrab: 4\n", "class 'crab'", "the data's 3 classes", "'crane'"),
    "no such number": ("ant: 1\nbee: 7\ncrane: 3\n", "bee: class 7 of teacher", "from 0 to 6", "correct the number"),
    "name without names": ("ant: 1\nbee: bee\ncrane: 3\n", "bee: class 'bee'", "by number from 0", "give numbers"),
    "empty list": ("ant: 1\nbee: []\ncrane: 3\n", "in bee: []", "at least one", "name one"),
    "one for two": (
        "ant: [1, 2]\nbee: 2\ncrane: 3\n",
        "class 2 of teacher",
        "each teacher class once",
        "another class",
    ),
    "no mapping": ("- 1\n- 2\n", "own.yaml, which is list", "a mapping", "one line for each class"),
    "no YAML": ("ant: [1\n", "own.yaml: while parsing", "valid YAML", "mend the file"),
    "a map in a setting": (
        f"{SEVEN} teachers.0.class_map=3",
        "class_map, which is int 3",
        "a mapping",
        "write one line",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_map_is_refused(case, run, tmp_path):
    line, *expected = REFUSED[case]
    if not line.startswith("distill"):
        line = f"{SEVEN} --class-map {mapping(tmp_path, line)}"
    done = run(line)
    assert done.code == cli.EXIT_BAD_INPUT
    found = MESSAGE.search(done.err)
    assert found, done.err
    for part, words in zip(found.groups(), expected, strict=True):
        assert words in part, done.err
    assert not (tmp_path / "out" / "config.yaml").exists()


def test_a_name_of_two_classes_is_refused_with_both(run, tmp_path):
    path = mapping(tmp_path, "ant: ant\nbee: bee\ncrane: crane\n")
    done = run(f"{THOUSAND} --class-map {path}")
    assert done.code == cli.EXIT_BAD_INPUT
    assert "a name of 2 classes of teacher test_resnet: 134 'n02012849' (crane) and 517 'n03126707'" in done.err


def test_a_teacher_class_that_does_not_exist_is_refused_with_the_nearest(run, tmp_path):
    path = mapping(tmp_path, "ant: ant\nbee: [bee, honey_beee]\ncrane: 517\n")
    done = run(f"{THOUSAND} --class-map {path}")
    assert done.code == cli.EXIT_BAD_INPUT
    assert "bee: class 'honey_beee', which teacher test_resnet does not have" in done.err
    assert "did you mean 'honeycomb'" in done.err


def test_distil_by_a_map_from_a_file(run, world, tmp_path):
    done = run(f"{SEVEN} --class-map {{map}} --json")
    assert done.code == 0, done.err
    teacher = next(row for row in json.loads(done.out)["rows"] if row["role"] == "teacher")
    expected = evaluate(
        f"timm/test_resnet@{world.seven}", f"folder:{world.pets}", class_map=GROUPS, image_size=SIZE, device="cpu"
    )
    assert teacher["top1_mean"] == expected["top1"], "the run's check of the teacher is of its mapped answers"
    recorded = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert recorded["teachers"][0]["class_map"] == str(world.map)


def test_a_run_does_not_go_on_with_another_map(run, world, tmp_path):
    """The map is part of what names the teacher, also where only the contents of its file have changed."""
    path = mapping(tmp_path, yaml.safe_dump(GROUPS))
    line = f"{SEVEN} --class-map {path} --out {tmp_path / 'out'}"
    assert run(line).code == 0
    (tmp_path / "out" / "results.json").unlink()
    assert run(f"{line} --resume").code == 0
    (tmp_path / "out" / "results.json").unlink()
    path.write_text(yaml.safe_dump(GROUPS | {"bee": 5}))
    done = run(f"{line} --resume")
    assert done.code == cli.EXIT_BAD_INPUT
    assert "teacher_sha256" in done.err


def test_an_ensemble_of_a_mapped_and_an_unmapped_teacher(world, tmp_path):
    results = distill(
        [f"timm/test_resnet@{world.seven}", f"timm/test_resnet@{world.three}"],
        "test_vit",
        f"folder:{world.pets}",
        tmp_path / "out",
        method="ofa",
        overrides=[
            f"teachers.0.class_map={json.dumps(GROUPS)}",
            f"teachers.0.image_size={SIZE}",
            f"teachers.1.image_size={SIZE * 2}",
            f"student.image_size={SIZE}",
            "allow_untrained_teacher=true",
            "train.steps=2",
            "train.batch_size=6",
            "device=cpu",
        ],
        quiet=True,
    )
    assert [row["role"] for row in results["rows"]] == ["distilled", "teacher"]
    assert results["rows"][1]["name"] == "test_resnet + test_resnet"
    assert results["settings"]["teachers"][0]["class_map"] == GROUPS


def test_the_command_line_maps_every_teacher(run):
    both = f"{SEVEN} --class-map {{map}} --dry-run teachers.1.image_size={SIZE} --teacher timm/test_resnet@"
    done = run(both + "{seven}")
    assert done.code == 0, done.err
    done = run(both + "{three}")
    assert done.code == cli.EXIT_BAD_INPUT
    assert "class 6 of teacher test_resnet" in done.err


def test_evaluate_counts_among_the_datas_classes_and_among_all(world, run):
    """Against the plain network of timm and probabilities taken apart by hand."""
    line = f"evaluate timm/test_resnet@{{seven}} --data folder:{{pets}} --image-size {SIZE} --class-map {{map}}"
    done = run(f"{line} --json")
    assert done.code == 0, done.err
    measured = json.loads(done.out)
    net = timm.create_model("test_resnet", num_classes=7).eval()
    net.load_state_dict(safetensors.torch.load_file(world.seven))
    config = resolve_model_data_config(net)
    keys = ("mean", "std", "crop_pct", "interpolation")
    input_spec = InputSpec((SIZE, SIZE), 3, **{key: config[key] for key in keys})
    files = sorted((world.pets / "val").glob("*/*.png"))
    with torch.no_grad():
        logits = net(torch.stack([prepare_image(file, input_spec) for file in files]))
    target = torch.tensor([CLASSES.index(file.parent.name) for file in files])
    probabilities = torch.tensor(class_maps.conditioned(logits.tolist(), [(6, 2), (0,), (1,)]))
    right = probabilities.argmax(1) == target
    stands_for = torch.tensor([1, 2, 0, -1, -1, -1, 0])
    assert measured["num_samples"] == len(files) == 12
    assert measured["top1"] == right.double().mean().item()
    assert measured["loss"] == pytest.approx(functional.nll_loss(probabilities.log(), target).item(), rel=1e-4)
    assert measured["top1_of_all_classes"] == (stands_for[logits.argmax(1)] == target).double().mean().item()
    assert measured["num_model_classes"] == 7
    assert [one["accuracy"] for one in measured["per_class"]] == right.view(3, 4).double().mean(1).tolist()
    assert "among all its 7 classes" in run(line).out
    without = run(f"evaluate timm/test_resnet@{{three}} --data folder:{{pets}} --image-size {SIZE} --json")
    assert "top1_of_all_classes" not in json.loads(without.out)


LITE0 = "data/weights/tf_efficientnet_lite0_in1k_fp16.safetensors"
SYNSETS = """
    0: n01440764
    1: n02102040
    2: n02979186
    3: n03000684
    4: n03028079
    5: n03394916
    6: n03417042
    7: n03425413
    8: n03445777
    9: n03888257
"""
NUM_VALIDATION, TENWAY = 900, 0.974
"""Images that the 97.4 % among ten classes were stated on."""


@pytest.fixture
def imagenette(shared, tmp_path):
    """Every ninth of the validation images and of the training images, with their labels as 0 to 9."""
    for split in ("train", "val"):
        table = pq.read_table(shared(f"data/imagenette-128/{split}-00000-of-00001.parquet"))
        every_ninth = table.take(list(range(0, len(table), 9)))
        pq.write_table(every_ninth.replace_schema_metadata(None), tmp_path / f"{split}-0.parquet")
    return tmp_path


def test_efficientnet_teaches_the_ten_classes_of_imagenette(shared, imagenette, run, tmp_path):
    """Classes called 0 to 9 by a file of synset ids; its accuracy is the stated one, within sampling error."""
    path = mapping(tmp_path, SYNSETS)
    done = run(
        f"distill --teacher timm/tf_efficientnet_lite0@{shared(LITE0)} --class-map {path} --student timm/resnet10t "
        f"--image-size 32 --data parquet:{imagenette} --steps 2 --batch-size 8 --device cpu --json"
    )
    assert done.code == 0, done.err
    results = json.loads(done.out)
    student, teacher = results["rows"]
    num_images = results["data"]["num_evaluation"]
    assert (teacher["name"], num_images, results["data"]["num_classes"]) == ("tf_efficientnet_lite0", 100, 10)
    finite = (NUM_VALIDATION - num_images) / (NUM_VALIDATION - 1)  # drawn without replacement
    standard_error = math.sqrt(TENWAY * (1 - TENWAY) / num_images * finite)
    assert abs(teacher["top1_mean"] - TENWAY) < 3 * standard_error
    assert teacher["num_parameters"] > 4.6e6
    assert student["role"] == "distilled"
    assert json.loads((tmp_path / "out" / "student" / "config.json").read_text())["num_classes"] == 10


def test_imagenette_is_found_by_the_names_in_its_metadata(shared, run):
    data = shared("data/imagenette-128")
    done = run(
        f"distill --teacher timm/tf_efficientnet_lite0@{shared(LITE0)} --class-map names --student timm/resnet10t "
        f"--image-size 32 --data parquet:{data} --batch-size 4 --device cpu --dry-run --json"
    )
    assert done.code == 0, done.err
    tried = json.loads(done.out)["dry_run"]["kd"]
    assert tried["teacher"]["num_classes"] == 10
    assert tried["teacher_top1"] > TENWAY - 3 * math.sqrt(TENWAY * (1 - TENWAY) / 32), "8 batches of 4 images"
