"""The checks that torch runs on each of its own optimizers, on DWMGrad.

torch ships their machinery, `torch.testing._internal.common_optimizers`, but not the test bodies
(`test/test_optim.py` in its repository), so these are written after them, under their names, over
an `OptimizerInfo` of DWMGrad. Every step has a loss, because DWMGrad needs one.

Not here, because there is nothing of theirs to run on DWMGrad: `capturable`, `differentiable` and
sparse gradients (not supported), `grad_scale` and `found_inf` handed to a fused step (a gradient
scaler unscales before ours), `load_nontensor_step` (no `step` in our state),
`can_load_older_state_dict` (there is no older release), and what needs CUDA.
"""

import functools
import io
import itertools
import warnings
from copy import deepcopy

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import lr_scheduler as sched
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from dwmgrad import DWMGrad

pytest.importorskip("expecttest")  # which torch.testing needs
pytestmark = pytest.mark.ecosystem

OF_ALL_GROUPS = ("initial_window", "max_window", "window_signal")


@pytest.fixture(scope="module")
def common():
    """torch's machinery: ten seconds to import, and it freezes the flags of torch.backends."""
    backends = torch.backends.disable_global_flags.__globals__
    name = "__allow_nonbracketed_mutation_flag"
    before = backends[name]
    from torch.testing._internal import common_optimizers

    yield common_optimizers
    backends[name] = before


@pytest.fixture(scope="module")
def equal(common):
    """torch's assertEqual: tolerances by dtype, and into dicts and lists of anything."""
    from torch.testing._internal.common_utils import TestCase

    return TestCase().assertEqual


@pytest.fixture(scope="module")
def info(common):
    def inputs(device, dtype=None):
        return [
            common.OptimizerInput(params=None, kwargs=kwargs, desc=", ".join(kwargs) or "default")
            for kwargs in (
                {},
                {"lr": 1e-2},
                {"lr": torch.tensor(0.001)},
                {"weight_decay": 0.1},
                {"weight_decay": 0.1, "maximize": True},
                {"momentum": 0.0},
                {"momentum": 0.5, "eps": 1e-4},
                {"maximize": True},
                {"max_window": 100, "initial_window": 1},
                {"max_window": 1, "initial_window": 1},
                {"window_signal": "increase", "weight_decay": 0.1},
                {"window_signal": "loss", "lr": torch.tensor(0.001)},
            )
        ]

    def error_inputs(device, dtype):
        def wrong(message, error=ValueError, params=None, **kwargs):
            return common.ErrorOptimizerInput(
                common.OptimizerInput(params=params, kwargs=kwargs),
                error_type=error,
                error_regex=message,
            )

        def is_tensor_lr(error_input):  # ours refuses it too, in other words
            return "Tensor lr" in error_input.error_regex

        general = common.get_error_inputs_for_all_optims(device, dtype)
        assert sum(map(is_tensor_lr, general)) <= 1
        complex_params = [torch.randn(2, 3, dtype=torch.complex64)]
        return [
            *(error_input for error_input in general if not is_tensor_lr(error_input)),
            wrong("lr must be a number or a 0-dim real tensor", lr=torch.tensor([1e-3, 1e-3])),
            wrong(r"lr must be in \[0, inf\), got -0.01", lr=-1e-2),
            wrong(r"momentum must be in \[0, 1\), got -1.0", momentum=-1.0),
            wrong(r"eps must be in \[0, inf\), got -1", eps=-1),
            wrong(r"weight_decay must be in \[0, inf\), got -1", weight_decay=-1),
            wrong("max_window must be at least 1, got 0", max_window=0),
            wrong("foreach=True and fused=True exclude", foreach=True, fused=True),
            wrong("takes real parameters, got torch.complex64", TypeError, params=complex_params),
        ]

    schedulers = (
        [lambda opt: sched.StepLR(opt, gamma=0.9, step_size=10)],
        [lambda opt: sched.LinearLR(opt, start_factor=0.4, total_iters=4)],
        [lambda opt: sched.ReduceLROnPlateau(opt)],
        [
            lambda opt: sched.StepLR(opt, gamma=0.9, step_size=10),
            lambda opt: sched.LinearLR(opt, start_factor=0.4, total_iters=4),
        ],
        [
            lambda opt: sched.StepLR(opt, gamma=0.99, step_size=10),
            lambda opt: sched.ExponentialLR(opt, gamma=0.99),
            lambda opt: sched.ReduceLROnPlateau(opt),
        ],
    )
    return common.OptimizerInfo(
        DWMGrad,
        optim_inputs_func=inputs,
        optim_error_inputs_func=error_inputs,
        scheduler_inputs=schedulers,
        supported_impls=("foreach", "fused"),
        not_og_supported_flags=(),
        supports_sparse=False,
        supports_complex=False,
        step_requires_closure=True,
        supports_fused_on=("cpu", "cuda"),
    )


