"""``crossdistill data``: what it counts, finds and draws, for people and for machines."""

import json
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from crossdistill import cli
from crossdistill.report.samples import Cell, Row, layout
from samples import image_folder


@pytest.fixture
def run(capsys):
    """Run a command line that must succeed; what it prints on standard output."""

    def run(line):
        capsys.readouterr()
        code = cli.run(shlex.split(line))
        printed = capsys.readouterr()
        assert code == 0, printed.err
        assert printed.err == ""
        return printed.out

    return run


@pytest.fixture
def photos(tmp_path):
    """Three classes of four images; two of test are also in training, one of them with another label; one is broken."""
    root = image_folder.make(tmp_path / "photos", ["ant", "bee", "cat"], splits=("train", "test"))
    shutil.copy(root / "train" / "ant" / "0.png", root / "test" / "ant" / "1.png")
    Image.open(root / "train" / "ant" / "1.png").save(root / "test" / "bee" / "2.bmp")
    (root / "test" / "bee" / "2.png").unlink()
    (root / "train" / "cat" / "3.png").write_bytes(b"not a picture")
    return root


def cells(path, found):
    """The cells of the picture (rows, columns, height, width, 3), by the places that its layout says."""
    picture = np.asarray(Image.open(path))
    height, width = found["picture"]["image_size"]
    blank = Cell(np.zeros((height, width, 3), dtype=np.uint8))
    samples, columns = found["picture"]["samples"], found["picture"]["columns"]
    rows = [Row(one["class"], f"image {one['index']}", (blank,) * len(columns)) for one in samples]
    grid = layout(columns, rows)
    height, width = grid.size
    return np.array([[picture[top : top + height, left : left + width] for left in grid.lefts] for top in grid.tops])


