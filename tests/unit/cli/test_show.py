"""What people and machines read on standard output."""

import json
from pathlib import Path

import pytest

from crossdistill.cli.show import print_json, print_table, show_results
from samples.run_folder import sample_results

SPEC = {
    "name": "test_vit",
    "family": "transformer",
    "num_parameters": 268_234,
    "stages": [{}, {}, {}],
    "input": {"image_size": (32, 48)},
}
TRIAL = {
    "student": SPEC,
    "teacher": {**SPEC, "name": "resnet18", "family": "cnn"},
    "teacher_top1": 0.8306,
    "method": {"name": "ofa", "num_parameters": 351_144},
    "num_train": 1437,
    "num_labelled": 50,
    "steps_per_epoch": 11,
    "images_per_second": 812.4,
    "warnings": ["a teacher [bold]guesses[/bold]"],
}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def test_json_is_one_value(capsys):
    print_json({"a": [1, 2.5, None, "é"]})
    assert json.loads(capsys.readouterr().out) == {"a": [1, 2.5, None, "é"]}


def test_cells_are_plain_text_and_numbers_are_aligned(capsys):
    print_table(["class", "images"], [["[red]a[/red]", "7"], ["b", "1234"]], numbers=("images",))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    (first,) = (line for line in lines if "[red]a[/red]" in line)
    (second,) = (line for line in lines if line.strip().startswith("b"))
    assert first.endswith("7")
    assert len(first) == len(second)


def test_results_for_people(capsys):
    results = sample_results(headline="Distillation helped: [measured].")
    show_results(results, as_json=False, out=Path("a-very-long-folder-name") / "below" / ("x" * 80))
    text = capsys.readouterr().out
    assert "Distillation helped: [measured]." in text
    assert "note: The teacher was trained with 1437 labels" in text
    assert f"report: a-very-long-folder-name/below/{'x' * 80}/report.html\n" in text, "a path is never broken"
    assert max(len(line) for line in text.splitlines() if not line.startswith("report:")) <= 80
    assert "Student alone" in text


def test_results_for_machines(capsys):
    show_results(sample_results(), as_json=True, out=Path("run"))
    assert json.loads(capsys.readouterr().out) == sample_results()


def test_a_dry_run_says_what_was_built(capsys):
    alone = {**TRIAL, "teacher": None, "teacher_top1": None, "warnings": []}
    show_results({"dry_run": {"student_alone": alone, "ofa": TRIAL}}, as_json=False, out=Path("run"))
    text = capsys.readouterr().out
    _, first, second = text.split("student: ")
    assert "teacher" not in first
    assert "test_vit (transformer), 268,234 parameters, 3 stages, 32 x 48 px" in first
    assert "teacher: resnet18 (cnn), 268,234 parameters, 3 stages, 32 x 48 px, top-1 83.1%" in second.replace("\n", " ")
    assert "ofa, 351,144 parameters of its own" in second
    assert "1,437 to train on, 50 of them with a label" in second
    assert "11 an epoch, 812 images/s" in second
    assert "note: a teacher [bold]guesses[/bold]" in second
    assert text.endswith("nothing was written\n")
