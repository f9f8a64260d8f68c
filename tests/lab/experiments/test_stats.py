"""Intervals and tests against scipy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from experiments.stats import Estimate, equal_weights, estimate, holm, welch
from scipy import stats

ONE, OTHER = [0.3, -0.1, 0.4, 0.2, 0.9], [1.2, 0.7, 2.2]


def test_the_interval_of_a_mean_is_the_t_tests():
    found, known = estimate(ONE), stats.ttest_1samp(ONE, 0).confidence_interval()
    assert found.mean == pytest.approx(np.mean(ONE)) and found.count == 5
    assert found.interval == pytest.approx((known.low, known.high))


def test_few_or_equal_values():
    assert estimate([]) is None
    assert estimate([0.5]) == Estimate(0.5, math.nan, 0, 1) and estimate([0.5]).interval is None
    assert estimate([0.5, 0.5]).interval == (0.5, 0.5)


def test_equal_weights_of_two_means_are_welchs_test():
    """Half the sum of two means is half the difference of one and the other negated."""
    found = equal_weights([estimate(ONE), estimate(OTHER)])
    test = stats.ttest_ind(ONE, [-x for x in OTHER], equal_var=False)
    known = test.confidence_interval()
    assert found.interval == pytest.approx((known.low / 2, known.high / 2))
    assert found.freedom == pytest.approx(test.df) and found.count == 8
    assert found.mean == pytest.approx((np.mean(ONE) + np.mean(OTHER)) / 2)


def test_equal_weights_without_some_spread():
    assert equal_weights([]) is None
    assert equal_weights([estimate(ONE), estimate([1.0])]).interval is None
    still = estimate([1.0, 1.0])
    assert equal_weights([still, still]).interval == (1, 1)
    assert equal_weights([estimate(ONE), still]).freedom == pytest.approx(4)
    one = equal_weights([estimate(ONE)])
    assert one.interval == pytest.approx(estimate(ONE).interval)


def test_a_difference_is_welchs_test():
    ours, theirs = ONE, OTHER
    found, test = welch(ours, theirs), stats.ttest_ind(ours, theirs, equal_var=False)
    known = test.confidence_interval()
    assert found.interval == pytest.approx((known.low, known.high))
    above = stats.ttest_ind(ours, np.array(theirs) - 2, equal_var=False, alternative="greater")
    assert found.chance_below(-2) == pytest.approx(above.pvalue)
    assert welch([], ONE) is None and welch(ONE, ONE[:2]).interval is None
    assert welch(ONE, ONE[:2]).chance_below(0) is None
    equal = welch([1.0] * 3, [1.0] * 3)
    assert equal.chance_below(-1) == 0 and equal.chance_equal() == 1
    assert welch([2.0] * 3, [1.0] * 3).chance_equal() == 0


def test_the_least_chances_are_more_than_none_on_both_sides():
    far, near = [9.9, 10.0, 10.1] * 9, [0.0, 0.1, -0.1] * 9
    known = stats.ttest_ind(far, near, equal_var=False).pvalue
    assert 0 < known < 1e-50
    for found in (welch(far, near), welch(near, far)):
        assert found.chance_equal() == pytest.approx(known, rel=1e-6, abs=0)


def test_holms_correction():
    known = [0.01, 0.04, 0.03, None]
    assert holm(known) == pytest.approx([0.03, 0.06, 0.06, None])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([None]) == [None]
