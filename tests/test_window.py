"""The window alone: a loss in, window and momentum out."""

import math
import random
from dataclasses import replace

import pytest
import torch

from dwmgrad.rule import SIGNALS, Window, coefficients, share_after


def sizes(signal: str, losses: list[float], **settings: float) -> list[int]:
    window = Window(signal=signal, **settings)
    seen = []
    for loss in losses:
        window.observe(loss)
        seen.append(window.size)
    return seen


@pytest.mark.parametrize(
    ("signal", "expected"),
    [
        ("decrease", [4, 5, 4, 3, 4]),  # the first loss and a tie shrink the window
        ("increase", [6, 5, 6, 5, 4]),  # the first loss is compared with 0
        ("loss", [6, 7, 8, 9, 10]),
    ],
)
def test_each_signal_moves_the_window_its_own_way(signal: str, expected: list[int]) -> None:
    assert sizes(signal, [2.0, 1.0, 3.0, 3.0, 2.5]) == expected


def test_the_loss_signal_follows_the_sign_of_the_loss() -> None:
    assert sizes("loss", [1.0, -1.0, 0.0]) == [6, 5, 4]


def test_smoothing_puts_an_exponential_mean_before_the_signal() -> None:
    window = Window(smoothing=0.5)
    means = []
    for loss in (4.0, 2.0, 3.5, 2.0):  # means 4, 3, 3.25, 2.625
        window.observe(loss)
        means.append((window.size, window.last_loss, window.mean_loss))
    assert means == [(4, 4.0, 4.0), (5, 2.0, 3.0), (4, 3.5, 3.25), (5, 2.0, 2.625)]


@pytest.mark.parametrize("signal", ["decrease", "increase", "loss"])
def test_a_loss_of_another_kind_is_not_compared_and_two_begin_anew(signal: str) -> None:
    window = Window(signal=signal, smoothing=0.5)
    window.observe(4.0)
    before = window.size, window.increases
    window.observe(1.0, alike=False)
    moved = signal == "loss"  # which compares nothing
    assert (window.size, window.increases) == (before[0] + moved, before[1] + moved)
    assert (window.last_loss, window.mean_loss, window.observations) == (1.0, 4.0, 2)
    window.observe(0.5, anew=True)
    assert window.mean_loss == 0.75
    assert window.size == before[0] + moved + (-1 if signal == "increase" else 1)


def test_smoothing_rides_over_noise_that_would_toss_the_window() -> None:
    losses = [10 - 0.1 * step + (0.3 if step % 2 else -0.3) for step in range(60)]
    assert sizes("decrease", losses)[-1] <= 6
    assert sizes("decrease", losses, smoothing=0.95)[-1] == 10


def test_the_window_stays_between_one_and_its_bound() -> None:
    assert sizes("loss", [-1.0] * 7) == [4, 3, 2, 1, 1, 1, 1]
    assert sizes("loss", [1.0] * 4, size=9, max_size=11) == [10, 11, 11, 11]
    assert sizes("loss", [1.0, -1.0], size=1, max_size=1) == [1, 1]


def test_decay_and_momentum_follow_the_size() -> None:
    assert Window(size=1).decay() == 0.0
    assert Window(size=10).decay() == pytest.approx(0.9)
    assert Window(size=10).decay(50) == Window(size=3).decay(50) == pytest.approx(0.98)
    assert Window(size=1).momentum(0.9) == pytest.approx(0.09)
    assert Window(size=10).momentum(0.9) == pytest.approx(0.9)
    assert Window(size=25, max_size=100).momentum(0.9) == pytest.approx(0.225)


def test_it_counts_what_it_saw() -> None:
    window = Window()
    for loss in (3.0, 2.0, 2.5, 1.0):
        window.observe(loss)
    assert (window.observations, window.increases, window.last_loss) == (4, 2, 1.0)


def tensor(number: float | None) -> torch.Tensor:
    return torch.tensor(math.nan if number is None else number, dtype=torch.float64)


@pytest.mark.parametrize("signal", SIGNALS)
def test_tensors_get_the_numbers_that_floats_get(signal: str) -> None:
    draw = random.Random(signal)
    for _ in range(20):
        settings = {
            "max_size": draw.choice([5, 10, 100]),
            "signal": signal,
            "smoothing": draw.choice([0.0, 0.9]),
        }
        group = {
            "momentum": draw.random(),
            "max_window": settings["max_size"],
            "maximize": draw.random() < 0.3,
            "normalize_momentum": draw.random() < 0.5,
            "second_moment_window": draw.choice([None, 500]),
            "weight_decay": 0.1,
            "eps": 1e-8,
        }
        host = Window(**settings, follows_fall=True)
        device = Window(tensor(5), **settings, follows_fall=True)
        for name in ("last_loss", "mean_loss", "quarter_loss", "slow_loss"):
            setattr(device, name, tensor(None))
        device.loss_left = tensor(1)
        device.observations, device.increases = tensor(0), tensor(0)
        share, share_there = 1.0, tensor(1)
        for _ in range(40):
            loss = draw.choice([draw.gauss(0, 1), 1.0, 0.0, -1.0])
            alike = host.mean_loss is None or draw.random() < 0.8  # the first one always is
            anew = alike and host.mean_loss is not None and draw.random() < 0.2
            host.observe(loss, alike, anew=anew)
            given = (torch.tensor(each) for each in (alike, True, anew))
            device.observe(tensor(loss), *given)
            device.observe(tensor(None), torch.tensor(True), torch.tensor(False))  # holds
            for name in (
                "size",
                "last_loss",
                "mean_loss",
                "loss_left",
                "quarter_loss",
                "slow_loss",
                "observations",
                "increases",
            ):
                assert float(getattr(device, name)) == getattr(host, name), name
            assert float(device.falling()) == host.falling()
            assert type(host.size) is type(host.observations) is type(host.increases) is int
            share = share_after(share, host.decay(group["second_moment_window"]))
            share_there = share_after(share_there, device.decay(group["second_moment_window"]))
            assert float(share_there) == share
            here = coefficients(group, host, 1e-3, share)
            there = coefficients(group, device, tensor(1e-3), share_there)
            assert list(map(float, there)) == pytest.approx(here, rel=4e-16, abs=0)