@pytest.fixture
def every_input(common, info):
    """The keywords of each input three times: with neither implementation and with each."""

    def make() -> list[dict]:
        found = common._get_optim_inputs_including_global_cliquey_kwargs("cpu", torch.float32, info)
        plain = info.optim_inputs_func("cpu")
        assert len(found) == 2 * len(plain)
        # torch leaves foreach out on the CPU; ours runs there when it is asked for
        foreach = [{**optim_input.kwargs, "foreach": True} for optim_input in plain]
        return [optim_input.kwargs for optim_input in found] + foreach

    return make


def problem(contiguous: bool = True, dtype=torch.float32) -> tuple[Parameter, Parameter, Tensor]:
    if contiguous:
        weight, bias = torch.randn(10, 5, dtype=dtype), torch.randn(10, dtype=dtype)
    else:
        weight = torch.randn(10, 5, 2, dtype=dtype)[..., 0]
        bias = torch.randn(10, 2, dtype=dtype)[..., 0]
    return Parameter(weight), Parameter(bias), torch.randn(5, dtype=dtype)


def loss_of(optimizer, weight, bias, inputs) -> Tensor:
    """The closure of torch's tests."""
    optimizer.zero_grad()
    loss = (weight.mv(inputs) + bias).pow(2).sum()
    loss.backward()
    return loss


def copy_of(*params: Parameter) -> list[Parameter]:
    return [Parameter(p.detach().clone()) for p in params]


def goes_right(kwargs: dict, before: float, after: float) -> bool:
    return after > before if kwargs.get("maximize") else after < before


def test_optim_infos_do_not_specify_global_cliquey_kwds(info) -> None:
    for optim_input in info.optim_inputs_func("cpu"):
        assert not {"foreach", "fused", "differentiable"} & set(optim_input.kwargs)


def test_errors(common, info) -> None:
    error_inputs = info.optim_error_inputs_func("cpu", torch.float32)
    assert len(error_inputs) >= 12
    for error_input in error_inputs:
        assert error_input.error_on == common.OptimizerErrorEnum.CONSTRUCTION_ERROR
        params = error_input.optimizer_error_input.params
        if params is None:
            params = [Parameter(torch.randn(2))]
        expect = pytest.warns if issubclass(error_input.error_type, Warning) else pytest.raises
        with expect(error_input.error_type, match=error_input.error_regex):
            DWMGrad(params, **error_input.optimizer_error_input.kwargs)


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("with_lrsched", [True, False])
def test_forloop_goes_right_direction(info, contiguous: bool, with_lrsched: bool) -> None:
    for constructors in info.scheduler_inputs if with_lrsched else [[]]:
        for optim_input in info.optim_inputs_func("cpu"):
            kwargs = {**optim_input.kwargs, "foreach": False, "fused": False}
            weight, bias, inputs = problem(contiguous)
            optimizer = DWMGrad([weight, bias], **kwargs)
            schedulers = [constructor(optimizer) for constructor in constructors]
            closure = functools.partial(loss_of, optimizer, weight, bias, inputs)
            before = closure().item()
            for _ in range(20):
                loss = optimizer.step(closure)
                for scheduler in schedulers:
                    on_plateau = isinstance(scheduler, sched.ReduceLROnPlateau)
                    scheduler.step(*([loss.detach()] if on_plateau else []))
            assert goes_right(kwargs, before, closure().item()), kwargs


@pytest.mark.parametrize("with_lrsched", [True, False])
def test_param_groups_lr(info, every_input, with_lrsched: bool) -> None:
    for constructors in info.scheduler_inputs if with_lrsched else [[]]:
        plain = (optim_input.kwargs for optim_input in info.optim_inputs_func("cpu"))
        for kwargs in plain if with_lrsched else every_input():
            kwargs.setdefault("lr", 1e-3)
            common_kwargs = {k: kwargs.pop(k) for k in OF_ALL_GROUPS if k in kwargs}
            weight, bias, inputs = problem()
            irrelevant = Parameter(torch.randn(2))
            irrelevant_before = irrelevant.detach().clone()
            groups = [{"params": [weight, bias], **kwargs}, {"params": [irrelevant]}]
            optimizer = DWMGrad(groups, lr=1e-28, **common_kwargs)
            schedulers = [constructor(optimizer) for constructor in constructors]
            before = loss_of(optimizer, weight, bias, inputs).item()
            for _ in range(20):
                loss = loss_of(optimizer, weight, bias, inputs)
                irrelevant.grad = torch.rand_like(irrelevant)
                optimizer.step(loss=loss)
                for scheduler in schedulers:
                    on_plateau = isinstance(scheduler, sched.ReduceLROnPlateau)
                    scheduler.step(*([loss.detach()] if on_plateau else []))
            assert goes_right(kwargs, before, loss.item()), kwargs
            assert torch.equal(irrelevant, irrelevant_before)


