"""What does not belong together is refused by name before anything moves; the rest goes on."""

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from dwmgrad import DWMGrad
from dwmgrad.kernels.overlaps import _share_elements

KERNELS: dict[str, dict[str, Any]] = {
    "default": {},
    "loop": {"fused": False},
    "foreach": {"foreach": True},
    "8-bit": {"state_dtype": "int8"},
    "device": {"capturable": True},
}


def made(shape: tuple[int, ...] = (64, 100), steps: int = 2, **arguments: Any) -> DWMGrad:
    """Two parameters in one group; the second is there to show that nothing moves."""
    torch.manual_seed(0)
    params = [Parameter(torch.randn(shape)), Parameter(torch.randn(5000))]
    optimizer = DWMGrad(params, lr=0.01, weight_decay=0.1, **arguments)
    for _ in range(steps):
        step(optimizer)
    return optimizer


def params_of(optimizer: DWMGrad) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def step(optimizer: DWMGrad) -> None:
    for param in params_of(optimizer):
        param.grad = torch.ones_like(param)
    optimizer.step(loss=1.0)


def resized(rows: int) -> Callable[[DWMGrad], None]:
    def change(optimizer: DWMGrad) -> None:  # what resize_token_embeddings() does
        param = params_of(optimizer)[0]
        param.data = torch.randn(rows, 100)
        param.grad = torch.ones(rows, 100)

    return change


def stale_gradient(optimizer: DWMGrad) -> None:
    params_of(optimizer)[0].grad.data = torch.ones(64, 3)


def of_state(name: str, make: Callable[[Tensor], Tensor]) -> Callable[[DWMGrad], None]:
    def change(optimizer: DWMGrad) -> None:
        own = optimizer.state[params_of(optimizer)[0]]
        own[name] = make(own[name])

    return change


def shrink_in_place(optimizer: DWMGrad) -> None:
    optimizer.state[params_of(optimizer)[0]]["square_avg"].resize_(10)


def half(optimizer: DWMGrad) -> None:
    del optimizer.state[params_of(optimizer)[0]]["square_avg"]


def one_buffer(optimizer: DWMGrad) -> None:
    states = [optimizer.state[param] for param in params_of(optimizer)]
    states[0]["momentum_buffer"] = states[0]["square_avg"].view(states[0]["momentum_buffer"].dtype)


def expanded(optimizer: DWMGrad) -> None:
    param = params_of(optimizer)[0]
    param.data = torch.ones(1, 100).expand(64, 100)


