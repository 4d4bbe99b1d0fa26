"""Numbers that no loss can use are refused by name."""

import math

import pytest

from crossdistill.errors import InputError
from crossdistill.losses.inputs import check_positive, check_weights


@pytest.mark.parametrize("value", [0.0, -1.0, -math.inf, math.inf, math.nan])
def test_what_must_be_positive_is_above_zero_and_finite(value):
    with pytest.raises(InputError, match=f"gamma={value}\n.*a finite gamma above 0"):
        check_positive({"beta": 1.0, "gamma": value})
    check_positive({"beta": 1e-300, "gamma": 10**400})


@pytest.mark.parametrize("value", [-1e-9, -math.inf, math.inf, math.nan])
def test_a_weight_is_zero_or_more_and_finite(value):
    with pytest.raises(InputError, match=f"weight={value}\n.*a finite weight of 0 or more"):
        check_weights({"weight": value})
    check_weights({"weight": 0.0})