def test_param_groups_weight_decay(every_input, equal) -> None:
    for kwargs in every_input():
        if not kwargs.get("weight_decay"):
            continue
        common_kwargs = {k: kwargs.pop(k) for k in OF_ALL_GROUPS if k in kwargs}
        weight, bias, inputs = problem()
        groups = [{"params": [weight], **kwargs}, {"params": [bias], **kwargs, "weight_decay": 0.0}]
        optimizer = DWMGrad(groups, **common_kwargs)
        before = loss_of(optimizer, weight, bias, inputs).item()
        for _ in range(20):
            loss = loss_of(optimizer, weight, bias, inputs)
            optimizer.step(loss=loss)
        assert goes_right(kwargs, before, loss.item()), kwargs
        # and what it does is lr * weight_decay, on one of the two alone
        weight.grad, bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
        for state in optimizer.state.values():
            state["momentum_buffer"].zero_()
        shrunk = weight.detach() * (1 - 1e-3 * 0.1)
        kept = bias.detach().clone()
        optimizer.step(loss=0.0)
        equal(weight, shrunk)
        assert torch.equal(bias, kept)


def test_tensor_lr(every_input, equal) -> None:
    for kwargs in every_input():
        weight, bias, inputs = problem()
        weight_c, bias_c = copy_of(weight, bias)
        kwargs.pop("lr", None)
        optimizer_r = DWMGrad([weight, bias], lr=1e-3, **kwargs)
        optimizer = DWMGrad([weight_c, bias_c], lr=torch.tensor(1e-3), **kwargs)
        for _ in range(5):
            optimizer_r.step(functools.partial(loss_of, optimizer_r, weight, bias, inputs))
            optimizer.step(functools.partial(loss_of, optimizer, weight_c, bias_c, inputs))
            equal(weight, weight_c)
            equal(bias, bias_c)


@pytest.mark.parametrize("num_dim", [1, 2])
def test_a_tensor_lr_with_dimensions_is_refused_though_torch_takes_it(num_dim: int) -> None:
    lr = torch.tensor(1e-3).reshape([1] * num_dim)
    torch.optim.AdamW([Parameter(torch.randn(2))], lr=lr)
    with pytest.raises(ValueError, match="lr must be a number or a 0-dim real tensor"):
        DWMGrad([Parameter(torch.randn(2))], lr=lr)


def derived(info, equal, flag: str, dtype: torch.dtype, **tolerances) -> None:
    """The steps with `flag` against those of the plain loop: parameters, state and window."""
    for optim_input in info.optim_inputs_func("cpu", dtype):
        runs = []
        for value in (False, True):
            implementation = {"foreach": False, "fused": False, flag: value}
            torch.manual_seed(1)
            model = torch.nn.Sequential(
                torch.nn.Linear(2, 3), torch.nn.Sigmoid(), torch.nn.Linear(3, 1), torch.nn.Sigmoid()
            ).to(dtype)
            inputs = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], dtype=dtype).reshape(3, 2)
            zero_dim = torch.rand((), dtype=dtype).requires_grad_()
            empty = torch.empty(0, 3, dtype=dtype, requires_grad=True)
            zero_dim.grad, empty.grad = torch.rand_like(zero_dim), torch.rand_like(empty)
            params = [*model.parameters(), zero_dim, empty]
            optimizer = DWMGrad(params, **{**optim_input.kwargs, **implementation})
            windows = []
            for step in range(7):
                optimizer.zero_grad()
                loss = 0.0
                if step != 3:  # where all gradients are None
                    loss = model(inputs).sum().float() + (step % 2)  # so that the window moves
                    loss.backward()
                optimizer.step(loss=loss)
                windows.append(optimizer.window)
            runs.append((params, [optimizer.state[p] for p in params], windows))
        (plain, plain_state, plain_windows), (fast, fast_state, fast_windows) = runs
        assert plain_windows == fast_windows
        equal(plain, fast, **tolerances)
        equal(plain_state, fast_state, **tolerances)


REDUCED = {"rtol": 1e-2, "atol": 1e-2}


