"""Arguments out of range: a clear error with the name and the value, before anything exists."""

import inspect
import re

import pytest
import torch

from dwmgrad import DWMGrad
from dwmgrad.arguments import ARGUMENTS
from dwmgrad.presets import PAPER, PRESETS

BAD = [
    ({"lr": -1e-3}, ValueError, "lr must be in .*-0.001"),
    ({"lr": float("nan")}, ValueError, "lr must be in .*nan"),
    ({"lr": float("inf")}, ValueError, "lr must be in .*inf"),
    ({"lr": "1e-3"}, TypeError, "lr must be a number, got '1e-3'"),
    ({"lr": True}, TypeError, "lr must be a number"),
    ({"lr": torch.ones(2)}, ValueError, "lr must be a number or a 0-dim"),
    ({"lr": torch.tensor(-1.0)}, ValueError, "lr must be in"),
    ({"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\), got 1.0"),
    ({"momentum": -0.1}, ValueError, "momentum must be in"),
    ({"momentum": "0.9"}, TypeError, "momentum must be a number"),
    ({"eps": -1e-8}, ValueError, "eps must be in"),
    ({"weight_decay": -0.1}, ValueError, "weight_decay must be in"),
    ({"initial_window": 0}, ValueError, "initial_window must be at least 1, got 0"),
    ({"initial_window": 5.0}, TypeError, "initial_window must be a whole number"),
    ({"initial_window": 11}, ValueError, "initial_window=11 and max_window=10"),
    ({"max_window": True}, TypeError, "max_window must be a whole number"),
    ({"max_window": "10"}, TypeError, "max_window must be a whole number"),
    ({"window_signal": "up"}, ValueError, "window_signal must be one of decrease, increase, loss"),
    ({"missing_loss": "ignore"}, ValueError, "missing_loss must be one of warn, hold, error"),
    ({"loss_smoothing": 1.0}, ValueError, r"loss_smoothing must be in \[0, 1\), got 1.0"),
    ({"loss_smoothing": "0.9"}, TypeError, "loss_smoothing must be a number, got '0.9'"),
    ({"second_moment_window": 0}, ValueError, "second_moment_window must be at least 1, got 0"),
    ({"second_moment_window": 2.5}, TypeError, "second_moment_window must be a whole number"),
    ({"bias_correction": 1}, TypeError, "bias_correction must be True or False, got 1"),
    ({"normalize_momentum": "yes"}, TypeError, "normalize_momentum must be True or False"),
    (
        {"preset": "finetun"},
        ValueError,
        "preset must be None or one of finetune, capped, auto; got 'finetun'",
    ),
    ({"preset": 1}, ValueError, "preset must be None or one of finetune, capped, auto; got 1"),
    ({"maximize": 1}, TypeError, "maximize must be True or False"),
    ({"fused": "yes"}, TypeError, "fused must be True, False or None"),
    ({"foreach": True, "fused": True}, ValueError, "exclude each other"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=lambda value: str(value)[:40])
def test_an_argument_out_of_range_is_named(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        DWMGrad([torch.ones(2, requires_grad=True)], **arguments)


@pytest.mark.parametrize(("arguments", "error", "message"), BAD[:12], ids=lambda v: str(v)[:40])
def test_a_group_is_checked_as_the_constructor_is(arguments, error, message) -> None:
    optimizer = DWMGrad([torch.ones(2, requires_grad=True)])
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)], **arguments})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", ["initial_window", "max_window"])
def test_a_group_cannot_have_a_window_of_its_own(name: str) -> None:
    param = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=f"{name} is one for the whole optimizer"):
        DWMGrad([{"params": [param], name: 7}])
    DWMGrad([{"params": [param], name: 7}], **{name: 7})


def test_a_group_cannot_have_a_preset_of_its_own() -> None:
    group = {"params": [torch.ones(2, requires_grad=True)], "preset": "finetune"}
    for other in (None, "auto"):
        message = f"preset is one for the whole optimizer: it is {other!r} and .* 'finetune'"
        with pytest.raises(ValueError, match=message):
            DWMGrad([group], preset=other)
    optimizer = DWMGrad([group], preset="finetune")
    assert "preset" in group and "preset" not in optimizer.param_groups[0]


