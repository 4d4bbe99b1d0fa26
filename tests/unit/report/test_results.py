"""``results.json`` is checked when read."""

import json

import pytest

from crossdistill.errors import InputError
from crossdistill.report.results import as_results, read_results
from samples.run_folder import sample_results


def test_what_is_written_is_what_is_read(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(sample_results()))
    results = read_results(tmp_path)
    assert results == as_results(sample_results())
    assert as_results(results) is results
    assert results.baseline.label == "Student alone"
    (trained,) = as_results(sample_results(rows=[sample_results()["rows"][0]])).rows
    assert trained.label == "Trained on labels"  # nothing was distilled, so there is no student
    assert [row.label for row in results.distilled] == ["Distilled (kd)", "Distilled (ofa)"]
    assert list(results.distilled[0].by_seed) == [0, 1, 2]


def test_keys_of_a_later_version_are_passed_over():
    assert as_results(sample_results(novelty=1)).kind == "quickstart"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "schema"),
        ({"rows": [{"role": "distilled", "name": "net", "top1_mean": 93.1}]}, "less than or equal to 1"),
        ({"rows": [{"role": "pupil", "name": "net", "top1_mean": 0.9}]}, "student_alone"),
    ],
)
def test_figures_that_cannot_be_right_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        as_results(sample_results(**changes))


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_an_unfinished_or_damaged_run_is_bad_input(tmp_path, content):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError, match=r"results\.json"):
        read_results(tmp_path)