@pytest.mark.parametrize("flag", ["foreach", "fused"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_foreach_and_fused_match_forloop(info, equal, flag: str, dtype: torch.dtype) -> None:
    derived(info, equal, flag, dtype, **(REDUCED if dtype.itemsize == 2 else {}))


@pytest.mark.parametrize("flag", ["foreach", "fused"])
def test_set_default_dtype_works_with(info, equal, flag: str) -> None:
    before = torch.get_default_dtype()
    try:
        for default in (torch.float64, torch.float16):
            torch.set_default_dtype(default)
            derived(info, equal, flag, torch.float32)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("flag", ["foreach", "fused"])
@pytest.mark.parametrize("sizes", [[2**22 + 3], [5] * 2000], ids=["large tensor", "many params"])
def test_foreach_and_fused_match_forloop_at_size(equal, flag: str, sizes: list[int]) -> None:
    start = [torch.randn(size) for size in sizes]
    grads = [[torch.randn(size) for size in sizes] for _ in range(2)]
    results = []
    for value in (False, True):
        params = [Parameter(p.clone()) for p in start]
        implementation = {"foreach": False, "fused": False, flag: value}
        optimizer = DWMGrad(params, lr=1e-2, weight_decay=0.1, **implementation)
        for step in range(2):
            for param, grad in zip(params, grads[step], strict=True):
                param.grad = grad.clone()
            optimizer.step(loss=1.0 - step)
        results.append([p.detach() for p in params])
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(plain, fast)


@pytest.mark.parametrize("flag", ["foreach", "fused"])
def test_mixed_device_dtype(equal, flag: str) -> None:
    """Parameters of all dtypes in one group. (The other device is for a machine that has one.)"""
    dtypes = [torch.float32, torch.float16, torch.bfloat16, torch.float64] * 2
    start = [torch.rand(2, 3, dtype=dtype) for dtype in dtypes]
    grads = [torch.rand(2, 3).to(dtype) for dtype in dtypes]
    results = []
    for value in (False, True):
        params = [Parameter(p.clone()) for p in start]
        implementation = {"foreach": False, "fused": False, flag: value}
        optimizer = DWMGrad(params, lr=1e-2, weight_decay=0.1, **implementation)
        for step in range(4):
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad.clone()
            optimizer.step(loss=step % 2)
        results.append(params)
        for p in params:  # torch's own keep float16 state, whose squares underflow
            kept = torch.float32 if p.dtype == torch.float16 else p.dtype
            assert optimizer.state[p]["square_avg"].dtype == kept
    for plain, fast in zip(*results, strict=True):
        equal(plain, fast, **(REDUCED if plain.dtype.itemsize == 2 else {}))


def test_step_is_noop_when_params_have_no_grad(every_input) -> None:
    for kwargs in every_input():
        params = [torch.randn(2, 3, requires_grad=True) for _ in range(2)]
        before = [p.detach().clone() for p in params]
        optimizer = DWMGrad(params, **kwargs)
        for loss in (1, 2):
            optimizer.step(lambda loss=loss: torch.tensor([loss]))
        assert all(map(torch.equal, params, before))


def test_step_is_noop_for_zero_grads(every_input) -> None:
    for kwargs in every_input():
        if kwargs.get("weight_decay"):
            continue  # decoupled: it shrinks the parameters whatever their gradients
        param = torch.randn(5, 1, requires_grad=True)
        before = param.detach().clone()
        optimizer = DWMGrad([param], **kwargs)
        for loss in (1, 2):  # not after a gradient that was not zero: its momentum would go on
            param.grad = torch.zeros_like(param)
            optimizer.step(lambda loss=loss: torch.tensor([loss]))
        assert torch.equal(param, before)


def test_optimizer_can_be_printed(every_input) -> None:
    for kwargs in every_input():
        optimizer = DWMGrad([Parameter(torch.randn(2))], **kwargs)
        assert f"{optimizer!r}".startswith("DWMGrad (\nParameter Group 0\n")


def named(params: list[Parameter], is_named: bool) -> list:
    return list(zip(["weight", "bias"], params, strict=True)) if is_named else params


@pytest.mark.parametrize(("named0", "named1"), itertools.product([False, True], repeat=2))
def test_state_dict_deterministic_and_from_to_named(
    every_input, equal, named0: bool, named1: bool
) -> None:
    for kwargs in every_input():
        weight, bias, inputs = problem()
        optimizer = DWMGrad(named([weight, bias], named0), **kwargs)
        closure = functools.partial(loss_of, optimizer, weight, bias, inputs)
        for _ in range(10):
            optimizer.step(closure)
        weight_c, bias_c = copy_of(weight, bias)
        optimizer_c = DWMGrad(named([weight_c, bias_c], named1), **kwargs)
        closure_c = functools.partial(loss_of, optimizer_c, weight_c, bias_c, inputs)
        state_dict = deepcopy(optimizer.state_dict())
        optimizer_c.load_state_dict(state_dict)
        equal(state_dict, optimizer.state_dict())
        for _ in range(10):
            optimizer.step(closure)
            optimizer_c.step(closure_c)
            assert torch.equal(weight, weight_c) and torch.equal(bias, bias_c)
        if named0 == named1:
            equal(optimizer.state_dict(), optimizer_c.state_dict())
        group = optimizer_c.state_dict()["param_groups"][0]
        assert group.get("param_names") == (["weight", "bias"] if named0 or named1 else None)
        # repeated parameters are represented identically
        optimizer_c.param_groups.extend(optimizer_c.param_groups)
        if named0 == named1:
            equal(
                optimizer.state_dict()["param_groups"][-1],
                optimizer_c.state_dict()["param_groups"][-1],
            )


def test_save_load_equality_with_weights_only(every_input, equal) -> None:
    for kwargs in every_input():
        weight, bias, inputs = problem()
        optimizer = DWMGrad([weight, bias], **kwargs)
        for _ in range(3):
            optimizer.step(functools.partial(loss_of, optimizer, weight, bias, inputs))
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True, map_location="cpu")
        equal(optimizer.state_dict(), loaded)
        DWMGrad(copy_of(weight, bias), **kwargs).load_state_dict(loaded)


def test_step_hooks(info) -> None:
    for optim_input in info.optim_inputs_func("cpu"):
        optimizer = DWMGrad([torch.tensor([[1.0, 1.0]])], **optim_input.kwargs)
        seen = []

        def pre_hook(opt, args, kwargs, seen=seen, own=optimizer):
            assert opt is own
            seen.append("pre")

        def post_hook(opt, args, kwargs, seen=seen):
            seen.append("post")

        handles = [
            optimizer.register_step_pre_hook(pre_hook),
            optimizer.register_step_post_hook(post_hook),
        ]
        optimizer.step(lambda: 1)
        optimizer.step(lambda: 1)
        assert seen == ["pre", "post"] * 2
        for handle in handles:
            handle.remove()
        optimizer.step(lambda: 1)
        assert len(seen) == 4


def test_step_all_hooks() -> None:
    optimizer = DWMGrad([torch.tensor([[1.0, 1.0]])])
    seen = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: seen.append(0)),
        register_optimizer_step_post_hook(lambda *_: seen.append(5)),
        optimizer.register_step_pre_hook(lambda *_: seen.append(1)),
        optimizer.register_step_pre_hook(lambda *_: seen.append(2)),
        optimizer.register_step_post_hook(lambda *_: seen.append(1)),
        optimizer.register_step_post_hook(lambda *_: seen.append(2)),
    ]
    try:
        optimizer.step(lambda: 1)
        assert seen == [0, 1, 2, 1, 2, 5]
    finally:
        for handle in handles:
            handle.remove()
    optimizer.step(lambda: 1)
    assert len(seen) == 6


