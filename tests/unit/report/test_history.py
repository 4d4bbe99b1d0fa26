"""Logs become curves, whatever a crash or a resume left in them."""

import json

from crossdistill.report.history import History, read_history
from crossdistill.report.results import as_results
from crossdistill.report.run import Run, read_run
from samples.run_folder import sample_results, write_metrics, write_run


def log(folder, *events, tail=""):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + tail)
    return read_history(folder)


def train(epoch, step, loss, **losses):
    return {"kind": "train", "epoch": epoch, "step": step, "losses": {"hard": loss - sum(losses.values()), **losses}}


def evaluate(epoch, step, top1):
    return {"kind": "eval", "epoch": epoch, "step": step, "top1": top1, "loss": 0.0}


def test_curves_by_epoch_and_step(tmp_path):
    first = train(1, 5, 4.0, kd=3.0), train(1, 10, 2.0, kd=1.0), evaluate(1, 10, 0.5)
    history = log(tmp_path, *first, train(2, 20, 1.0), evaluate(2, 15, 0.7))
    assert history.accuracy("epoch") == ((1, 0.5), (2, 0.7))
    assert history.accuracy("step") == ((10, 0.5), (15, 0.7))
    assert history.loss("epoch") == ((1, 3.0), (2, 1.0))
    assert history.loss("step", "kd") == ((5, 3.0), (10, 1.0))
    assert history.terms == ("hard", "kd")
    assert history.steps_per_epoch == 10


def test_steps_run_again_after_a_resume_count_once(tmp_path):
    history = log(tmp_path, train(1, 10, 9.0), train(1, 20, 8.0), train(1, 10, 3.0), train(1, 20, 2.0))
    assert history.loss("step") == ((10, 3.0), (20, 2.0))


def test_a_line_cut_short_and_values_that_are_no_numbers_are_passed_over(tmp_path):
    damaged = train(1, 10, float("nan")), ["a list"], {"kind": "train"}
    history = log(tmp_path, *damaged, train(1, 20, 2.0), tail='{"kind": "tr')
    assert history.loss("step") == ((20, 2.0),)


def test_no_log_is_no_history(tmp_path):
    assert read_history(tmp_path) == History()
    assert History().steps_per_epoch is None
    assert History().median("images_per_second") is None


def test_median_speed(tmp_path):
    lines = (train(1, step, 0.0) | {"images_per_second": rate} for step, rate in enumerate([9, 1, 5]))
    history = log(tmp_path, *lines)
    assert history.median("images_per_second") == 5


def run_of(folder, *steps_per_epoch):
    """A run folder with one method for each length of an epoch."""
    row = {"role": "distilled", "name": "net", "top1_mean": 0.5}
    rows = []
    for name, steps in zip("abc", steps_per_epoch, strict=False):
        write_metrics(folder / name, steps_per_epoch=steps, epochs=3)
        rows.append(row | {"method": name, "runs": [{"seed": 0, "top1": 0.5, "folder": name}]})
    (folder / "results.json").write_text(json.dumps(sample_results(rows=rows)))
    return read_run(folder)


def test_runs_are_drawn_by_epoch_only_where_epochs_are_equally_long(tmp_path):
    assert run_of(tmp_path, 12, 12).axis == "epoch"
    assert run_of(tmp_path, 12, 1).axis == "step"
    assert Run(tmp_path, as_results(sample_results(rows=[])), "", ()).axis == "step"


def test_a_run_folder_of_several_runs_is_read_whole(tmp_path):
    run = read_run(write_run(tmp_path))
    assert [len(histories) for _, histories in run.rows] == [3, 3, 3, 1]
    assert all(len(history.evaluate) == 40 for _, histories in run.rows for history in histories)
    assert "labels_per_class" in run.settings


def test_settings_of_a_folder_without_config_come_from_its_results(tmp_path):
    write_run(tmp_path)
    (tmp_path / "config.yaml").unlink()
    assert "timm/test_vit3" in read_run(tmp_path).settings


def test_networks_that_a_method_made_have_curves_of_their_own(tmp_path):
    first, second = evaluate(1, 10, 0.5), {**evaluate(2, 20, 0.6), "fused_top1": 0.7}
    history = log(tmp_path, first, second)
    assert history.measured == ("fused",)
    assert history.accuracy("epoch", "fused") == ((2, 0.7),)
    assert history.accuracy("epoch") == ((1, 0.5), (2, 0.6))
    assert log(tmp_path, first).measured == ()
