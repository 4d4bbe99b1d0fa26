"""What is said of a method: its facts, its options in the words of YAML, and its measured costs."""

import doctest
from typing import Any, Literal

import pytest

from crossdistill.registry import METHODS
from crossdistill.runs import describe


def test_documented_examples():
    result = doctest.testmod(describe)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (bool, "true | false"),
        (float | list[float], "number | [number, …]"),
        (Literal["a", "b"] | None, "a | b | null"),
        (dict[str, dict[str, Any]], "{NAME: {NAME: anything}}"),
        (tuple, "tuple"),
    ],
)
def test_types_are_told_as_they_are_written(hint, words):
    assert describe.in_words(hint) == words


def test_a_docstring_without_arguments_says_nothing():
    def build(*, weight: float = 1.0) -> None:
        """Make it.

        Raises:
            ValueError: never.
        """

    assert describe.option_meanings(build) == {}
    build.__doc__ = None
    assert describe.option_meanings(build) == {}


def test_methods_come_by_what_they_need_and_sums_last():
    names = [one["name"] for one in describe.describe_methods()]
    assert set(names) == {record.name for record in METHODS}
    assert names[0] == "none"
    assert names[-1] == "hybrid"
    assert names.index("kd") < names.index("rkd") < names.index("fitnet") < names.index("fbt")


@pytest.mark.parametrize("name", [record.name for record in METHODS])
def test_every_option_has_a_meaning(name):
    assert all(option["meaning"] for option in describe.describe_method(name)["options"].values())