def test_a_step_pre_hook_may_bring_the_loss() -> None:
    """torch lets a pre-hook replace the arguments of step()."""
    optimizer = DWMGrad([torch.tensor([[1.0, 1.0]])], missing_loss="error")
    optimizer.register_step_pre_hook(lambda _, args, kwargs: (args, {**kwargs, "loss": 0.5}))
    optimizer.step()
    assert optimizer.last_loss == 0.5


def state_dict_pre_hook(optimizer) -> None:
    optimizer.state["test"] = 1


def state_dict_post_hook(optimizer, state_dict) -> dict:
    state_dict["ran_state_dict_pre_hook"] = state_dict["state"].pop("test", 0) == 1
    return state_dict


def test_state_dict_hooks(info) -> None:
    for optim_input in info.optim_inputs_func("cpu"):
        params = [torch.rand(2, 3, requires_grad=True)]
        optimizer = DWMGrad(params, **optim_input.kwargs)
        post = optimizer.register_state_dict_post_hook(state_dict_post_hook)
        assert optimizer.state_dict()["ran_state_dict_pre_hook"] is False
        pre = optimizer.register_state_dict_pre_hook(state_dict_pre_hook)
        assert optimizer.state_dict()["ran_state_dict_pre_hook"] is True
        post.remove()
        assert optimizer.state_dict()["state"]["test"] == 1
        pre.remove()


