"""What begins late begins gently: each parameter's mean square is corrected by its own age."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from dwmgrad import DWMGrad

LR = 1e-3
SETTINGS: dict[str, dict[str, Any]] = {
    "finetune": {"preset": "finetune"},
    "finetune, 8-bit": {"preset": "finetune", "state_dtype": "int8"},
    "finetune, on the device": {"preset": "finetune", "capturable": True},
    "finetune, loop": {"preset": "finetune", "fused": False},
    "the paper's rule, long window": {"max_window": 100},
    "the paper's rule, on the device": {"max_window": 100, "capturable": True},
}
WAYS = ("add_param_group", "unfreeze", "state.clear", "no gradient before")


class Run:
    """Two parameters, of which the second begins after `late` steps."""

    def __init__(self, way: str, late: int, size: int = 5000, **settings: Any) -> None:
        torch.manual_seed(0)
        self.way, self.late, self.at = way, late, 0
        self.params = [Parameter(torch.randn(size)) for _ in range(2)]
        first = self.params[:1] if way == "add_param_group" else self.params
        self.params[1].requires_grad_(way != "unfreeze")
        self.optimizer = DWMGrad(first, lr=LR, **settings)
        self.generator = torch.Generator().manual_seed(1)

    def step(self) -> None:
        a, b = self.params
        if self.at == self.late:
            if self.way == "add_param_group":
                self.optimizer.add_param_group({"params": [b]})
            elif self.way == "unfreeze":
                b.requires_grad_()
            elif self.way == "state.clear":
                self.optimizer.state.clear()
        self.gradient(a)
        if self.at >= self.late or self.way == "state.clear":
            self.gradient(b)
        # a loss that mostly falls, so that the window is long
        self.optimizer.step(loss=2.0 - self.at / 1000)
        self.optimizer.zero_grad()
        self.at += 1

    def gradient(self, param: Tensor) -> None:
        param.grad = torch.randn(param.shape, generator=self.generator)

    def first_moves(self, count: int = 5) -> list[float]:
        """The root mean square of the late parameter's first updates, in units of lr."""
        while self.at < self.late:
            self.step()
        found = []
        for _ in range(count):
            before = self.params[1].detach().clone()
            self.step()
            found.append(float((self.params[1].detach() - before).square().mean().sqrt()) / LR)
        return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_first_steps_of_a_late_parameter_are_about_lr(settings: str, way: str) -> None:
    if way == "no gradient before" and settings.startswith("the paper"):
        pytest.skip("the paper's rule corrects nothing for what is there from the start")
    moves = Run(way, late=200, **SETTINGS[settings]).first_moves()
    assert 0.2 < moves[0] < 1.1, moves  # `normalize_momentum` makes 0.27 of 1 at a long window
    assert max(moves) < 2.5, moves  # momentum adds up


@pytest.mark.parametrize("way", ["unfreeze", "no gradient before"])
def test_a_late_parameter_moves_as_one_that_begins_then(way: str) -> None:
    """With the preset's fixed memory, and the momentum of the same window."""
    late = Run(way, late=150, preset="finetune")
    moves = late.first_moves(20)
    fresh = Run("add_param_group", late=150, preset="finetune").first_moves(20)
    assert moves == pytest.approx(fresh, rel=0.05)


def test_a_parameter_with_a_gradient_now_and_then_is_corrected_by_its_own_steps() -> None:
    """As Adam counts: an expert of which every tenth batch makes use."""
    param, busy = Parameter(torch.zeros(100)), Parameter(torch.zeros(100))
    optimizer = DWMGrad([param, busy], lr=LR, preset="finetune")
    alone = Parameter(torch.zeros(100))
    reference = DWMGrad([alone], lr=LR, preset="finetune")
    for at in range(60):
        busy.grad = torch.ones(100)
        param.grad = torch.ones(100) if at % 10 == 9 else None
        optimizer.step(loss=1.0)
        if at % 10 == 9:
            reference.param_groups[0].update(
                {n: optimizer.param_groups[0][n] for n in ("window", "mean_loss", "last_loss")}
            )
            alone.grad = torch.ones(100)
            reference.step(loss=1.0)
    own, other = optimizer.state[param], reference.state[alone]
    assert float(own["zero_share"]) == pytest.approx(float(other["zero_share"]), rel=1e-12)
    assert float(optimizer.state[busy]["zero_share"]) < float(own["zero_share"])


@pytest.mark.parametrize("settings", ["finetune", "finetune, on the device", "finetune, 8-bit"])
def test_a_checkpoint_keeps_the_ages_and_goes_on_bit_by_bit(settings: str) -> None:
    run = Run("unfreeze", late=30, **SETTINGS[settings])
    run.first_moves(3)
    saved = copy.deepcopy((run.params, run.optimizer.state_dict()))
    other = Run("unfreeze", late=10**6, **SETTINGS[settings])
    other.params[1].requires_grad_()
    for param, value in zip(other.params, saved[0], strict=True):
        param.data.copy_(value)
    other.optimizer.load_state_dict(saved[1])
    for _ in range(5):
        for param, twin in zip(run.params, other.params, strict=True):
            run.gradient(param)
            twin.grad = param.grad.clone()
        for each in (run, other):
            each.optimizer.step(loss=1.0)
    assert all(map(torch.equal, run.params, other.params))


def test_the_device_says_the_same_as_the_host() -> None:
    for way in WAYS:
        runs = [Run(way, late=20, preset="finetune", capturable=c) for c in (False, True)]
        for _ in range(40):
            for run in runs:
                run.step()
        for a, b in zip(runs[0].params, runs[1].params, strict=True):
            torch.testing.assert_close(a, b)
        shares = [
            [float(run.optimizer.state_dict()["state"][i]["zero_share"]) for i in (0, 1)]
            for run in runs
        ]
        assert shares[0] == pytest.approx(shares[1], rel=1e-12)


def test_the_papers_rule_has_no_ages_from_the_first_step_on() -> None:
    run = Run("state.clear", late=10**6, max_window=100)
    for _ in range(3):
        run.step()
    assert [float(own["zero_share"]) for own in run.optimizer.state.values()] == [0.0, 0.0]


def test_old_parameters_become_one_cohort() -> None:
    """In the long run nothing is corrected any more, and one call of the kernel does all."""
    run = Run("unfreeze", late=50, bias_correction=True, second_moment_window=3)
    while run.at < 250:
        run.step()
    assert [float(own["zero_share"]) for own in run.optimizer.state.values()] == [0.0, 0.0]
