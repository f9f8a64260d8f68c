"""Intervals against scipy's, and marks and ranges on curves whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from experiments.evidence.words import reached
from experiments.stats import (
    Estimate,
    WorkingRange,
    equal_weights,
    estimate,
    steps_to_loss,
    steps_to_target,
    trailing_means,
    working_range,
)
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


def test_steps_to_a_target_in_both_directions():
    scores = [[10, 0.5], [20, 0.8], [30, 0.7]]
    assert steps_to_target(scores, 0.8, True) == 20
    assert steps_to_target(scores, 0.81, True) == math.inf
    assert steps_to_target(scores, 0.5, False) == 10
    assert steps_to_target(scores, 0.4, False) == math.inf
    assert steps_to_target([], 0.4, True) == math.inf


def test_trailing_means_begin_with_a_full_tail():
    losses = [[step, float(step)] for step in range(2, 101, 2)]  # a tail of 5 steps
    found = trailing_means(losses, 100)
    assert found[:2] == [(6, 4.0), (8, 6.0)]  # the records of steps 2 to 6, and 4 to 8
    assert found[-1] == (100, 98.0)
    assert trailing_means([], 100) == [] and trailing_means([[1, 3.0]], 10) == [(1, 3.0)]


def test_steps_to_a_loss():
    losses = [[step, 10.0 - step / 10] for step in range(1, 101)]  # mean at s: 10.2 - s/10
    assert steps_to_loss(losses, 5.2, 100, 0.2) == 50
    assert steps_to_loss(losses, 0.1, 100, 0.2) == math.inf
    assert steps_to_loss(losses, 100, 100, 0.2) == 5  # not before a tail is full
    assert steps_to_loss(losses[:40], 5.2, 100, math.nan) == math.inf  # it diverged
    assert steps_to_loss([], 5.2, 100, 5.2) == 100  # the end counts where no record falls
    assert steps_to_loss([], 5.2, 100, 5.3) == math.inf


def test_a_run_reaches_its_own_final_loss_at_the_latest_at_its_end():
    losses = [[step, 9 - 0.01 * step] for step in range(4, 450, 4)]  # the last record is at 448
    final = 9 - 0.01 * 450
    assert steps_to_loss(losses, final, 450, final) == 450


def test_never_is_more_than_any_step():
    told = {
        (3, math.inf, 1): "3, missed by 1 of 3",
        (3, math.inf, math.inf): "never, missed by 2 of 3",
        (1, 3): "2",
        (1, math.inf): "never, missed by 1 of 2",
        (): "-",
        (math.inf,): "never, missed by 1 of 1",
    }
    for steps, expected in told.items():
        assert reached(pd.Series(steps, dtype=float), ".0f", "never") == expected


def decades(found: WorkingRange) -> tuple[float, float]:
    return found.low, found.high


def test_the_range_that_works_ends_where_the_line_crosses_the_mark():
    trials = [(1e-2, 0.6), (1e-4, 0.6), (1e-3, 0.8)]
    found = working_range(trials, 0.7, True)
    assert decades(found) == pytest.approx((-3.5, -2.5))
    assert found.decades == pytest.approx(1) and not found.at_least
    lower = working_range([(lr, -score) for lr, score in trials], -0.7, False)
    assert decades(lower) == pytest.approx(decades(found))


@pytest.mark.parametrize(
    ("scores", "ends", "at_least"),
    [
        ((0.8, 0.8, 0.8), (-4, -2), True),
        ((0.8, 0.6, 0.6), (-4, -3.5), True),
        ((0.6, 0.6, 0.8), (-2.5, -2), True),
        ((0.6, 0.8, None), (-3.5, -3), False),
        ((None, 0.8, None), (-3, -3), False),
        ((0.6, 0.7, 0.6), (-3, -3), False),
        ((0.8, None, 0.7), (-4, -4), True),
    ],
)
def test_ranges_at_the_edge_and_beside_what_diverged(scores, ends, at_least):
    found = working_range(list(zip((1e-4, 1e-3, 1e-2), scores, strict=True)), 0.7, True)
    assert decades(found) == pytest.approx(ends) and found.at_least is at_least
    assert found.decades == pytest.approx(ends[1] - ends[0])


def test_none_works_or_none_was_tried():
    assert working_range([], 0.7, True) is None
    for trials in ([(1e-3, 0.6)], [(1e-3, None)], [(1e-3, 0.6), (1e-2, None)]):
        found = working_range(trials, 0.7, True)
        assert found == WorkingRange(None, None, False) and found.decades == 0
    assert working_range([(1e-3, 0.8)], 0.7, True) == WorkingRange(-3, -3, True)


def test_of_two_ranges_the_wider_and_of_one_rate_twice_the_worse():
    scores = (0.8, 0.6, 0.8, 0.8, 0.6)
    trials = list(zip((1e-5, 1e-4, 1e-3, 1e-2, 1e-1), scores, strict=True))
    assert decades(working_range(trials, 0.7, True)) == pytest.approx((-3.5, -1.5))
    found = working_range([*trials, (1e-2, None)], 0.7, True)
    assert decades(found) in (pytest.approx((-3.5, -3)), pytest.approx((-5, -4.5)))
