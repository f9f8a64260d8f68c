"""Random cases: whatever comes in, a clear error or a sound state, never both.

2,000 cases by default, 12,000 with --slow.
"""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dwmgrad import DWMGrad

pytestmark = pytest.mark.filterwarnings("ignore")
CASES = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
CLEAR = (TypeError, ValueError, RuntimeError)

odd_numbers = st.sampled_from(
    [
        0,
        0.0,
        -1,
        -0.5,
        1,
        2,
        5,
        10,
        1000,
        0.9,
        1.0,
        1e-8,
        1e-3,
        1e-45,
        1e-320,
        1e30,
        1e300,
        10**400,
        2**63,
        -(2**70),
        math.nan,
        math.inf,
        -math.inf,
        True,
        False,
        None,
        "0.9",
        "",
        "warn",
        "loss",
        [],
        [1.0],
        {},
        (),
        1j,
        b"1",
        np.float32(0.5),
        np.int64(3),
        np.nan,
        torch.tensor(0.1),
        torch.tensor([0.1, 0.2]),
        torch.tensor(math.nan),
        torch.tensor(3),
        torch.tensor(1j),
        object(),
    ]
)
numbers = st.one_of(odd_numbers, st.floats(width=32), st.integers())


OURS = ("momentum_buffer", "square_avg", "zero_share")


def params_of(sizes: tuple[int, ...] = (3, 1, 4)) -> list[torch.Tensor]:
    return [torch.linspace(-1, 1, size).requires_grad_() for size in sizes]


def snapshot(optimizer: DWMGrad) -> tuple:
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    tensors = [p.detach().clone() for p in params]
    owns = [optimizer.state.get(p, {}) for p in params]  # the rest in there is others' business
    tensors += [own[name].clone() for own in owns for name in OURS if name in own]
    return copy.deepcopy(groups), tensors


def same(one: tuple, two: tuple) -> bool:
    return repr(one[0]) == repr(two[0]) and (
        len(one[1]) == len(two[1]) and all(map(torch.equal, one[1], two[1]))
    )


def is_sound(optimizer: DWMGrad) -> bool:
    """Nothing is NaN or infinite, and all groups have one window, within its bounds."""
    groups, tensors = snapshot(optimizer)
    return (
        all(bool(tensor.isfinite().all()) for tensor in tensors)
        and len({(group["window"], group["last_loss"]) for group in groups}) == 1
        and all(1 <= group["window"] <= group["max_window"] for group in groups)
    )


def is_clear(error: Exception, names: list[str]) -> bool:
    """It has one of the names, and is not torch's or Python's own complaint."""
    return any(name in str(error) for name in names)


ARGUMENTS = [
    "lr",
    "momentum",
    "eps",
    "weight_decay",
    "initial_window",
    "max_window",
    "window_signal",
    "missing_loss",
    "maximize",
    "foreach",
    "fused",
    "loss_group",
]


@CASES
@given(st.dictionaries(st.sampled_from(ARGUMENTS), numbers, max_size=3))
def test_arguments_are_right_or_named_in_an_error(arguments: dict) -> None:
    params = params_of()
    try:
        optimizer = DWMGrad(params, **arguments)
    except CLEAR as error:
        assert is_clear(error, list(arguments)), (arguments, error)
        return
    for loss in (1.0, 0.5, 0.7):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step(loss=loss)
    if optimizer.param_groups[0]["lr"] < 1e3 and optimizer.param_groups[0]["weight_decay"] < 1e3:
        assert is_sound(optimizer)
        DWMGrad(params_of()).load_state_dict(copy.deepcopy(optimizer.state_dict()))


gradients = st.one_of(st.floats(width=32), st.sampled_from([0.0, 1e18, 1e20, math.nan, math.inf]))
routes = st.sampled_from(["loss", "observe", "closure", "none", "observe twice", "both"])


@CASES
@given(st.lists(st.tuples(routes, numbers, gradients), min_size=1, max_size=4))
def test_losses_and_gradients_move_all_or_nothing(steps: list) -> None:
    params = params_of()
    groups = [{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.1}]
    optimizer = DWMGrad(groups, lr=0.1)
    for route, loss, gradient in steps:
        for param in params:
            param.grad = torch.linspace(-1, 1, param.numel())
            param.grad[-1] = gradient
        before = snapshot(optimizer)
        try:
            if route in ("observe", "observe twice", "both"):
                optimizer.observe_loss(loss)
            if route == "observe twice":
                optimizer.observe_loss(loss)
            if route in ("loss", "both"):
                optimizer.step(loss=loss)
            elif route == "closure":
                optimizer.step(lambda loss=loss: loss)
            else:
                optimizer.step()
        except CLEAR as error:
            assert is_clear(error, ["loss"]), error
            assert same(before, snapshot(optimizer))
            optimizer.discard_loss()
        assert is_sound(optimizer)


