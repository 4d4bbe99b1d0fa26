"""Results of several runs become one table: means, spread, one teacher, and where each run lies."""

import copy
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdistill.errors import InputError
from crossdistill.report.results import as_results
from crossdistill.runs.results import headline, make_results, make_row, merge

COST = {"num_parameters": 10, "gmacs": 0.5, "latency_ms": 1.25}


def run_of(role, seed, top1, *, method=None, num_train=100, seconds=1.0, warnings=(), teacher=None, identity=None):
    """The results of one run, as a single run writes them."""
    rows = [make_row(role, "student", seed=seed, top1=top1, folder=".", method=method, cost=COST, num_labels=50)]
    if teacher is not None:
        rows.append(make_row("teacher", "teacher", seed=seed, top1=teacher, folder=None, cost=COST))
    data = {
        "source": "digits",
        "num_classes": 10,
        "num_train": num_train,
        "num_labelled": 50,
        "evaluation_split": "test",
        "num_evaluation": 360,
    }
    kind = "train" if role == "student_alone" else "distill"
    identity = {"data_sha256": "d", "teacher_sha256": None if role == "student_alone" else "t", **(identity or {})}
    return make_results(kind, rows, data=data, identity=identity, settings={}, seconds=seconds, warnings=list(warnings))


def merged(runs):
    return merge("distill", runs, settings={"seed": 0})


TABLE = [
    ("kd/seed-0", run_of("distilled", 0, 0.90, method="kd", teacher=0.97, warnings=["few labels"])),
    ("student_alone/seed-0", run_of("student_alone", 0, 0.80, num_train=50, warnings=["few labels", "slow disk"])),
    ("ofa/seed-0", run_of("distilled", 0, 0.92, method="ofa", teacher=0.97)),
    ("kd/seed-1", run_of("distilled", 1, 0.94, method="kd", teacher=0.97)),
    ("student_alone/seed-1", run_of("student_alone", 1, 0.82, num_train=50, seconds=2.5)),
    ("ofa/seed-1", run_of("distilled", 1, 0.93, method="ofa", teacher=0.97)),
]


def test_one_row_a_method_in_the_order_of_the_table():
    results = merged(TABLE)
    assert [(row["role"], row["method"]) for row in results["rows"]] == [
        ("student_alone", None),
        ("distilled", "kd"),
        ("distilled", "ofa"),
        ("teacher", None),
    ]
    alone, kd, ofa, teacher = results["rows"]
    assert alone["runs"] == [
        {"seed": 0, "top1": 0.80, "folder": "student_alone/seed-0"},
        {"seed": 1, "top1": 0.82, "folder": "student_alone/seed-1"},
    ]
    assert kd["top1_mean"] == pytest.approx(0.92)
    assert kd["top1_sd"] == pytest.approx(0.02 * 2**0.5)  # sample deviation of two values: their distance / sqrt 2
    assert ofa["top1_mean"] == pytest.approx(0.925)
    assert teacher["runs"] == [{"seed": 0, "top1": 0.97, "folder": None}]  # measured by each, listed once
    assert (teacher["top1_mean"], teacher["top1_sd"]) == (0.97, None)
    assert {row["num_parameters"] for row in results["rows"]} == {10}
    as_results(results)  # what the report reads


def test_what_all_share():
    results = merged(TABLE)
    assert results["data"]["num_train"] == 100  # the student alone used a part of it
    assert results["seconds"] == pytest.approx(7.5)
    assert results["warnings"] == ["few labels", "slow disk"]
    assert results["settings"] == {"seed": 0}
    assert results["kind"] == "distill"
    assert results["identity"] == {"data_sha256": "d", "teacher_sha256": "t"}


@pytest.mark.parametrize("key", ["data_sha256", "teacher_sha256"])
def test_runs_on_other_data_or_of_another_teacher_stand_in_no_table(key):
    stranger = run_of("distilled", 2, 0.9, method="kd", identity={key: "other"})
    with pytest.raises(InputError, match=f"different {key[:-7]}s.*kd/seed-2: other"):
        merged([*TABLE, ("kd/seed-2", stranger)])


def test_the_runs_that_are_merged_stay_as_they_are():
    before = copy.deepcopy(TABLE)
    first = merged(TABLE)
    assert before == TABLE
    assert merged(TABLE)["rows"] == first["rows"]


@settings(max_examples=20, deadline=None)  # each reads what machine this is
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_mean_and_spread_are_those_of_the_seeds(accuracies):
    runs = [(f"kd/seed-{seed}", run_of("distilled", seed, top1, method="kd")) for seed, top1 in enumerate(accuracies)]
    (row,) = merged(runs)["rows"]
    assert [run["top1"] for run in row["runs"]] == accuracies
    assert row["top1_mean"] == pytest.approx(statistics.fmean(accuracies))
    assert row["top1_sd"] == (pytest.approx(statistics.stdev(accuracies)) if len(accuracies) > 1 else None)


def test_tables_are_merged_again():
    inner = merged([(name, run) for name, run in TABLE if name.startswith("kd")])
    (row, _) = merged([("outer", inner)])["rows"]
    assert [run["folder"] for run in row["runs"]] == ["outer/kd/seed-0", "outer/kd/seed-1"]


def test_the_headline_speaks_of_each_method_and_only_where_there_is_something_to_compare():
    text = merged(TABLE)["headline"]
    assert text.count("Distillation (") == 2
    assert "Distillation (kd)" in text
    assert "Distillation (ofa)" in text
    rows = merged(TABLE)["rows"]
    assert headline([row for row in rows if row["role"] != "student_alone"]) is None
    assert headline([row for row in rows if row["role"] != "distilled"]) is None


def test_one_seed_has_no_spread():
    row = make_row("distilled", "student", seed=3, top1=0.5, folder=".", method="kd")
    assert (row["top1_mean"], row["top1_sd"], row["runs"][0]["seed"]) == (0.5, None, 3)
    assert (row["gmacs"], row["latency_ms"], row["num_parameters"]) == (None, None, None)
