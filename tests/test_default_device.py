"""`torch.set_default_device` is the host's business: it moves no tensor of the optimizer's."""

import pytest
import torch

from dwmgrad import DWMGrad
from dwmgrad.kernels import fused


@pytest.fixture
def meta_by_default():
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(None)
    fused.is_right.cache_clear()


def train(settings: dict) -> list[torch.Tensor]:
    generator = torch.Generator("cpu").manual_seed(0)
    shape, dtype = (70, 70), settings.get("dtype", torch.float32)
    param = torch.rand(shape, generator=generator, device="cpu").to(dtype).requires_grad_()
    grads = torch.rand((4, *shape), generator=generator, device="cpu").to(dtype)
    options = {name: value for name, value in settings.items() if name != "dtype"}
    optimizer = DWMGrad([param], **options)
    for index in range(4):
        if index == 2:
            other = DWMGrad([param], **options)
            other.load_state_dict(optimizer.state_dict())
            optimizer = other
        param.grad = grads[index]
        optimizer.step(loss=1.0 / (index + 1))
    assert optimizer.state_dict()["param_groups"][0]["observations"] == 4
    return [param.detach(), *optimizer.state[param].values()]


@pytest.mark.parametrize("compiled", [True, False], ids=["native", "no library"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"fused": True},
        {"foreach": True},
        {"fused": False, "foreach": False},
        {"preset": "finetune", "state_dtype": torch.bfloat16},
        {"state_dtype": "int8"},
        {"dtype": torch.bfloat16, "stochastic_rounding": True},
        {"capturable": True},
        {"capturable": True, "state_dtype": "int8"},
    ],
    ids=str,
)
def test_a_default_device_changes_nothing(settings, compiled, meta_by_default, request) -> None:
    if not compiled:
        request.getfixturevalue("no_library")
    expected = train(settings)
    fused.is_right.cache_clear()
    meta_by_default()
    found = train(settings)
    assert {each.device.type for each in found} == {"cpu"}
    assert all(map(torch.equal, found, expected))
