"""The quickstart says what it measured and what the comparison rests on; here with shorter training."""

import importlib
import json

import pytest

from crossdistill import cli

# The package's attribute of that name is the function.
quickstart = importlib.import_module("crossdistill.runs.quickstart")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A quickstart of a few steps, run through the command line."""
    out = tmp_path_factory.mktemp("quickstart") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(quickstart._TEACHER_TRAINING, "epochs", 6)
        patch.setitem(quickstart._STUDENT_TRAINING, "steps", 4)
        assert cli.run(["quickstart", "--out", str(out), "--json"]) == 0
    return out, json.loads((out / "results.json").read_text())


def test_the_table_holds_everybody_over_three_seeds(finished):
    _, results = finished
    rows = {(row["role"], row["method"]): row for row in results["rows"]}
    assert set(rows) == {("student_alone", None), ("distilled", "kd"), ("distilled", "ofa"), ("teacher", None)}
    for (role, _), row in rows.items():
        assert [run["seed"] for run in row["runs"]] == ([0] if role == "teacher" else [0, 1, 2])
        assert row["num_labels"] == (1437 if role == "teacher" else 100)
        assert row["gmacs"] > 0
        assert row["latency_ms"] > 0


def test_it_says_plainly_that_the_teacher_saw_more_labels(finished):
    out, results = finished
    assert len(results["warnings"]) == 1
    assert "the teacher saw 1437 labels and the student 100" in results["warnings"][0]
    assert "1437 labels" in (out / "report.html").read_text()


def test_the_verdict_is_about_each_method_against_the_student_alone(finished):
    _, results = finished
    assert results["headline"].count("Distillation (") == 2


def test_everybody_takes_equally_many_steps(finished):
    out, results = finished
    for row in results["rows"]:
        for run in row["runs"] if row["role"] != "teacher" else []:
            lines = [json.loads(line) for line in (out / run["folder"] / "metrics.jsonl").read_text().splitlines()]
            assert lines[-1]["step"] == 4


def test_a_second_one_does_not_overwrite_the_first(finished, capsys):
    out, _ = finished
    assert cli.run(["quickstart", "--out", str(out)]) == 2
    assert "holds a run already" in capsys.readouterr().err
