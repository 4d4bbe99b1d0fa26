"""Runs from Python: the same as from the command line, with one's own modules, and selected without the test set."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import crossdistill
from crossdistill import cli
from crossdistill.data import EvalLoader
from crossdistill.errors import InputError
from crossdistill.runs import execute, make_plan, read_recipe, single
from samples import launch

QUICK = ["train.steps=6", "train.batch_size=32", "train.lr=0.01", "train.log_every=1", "device=cpu"]
QUICK += ["data.limit_train=96"]
SMALL = ["student.image_size=16"]


class TinyNet(nn.Module):
    """Not of timm, with a dropout that no two seeds draw alike."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1))
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(16, 10))

    def forward(self, images):
        return self.head(self.body(images).mean((2, 3)))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    torch.set_num_threads(1)
    return launch.train_teacher(tmp_path_factory.mktemp("teacher") / "run")


def from_command_line(capsys, *arguments):
    capsys.readouterr()
    assert cli.run([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def assert_same(one, other):
    """Bit for bit, but for what a clock measures and where it lies."""
    assert launch.outcome(one) == launch.outcome(other)
    measured = {"seconds", "command", "rows"}
    results, others = (json.loads((run / "results.json").read_text()) for run in (one, other))
    assert {k: v for k, v in results.items() if k not in measured} == {
        k: v for k, v in others.items() if k not in measured
    }
    assert (one / "config.yaml").read_text() == (other / "config.yaml").read_text()


def test_train_is_the_command(tmp_path, capsys):
    ours = crossdistill.train("timm/test_resnet", "digits", tmp_path / "python", overrides=[*QUICK, *SMALL], quiet=True)
    arguments = ["--model", "timm/test_resnet", "--data", "digits", "--out", tmp_path / "command", *QUICK, *SMALL]
    theirs = from_command_line(capsys, "train", *arguments)
    assert_same(tmp_path / "python", tmp_path / "command")
    assert ours["rows"][0]["runs"] == theirs["rows"][0]["runs"]
    assert ours["command"] == "from Python"
    assert ours == json.loads((tmp_path / "python" / "results.json").read_text())
    assert (tmp_path / "python" / "report.html").exists()


def test_a_teacher_is_measured_once_for_all_seeds_of_a_plan_and_anew_for_each_plan(teacher, tmp_path, monkeypatch):
    measured = []
    evaluate = single.evaluate
    monkeypatch.setattr(single, "evaluate", lambda model, *a, **k: measured.append(model) or evaluate(model, *a, **k))
    keywords = {"method": "kd", "seeds": (0, 1), "quiet": True}
    overrides = [*QUICK, *SMALL, "train.steps=1"]
    for number, name in enumerate(("one", "two"), start=1):
        results = crossdistill.distill(
            teacher, "timm/test_resnet", "digits", tmp_path / name, overrides=overrides, **keywords
        )
        assert len(measured) == number
        (row,) = (row for row in results["rows"] if row["role"] == "teacher")
        assert 0.2 < row["top1_mean"] <= 1


def test_only_runs_whose_teacher_has_the_same_weights_and_settings_share_its_figures(monkeypatch):
    tree = {"student": {"name": "a"}, "teachers": [{"name": "b"}], "data": {"source": "digits"}}
    known, measured = {}, []
    monkeypatch.setattr(single, "evaluate", lambda *a, **k: {"top1": measured.append(1) or len(measured)})

    def top1(sha256, *overrides, seed=0):
        settings = make_plan({**tree, "method": {"name": "kd"}}, overrides, seeds=(seed,)).settings
        identity = {"data_sha256": "d", "teacher_sha256": sha256}
        parts = SimpleNamespace(identity=lambda: identity, settings=settings, teacher="b", test_loader=[])
        return single._measured_before(parts, None, known)["top1"]

    assert [top1("t"), top1("t", seed=1), top1("t", "method.temperature=2")] == [1, 1, 1]
    assert [top1("of seed 2", seed=2), top1("t", "teachers.0.args={depth: 2}")] == [2, 3]
    assert [top1("t", "data.eval_crop_pct=0.5"), top1("t", "train.batch_size=4"), top1("t")] == [4, 5, 1]


def test_a_fused_network_below_the_student_is_warned_of(teacher, tmp_path):
    overrides = [*QUICK, *SMALL, "train.steps=18", "train.warmup_epochs=0"]
    overrides += ["method.teacher_fusion_weight=0"]  # nothing teaches it
    keywords = {"method": "fbt", "overrides": overrides, "quiet": True}
    results = crossdistill.distill(teacher, "timm/test_resnet", "digits", tmp_path / "run", **keywords)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "eval"][-1]
    (warned,) = (text for text in results["warnings"] if "the fused network" in text)
    assert f"{last['fused_top1']:.1%} top-1 on 360 images" in warned
    assert f"{last['top1']:.1%}" in warned


def test_distill_is_the_command(teacher, tmp_path, capsys):
    overrides = [*QUICK, *SMALL, "method.branch_weight=0.5"]
    keywords = {"method": "ofa", "baseline": True, "overrides": overrides, "quiet": True}
    ours = crossdistill.distill(teacher, "timm/test_resnet", "digits", tmp_path / "python", **keywords)
    arguments = ["--teacher", teacher, "--student", "timm/test_resnet", "--method", "ofa", "--baseline"]
    theirs = from_command_line(
        capsys, "distill", *arguments, "--data", "digits", "--out", tmp_path / "command", *overrides
    )
    for member in ("ofa/seed-0", "student_alone/seed-0"):
        assert_same(tmp_path / "python" / member, tmp_path / "command" / member)
    assert [row["runs"] for row in ours["rows"]] == [row["runs"] for row in theirs["rows"]]
    assert [row["role"] for row in ours["rows"]] == ["student_alone", "distilled", "teacher"]
    assert ours["headline"] == theirs["headline"]


def test_evaluate_is_the_command_and_finds_the_run_s_own_figures(teacher, capsys):
    ours = crossdistill.evaluate(teacher)
    assert ours == from_command_line(capsys, "evaluate", teacher)
    recorded = json.loads((teacher / "results.json").read_text())["rows"][0]["top1_mean"]
    assert ours["top1"] == recorded
    assert sum(one["num_samples"] for one in ours["per_class"]) == ours["num_samples"] == 360


def test_a_module_of_ones_own_trains_over_seeds_and_stays_as_it_is(tmp_path):
    torch.set_num_threads(1)
    student, guide = TinyNet(), TinyNet()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    guide_before = {name: value.clone() for name, value in guide.state_dict().items()}
    overrides = [*QUICK, "student.image_size=8", "teachers.0.image_size=8", "allow_untrained_teacher=true"]
    results = crossdistill.distill(
        guide, student, "digits", tmp_path / "run", seeds=(0, 1), overrides=overrides, quiet=True
    )
    assert [row["name"] for row in results["rows"]] == ["TinyNet", "TinyNet"]
    saved = []
    for seed in (0, 1):
        weights = load_file(tmp_path / "run" / "kd" / f"seed-{seed}" / "student" / "model.safetensors")
        saved.append(TinyNet())
        saved[-1].load_state_dict(weights)
        assert not torch.equal(weights["head.1.weight"], before["head.1.weight"])
    assert not torch.equal(saved[0].head[1].weight, saved[1].head[1].weight)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(torch.equal(value, guide_before[name]) for name, value in guide.state_dict().items())
    top1 = crossdistill.evaluate(saved[1], "digits", image_size=8)["top1"]
    assert top1 == results["rows"][0]["runs"][1]["top1"]

    # The second seed started from the module's own weights too: alone it comes to the same.
    crossdistill.distill(guide, student, "digits", tmp_path / "second", seeds=(1,), overrides=overrides, quiet=True)
    alone = load_file(tmp_path / "second" / "student" / "model.safetensors")
    assert all(torch.equal(value, alone[name]) for name, value in saved[1].state_dict().items())


def test_the_best_epoch_is_chosen_without_the_test_set(tmp_path, monkeypatch):
    """The test images are looked at once, when all is over; what the log holds are figures of other images."""
    looked_at, training_over = [], []
    fit, iterate = single.fit, EvalLoader.__iter__

    def watched_fit(*arguments, **keywords):
        result = fit(*arguments, **keywords)
        training_over.append(len(looked_at))
        return result

    def watched_iterate(loader):
        looked_at.append(len(loader.ids))
        return iterate(loader)

    monkeypatch.setattr(single, "fit", watched_fit)
    monkeypatch.setattr(EvalLoader, "__iter__", watched_iterate)
    overrides = [*SMALL, *QUICK[1:-1], "train.epochs=3", "data.limit_train=200", "data.val_share=0.2"]
    overrides += ["train.select=best", "train.lr=0.05"]
    results = crossdistill.train("timm/test_resnet", "digits", tmp_path / "run", overrides=overrides, quiet=True)
    assert looked_at == [40] * 3 + [360]
    assert training_over == [3]
    assert results["data"]["num_train"] == 160
    assert results["rows"][0]["top1_mean"] == crossdistill.evaluate(tmp_path / "run")["top1"]
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {line["num_samples"] for line in log if line["kind"] == "eval"} == {40}


def test_an_ensemble_of_a_run_and_a_module(teacher, tmp_path):
    module = crossdistill.build(str(teacher), num_classes=10)
    results = crossdistill.distill(
        [teacher, module], "timm/test_resnet", "digits", tmp_path / "run", overrides=[*QUICK, *SMALL], quiet=True
    )
    student, both = results["rows"]
    assert both["name"] == "test_resnet + test_resnet"
    assert both["num_parameters"] == 2 * student["num_parameters"]
    assert both["top1_mean"] == crossdistill.evaluate(teacher)["top1"]  # twice the same voice


def test_a_folder_with_a_run_is_kept_and_a_finished_run_read(teacher, monkeypatch):
    before = launch.fingerprints(teacher, without=("report.html",))
    overrides = ["student.image_size=16", "train.steps=44", "train.batch_size=64", "train.lr=0.01"]
    overrides += ["train.warmup_epochs=0", "device=cpu"]
    with pytest.raises(InputError, match="which holds a run already"):
        crossdistill.train("timm/test_resnet", "digits", teacher, overrides=overrides, quiet=True)
    with pytest.raises(InputError, match=r"train\.lr: was 0\.01, now 0\.5"):
        crossdistill.train(
            "timm/test_resnet", "digits", teacher, overrides=[*overrides, "train.lr=0.5"], resume=True, quiet=True
        )
    monkeypatch.setattr(single, "compose", None)  # nothing is built
    results = crossdistill.train("timm/test_resnet", "digits", teacher, overrides=overrides, resume=True, quiet=True)
    assert results == json.loads((teacher / "results.json").read_text())
    assert launch.fingerprints(teacher, without=("report.html",)) == before


def test_what_cannot_be_built_leaves_no_run_behind(teacher, tmp_path):
    for student, words in (("timm/test_resnt", "test_resnet"), ("timm/test_resnet", "no_such_argument")):
        overrides = [*QUICK, *SMALL, *(["student.args.no_such_argument=1"] if words != "test_resnet" else [])]
        for seeds in ((0,), (0, 1)):
            with pytest.raises(InputError, match=words):
                crossdistill.distill(
                    teacher, student, "digits", tmp_path / "run", seeds=seeds, overrides=overrides, quiet=True
                )
            assert not (tmp_path / "run").exists()


def test_one_run_and_several_do_not_mix_in_a_folder(tmp_path):
    def train(folder, seeds):
        overrides = [*QUICK, "student.image_size=8", "train.steps=2"]
        return crossdistill.train(
            TinyNet(), "digits", folder, seeds=seeds, overrides=overrides[1:], resume=True, quiet=True
        )

    for begun, then, words in (((0,), (0, 1), "holds one run"), ((0, 1), (0,), "holds several runs")):
        folder = tmp_path / f"begun with {len(begun)}"
        train(folder, begun)
        before = launch.fingerprints(folder)
        with pytest.raises(InputError, match=words):
            train(folder, then)
        assert launch.fingerprints(folder) == before
    more = train(tmp_path / "begun with 2", (0, 1, 2))  # a seed more is welcome
    assert [run["seed"] for run in more["rows"][0]["runs"]] == [0, 1, 2]


def test_evaluation_takes_settings_of_the_data(teacher):
    whole = crossdistill.evaluate(teacher)
    assert crossdistill.evaluate(teacher, "digits")["loss"] == whole["loss"]
    trained_on = crossdistill.evaluate(teacher, overrides=["data.evaluation_split=train", "data.train_split=test"])
    assert (trained_on["split"], trained_on["num_samples"]) == ("train", 1437)
    part = crossdistill.evaluate(teacher, overrides=["data.eval_crop_pct=0.6"])
    assert part["loss"] != whole["loss"]
    with pytest.raises(InputError, match=r"data\.KEY=VALUE"):
        crossdistill.evaluate(teacher, overrides=["train.lr=1"])


def test_two_teachers_of_other_families_and_sizes_teach_a_sum_of_methods(teacher, tmp_path):
    """Each sees its own size, each has a bridge of its own, and each fused network is measured."""
    tree = {
        "student": {"name": "timm/test_resnet", "image_size": 16},
        "teachers": [{"name": str(teacher), "weight": 3}, {"name": "timm/test_vit", "image_size": 32}],
        "method": {"name": "hybrid", "methods": {"kd": {"temperature": 2}, "fbt": {}}, "weights": {"fbt": 0.5}},
        "data": {"source": "digits"},
    }
    results = execute(make_plan(tree, QUICK), tmp_path, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = next(line["losses"] for line in lines if line["kind"] == "train")
    pairs = ("teacher_student", "teacher_fusion", "fusion_student")
    each = {f"fbt_{pair}_{kind}_teacher{i}" for pair in pairs for kind in ("nce", "logits") for i in (0, 1)}
    assert set(losses) == {"cross_entropy", "kd", *each}
    assert {"fbt_fused_teacher0_top1", "fbt_fused_teacher1_top1"} <= set(lines[-1])
    assert results["settings"]["method"]["methods"]["kd"]["temperature"] == 2
    resumed = read_recipe(str(tmp_path / "config.yaml"))
    assert execute(resumed, tmp_path, resume=True, quiet=True)["rows"] == results["rows"]