def load_pre_hook1(optimizer, state_dict) -> None:
    state_dict["param_groups"][0]["lr"] = 0.002


def load_pre_hook2(optimizer, state_dict) -> dict:
    state_dict = deepcopy(state_dict)
    state_dict["param_groups"][0]["lr"] = 0.003
    return state_dict


def load_post_hook(optimizer) -> None:
    lr = float(optimizer.param_groups[0]["lr"])
    optimizer.state["ran_load_state_dict_pre_hook2"] = lr == 0.003
    optimizer.state["ran_load_state_dict_post_hook"] = True


def test_load_state_dict_hooks(info) -> None:
    for optim_input in info.optim_inputs_func("cpu"):
        params = [torch.rand(2, 3, requires_grad=True)]
        optimizer = DWMGrad(params, **optim_input.kwargs)
        state_dict = optimizer.state_dict()
        optimizer.register_load_state_dict_pre_hook(load_pre_hook1)
        optimizer.load_state_dict(state_dict)
        assert optimizer.param_groups[0]["lr"] == 0.002
        # prepended, it runs first, and the other one has the last word
        optimizer.register_load_state_dict_pre_hook(load_pre_hook2, prepend=True)
        optimizer.load_state_dict(state_dict)
        assert optimizer.param_groups[0]["lr"] == 0.002

        optimizer = DWMGrad(params, **optim_input.kwargs)
        optimizer.register_load_state_dict_post_hook(load_post_hook)
        optimizer.load_state_dict(optimizer.state_dict())
        assert optimizer.state["ran_load_state_dict_pre_hook2"] is False
        assert optimizer.state["ran_load_state_dict_post_hook"] is True
        optimizer.state.clear()
        optimizer.register_load_state_dict_pre_hook(load_pre_hook2)
        optimizer.load_state_dict(optimizer.state_dict())
        assert optimizer.state["ran_load_state_dict_pre_hook2"] is True


def test_a_load_state_dict_pre_hook_may_adapt_what_does_not_fit(equal) -> None:
    """What these hooks are for: torch's documentation adapts another model's state by name."""
    old = torch.nn.Linear(2, 2)
    optimizer = DWMGrad(old.named_parameters())
    old(torch.randn(1, 2)).sum().backward()
    optimizer.step(loss=1.0)

    new = torch.nn.ModuleDict({"bypass": torch.nn.Linear(2, 1), "old": deepcopy(old)})
    later = DWMGrad(new.named_parameters())

    def adapt(optimizer, state_dict) -> dict:
        [current] = optimizer.param_groups
        [saved] = state_dict["param_groups"]
        key_of = dict(zip(saved["param_names"], saved["params"], strict=True))
        state, group = {}, {**saved, "params": list(range(len(current["params"])))}
        for key, name in enumerate(current["param_names"]):
            if name.startswith("old."):
                state[key] = state_dict["state"][key_of[name.removeprefix("old.")]]
            else:
                zeros = torch.zeros_like(current["params"][key])
                state[key] = {"momentum_buffer": zeros, "square_avg": zeros.clone()}
        return {"state": state, "param_groups": [group]}

    later.register_load_state_dict_pre_hook(adapt)
    later.load_state_dict(optimizer.state_dict())
    assert later.window == optimizer.window == 4
    equal(later.state[new["old"].weight], optimizer.state[old.weight])


def test_what_a_load_state_dict_pre_hook_has_spoilt_is_refused() -> None:
    optimizer = DWMGrad([torch.ones(2, requires_grad=True)])

    def spoil(optimizer, state_dict) -> dict:
        return {**state_dict, "param_groups": [{**state_dict["param_groups"][0], "window": 0}]}

    optimizer.register_load_state_dict_pre_hook(spoil)
    with pytest.raises(ValueError, match="window must be at least 1"):
        optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.window == 5


def test_a_refused_state_dict_leaves_no_hook_behind() -> None:
    optimizer = DWMGrad([torch.ones(2, requires_grad=True)])
    before = len(optimizer._optimizer_load_state_dict_pre_hooks)
    with pytest.raises(ValueError):
        optimizer.load_state_dict({"state": {}, "param_groups": []})
    optimizer.load_state_dict(optimizer.state_dict())
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == before


def test_non_empty_state(every_input) -> None:
    for kwargs in every_input():
        model = torch.nn.Linear(5, 5)
        optimizer = DWMGrad(model.parameters(), **kwargs)
        model(torch.rand(5, 5)).sum().backward()
        optimizer.step(lambda: 1)
        keys = {"momentum_buffer", "square_avg", "zero_share"}
        assert [set(state) for state in optimizer.state.values()] == [keys] * 2