def test_wrappers_may_put_all_that_it_takes_into_the_groups() -> None:
    """As the usual SAM does, and torch's ZeroRedundancyOptimizer."""

    class Wrapper(torch.optim.Optimizer):
        def __init__(self, params: list, **settings: object) -> None:
            super().__init__(params, {"rho": 0.05, **settings})
            self.base = DWMGrad(self.param_groups, **settings)

    wrapper = Wrapper([torch.ones(2, requires_grad=True)], lr=2e-5, preset="finetune")
    group = wrapper.base.param_groups[0]
    assert (group["lr"], group["max_window"], group["rho"]) == (2e-5, 100, 0.05)


def test_without_a_preset_the_rule_is_the_papers() -> None:
    group = DWMGrad([torch.ones(2, requires_grad=True)]).param_groups[0]
    assert {name: group[name] for name in PAPER} == PAPER
    assert (group["initial_window"], group["max_window"]) == (5, 10)


def test_a_preset_fills_what_is_not_given_and_no_more() -> None:
    param = torch.ones(2, requires_grad=True)
    chosen = {**PAPER, **PRESETS["finetune"]}
    group = DWMGrad([param], preset="finetune").param_groups[0]
    assert {name: group[name] for name in PAPER} == chosen
    given = {"max_window": 10, "bias_correction": False, "loss_smoothing": 0.0}
    group = DWMGrad([param], preset="finetune", **given).param_groups[0]
    assert {name: group[name] for name in PAPER} == {**chosen, **given}


def test_complex_parameters_are_refused() -> None:
    with pytest.raises(TypeError, match="real parameters.*complex64.*view_as_real"):
        DWMGrad([torch.ones(2, dtype=torch.complex64, requires_grad=True)])


def test_no_parameters_at_all_are_torchs_error() -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        DWMGrad([])


@pytest.mark.parametrize(
    ("given", "initial"),
    [
        ({}, 5),
        ({"max_window": 3}, 3),
        ({"max_window": 1}, 1),
        ({"max_window": 5}, 5),
        ({"max_window": 3, "preset": "finetune"}, 3),
        ({"max_window": 3, "initial_window": 2}, 2),
        ({"preset": "finetune"}, 5),
    ],
    ids=str,
)
def test_an_initial_window_that_is_not_given_fits_max_window(given: dict, initial: int) -> None:
    optimizer = DWMGrad([torch.zeros(1, requires_grad=True)], **given)
    assert optimizer.window == optimizer.param_groups[0]["initial_window"] == initial


@pytest.mark.parametrize("max_window", [0, -1, True, 2.5, "3"])
def test_a_wrong_max_window_is_what_is_named(max_window) -> None:
    with pytest.raises((TypeError, ValueError), match="^max_window must be"):
        DWMGrad([torch.zeros(1, requires_grad=True)], max_window=max_window)


def test_the_table_is_the_signature_and_the_docstring() -> None:
    parameters = {
        name: each.default
        for name, each in inspect.signature(DWMGrad).parameters.items()
        if name != "params"
    }
    # None stands for what a preset may set
    table = {name: None if name in PAPER else each.default for name, each in ARGUMENTS.items()}
    assert list(parameters.items()) == list(table.items())
    assert {name: ARGUMENTS[name].default for name in PAPER} == PAPER
    described = re.findall(
        r"^        (\w+): ", inspect.getdoc(DWMGrad).replace("\n    ", "\n        "), re.M
    )
    assert described == ["params", *ARGUMENTS]
    assert all(set(preset) <= set(PAPER) for preset in PRESETS.values())


def test_every_setting_but_the_ranks_has_a_place_in_a_group() -> None:
    group = DWMGrad([torch.ones(2, requires_grad=True)]).param_groups[0]
    assert set(ARGUMENTS) - set(group) == {"preset", "loss_group"}


@pytest.mark.parametrize(
    ("name", "words"),
    [("second_moment_window", "a whole number"), ("loss_limit", "a number"), ("eps", "a number")],
)
def test_a_text_that_is_no_number_says_what_it_may_be(name: str, words: str) -> None:
    """None among them: with a preset, that would be the preset's value."""
    kind = ARGUMENTS[name].kind
    for text in ("None", "many"):
        with pytest.raises(ValueError, match=f"^{words}$"):
            assert kind is not None and kind.parse(text)
