"""Statistics against scipy's own tests, and sentences that claim no more than was measured."""

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from crossdistill.analysis.compare import Difference, Summary, difference, points, summarise, verdict

accuracy = st.integers(0, 360).map(lambda correct: correct / 360)
several = st.dictionaries(st.integers(0, 50), st.tuples(accuracy, accuracy), min_size=2, max_size=12)


@given(st.lists(accuracy, min_size=2, max_size=20))
def test_summary_is_scipy_s(values):
    summary = summarise(values)
    assert summary.num == len(values)
    assert summary.mean == pytest.approx(numpy.mean(values), abs=1e-12)
    assert summary.sd == pytest.approx(numpy.std(values, ddof=1), abs=1e-9)


def test_summary_of_one_value_knows_no_spread():
    assert summarise([0.5]) == Summary(0.5, None, 1)


@given(several)
@settings(max_examples=200)
def test_interval_is_that_of_the_paired_t_test(pairs):
    baseline, distilled = ({seed: pair[side] for seed, pair in pairs.items()} for side in (0, 1))
    measured = difference(baseline, distilled)
    gains = [distilled[seed] - baseline[seed] for seed in pairs]
    assert measured.mean == pytest.approx(sum(gains) / len(gains), abs=1e-12)
    if max(gains) - min(gains) < 1e-12:
        assert (measured.standard_error, measured.interval, measured.outcome) == (0.0, None, "unclear")
        return
    test = stats.ttest_rel([distilled[seed] for seed in pairs], [baseline[seed] for seed in pairs])
    assert measured.interval == pytest.approx(tuple(test.confidence_interval(0.95)), abs=1e-9)
    assert measured.standard_error == pytest.approx(stats.sem(gains), abs=1e-12)
    if abs(test.pvalue - 0.05) > 1e-6:
        assert (measured.outcome != "unclear") == (test.pvalue < 0.05)


@given(several)
def test_exchanging_the_two_sides_turns_the_sign(pairs):
    baseline, distilled = ({seed: pair[side] for seed, pair in pairs.items()} for side in (0, 1))
    there, back = difference(baseline, distilled), difference(distilled, baseline)
    assert there.mean == pytest.approx(-back.mean, abs=1e-15)
    assert {there.outcome, back.outcome} in ({"unclear"}, {"helped", "hurt"})


def test_only_common_seeds_count():
    assert difference({0: 0.5, 1: 0.9}, {0: 0.6, 2: 0.1}).num_seeds == 1
    assert difference({0: 0.5}, {1: 0.6}) is None


@pytest.mark.parametrize(
    ("baseline", "distilled", "expected"),
    [
        ({0: 0.90, 1: 0.91, 2: 0.92}, {0: 0.95, 1: 0.97, 2: 0.96}, "helped: +5.0 points"),
        ({0: 0.95, 1: 0.97, 2: 0.96}, {0: 0.90, 1: 0.91, 2: 0.92}, "hurt: −5.0 points"),
        ({0: 0.90, 1: 0.91, 2: 0.92}, {0: 0.91, 1: 0.90, 2: 0.93}, "no difference measured; +0.3 points"),
        ({0: 0.90}, {0: 0.99}, "one seed: no spread is known"),
        ({0: 0.90, 1: 0.91}, {0: 0.90, 1: 0.91}, "the accuracies are equal on each of 2 paired seeds"),
        ({0: 0.80, 1: 0.91}, {0: 0.81, 1: 0.92}, "+1.0 points of top-1 accuracy on each of 2 paired seeds: no spread"),
        ({0: 0.90}, {1: 0.99}, "no seed in common"),
    ],
)
def test_the_verdict_says_what_was_measured(baseline, distilled, expected):
    sentence = verdict(baseline, distilled)
    assert expected in sentence
    assert ("helped" in sentence) == ("helped" in expected)
    assert ("hurt" in sentence) == ("hurt" in expected)
    assert verdict(baseline, distilled, subject="OFA").startswith("OFA")


def test_no_outcome_without_an_interval():
    assert Difference(0.5, 1).outcome == "unclear"


@pytest.mark.parametrize(
    ("share", "text"), [(0.123, "+12.3"), (-0.01, "−1.0"), (0.0004, "+0.04"), (-1e-9, "0.0"), (0.0, "0.0")]
)
def test_points_keep_their_sign(share, text):
    assert points(share) == text