def test_deepcopy_copies_all_public_attrs(every_input, equal) -> None:
    def public(thing) -> set[str]:
        return {name for name in vars(thing) if not name.startswith("_")}

    for kwargs in every_input():
        params = [Parameter(torch.randn(2, 3)) for _ in range(2)]
        for param in params:
            param.grad = torch.rand_like(param)
        optimizer = DWMGrad(params, **kwargs)
        for loss in (3, 1, 2):
            optimizer.step(lambda loss=loss: loss)
        copied = deepcopy(optimizer)
        assert public(copied) == public(optimizer)
        equal(copied.state_dict(), optimizer.state_dict())
        # the copy has parameters of its own, without their gradients, and goes on alone
        others = copied.param_groups[0]["params"]
        for mine, other in zip(params, others, strict=True):
            assert mine is not other
            other.grad = mine.grad.clone()
        optimizer.step(lambda: 0.5)
        copied.step(lambda: 0.5)
        assert all(map(torch.equal, params, others))


def test_cpu_load_state_dict(info, equal) -> None:
    for optim_input in info.optim_inputs_func("cpu"):
        param = Parameter(torch.randn(2, 3))
        optimizer = DWMGrad([param], **optim_input.kwargs)
        param.grad = torch.rand_like(param)
        optimizer.step(lambda: 1)
        state_dict = deepcopy(optimizer.state_dict())
        before = deepcopy(state_dict)
        optimizer.load_state_dict(state_dict)
        equal(state_dict, before)
        assert all(
            tensor.device.type == "cpu" and tensor.dtype == torch.float32
            for tensor in optimizer.state[param].values()
            if tensor.dim()
        )


def test_a_closure_is_called_once_with_gradients_enabled(every_input) -> None:
    for kwargs in every_input():
        weight, bias, inputs = problem()
        optimizer = DWMGrad([weight, bias], **kwargs)
        calls = []

        def closure(calls=calls, optimizer=optimizer, all_of=(weight, bias, inputs)):
            calls.append(torch.is_grad_enabled())
            return loss_of(optimizer, *all_of)

        with torch.no_grad():
            returned = optimizer.step(closure)
        assert calls == [True]
        assert isinstance(returned, Tensor) and returned.item() == pytest.approx(
            optimizer.last_loss
        )


@pytest.mark.parametrize("separate_unscale", [False, True])
def test_grad_scaling_autocast_fused_optimizers(info, equal, separate_unscale: bool) -> None:
    from torch.testing._internal.common_cuda import _create_scaling_case

    for optim_input in info.optim_inputs_func("cpu"):
        control, scaling, opt_control, opt_scaling, data, loss_fn, skip = _create_scaling_case(
            device="cpu",
            optimizer_ctor=DWMGrad,
            optimizer_kwargs={"lr": 1e-2, **optim_input.kwargs, "fused": True},
        )
        for group in opt_control.param_groups:
            group.update(fused=False, foreach=False)
        scaler_control, scaler = (torch.amp.GradScaler("cpu", init_scale=128.0) for _ in range(2))
        windows = []
        for step, (inputs, target) in enumerate(data):
            losses = []
            for model, optimizer, this_scaler, unscale in (
                (control, opt_control, scaler_control, False),
                (scaling, opt_scaling, scaler, separate_unscale),
            ):
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=torch.float16):
                    loss = loss_fn(model(inputs), target)
                losses.append(loss)
                this_scaler.scale(loss).backward()
                if step == skip:  # an overflow: the scaler skips this step
                    model[1].weight.grad[0, 0] = float("inf")
                if unscale:
                    this_scaler.unscale_(optimizer)
                optimizer.observe_loss(loss)
                this_scaler.step(optimizer)
                this_scaler.update()
            equal(*losses)
            equal(list(control.parameters()), list(scaling.parameters()))
            equal(
                [opt_control.state[p] for p in control.parameters()],
                [opt_scaling.state[p] for p in scaling.parameters()],
            )
            assert opt_control.window == opt_scaling.window
            windows.append(opt_scaling.param_groups[0]["observations"])
        assert windows == [1, 2, 2, 3]