def test_what_is_left_of_the_loss_is_its_mean_over_its_highest():
    window = Window(signal="loss", smoothing=0.5, floor=1.0)
    means, mean = [], None
    for loss in (3.0, 5.0, 2.0, 2.0, 6.0, 1.5, 1.2):
        window.observe(loss)
        mean = loss if mean is None else (mean + loss) / 2
        means.append(mean)
        assert window.loss_left == pytest.approx((mean - 1) / (max(means) - 1), rel=1e-12)


def test_a_loss_that_is_not_alike_is_passed_over() -> None:
    window = Window(size=3, max_size=4, signal="loss", smoothing=0.9, follows_fall=True)
    for loss in (4.0, 2.0, 2.0):
        window.observe(loss)
    before = replace(window)
    window.observe(0.5, alike=False)  # of fewer micro-batches
    assert window == replace(before, last_loss=0.5, observations=4, increases=4)
    window.observe(1.0)
    before.observe(1.0)
    assert window == replace(before, observations=5, increases=5)


def test_what_is_left_goes_on_from_losses_that_are_alike_again() -> None:
    window = Window(signal="loss", smoothing=0.9)
    for loss in (4.0, 2.0, 2.0):
        window.observe(loss)
    left = window.loss_left
    assert 0.9 < left < 1
    window.observe(0.5, alike=False)
    window.observe(0.25, anew=True)  # as many micro-batches as the one before
    assert window.mean_loss == pytest.approx(0.475)
    assert window.loss_left == pytest.approx(left * 0.95)


def test_all_is_left_of_a_loss_that_begins_below_its_floor():
    window = Window(signal="loss", floor=1.0)
    for loss in (0.5, 0.7, 1.5):
        window.observe(loss)
        assert window.loss_left == 1
    window.observe(1.25)
    assert window.loss_left == 0.5


def test_a_falling_loss_is_below_its_slow_mean_once_the_window_is_full() -> None:
    window = Window(size=6, max_size=8, signal="loss", follows_fall=True, smoothing=0.5, floor=1.0)
    quarter = slow = None
    for step, loss in enumerate((9.0, 5.0, 4.0, 3.0, 2.0, 1.5, 4.0, 4.0, 4.0, 1.0)):
        window.observe(loss)
        quarter = loss if quarter is None else (quarter + loss) / 2
        if step == 0:  # the window is 7
            slow = quarter
        else:  # it is full: the slow mean begins from the mean before
            slow += min(0, quarter - slow) / 8
        assert (window.quarter_loss, window.slow_loss) == pytest.approx((quarter, slow), rel=1e-12)
        falling = max(0, 1 - (quarter - 1) / (slow - 1))
        assert window.falling() == pytest.approx(falling, rel=1e-12)
    assert falling > 0


def test_a_loss_that_rises_or_is_below_its_floor_does_not_fall() -> None:
    window = Window(size=2, max_size=2, signal="loss", follows_fall=True, floor=1.0)
    for loss, falling in ((0.5, 0.0), (2.0, 0.0), (3.0, 0.0), (4.0, 0.0), (1.0, 0.0)):
        window.observe(loss)
        assert window.falling() == falling, loss


def test_a_loss_that_jumps_and_comes_back_has_not_fallen() -> None:
    window = Window(size=9, max_size=9, signal="loss", follows_fall=True, smoothing=0.5)
    for loss in (2.0, 2.0, 200.0, 2.0, 2.0, 2.0, 2.0):
        window.observe(loss)
        assert window.falling() == 0
    assert window.slow_loss == 2


def test_losses_that_begin_anew_begin_the_slow_mean_anew() -> None:
    window = Window(size=4, max_size=4, signal="loss", follows_fall=True)
    for loss in (4.0, 2.0):
        window.observe(loss)
    falling = window.falling()
    assert falling > 0
    window.observe(0.5, alike=False)
    assert window.falling() == falling
    window.observe(0.5, anew=True)
    assert (window.slow_loss, window.falling()) == (0.5, 0.0)
