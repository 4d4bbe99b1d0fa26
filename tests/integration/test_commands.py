"""Every command does its job, from training a teacher to naming the class of an image; machines get clean JSON."""

import json
import math
import shlex
import signal
import statistics

import pytest
import timm
import torch
import yaml
from PIL import Image
from torchvision.transforms.v2 import functional as F

import crossdistill.models  # noqa: F401 - registers mixer_tiny with timm
from crossdistill import cli
from crossdistill.contracts import InputSpec
from crossdistill.data import EvalLoader, open_source
from crossdistill.registry import METHODS
from crossdistill.settings import DataSettings
from samples import image_folder, launch

QUICK = "--data digits --limit-train 200 --batch-size 50 --steps 12 --device cpu"
STUDENT = f"--student test_resnet --image-size 32 {QUICK}"


@pytest.fixture
def run(capsys):
    """Run a command line that must succeed; what it prints on standard output and on standard error."""

    def run(line, *more):
        capsys.readouterr()
        code = cli.run([*shlex.split(line), *map(str, more)])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed

    return run


@pytest.fixture
def as_json(run):
    """The same with ``--json``: nothing but one JSON value may be printed, and nothing on standard error."""

    def parse(line, *more):
        printed = run(line, *more, "--json")
        assert printed.err == ""
        return json.loads(printed.out)

    return parse


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("teacher") / "run"
    line = f"train --model mixer_tiny --image-size 16 {QUICK} --limit-train 600 --steps 48 train.lr=5e-3 --json"
    assert cli.run([*line.split(), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def compared(teacher, tmp_path_factory):
    """Two seeds of a CNN, alone and distilled by OFA."""
    out = tmp_path_factory.mktemp("compared") / "run"
    line = f"distill --method ofa --seeds 0,1 --baseline {STUDENT} --json"
    assert cli.run([*line.split(), "--teacher", str(teacher), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A folder of images, and a model trained on it."""
    root = tmp_path_factory.mktemp("pets")
    photos = image_folder.make(root / "photos", ["ant", "bee", "cat"], num_images=6)
    line = f"train --model test_resnet --image-size 32 --data folder:{photos} --steps 30 --device cpu --json"
    assert cli.run([*line.split(), "--out", str(root / "run")]) == 0
    return root


def results_of(run_folder):
    return json.loads((run_folder / "results.json").read_text())


def accuracy_by_timm(student, *others, weights=(1,)):
    """Share of the digits that timm's model of the exported folder classifies rightly; of several, their mean."""
    nets = [timm.create_model(f"local-dir:{one}", pretrained=True).eval() for one in (student, *others)]
    config = json.loads((student / "config.json").read_text())["pretrained_cfg"]
    spec = InputSpec(
        tuple(config["input_size"][1:]),
        config["input_size"][0],
        tuple(config["mean"]),
        tuple(config["std"]),
        config["crop_pct"],
        config["interpolation"],
    )
    right = total = 0
    with torch.inference_mode():
        for batch in EvalLoader(open_source(DataSettings(source="digits")).evaluation, {"view": spec}, batch_size=128):
            votes = [w * net(batch.images["view"]).softmax(1) for net, w in zip(nets, weights, strict=True)]
            right += int((sum(votes).argmax(1) == batch.target).sum())
            total += len(batch)
    return right / total


def test_train_makes_a_run_that_timm_loads(teacher):
    names = {"config.yaml", "metrics.jsonl", "tensorboard", "checkpoints", "student", "results.json", "report.html"}
    assert {path.name for path in teacher.iterdir()} == names
    (row,) = results_of(teacher)["rows"]
    assert row["top1_mean"] > 0.5
    assert accuracy_by_timm(teacher / "student") == row["top1_mean"]
    assert yaml.safe_load((teacher / "config.yaml").read_text())["train"]["lr"] == 5e-3


@pytest.mark.parametrize("method", ["kd", "ofa"])
def test_distill_by_one_method(method, teacher, as_json, tmp_path):
    results = as_json(f"distill --method {method} {STUDENT} --teacher", teacher, "--out", tmp_path / "run")
    assert results == results_of(tmp_path / "run")
    distilled, taught_by = results["rows"]
    assert (distilled["role"], distilled["method"], distilled["name"]) == ("distilled", method, "test_resnet")
    assert (taught_by["role"], taught_by["name"]) == ("teacher", "mixer_tiny")
    assert taught_by["top1_mean"] == results_of(teacher)["rows"][0]["top1_mean"]
    assert accuracy_by_timm(tmp_path / "run" / "student") == distilled["top1_mean"]


def test_seeds_and_baseline_make_one_table(compared):
    results = results_of(compared)
    alone, distilled, taught_by = results["rows"]
    assert [row["role"] for row in results["rows"]] == ["student_alone", "distilled", "teacher"]
    for row, folder in ((alone, "student_alone"), (distilled, "ofa")):
        assert [run["seed"] for run in row["runs"]] == [0, 1]
        assert [run["folder"] for run in row["runs"]] == [f"{folder}/seed-0", f"{folder}/seed-1"]
        accuracies = [run["top1"] for run in row["runs"]]
        assert math.isclose(row["top1_mean"], statistics.mean(accuracies))
        assert math.isclose(row["top1_sd"], statistics.stdev(accuracies), abs_tol=1e-12)
        for run in row["runs"]:
            assert accuracy_by_timm(compared / run["folder"] / "student") == run["top1"]
    assert (taught_by["top1_sd"], len(taught_by["runs"])) == (None, 1)
    assert results["headline"].startswith("Distillation (ofa)")
    page = (compared / "report.html").read_text(encoding="utf-8")
    for words in ("Student alone", "Distilled (ofa)", "Teacher", "test_resnet", "mixer_tiny", "(2\xa0seeds)"):
        assert words in page


def test_the_table_and_the_progress_of_several_runs(teacher, run, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    printed = run(f"distill --baseline {STUDENT} --steps 2 --teacher", teacher, "--out", tmp_path / "run")
    for index, name in enumerate(("student_alone", "kd"), start=1):
        assert f"run {index} of 2: {name}/seed-0\n" in printed.err
    assert "images/s" in printed.err
    assert "waiting for data" in printed.err
    assert "s left" in printed.err
    top1 = results_of(teacher)["rows"][0]["top1_mean"]
    assert f"teacher mixer_tiny: top-1 {top1:.2%} on test" in printed.err
    assert max(len(line) for line in printed.out.splitlines() if not line.startswith("report:")) <= 80
    for words in ("Student alone", "Distilled (kd)", "Teacher", f"{100 * top1:.1f}\xa0%", "report: "):
        assert words in printed.out


@pytest.mark.parametrize("json_flag", ["", " --json"])
def test_a_dry_run_writes_nothing(json_flag, teacher, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = f"distill --method ofa --baseline --seeds 0,1 {STUDENT} --dry-run --out run{json_flag} --teacher"
    printed = run(line, teacher)
    assert list(tmp_path.iterdir()) == []
    if json_flag:
        trials = json.loads(printed.out)["dry_run"]
        assert trials.keys() == {"student_alone", "ofa"}
        assert trials["ofa"]["student"]["name"] == "test_resnet"
        assert trials["ofa"]["num_train"] == 200
        assert trials["ofa"]["teacher_top1"] == results_of(teacher)["rows"][0]["top1_mean"]
    else:
        assert "ofa, " in printed.out
        assert "nothing was written" in printed.out


def test_evaluate_finds_the_accuracy_of_the_run_again(teacher, compared, as_json, run):
    for folder in (teacher, compared / "ofa" / "seed-1"):
        measured = as_json("evaluate", folder)
        row = results_of(folder)["rows"][0]
        assert measured["top1"] == row["top1_mean"]
        assert (measured["data"], measured["split"], measured["num_samples"]) == ("digits", "test", 360)
        assert sum(one["num_samples"] for one in measured["per_class"]) == 360
        right = sum(one["num_samples"] * one["accuracy"] for one in measured["per_class"])
        assert math.isclose(right / 360, measured["top1"])
    text = run("evaluate", teacher / "student", "--data", "digits", "--batch-size", "50").out
    assert f"top-1 {100 * results_of(teacher)['rows'][0]['top1_mean']:.1f} %" in text
    assert "mixer_tiny on digits (test, 360 images)" in text


def test_evaluate_takes_the_size_that_the_model_was_trained_at(compared, as_json):
    """A CNN's constructor takes no size; it comes from the saved folder."""
    folder = compared / "student_alone" / "seed-0"
    assert as_json("evaluate", folder, "--image-size", "32") == as_json("evaluate", folder)
    assert as_json("evaluate", folder, "--image-size", "64")["loss"] != as_json("evaluate", folder)["loss"]


def test_predict_says_what_timm_s_model_says(pets, as_json, run):
    photos = [pets / "photos" / "val" / name / "3.png" for name in ("ant", "bee", "cat")]
    predictions = as_json("predict", pets / "run", *photos, "--top", "3")
    net = timm.create_model(f"local-dir:{pets / 'run' / 'student'}", pretrained=True).eval()
    for photo, prediction in zip(photos, predictions, strict=True):
        assert prediction["image"] == str(photo)
        pixels = F.resize(F.pil_to_tensor(Image.open(photo)), [32, 32], F.InterpolationMode.BILINEAR, antialias=True)
        with torch.inference_mode():
            expected = net(F.normalize(pixels[None] / 255, [0.5] * 3, [0.5] * 3)).softmax(1)[0]
        found = {one["class"]: one["probability"] for one in prediction["classes"]}
        assert list(found) == sorted(found, key=found.get, reverse=True)
        assert [found[name] for name in ("ant", "bee", "cat")] == pytest.approx(expected.tolist(), abs=1e-5)
    assert len(as_json("predict", pets / "run" / "student", photos[0], "--top", "1")[0]["classes"]) == 1
    text = run("predict", pets / "run", photos[0]).out
    best = predictions[0]["classes"][0]
    assert f"{best['class']} {100 * best['probability']:.1f} %" in " ".join(text.split())


def test_methods_are_listed_and_described(as_json, run):
    listed = as_json("methods")
    assert {one["name"] for one in listed} == {record.name for record in METHODS}
    for one in listed:
        assert one["summary"]
        assert one["pick_when"]
        assert one["costs"]
        assert all(option["meaning"] for option in one["options"].values())
        assert one["name"] in run("methods").out
        assert as_json(f"methods {one['name']}") == [one]
    text = run("methods ofa").out
    assert "arXiv 2310.19444" in text
    assert "method.stages=null" in text
    assert "code | paper" in text
    assert "which stages get a branch" in text
    text = " ".join(run("methods fbt").out.split())  # lines are folded
    assert "kd's time a step" in text
    assert "parameters of its own" in text


def test_models_are_found_by_part_and_by_pattern(as_json, run):
    assert as_json("models swin_pic") == ["swin_pico"]
    assert as_json("models 'swin_*o'") == ["swin_nano", "swin_pico"]
    assert run("models mixer_tiny").out == "mixer_tiny\n"
    names = set(as_json("models"))
    assert {name for name in names if "/" not in name} == set(timm.list_models())
    assert "torchvision/resnet18" in names


def test_coverage_shows_family_and_stages_or_the_reason(as_json, run):
    (found,) = as_json("models test_vit2 --coverage")
    assert (found["family"], len(found["stages"]), found["reason"]) == ("transformer", 4, "")
    assert found["stages"][0]["layout"] == "NLC"
    shown = run("models swin_pico --coverage").out
    assert "1 of 1 networks have 3 or more stages" in shown
    assert "48/4" in shown
    (found,) = as_json("models gemma4_vit_167m_enc --coverage")
    assert found["stages"] == []
    assert "whose output is" in found["reason"]


def test_stages_are_named_by_hand_on_the_command_line(run, tmp_path):
    line = f"distill --teacher test_vit --student test_resnet --method ofa --data digits --out {tmp_path / 'run'}"
    shown = run(f"{line} --image-size 32 --dry-run --limit-train 40 student.stages=[layer1,layer4] --json").out
    stages = json.loads(shown)["dry_run"]["ofa"]["student"]["stages"]
    assert [stage["stride"] for stage in stages] == [4, 32]


def test_recipes_are_listed_shown_copied_and_run(as_json, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listed = as_json("recipes ls")
    assert {"digits/teacher", "digits/few-labels"} <= {one["name"] for one in listed}
    for one in listed:
        shown = run(f"recipes show {one['name']}").out
        assert yaml.safe_load(shown)["description"] == one["description"]
        assert one["name"] in run("recipes ls").out
    copied = run("recipes copy digits/teacher deep/mine.yaml")
    assert "recipes run deep/mine.yaml" in copied.out
    mine = tmp_path / "deep" / "mine.yaml"
    assert mine.read_text() == run("recipes show digits/teacher").out
    results = as_json("recipes run deep/mine.yaml --out run train.epochs=1 data.limit_train=100")
    assert results["rows"][0]["name"] == "vit_tiny_patch16_224"
    assert results["data"]["num_train"] == 100
    assert as_json("recipes run digits/teacher --out other --dry-run")["dry_run"]["student_alone"]["num_train"] == 1437
    assert not (tmp_path / "other").exists()


def test_a_teacher_can_be_a_run_its_student_folder_or_a_file(teacher, as_json, tmp_path):
    weights = teacher / "student" / "model.safetensors"
    (tmp_path / "weights.safetensors").write_bytes(weights.read_bytes())
    names = [teacher, teacher / "student", f"mixer_tiny@{tmp_path / 'weights.safetensors'}"]
    accuracies = {
        as_json(f"distill {STUDENT} --dry-run --out unused teachers.0.image_size=16 --teacher", name)["dry_run"]["kd"][
            "teacher_top1"
        ]
        for name in names
    }
    assert accuracies == {results_of(teacher)["rows"][0]["top1_mean"]}


def test_an_ensemble_teaches(teacher, pets, as_json, tmp_path):
    second = tmp_path / "second"
    as_json(
        f"train --model resmlp_tiny --image-size 16 {QUICK} --limit-train 600 --steps 48 train.lr=5e-3", "--out", second
    )
    both = ["--teacher", teacher, "--teacher", second]
    results = as_json(f"distill {STUDENT} --steps 2 --out", tmp_path / "run", *both, "teachers.1.weight=2")
    taught_by = results["rows"][-1]
    assert taught_by["role"] == "teacher"
    assert taught_by["top1_mean"] == accuracy_by_timm(teacher / "student", second / "student", weights=(1, 2))
    assert taught_by["top1_mean"] != accuracy_by_timm(teacher / "student", second / "student", weights=(1, 0))
    parameters = [results_of(one)["rows"][0]["num_parameters"] for one in (teacher, second)]
    assert taught_by["num_parameters"] == sum(parameters)


def test_interrupted_it_says_so_and_can_go_on(teacher, as_json, tmp_path):
    out, rarely = tmp_path / "run", "train.log_every=1 train.eval_every=50 train.checkpoint_every=50"
    line = f"distill {STUDENT} --steps 60 {rarely} --json --teacher {teacher} --out {out}".split()
    stopped = launch.stop_at(launch.start(*line), out, 5, signal.SIGINT)
    assert stopped.returncode == 130
    told = json.loads(stopped.stdout)["error"]["interrupted"]
    assert told.startswith("after step")
    assert stopped.stderr == f"interrupted: {told}\n"
    assert not (out / "results.json").exists()
    step = launch.last_step(out)
    results = as_json(" ".join(line[:-1]), out, "--resume")
    assert results["rows"][0]["role"] == "distilled"
    lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [one["step"] for one in lines if one["kind"] == "train"]
    assert 5 <= step < 60
    assert steps == list(range(1, 61)), "no step is missing or done twice"


def test_a_failure_amid_a_run_is_no_bad_input(teacher, monkeypatch, capsys, tmp_path):
    def fail(*arguments, **more):
        raise RuntimeError("the report melted")

    monkeypatch.setattr("crossdistill.runs.plan.write_report", fail)
    line = f"train --model mixer_tiny --image-size 16 {QUICK} --json --out {tmp_path / 'run'}"
    assert cli.run(line.split()) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"error": {"failed": "RuntimeError: the report melted"}}
    assert "Traceback" in printed.err
    monkeypatch.undo()
    assert cli.run([*line.split(), "--resume"]) == 0, "and --resume makes what was missing"
    assert (tmp_path / "run" / "report.html").exists()