SCHEDULERS = {
    "LambdaLR": lambda o: sched.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: sched.MultiplicativeLR(o, lambda step: 0.95),
    "StepLR": lambda o: sched.StepLR(o, step_size=3, gamma=0.5),
    "MultiStepLR": lambda o: sched.MultiStepLR(o, [2, 5], gamma=0.5),
    "ConstantLR": lambda o: sched.ConstantLR(o, factor=0.5, total_iters=4),
    "LinearLR": lambda o: sched.LinearLR(o, start_factor=0.25, total_iters=6),
    "ExponentialLR": lambda o: sched.ExponentialLR(o, gamma=0.8),
    "PolynomialLR": lambda o: sched.PolynomialLR(o, total_iters=9, power=2.0),
    "CosineAnnealingLR": lambda o: sched.CosineAnnealingLR(o, T_max=6),
    "CosineAnnealingWarmRestarts": lambda o: sched.CosineAnnealingWarmRestarts(o, T_0=3, T_mult=2),
    "CyclicLR": lambda o: sched.CyclicLR(o, base_lr=1e-3, max_lr=1e-1, step_size_up=3),
    "OneCycleLR": lambda o: sched.OneCycleLR(o, max_lr=1e-1, total_steps=13),
    "ReduceLROnPlateau": lambda o: sched.ReduceLROnPlateau(o, patience=1, factor=0.5),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=1e-3, anneal_epochs=5),
    "ChainedScheduler": lambda o: sched.ChainedScheduler(
        [sched.ConstantLR(o, factor=0.5, total_iters=4), sched.ExponentialLR(o, gamma=0.9)],
        optimizer=o,
    ),
    "SequentialLR": lambda o: sched.SequentialLR(
        o,
        [sched.LinearLR(o, start_factor=0.1, total_iters=4), sched.CosineAnnealingLR(o, T_max=6)],
        milestones=[4],
    ),
}


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_lr_scheduler_does_what_it_does_to_sgd(name: str, tensor_lr: bool) -> None:
    """The same rates, the same cycled momentum, and a resume in the middle that is bit-equal."""
    losses = [3.0, 2.0, 2.5, 2.6, 2.7, 1.0, 1.1, 1.2, 1.3, 1.4, 0.9, 0.8]

    def rate() -> float | Tensor:
        return torch.tensor(0.05, dtype=torch.float64) if tensor_lr else 0.05

    def start(kind):
        param = Parameter(torch.linspace(-1, 1, 6))
        optimizer = kind([param], lr=rate(), momentum=0.9)
        return param, optimizer, SCHEDULERS[name](optimizer)

    def go(param, optimizer, scheduler, steps: range) -> list:
        seen = []
        for step in steps:
            param.grad = torch.sin(param.detach() * (step + 1))
            seen.append(
                (float(optimizer.param_groups[0]["lr"]), optimizer.param_groups[0]["momentum"])
            )
            ours = isinstance(optimizer, DWMGrad)
            optimizer.step(**({"loss": losses[step]} if ours else {}))
            scheduler.step(*([losses[step]] if name == "ReduceLROnPlateau" else []))
        return seen

    whole = start(DWMGrad)
    seen = go(*whole, range(12))
    assert seen == go(*start(torch.optim.SGD), range(12))
    assert len(set(seen)) > 1

    first = start(DWMGrad)
    go(*first, range(5))
    file = io.BytesIO()
    torch.save([first[0], first[1].state_dict(), first[2].state_dict()], file)
    file.seek(0)
    saved_param, saved_optimizer, saved_scheduler = torch.load(file, weights_only=False)
    again = start(DWMGrad)
    with torch.no_grad():
        again[0].copy_(saved_param)
    again[1].load_state_dict(saved_optimizer)
    again[2].load_state_dict(saved_scheduler)
    assert go(*again, range(5, 12)) == seen[5:]
    assert torch.equal(again[0], whole[0])


def test_duplicate_params() -> None:
    param = Parameter(torch.randn(5))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = DWMGrad([param, param])
    assert len(caught) == 1 and "duplicate parameters" in str(caught[0].message)
    param.grad = torch.ones(5)
    optimizer.step(loss=1.0)  # as torch's own: it may be wrong, but it runs
    with pytest.raises(ValueError, match="more than one parameter group"):
        DWMGrad([{"params": param}, {"params": param}])
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [param]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("lr", [1e-30, 1e-38, 1e-42, 1e-50, 1e-300])
@pytest.mark.parametrize("flag", ["foreach", "fused"])
def test_a_learning_rate_next_to_zero_changes_nothing_and_breaks_nothing(
    flag: str, lr: float
) -> None:
    param = Parameter(torch.linspace(-1, 1, 37))
    before = param.detach().clone()
    optimizer = DWMGrad([param], lr=lr, weight_decay=0.1, **{flag: True})
    for step in range(3):
        param.grad = torch.sin(param.detach() + step)
        optimizer.step(loss=step % 2)
    assert torch.equal(param, before)
    assert all(tensor.isfinite().all() for tensor in optimizer.state[param].values())
