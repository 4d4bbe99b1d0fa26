"""Random pairs of timm's families, drawn by ``benchmarks/random_pairs.py``: each is distilled for two steps."""

import importlib.util
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch

from crossdistill.models.zoo import smallest_variants
from crossdistill.registry import METHODS

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = {"cnn", "transformer", "mlp"}
FEWEST = 60
NUM_QUICK = 6


def load():
    """The script, with its neighbours."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location("random_pairs", ROOT / "benchmarks" / "random_pairs.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


random_pairs = load()
RECORDED = random_pairs.read(ROOT / "results" / "checks" / "random-pairs.csv")
METHODS_WITH_TEACHER = sorted(record.name for record in METHODS if record.value.needs)


def news(rows, row):
    """How many of a row's method, teacher's family and student's family the rows do not have yet."""
    columns = ("method", "teacher_family", "student_family")
    return sum(all(row[column] != other[column] for other in rows) for column in columns)


def cheapest(rows, count):
    """The quickest rows that together have every family on both sides, and as many methods as they can."""
    chosen = []
    for _ in range(count):
        rest = [row for row in rows if row not in chosen]
        chosen.append(min(rest, key=lambda row: (-news(chosen, row), float(row["seconds"]))))
    return chosen


QUICK = cheapest(RECORDED, NUM_QUICK)


def named(row):
    return f"{row['teacher']}-{row['student']}-{row['method']}"


def distilled(row):
    """Run a recorded pair again: what a dry run says of it."""
    torch.set_num_threads(1)
    pair = random_pairs.Pair(row["teacher"], row["student"], row["method"])
    line = random_pairs.arguments(pair, int(row["teacher_size"]), int(row["student_size"]), int(row["seed"]))
    assert " ".join(["crossdistill", *line]) == row["command"]
    outcome, trial = random_pairs.run(line)
    assert outcome == "ok"
    return trial


def check(row):
    trial = distilled(row)
    assert (trial["teacher"]["name"], trial["student"]["name"]) == (row["teacher"], row["student"])
    assert (trial["teacher"]["family"], trial["student"]["family"]) == (row["teacher_family"], row["student_family"])
    assert trial["method"]["name"] == row["method"]
    assert not (ROOT / "runs" / "random-pair").exists()


def test_the_record_is_of_sixty_pairs_of_every_method_and_family():
    assert len(RECORDED) >= FEWEST
    assert {row["outcome"] for row in RECORDED} == {"ok"}
    assert {row["method"] for row in RECORDED} == set(METHODS_WITH_TEACHER)
    assert len({row["method"] for row in QUICK}) == min(NUM_QUICK, len(METHODS_WITH_TEACHER))
    for rows in (RECORDED, QUICK):
        assert {row["teacher_family"] for row in rows} == {row["student_family"] for row in rows} == FAMILIES


def test_the_record_is_of_different_files_of_timm():
    file_of = {name: file for file, name in smallest_variants().items()}
    assert all(file_of[row["teacher"]] != file_of[row["student"]] for row in RECORDED)
    taking_part = set(chain.from_iterable((row["teacher"], row["student"]) for row in RECORDED))
    assert len(taking_part) > len(file_of) / 2


def test_a_draw_is_a_function_of_its_seed_and_pairs_nobody_with_itself():
    names, methods = [f"net{number}" for number in range(9)], ["kd", "ofa"]
    pairs = random_pairs.draw(names, methods, count=25, seed=3)
    assert pairs == random_pairs.draw(names, methods, count=25, seed=3)
    assert pairs != random_pairs.draw(names, methods, count=25, seed=4)
    assert len(pairs) == 25
    assert all(pair.teacher != pair.student for pair in pairs)
    for start in (0, 9):
        one_round = pairs[start : start + 9]
        assert {pair.teacher for pair in one_round} == {pair.student for pair in one_round} == set(names)
    assert [pair.method for pair in pairs[:3]] == ["kd", "ofa", "kd"]


def test_a_failing_pair_is_recorded_with_what_it_said():
    pair = random_pairs.Pair("test_resnet", "no_such_network", "kd")
    outcome, trial = random_pairs.run(random_pairs.arguments(pair, 64, 64, seed=0))
    assert trial == {}
    assert outcome.startswith("given: ")
    assert "no_such_network" in outcome


@pytest.mark.parametrize("row", QUICK, ids=named)
def test_the_cheapest_pairs(row):
    check(row)


@pytest.mark.slow
@pytest.mark.parametrize("row", RECORDED, ids=named)
def test_all_pairs(row):
    check(row)
