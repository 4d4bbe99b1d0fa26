"""The page of a pretraining run: several rows are measured on one network, and some images have no labels."""

import io
import re

import pytest
from rich.console import Console

from crossdistill.report import read_run, write_report
from crossdistill.report.page import facts, title
from crossdistill.report.results import as_results
from crossdistill.report.run import run_folders
from crossdistill.report.table import comparison, rich_table
from samples.html_page import Page
from samples.pretrained_folder import MEASURED, pretraining_results, write_pretraining
from samples.run_folder import sample_results, write_run


def page_of(folder):
    return write_report(folder).read_text(encoding="utf-8")


def test_rows_say_how_they_were_measured_and_figures_what_was_trained():
    rows = as_results(pretraining_results()).rows
    assert [row.label for row in rows] == [f"Pretrained, {method}" for method in MEASURED]
    assert {row.training for row in rows} == {"Pretrained"}
    assert [row.training for row in as_results(sample_results()).rows][1:] == [
        "Distilled (kd)",
        "Distilled (ofa)",
        "Teacher",
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "test_resnet, pretrained without labels"),
        ({"labelled": False}, "test_resnet, pretrained without labels"),
        (
            {"teacher": "timm/resnet18@pretrained"},
            "test_resnet, pretrained without labels by predicting the words of timm/resnet18@pretrained",
        ),
    ],
)
def test_the_title_says_what_was_predicted_where_it_was_given(changes, expected):
    assert title(as_results(pretraining_results(**changes))) == expected


def test_facts_of_images_with_and_without_labels():
    told = facts(as_results(pretraining_results()))
    assert told["training images"] == "1\u202f437, no label read"
    assert told["data"] == "digits, 10 classes"
    told = facts(as_results(pretraining_results(labelled=False)))
    assert (told["data"], told["evaluated on"]) == ("digits, no classes", "nothing")
    assert "seeds" not in told


def test_the_table_has_no_columns_of_what_does_not_exist():
    results = pretraining_results()
    grid = comparison(results)
    assert grid.columns == ("Network", "Model", "Top-1 accuracy", "Params", "GMACs", "CPU latency")
    assert "Labels served to measure, not to train." in grid.caption
    assert "Gain" not in grid.caption
    console = Console(file=io.StringIO(), width=80)
    console.print(rich_table(results))
    printed = console.file.getvalue()
    assert "Pretrained, linear probe" in printed
    assert "375\xa0k" in printed
    assert "Gain" not in printed
    beside = pretraining_results(rows=pretraining_results()["rows"] + sample_results()["rows"])
    assert "Gain (points)" in comparison(beside).columns


def test_a_run_of_several_rows_is_read_and_drawn_once(tmp_path):
    run = read_run(write_pretraining(tmp_path))
    assert [[len(one.train) for one in histories] for _, histories in run.rows] == [[5], [0], [0]]
    assert run.axis == "epoch"
    html = page_of(tmp_path)
    page = Page(html)
    assert [name for name in page.text_of("dt") if name.startswith("Pretrained")] == ["Pretrained"], "speed, once"
    total = re.search(r'aria-label="(Training loss, total[^"]*)"', html)[1]
    assert total.count("Pretrained from") == 1
    accuracy = re.search(r'aria-label="(Top-1 accuracy by epoch[^"]*)"', html)[1]
    assert accuracy.count(" from ") == 2
    assert "Pretrained, k-NN: teacher network, 24.0 % at the end" in html
    assert "linear probe from" not in html


def test_several_seeds_have_a_curve_each(tmp_path):
    run = read_run(write_pretraining(tmp_path, seeds=(0, 1)))
    assert [[len(one.train) for one in histories] for _, histories in run.rows] == [[5, 5], [0, 0], [0, 0]]
    assert run_folders(tmp_path, run.results) == tuple(tmp_path / f"pretrained/seed-{seed}" for seed in (0, 1))


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_without_labels_nothing_is_measured_and_losses_are_drawn(tmp_path, seeds):
    results = pretraining_results(labelled=False)
    write_pretraining(tmp_path, results, seeds=seeds)
    run = read_run(tmp_path)
    assert [len(one.train) for one in run.unmeasured] == [5] * len(seeds)
    assert run.axis == "step", "no evaluation says how long an epoch is"
    page = Page(page_of(tmp_path))
    assert {"Result", "Comparison", "Accuracy"}.isdisjoint(page.text_of("h2"))
    assert {"Losses while training", "Training speed"} <= set(page.text_of("h2"))


def test_a_run_folder_with_rows_has_nothing_unmeasured(tmp_path):
    (tmp_path / "other").mkdir()
    run = read_run(write_run(tmp_path))
    (tmp_path / "other" / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "epoch": 1}\n')
    assert read_run(tmp_path) == run
    assert run.unmeasured == ()
