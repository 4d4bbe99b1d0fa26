"""The documented examples run."""

import doctest

import pytest

from crossdistill.bridges import contrast, exit_branch, layout, level_bridge


@pytest.mark.parametrize("module", [contrast, exit_branch, layout, level_bridge], ids=lambda module: module.__name__)
def test_documented_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