GROUP_KEYS = [
    "lr",
    "momentum",
    "eps",
    "weight_decay",
    "initial_window",
    "max_window",
    "window",
    "window_signal",
    "missing_loss",
    "maximize",
    "foreach",
    "fused",
    "last_loss",
    "params",
    "observations",
    "increases",
    "mean_loss",
    "micro_batches",
    "mean_micro_batches",
    "passed_over",
    "loss_smoothing",
    "bias_correction",
    "normalize_momentum",
    "second_moment_window",
    "schema",
    "gamma",
]
junk = st.one_of(
    numbers,
    st.sampled_from(
        [
            torch.zeros(3),
            torch.full((3,), math.nan),
            torch.full((3,), -1.0),
            torch.zeros(10**6),
            torch.zeros(3, dtype=torch.int64),
            torch.zeros(3, dtype=torch.float16),
            [0, 1],
            [[0]],
            [0, 0],
            {"momentum_buffer": 1},
            range(2),
            {"params": [0]},
        ]
    ),
)


@st.composite
def changes(draw):
    """One change to a state dict: where it is and what comes there."""
    part = draw(st.sampled_from(["group", "buffer", "state", "groups", "key", "drop", "top"]))
    key = {
        "group": draw(st.sampled_from(GROUP_KEYS)),
        "drop": draw(st.sampled_from(GROUP_KEYS)),
        "buffer": draw(st.sampled_from([*OURS, "step"])),
        "top": draw(st.sampled_from(["state", "param_groups"])),
    }.get(part)
    return part, draw(st.integers(0, 2)), key, draw(junk)


def change(state_dict: dict, part: str, index: int, key: str, value) -> None:
    groups, state = state_dict["param_groups"], state_dict["state"]
    if not isinstance(groups, list) or not groups or not isinstance(state, dict):
        return
    if part == "top":
        state_dict[key] = value
    elif part == "groups":
        groups[index % len(groups)] = value
    elif part == "state":
        state[index] = value
    elif part == "key":
        try:
            state[value] = state.get(index)
        except TypeError:  # not hashable
            return
    elif part == "buffer" and isinstance(state.get(index), dict):
        state[index][key] = value
    elif isinstance(groups[index % len(groups)], dict):
        if part == "group":
            groups[index % len(groups)][key] = value
        elif part == "drop":
            groups[index % len(groups)].pop(key, None)


@CASES
@given(st.lists(changes(), min_size=1, max_size=3))
def test_a_state_dict_loads_soundly_or_is_refused_whole(steps: list) -> None:
    params = params_of((3, 3, 3))
    optimizer = DWMGrad([{"params": params[:2]}, {"params": params[2:]}], lr=0.1)

    def step() -> None:
        for param in params:
            param.grad = torch.linspace(-1, 1, 3)
        optimizer.step(loss=1.0)

    step()
    state_dict = copy.deepcopy(optimizer.state_dict())
    for each in steps:
        change(state_dict, *each)
    step()
    before = snapshot(optimizer)
    try:
        optimizer.load_state_dict(state_dict)
    except (TypeError, ValueError) as error:
        assert "state_dict" in str(error), error
        assert same(before, snapshot(optimizer))
        return
    settings_ = optimizer.param_groups[0]
    step()
    if settings_["lr"] < 1e3 and settings_["weight_decay"] < 1e3:
        assert is_sound(optimizer)


@CASES
@given(st.dictionaries(st.sampled_from([*ARGUMENTS[:-1], "params", "window"]), numbers, max_size=3))
def test_a_refused_group_is_not_added(group: dict) -> None:
    optimizer = DWMGrad(params_of(), lr=0.1)
    before = snapshot(optimizer)
    try:
        optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)], **group})
    except CLEAR as error:
        assert is_clear(error, [*group, "param"]), (group, error)
        assert same(before, snapshot(optimizer)) and len(optimizer.param_groups) == 1
