"""Arguments out of range: a clear error with the name and the value, before anything exists."""

import pytest
import torch

from dwmgrad import DWMGrad

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
    ({"momentum": None}, TypeError, "momentum must be a number"),
    ({"eps": -1e-8}, ValueError, "eps must be in"),
    ({"weight_decay": -0.1}, ValueError, "weight_decay must be in"),
    ({"initial_window": 0}, ValueError, "initial_window must be at least 1, got 0"),
    ({"initial_window": 5.0}, TypeError, "initial_window must be a whole number"),
    ({"initial_window": 11}, ValueError, "initial_window=11 and max_window=10"),
    ({"max_window": True}, TypeError, "max_window must be a whole number"),
    ({"max_window": "10"}, TypeError, "max_window must be a whole number"),
    ({"window_signal": "up"}, ValueError, "window_signal must be one of decrease, increase, loss"),
    ({"missing_loss": "ignore"}, ValueError, "missing_loss must be one of warn, hold, error"),
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


def test_complex_parameters_are_refused() -> None:
    with pytest.raises(TypeError, match="real parameters.*complex64.*view_as_real"):
        DWMGrad([torch.ones(2, dtype=torch.complex64, requires_grad=True)])


def test_no_parameters_at_all_are_torchs_error() -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        DWMGrad([])
