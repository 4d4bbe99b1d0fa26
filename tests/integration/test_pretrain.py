"""``crossdistill pretrain`` and ``probe``: from images to a network that other commands take by name."""

import json
import signal

import pytest
import timm
import torch
import yaml

from crossdistill.errors import InputError
from crossdistill.models import build
from crossdistill.models.cutter import classifier_names
from crossdistill.selfsup import load_settings, pretrain
from samples.launch import run, start, stop_at
from samples.pretraining import QUICK, settings_of, textures

QUICK_ARGUMENTS = [*QUICK, "train.eval_every=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return textures(tmp_path_factory.mktemp("textures"))


def command(data, out, *more):
    source = ["--data", f"folder:{data}"]
    return [
        "pretrain",
        "--model",
        "timm/test_resnet",
        *source,
        "--image-size",
        32,
        "--out",
        out,
        *more,
        *QUICK_ARGUMENTS,
    ]


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    done = run(*command(data, out))
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_a_run_leaves_what_a_person_and_a_program_need(pretrained):
    out, shown = pretrained
    assert {"config.yaml", "metrics.jsonl", "report.html", "results.json", "student", "words-level4.png"} <= {
        path.name for path in out.iterdir()
    }
    assert "Pretrained, k-NN" in shown
    results = json.loads((out / "results.json").read_text())
    assert results["kind"] == "pretrain"
    measured = {row["method"]: row["top1_mean"] for row in results["rows"]}
    assert set(measured) == {
        "k-NN",
        "k-NN, averaged teacher",
        "k-NN, student with statistics of whole images",
        "linear probe",
    }
    assert results["data"]["num_labelled"] == 0
    page = (out / "report.html").read_text()
    for words in (
        "pretrained without labels",
        "Is there something to predict?",
        "What the words look like",
        "no label read",
    ):
        assert words in page
    assert "Gain (points)" not in page


def test_the_linear_probe_is_the_classifier_of_what_is_kept(pretrained, data):
    out, _ = pretrained
    results = json.loads((out / "results.json").read_text())
    linear = next(row["top1_mean"] for row in results["rows"] if row["method"] == "linear probe")
    done = run("evaluate", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["top1"] == pytest.approx(linear)
    assert timm.create_model(f"local-dir:{out}/student", pretrained=True).num_classes == 3


def test_a_finished_run_is_read_again_and_another_is_refused(pretrained, data):
    out, _ = pretrained
    assert run(*command(data, out, "--resume")).returncode == 0
    assert run(*command(data, out)).returncode == 2
    other = run(*command(data, out, "--resume", "momentum.start=0.9"))
    assert other.returncode == 2
    assert "momentum.start: was 0.99, now 0.9" in other.stderr


def test_it_initialises_a_student_and_teaches_by_name(pretrained, data, tmp_path):
    out, _ = pretrained
    quick = ["train.steps=4", "train.batch_size=16", "device=cpu"]
    source = ["--data", f"folder:{data}", "--image-size", 32]
    trained = run("train", "--model", "timm/test_resnet", "--init", out, *source, "--out", tmp_path / "t", *quick)
    assert trained.returncode == 0, trained.stderr
    student = ["--student", "timm/test_vit", "--method", "kd", *source]
    taught = run("distill", "--teacher", out, *student, "--out", tmp_path / "d", *quick, "allow_untrained_teacher=true")
    assert taught.returncode == 0, taught.stderr


def test_a_start_from_it_knows_no_label(pretrained, data, tmp_path):
    """The probe is its classifier as a teacher; who starts from it gets the trunk, and a classifier of zeros."""
    out, _ = pretrained
    started = build(
        "timm/test_resnet", num_classes=3, image_size=32, init=str(out), class_names=("dots", "noise", "stripes")
    )
    kept = build(str(out))
    (name,) = classifier_names(started.net)
    assert kept.net.get_submodule(name).weight.any()
    for key, value in started.state_dict().items():
        if name in key:
            assert not value.any()
        else:
            assert torch.equal(value, kept.state_dict()[key])


def test_a_smaller_student_of_another_family_predicts_its_words_without_labels(pretrained, data, tmp_path):
    out, _ = pretrained
    arguments = ["--model", "timm/mixer_tiny", "--teacher", out, "--data", f"folder:{data}", "--image-size", 32]
    done = run("pretrain", *arguments, "--out", tmp_path / "run", *QUICK_ARGUMENTS)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["pretraining"]["teacher"] == "test_resnet"
    assert results["identity"]["teacher_sha256"]
    assert {row["method"] for row in results["rows"]} == {"k-NN", "linear probe"}
    assert "by predicting the words of" in (tmp_path / "run" / "report.html").read_text()


def test_several_seeds_make_one_table(data, tmp_path):
    results = pretrain(
        "timm/test_resnet",
        f"folder:{data}",
        tmp_path / "run",
        seeds=[0, 1],
        quiet=True,
        overrides=["student.image_size=32", *QUICK_ARGUMENTS],
    )
    assert [len(row["runs"]) for row in results["rows"]] == [2, 2, 2, 2]
    assert (tmp_path / "run" / "report.html").is_file()
    assert "What the words look like" in (tmp_path / "run" / "report.html").read_text()


def test_images_without_labels_are_learnt_and_not_measured(tmp_path):
    folder = textures(tmp_path / "flat", labelled=False)
    done = run(*command(folder, tmp_path / "run", "data.unlabelled=true"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text())["rows"] == []
    assert (tmp_path / "run" / "report.html").is_file()
    asked = run("probe", "knn", tmp_path / "run")
    assert asked.returncode == 2
    assert "where labels are asked for" in asked.stderr


def test_a_killed_run_goes_on_to_the_same_network(data, tmp_path):
    whole = run(*command(data, tmp_path / "whole", "train.epochs=4"))
    assert whole.returncode == 0, whole.stderr
    stopped = stop_at(
        start(*command(data, tmp_path / "stopped", "train.epochs=4")), tmp_path / "stopped", 6, signal.SIGKILL
    )
    assert stopped.returncode != 0
    again = run(*command(data, tmp_path / "stopped", "--resume", "train.epochs=4"))
    assert again.returncode == 0, again.stderr
    one, other = (build(str(tmp_path / name)).state_dict() for name in ("whole", "stopped"))
    assert all(value.equal(other[key]) for key, value in one.items())


def test_a_dry_run_builds_everything_and_writes_nothing(data, tmp_path):
    done = run(*command(data, tmp_path / "run", "--dry-run"))
    assert done.returncode == 0, done.stderr
    assert "2 crops of 23 px, 5 patches of 14 px" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--words", 1], "--words 1"),
        (["views.crop_size=200"], "smaller than half of views.crop_size=200"),
        (["method.border=1"], "whose map has 2x2 locations"),
        (["method.name=kd"], "a method that pretrains"),
        (["--teacher", "timm/test_vit"], "whose weights would be random"),
        (["view.crops=1"], "unknown key 'view"),
    ],
)
def test_bad_input(data, tmp_path, more, words):
    done = run(*command(data, tmp_path / "run", *more))
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_probes_by_command(pretrained, data, tmp_path):
    out, _ = pretrained
    asked = {
        "knn": run("probe", "knn", out, "--json"),
        "linear": run("probe", "linear", out, "--epochs", 5, "--out", tmp_path / "teacher", "--json"),
        "few": run("probe", "few-shot", out, "--ways", 3, "--shots", 2, "--episodes", 20, "--json"),
        "semi": run(
            "probe",
            "semi",
            out,
            "--share",
            0.2,
            "--out",
            tmp_path / "semi",
            "train.epochs=1",
            "train.schedule=cosine",
            "train.milestones=null",
            "train.batch_size=8",
            "--json",
        ),
    }
    found = {}
    for name, done in asked.items():
        assert done.returncode == 0, (name, done.stderr)
        found[name] = json.loads(done.stdout)
    results = json.loads((out / "results.json").read_text())
    assert found["knn"]["top1"] == pytest.approx(results["rows"][0]["top1_mean"])
    assert found["few"]["classes_seen_in_pretraining"] == "yes"
    assert found["few"]["episodes"] == 20
    assert json.loads(run("evaluate", tmp_path / "teacher", "--data", f"folder:{data}", "--json").stdout)[
        "top1"
    ] == pytest.approx(found["linear"]["top1"])
    config = yaml.safe_load((tmp_path / "semi" / "config.yaml").read_text())
    assert config["student"]["new_classifier"] is True
    assert config["data"]["limit_train"] == 14
    assert config["train"]["classifier_lr"] == 0.5


def test_probes_refuse_what_cannot_be_measured(pretrained, data, tmp_path):
    out, _ = pretrained
    random = run("probe", "knn", "timm/test_resnet", "--data", f"folder:{data}")
    assert random.returncode == 2
    assert "whose weights would be random" in random.stderr
    allowed = run("probe", "knn", "timm/test_resnet", "--data", f"folder:{data}", "--image-size", 32, "--allow-random")
    assert allowed.returncode == 0, allowed.stderr
    for arguments, words in (
        (["knn", out, "--neighbours", 500], "500 neighbours of 72 images"),
        (["few-shot", out, "--ways", 4], "3 of 3 classes"),
        (["linear", out, "--rates", "fast"], "--rates 'fast'"),
        (["semi", out, "--share", 2, "--out", tmp_path / "s"], "--share 2"),
    ):
        done = run("probe", *arguments)
        assert done.returncode == 2, arguments
        assert words in done.stderr


def test_settings_are_complete_before_anything_is_built(data):
    settings = settings_of(data)
    assert settings.method.options["kappa"] == 8.0
    with pytest.raises(InputError, match="'kappa'"):
        load_settings({"student": {"name": "timm/test_resnet"}, "data": {"source": "digits"}}, ["method.kapa=3"])