REFUSED: dict[str, tuple[Callable[[DWMGrad], None], str]] = {
    "more rows": (resized(600), "0 of group 0 has the shape .*, the parameter .600, 100."),
    "fewer rows": (resized(10), "0 of group 0 has the shape .*, the parameter .10, 100."),
    "stale gradient": (
        stale_gradient,
        "the gradient of parameter 0 of group 0 has the shape .64, 3.",
    ),
    "cut state": (
        of_state("square_avg", lambda s: s[:10]),
        r"square_avg'\] of parameter 0 of group 0",
    ),
    "shrunk state": (
        shrink_in_place,
        r"'square_avg'\] of parameter 0 of group 0 has the shape .10,.",
    ),
    "state on meta": (of_state("square_avg", lambda s: s.to("meta")), "is on meta, the parameter"),
    "state of integers": (of_state("square_avg", lambda s: s.long()), "has the dtype torch.int64"),
    "state expanded": (
        of_state("square_avg", lambda s: s[:1, :1].expand(64, 100)),
        "elements that share memory",
    ),
    "half a state": (half, "parameter 0 of group 0 has one half of its state"),
    "one buffer twice": (one_buffer, "parameter 0 of group 0 shares memory with state"),
    "parameter expanded": (expanded, "the data of parameter 0 of group 0 has elements that share"),
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_name_and_nothing_moves(case: str, kernel: str) -> None:
    change, message = REFUSED[case]
    optimizer = made(**KERNELS[kernel])
    for param in params_of(optimizer):
        param.grad = torch.ones_like(param)
    change(optimizer)
    other = params_of(optimizer)[1]
    before = other.detach().clone(), copy.deepcopy(optimizer.state[other]), optimizer.window
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            optimizer.step(loss=0.5)
    assert torch.equal(other, before[0]) and optimizer.window == before[2]
    assert all(torch.equal(optimizer.state[other][name], kept) for name, kept in before[1].items())


def test_a_parameter_is_named_where_the_optimizer_knows_its_name() -> None:
    param = Parameter(torch.ones(3))
    try:
        optimizer = DWMGrad([("embed.weight", param)], lr=0.1)
    except TypeError:
        pytest.skip("this torch takes no names")
    param.grad = torch.ones(3)
    optimizer.step(loss=1.0)
    param.data = torch.ones(4)
    with pytest.raises(RuntimeError, match=r"of parameter 'embed.weight' has the shape \(3,\)"):
        optimizer.step(loss=1.0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_after_a_resize_the_remedy_of_the_error_goes_on(kernel: str) -> None:
    optimizer = made(**KERNELS[kernel])
    resized(600)(optimizer)
    with pytest.raises(RuntimeError, match=r"del optimizer.state\[parameter\]"):
        optimizer.step(loss=1.0)
    del optimizer.state[params_of(optimizer)[0]]
    step(optimizer)
    assert optimizer.state[params_of(optimizer)[0]]["square_avg"].shape == (600, 100)


def negative(tensor: Tensor) -> Tensor:
    return torch._neg_view(-tensor)


def unaligned(tensor: Tensor) -> Tensor:
    memory = bytearray(tensor.numel() * 4 + 1)
    found = torch.frombuffer(memory, dtype=torch.float32, offset=1, count=tensor.numel())
    return found.view(tensor.shape).copy_(tensor)


def interleaved(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor], -1)[..., 0]


GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "negative bit": negative,
    "zeros without memory": lambda g: torch._efficientzerotensor(g.shape),
    "expanded": lambda g: g[:1, :1].expand(g.shape),
    "transposed": lambda g: g.t().contiguous().t(),
    "unaligned": unaligned,
    "interleaved": interleaved,
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("form", GRADIENTS)
def test_a_gradient_of_any_form_counts_by_its_values(form: str, kernel: str) -> None:
    """Among plain ones, too: the step before and the one after are of the usual kind."""
    optimizers = [made(**KERNELS[kernel]) for _ in range(2)]
    for turn in range(3):
        for optimizer, odd in zip(optimizers, (True, False), strict=True):
            for param in params_of(optimizer):
                param.grad = torch.full_like(param, 0.5 + turn)
            if odd and turn == 1:
                first = params_of(optimizer)[0]
                first.grad = GRADIENTS[form](first.grad)
            elif turn == 1 and form.startswith("zeros"):
                params_of(optimizer)[0].grad.zero_()
            optimizer.step(loss=1.0)
    for a, b in zip(*map(params_of, optimizers), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("make", [negative, unaligned, interleaved])
@pytest.mark.parametrize("kernel", ["default", "loop", "foreach", "device"])
def test_a_parameter_of_any_form_moves_as_its_values_say(make: Any, kernel: str) -> None:
    optimizers = [made(steps=0, **KERNELS[kernel]) for _ in range(2)]
    odd = params_of(optimizers[0])[0]
    odd.data = make(odd.data)
    for _ in range(3):
        for optimizer in optimizers:
            step(optimizer)
    for a, b in zip(*map(params_of, optimizers), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_gradient_that_is_its_parameter_is_read_before_it_changes(kernel: str) -> None:
    optimizers = [made(**KERNELS[kernel]) for _ in range(2)]
    for optimizer, aliased in zip(optimizers, (True, False), strict=True):
        for param in params_of(optimizer):
            param.grad = param.detach() if aliased else param.detach().clone()
        optimizer.step(loss=0.5)
    for a, b in zip(*map(params_of, optimizers), strict=True):
        assert torch.equal(a, b)


def test_a_gradient_may_lie_anywhere_in_what_is_written() -> None:
    memory = torch.randn(3000)
    param = Parameter(torch.empty(0))
    param.data = memory[:2000]
    optimizer = DWMGrad([param], lr=0.01)
    expected = Parameter(param.detach().clone())
    reference = DWMGrad([expected], lr=0.01)
    for begin in (1000, 3, 0):
        param.grad = memory[begin : begin + 2000]
        expected.grad = param.grad.clone()
        optimizer.step(loss=1.0)
        reference.step(loss=1.0)
        assert torch.equal(param, expected)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
@pytest.mark.parametrize("kernel", ["default", "loop", "foreach"])
def test_a_parameter_given_twice_moves_twice_as_with_adamw(kernel: str) -> None:
    param = Parameter(torch.ones(5000))
    optimizer = DWMGrad([param, param], lr=0.01, **KERNELS[kernel])
    once = Parameter(torch.ones(5000))
    for _ in range(3):
        param.grad = torch.ones(5000)
        optimizer.step(loss=1.0)
    del once
    assert (param == param[0]).all() and param[0] < 1 - 3 * 0.01


def test_two_parameters_over_one_memory_move_one_after_the_other() -> None:
    memory = torch.ones(20000)
    params = [Parameter(memory), Parameter(torch.empty(0))]
    params[1].data = params[0].data[10000:]
    optimizer = DWMGrad(params, lr=0.01)
    for _ in range(3):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step(loss=1.0)
    moved = 1 - params[0].detach()
    assert (moved[:10000] == moved[0]).all() and (moved[10000:] == moved[-1]).all()
    torch.testing.assert_close(moved[-1], 2 * moved[0])


def test_views_that_interleave_are_not_the_same_memory() -> None:
    memory = torch.zeros(100, 2)
    optimizer = made((100, 1), steps=1)
    own = optimizer.state[params_of(optimizer)[0]]
    for column, name in enumerate(("momentum_buffer", "square_avg")):
        own[name] = memory[:, column : column + 1].copy_(own[name])
    step(optimizer)


@pytest.mark.parametrize(("start", "shares"), [(0, False), (1, False), (2, True), (3, True)])
def test_views_of_unlike_widths_share_bytes_or_do_not(start: int, shares: bool) -> None:
    memory = torch.zeros(64, dtype=torch.float16)
    wide = memory.view(torch.float32)[1::2]  # the third and the fourth of each four halves
    assert _share_elements(wide, memory[start::4]) is shares
    assert _share_elements(memory[start::4], wide) is shares


def test_a_learned_complex_number_goes_the_way_of_autograd() -> None:
    """`complex(re, im).conj()` gives a gradient with torch's lazy negative bit."""
    params = [Parameter(torch.tensor(x)) for x in (0.3, 0.1)]
    optimizer = DWMGrad(params, lr=3e-3)
    x = torch.randn(64, dtype=torch.complex64)
    for _ in range(300):
        loss = (x * torch.complex(*params).conj() - x * (1.0 - 0.8j)).abs().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
    assert params[1].grad is not None and params[1].grad.is_neg()
    torch.testing.assert_close(torch.stack(params), torch.tensor([1.0, 0.8]), atol=0.02, rtol=0)


@pytest.mark.parametrize("state_dtype", [None, "int8"])
def test_neither_gradients_nor_state_outlive_their_owners(state_dtype: str | None) -> None:
    """A trainer that moves the state to the host between two phases needs its memory."""
    optimizer = made(state_dtype=state_dtype)
    param = params_of(optimizer)[0]
    kept = [weakref.ref(each) for each in (param.grad, *optimizer.state[param].values())]
    optimizer.zero_grad()
    optimizer.state.clear()
    gc.collect()
    assert [ref() for ref in kept] == [None] * len(kept)


def test_a_capturable_optimizer_keeps_no_state_that_was_cleared() -> None:
    optimizer = made(capturable=True)
    kept = []
    for _ in range(3):
        kept += [weakref.ref(each) for each in optimizer.state[params_of(optimizer)[0]].values()]
        optimizer.state.clear()
        step(optimizer)
    assert [ref() for ref in kept] == [None] * len(kept)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("frozen", ["from the start", "after a step"])
def test_a_gradient_counts_whether_or_not_its_parameter_is_frozen(frozen: str, kernel: str) -> None:
    """Gradients that are written by hand, as of evolution strategies; AdamW steps there, too."""
    moved = []
    for freezes in (False, True):
        params = [Parameter(torch.ones(64, 100)) for _ in range(2)]
        optimizer = DWMGrad(params, lr=0.1, **KERNELS[kernel])
        for at in range(3):
            params[1].requires_grad_(not freezes or (frozen == "after a step" and at == 0))
            for param in params:
                param.grad = torch.ones_like(param)
            optimizer.step(loss=1.0)
        moved.append(params[1].detach().clone())
    assert torch.equal(*moved) and not torch.equal(moved[0], torch.ones(64, 100))


@pytest.mark.parametrize("kernel", KERNELS)
def test_whole_numbers_are_left_alone_but_not_with_a_gradient(kernel: str) -> None:
    """Quantized weights are parameters, too; a step would round each of its changes away."""
    codes, param = torch.ones(64, 100, dtype=torch.int32), Parameter(torch.ones(3))
    optimizer = DWMGrad([codes, param], lr=0.1, **KERNELS[kernel])
    param.grad = torch.ones(3)
    optimizer.step(loss=1.0)
    codes.grad = torch.ones_like(codes)
    before = param.detach().clone()
    with pytest.raises(RuntimeError, match="the data of parameter 0 of group 0 has the dtype"):
        optimizer.step(loss=0.9)
    assert torch.equal(param, before)


@pytest.mark.parametrize("kernel", [name for name in KERNELS if name != "device"])
def test_a_first_step_in_inference_mode_leaves_state_that_can_be_written(kernel: str) -> None:
    param = Parameter(torch.ones(64, 100))
    optimizer = DWMGrad([param], lr=0.1, **KERNELS[kernel])
    param.grad = torch.ones_like(param)
    with torch.inference_mode():
        optimizer.step(loss=1.0)
    before = param.detach().clone()
    optimizer.step(loss=0.9)
    assert not torch.equal(param, before)