def test_the_digits_in_figures(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = json.loads(run("data digits --json --samples 10"))
    assert (found["source"], found["num_classes"], found["evaluation_split"]) == ("digits", 10, "test")
    train, test = found["splits"]["train"], found["splits"]["test"]
    assert (train["num_images"], train["num_labelled"], test["num_images"]) == (1437, 1437, 360)
    assert train["sizes"] == [{"height": 8, "width": 8, "num_images": 1437}]
    assert train["channels"] == {"grey": 1437}
    assert (train["formats"], train["unreadable"]) == ({}, [])
    assert (train["smallest_class"], train["largest_class"]) == (
        {"class": "8", "num_images": 139},
        {"class": "3", "num_images": 146},
    )
    assert train["imbalance"] == 146 / 139
    assert sum(one["num_images"] for one in train["per_class"]) == 1437
    assert [(one["splits"], one["num_images"]) for one in found["duplicates"]] == [
        (["train", "train"], 0),
        (["train", "test"], 0),
        (["test", "test"], 0),
    ]
    assert found["picture"]["file"] == "data-samples.png"
    drawn = cells("data-samples.png", found)
    assert drawn.shape == (10, 7, 128, 128, 3)
    assert (drawn.std(axis=(2, 3, 4)) > 20).all(), "no cell is blank"
    assert all((drawn[row, 0] != drawn[row, 1:]).any() for row in range(10))
    assert [one["class"] for one in found["picture"]["samples"]] == list("0123456789")


def test_a_folder_for_people(run, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "new" / "look.png"
    text = run(f"data folder:{photos} --out {out} data.augment.mixup=0.8")
    assert Image.open(out).width > 7 * 128
    assert f"picture: {out} " in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "images 12 12",
        "labelled 12 12",
        "classes 3 3",
        "largest to smallest 1.00 to 1 1.00 to 1",
        "height x width 8 x 8 8 x 8",
        "channels colour colour",
        "format PNG PNG (11), BMP (1)",
        "unreadable 1 0",
        f"unreadable in train: {photos / 'train' / 'cat' / '3.png'} (not an image of a known format)",
        f"ant {photos / 'train' / 'ant' / '1.png'}",
        f"= bee {photos / 'test' / 'bee' / '2.bmp'}",
    ):
        assert line in lines, line
    assert "duplicates: 2 test images have the same pixels as one of train; 1 with another label" in " ".join(lines)
    tables = [line for line in text.splitlines() if str(tmp_path) not in line]
    assert max(map(len, tables)) <= 80


def test_a_folder_for_machines(run, photos, tmp_path):
    line = f"data folder:{photos} --json --out {tmp_path / 'a.png'}"
    found, quick = json.loads(run(line)), json.loads(run(f"{line} --quick"))
    across = found["duplicates"][1]
    assert (across["splits"], across["num_images"], across["num_other_label"]) == (["train", "test"], 2, 1)
    assert across["examples"][0] == [
        {"split": "train", "where": str(photos / "train" / "ant" / "1.png"), "class": "ant"},
        {"split": "test", "where": str(photos / "test" / "bee" / "2.bmp"), "class": "bee"},
    ]
    assert (found["duplicates_compare"], quick["duplicates_compare"]) == ("pixels", "files")
    assert quick["duplicates"][1]["num_images"] == 1, "the copied file, but not the one saved in another format"
    assert quick["splits"] == found["splits"]
    assert found["splits"]["train"]["unreadable"] == [
        {"where": str(photos / "train" / "cat" / "3.png"), "reason": "not an image of a known format"}
    ]


def test_many_classes_are_folded(run, tmp_path):
    root = image_folder.make(tmp_path / "many", [f"class{index:02d}" for index in range(40)], num_images=1)
    for index in (7, 31):
        shutil.copy(root / "train" / "class00" / "0.png", root / "train" / f"class{index:02d}" / "more.png")
    text = run(f"data folder:{root} --quick --out {tmp_path / 'a.png'}")
    assert "… 16 more" in text
    table = text[text.index("  class  ") :]
    assert table.index("class07") < table.index("class31") < table.index("class00") < table.index("… 16 more")
    assert "largest to smallest   2.00 to 1" in text


def test_a_recipe_s_student_decides_what_is_seen(run, tmp_path):
    line = f"data digits --json --samples 3 --out {tmp_path / 'a.png'}"
    plain = json.loads(run(f"{line} --recipe digits/few-labels"))["picture"]
    assert plain["image_size"] == [32, 32]
    changed = json.loads(run(f"{line} --recipe digits/few-labels --image-size 24 --seed 5 data.augment.cutmix=1"))
    assert changed["picture"]["image_size"] == [24, 24]
    assert changed["picture"]["augment"]["cutmix"] == 1
    assert cells(tmp_path / "a.png", changed).shape[:4] == (3, 7, 120, 120)


def test_the_picture_depends_on_the_seed_alone(run, tmp_path):
    first, second, third = (tmp_path / f"{name}.png" for name in "abc")
    for out, seed in ((first, 1), (second, 1), (third, 2)):
        run(f"data digits --seed {seed} --out {out} data.augment.mixup=0.8 data.augment.rand_augment=rand-m9-inc1")
    assert first.read_bytes() == second.read_bytes() != third.read_bytes()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("data digts", "did you mean 'digits'"),
        ("data folder:nowhere", "does not exist"),
        ("data digits data.augment.mixu=1", "did you mean 'mixup'"),
        ("data digits --recipe digits/non", "the name of a recipe"),
        ("data digits --recipe digits/teacher data.limit=3", "unknown key 'data.limit'"),
        ("data digits train.lr=1", "unknown key 'train'"),
        ("data digits --out taken/a.png", "cannot write"),
        ("data digits --out .", "give data-samples.png instead"),
        ("data digits --samples 0", "samples"),
        ("data digits --seed -1", "seed"),
        ("data digits seed=-1", "seed = -1"),
        ("data digits student.name=resnot18", "resnot18"),
        ("data", "data"),
    ],
)
def test_bad_input_is_refused(line, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file where a folder is needed")
    assert cli.run(line.split()) == cli.EXIT_BAD_INPUT
    printed = capsys.readouterr()
    assert told in printed.err
    assert "Traceback" not in printed.err
    assert not list(tmp_path.glob("*.png"))


def test_a_run_warns_of_images_it_is_trained_and_tested_on(photos, tmp_path, capsys):
    (photos / "train" / "cat" / "3.png").unlink()
    line = (
        f"train --model test_resnet --image-size 16 --data folder:{photos} --steps 2 --batch-size 4 --device cpu --json"
    )
    assert cli.run([*line.split(), "--out", str(tmp_path / "run")]) == 0
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert warning.startswith("2 images of the 12 that accuracy is measured on are also among the training images")


def test_a_run_warns_of_images_it_is_trained_and_chosen_on(tmp_path, capsys):
    """Images of two sizes, which are not held in memory: their files are compared."""
    root = image_folder.make(tmp_path / "photos", ["ant", "bee"], splits=("train", "val", "test"))
    Image.new("RGB", (12, 9), (90, 20, 40)).save(root / "train" / "ant" / "large.png")
    shutil.copy(root / "train" / "ant" / "large.png", root / "val" / "bee" / "large.png")
    shutil.copy(root / "train" / "bee" / "0.png", root / "test" / "bee" / "0.png")
    line = (
        f"train --model test_resnet --image-size 16 --data folder:{root} --steps 2 --batch-size 4 --device cpu --json"
    )
    told = {"accuracy is measured on": "1 image of the 8", "the best epoch is chosen by": "1 image of the 9"}
    for select, purposes in (("best", [*told]), ("last", ["accuracy is measured on"])):
        out = tmp_path / select
        assert cli.run([*line.split(), "--out", str(out), "data.workers=0", f"train.select={select}"]) == 0
        warnings = json.loads(capsys.readouterr().out)["warnings"]
        assert [warning.partition(" is also among")[0] for warning in warnings] == [
            f"{told[purpose]} that {purpose}" for purpose in purposes
        ]


@pytest.mark.slow
def test_cifar_100(run, shared, tmp_path):
    found = json.loads(run(f"data parquet:{shared('data/cifar100')} --json --out {tmp_path / 'a.png'}"))
    counts = {tuple(one["splits"]): one["num_images"] for one in found["duplicates"]}
    assert counts == {("train", "train"): 14, ("train", "test"): 10, ("test", "test"): 2}
    assert found["splits"]["train"]["formats"] == {"WEBP": 50_000}
    assert found["splits"]["test"]["imbalance"] == 1
