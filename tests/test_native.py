"""The compiled kernel and the low-bit state: what they compute, and what is refused."""

import copy
import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from kernel_calls import update

from dwmgrad import DWMGrad, state
from dwmgrad.kernels import Blockwise, Coefficients, Tensors, low_bit, native, reference

SHAPES = [(33, 70), (5000,), (), (3,), (64, 100), (40000,)]
STATES = [None, "float32", "bfloat16", "int8"]
needs_library = pytest.mark.skipif(native.library() is None, reason="no library")


def tensors_of(dtype: torch.dtype, state_dtype: str | None) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for ordinal, shape in enumerate(SHAPES):
        param = torch.randn(shape, generator=generator).to(dtype)
        buffers = state.buffers_of(state.create(param, state_dtype))
        rows.append((param, None, *buffers, ordinal))
    return Tensors.of(rows)


def wide(buffer) -> torch.Tensor:
    return (low_bit.decode(buffer) if isinstance(buffer, Blockwise) else buffer).float()


@needs_library
@pytest.mark.parametrize("stochastic", [False, True], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("state_dtype", STATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_kernel_equals_the_loop_bit_by_bit_but_for_the_last_place(
    dtype: torch.dtype, state_dtype: str | None, stochastic: bool
) -> None:
    actual, expected = tensors_of(dtype, state_dtype), tensors_of(dtype, state_dtype)
    for step in range(40):
        grads = [torch.randn(param.shape).to(dtype) for param in actual.params]
        if step % 7 == 3:
            grads[1][1029], grads[4][3, 3] = float("nan"), 1e30
        c = Coefficients(
            1e-3, step % 10 / 10, 0.09 * (step % 10), 1e-8, 1e-4, step, stochastic, stochastic
        )
        skipped = any(update(actual._replace(grads=grads), c))
        assert skipped == (step % 7 == 3) == reference.update(expected._replace(grads=grads), c)
    for column in (0, 2, 3):
        a, b = (torch.cat([wide(t).flatten() for t in each[column]]) for each in (actual, expected))
        off = ~torch.isclose(a, b, rtol=1e-5, atol=1e-6)
        # a rounding in the last place may tip a code or a 16-bit number to its neighbour
        assert off.float().mean() <= (
            0.0 if state_dtype in (None, "float32") and dtype == torch.float32 else 2e-3
        )
        assert torch.isclose(a, b, rtol=0.2, atol=1e-2).all()


def test_the_bits_of_the_step_the_parameter_and_the_element_are_the_noise() -> None:
    like = torch.empty(1000)
    bits = low_bit.random_bits(like, 3, 5)
    assert torch.equal(bits, low_bit.random_bits(like, 3, 5))
    for other in (low_bit.random_bits(like, 4, 5), low_bit.random_bits(like, 3, 6)):
        assert (bits != other).float().mean() > 0.99
    for half in (bits & 0xFFFF, bits >> 16):  # uniform: mean 1/2, standard error 0.009
        assert 0.46 < (half.float() / 65536).mean() < 0.54


@pytest.mark.parametrize("kind", ["bfloat16", "v", "s"])
def test_stochastic_rounding_is_right_in_the_mean(kind: str) -> None:
    """4,000 roundings of the same numbers: their mean is nearer than a rounding could be.

    For s, whose root a step divides by, it is the mean of the codes.
    """
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(256, generator=generator)
    values = {"bfloat16": values, "v": values * 2 - 1, "s": values.pow(3)}[kind]
    total = torch.zeros(256, dtype=torch.float64)
    for noise in range(4000):
        bits = low_bit.random_bits(values, noise, 0)
        if kind == "bfloat16":
            total += low_bit.round_to_bfloat16(values, bits).double()
        else:
            buffer = low_bit.zeros(values)[kind == "s"]
            low_bit.encode(buffer, values, bits)
            total += low_bit.decode(buffer).double() ** (0.25 if kind == "s" else 1)
    if kind == "s":
        values = values.double() ** 0.25
    step = {"bfloat16": 2**-8, "v": 2 / 127, "s": 1 / 255}[kind]  # between levels, at most
    assert ((total / 4000 - values).abs() < 6 * step / 4000**0.5 / 2).all()


def test_a_slow_decay_is_not_lost_in_8_bits() -> None:
    """A mean square whose gradient has become 0 fades, though one step is less than a level."""
    buffer = low_bit.zeros(torch.empty(256))[1]
    values = torch.ones(256)
    for noise in range(300):
        low_bit.encode(buffer, values, low_bit.random_bits(values, noise, 0) >> 16)
        values = low_bit.decode(buffer)
        values[1:] *= 0.99  # the first element keeps the block's scale
    assert 0.6 * 0.99**299 < values[1:].mean() < 1.6 * 0.99**299


@pytest.mark.parametrize("preset", ["finetune", None])
@pytest.mark.parametrize("compiled", [True, False], ids=["native", "reference"])
def test_8_bit_steps_are_not_longer_than_those_of_float32(
    preset: str | None, compiled: bool, request: pytest.FixtureRequest
) -> None:
    """Also of elements whose gradients are small beside the largest one of their block."""
    if not compiled:
        request.getfixturevalue("no_library")
    size = (10.0 ** -torch.arange(9)).repeat(1024)[: 256 * 32]  # all sizes in each block
    travel = []
    for state_dtype in ("int8", "float32"):
        param = torch.zeros_like(size, requires_grad=True)
        delta = None if preset else 100
        optimizer = DWMGrad([param], preset=preset, max_window=delta, state_dtype=state_dtype)
        total = torch.zeros(9)
        for step in range(300):
            noise = torch.randn(size.shape, generator=torch.Generator().manual_seed(step))
            param.grad, before = size * (1 + noise), param.detach().clone()
            optimizer.step(loss=1 / (step + 1))
            moved = (param.detach() - before).abs()
            total += torch.stack([moved[size == each].mean() for each in size[:9]])
        travel.append(total)
    ratio = travel[0] / travel[1]
    assert (ratio < 1.03).all()
    assert (ratio[:5] > 0.93).all()  # the others lie below the lowest level


@pytest.mark.parametrize("flush", [False, True], ids=["denormals", "flushed"])
@pytest.mark.parametrize("compiled", [True, False], ids=["native", "reference"])
def test_a_positive_mean_square_never_becomes_0_in_8_bits(
    compiled: bool, flush: bool, request: pytest.FixtureRequest
) -> None:
    """In blocks of any size, and beside elements of any size."""
    if not compiled:
        request.getfixturevalue("no_library")
    sizes = 10.0 ** torch.arange(-17, 19)[:, None]
    grad = sizes.repeat(1, 256)
    grad[:, 1::2] *= 1e-3
    grad[:, 2] = 0.0
    grad.clamp_min_(1e-18)  # whose square is a normal number
    grad[0] = 0.0
    param = torch.zeros_like(grad)
    v, s = low_bit.zeros(param)
    tensors = Tensors([param], [grad], [v], [s], [0])
    if flush and not torch.set_flush_denormal(True):
        pytest.skip("this CPU does not flush denormal numbers")
    try:
        for step in range(20):
            before = param.clone()
            update(tensors, Coefficients(1.0, 0.9, 0.0, 1e-30, 0.0, step))
            assert (s.codes[1:] > 0).all() and (low_bit.decode(s)[1:] > 0).all()
            assert not s.codes[0].any() and not v.codes[0].any()
            lengths = (param - before).abs()[1:] * (1 - 0.9 ** (step + 1)) ** 0.5
            assert lengths.max() < 2.5
            mean = lengths[:, 4::2].mean(1)
            torch.testing.assert_close(mean, torch.ones_like(mean), rtol=0.03, atol=0)
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_float16_parameters_have_float32_state(dtype: torch.dtype) -> None:
    """Their mean square would be 0 in float16, and each step as long as a first one."""
    params = [torch.zeros(300, dtype=dtype).requires_grad_() for _ in range(2)]
    optimizer = DWMGrad(params[:1], lr=0.01, preset="finetune")
    optimizer.add_param_group({"params": params[1:], "state_dtype": torch.bfloat16})
    for step in range(30):
        before = params[0].detach().clone()
        for param in params:
            param.grad = torch.full_like(param, 1e-5)
        optimizer.step(loss=float(step % 2))
        assert 0 < (before - params[0].detach()).max() < 0.02
    kinds = [optimizer.state[param]["square_avg"].dtype for param in params]
    assert kinds == [torch.float32, torch.bfloat16]  # what is asked for is done


def test_a_checkpoint_with_float16_state_goes_on_in_float32() -> None:
    param = torch.linspace(-1, 1, 300).half().requires_grad_()
    optimizer = DWMGrad([param], preset="finetune")
    train(optimizer, [param], 0, 5)
    saved = copy.deepcopy(optimizer.state_dict())
    own = saved["state"][0]
    for name in ("momentum_buffer", "square_avg"):
        own[name] = own[name].half()  # as earlier versions wrote it
    for state_dtype, expected in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        other = DWMGrad([param], preset="finetune", state_dtype=state_dtype)
        other.load_state_dict(copy.deepcopy(saved))
        for name in ("momentum_buffer", "square_avg"):
            buffer = other.state[param][name]
            assert buffer.dtype == expected and torch.equal(buffer, own[name].to(expected))
        train(other, [param], 5, 7)


@pytest.mark.parametrize(
    ("state_dtype", "most"), [(None, 8.0), ("float32", 8.0), (torch.bfloat16, 4.0), ("int8", 2.04)]
)
def test_bytes_of_state_per_parameter(state_dtype, most: float) -> None:
    params = [torch.randn(512, 512).requires_grad_() for _ in range(4)]
    optimizer = DWMGrad(params, state_dtype=state_dtype)
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer.step(loss=1.0)
    tensors = [tensor for own in optimizer.state.values() for tensor in own.values()]
    total = sum(tensor.nbytes for tensor in tensors if tensor.dim())  # and one number a tensor
    assert total / sum(p.numel() for p in params) <= most


def train(optimizer: DWMGrad, params: list[torch.Tensor], begin: int, end: int) -> None:
    for step in range(begin, end):
        for index, param in enumerate(params):
            wave = torch.arange(param.numel()) * 0.37 + step * (index + 1)
            param.grad = torch.sin(wave.double()).to(param.dtype).reshape(param.shape)
        optimizer.step(loss=2.0 + (step * 7 % 5 - 0.25 * step) / 4)


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("state_dtype", STATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_resumed_run_is_bit_equal_in_every_precision(
    dtype: torch.dtype, state_dtype: str | None, rounds: bool, tmp_path: Path
) -> None:
    def make() -> tuple[list[torch.Tensor], DWMGrad]:
        params = [torch.linspace(-1, 1, n, dtype=dtype).requires_grad_() for n in (5000, 7)]
        return params, DWMGrad(params, state_dtype=state_dtype, stochastic_rounding=rounds)

    params, optimizer = make()
    train(optimizer, params, 0, 10)
    torch.save([params, optimizer.state_dict()], tmp_path / "saved.pt")
    train(optimizer, params, 10, 20)
    others, resumed = make()
    saved, state_dict = torch.load(tmp_path / "saved.pt", weights_only=True)
    for param, value in zip(others, saved, strict=True):
        param.data.copy_(value)
    resumed.load_state_dict(state_dict)
    train(resumed, others, 10, 20)
    assert all(map(torch.equal, params, others))


@pytest.mark.parametrize(("first", "second"), itertools.permutations(STATES[1:], 2))
def test_a_run_goes_on_in_another_precision(first: str, second: str) -> None:
    params = [torch.linspace(-1, 1, n).requires_grad_() for n in (5000, 7)]
    optimizer = DWMGrad(params, state_dtype=first)
    train(optimizer, params, 0, 10)
    before = {p: [wide(b) for b in state.buffers_of(optimizer.state[p])] for p in params}
    other = DWMGrad(params, state_dtype=second)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.param_groups[0]["state_dtype"] == second and other.window == optimizer.window
    for param in params:
        for kept, buffer in zip(before[param], state.buffers_of(other.state[param]), strict=True):
            levels = {"float32": 0.0, "bfloat16": 2**-8, "int8": 2 / 127}[second]
            if param.numel() < low_bit.SMALLEST and second == "int8":
                levels = 0.0
            assert ((wide(buffer) - kept).abs() <= levels * kept.abs().max()).all()
    train(other, params, 10, 20)
    plain = DWMGrad(params)  # without a wish of its own it goes on as the checkpoint was
    plain.load_state_dict(copy.deepcopy(other.state_dict()))
    assert plain.param_groups[0]["state_dtype"] == second


def test_one_group_may_have_a_precision_of_its_own() -> None:
    params = [torch.randn(64, 100).requires_grad_() for _ in range(2)]
    groups = [{"params": params[:1]}, {"params": params[1:], "state_dtype": torch.float32}]
    optimizer = DWMGrad(groups, state_dtype="int8")
    train(optimizer, params, 0, 2)
    dtypes = [optimizer.state[p]["momentum_buffer"].dtype for p in params]
    assert dtypes == [torch.int8, torch.float32]


def test_hostile_8_bit_state_is_refused() -> None:
    params = [torch.randn(64, 100).requires_grad_()]
    optimizer = DWMGrad(params, state_dtype="int8")
    train(optimizer, params, 0, 2)
    good = optimizer.state_dict()
    for name, value in {
        "momentum_scale": torch.full((25,), float("inf")),
        "square_scale": torch.full((25,), -1.0),
        "momentum_buffer": torch.zeros(64, 100),
        "square_avg": torch.zeros(64, 100, dtype=torch.int8),
    }.items():
        bad = copy.deepcopy(good)
        bad["state"][0][name] = value
        with pytest.raises((TypeError, ValueError), match=name):
            optimizer.load_state_dict(bad)
    bad = copy.deepcopy(good)
    bad["state"][0]["square_scale"] = torch.zeros(24)
    with pytest.raises(ValueError, match=r"has the shape \(24,\)"):
        optimizer.load_state_dict(bad)


@needs_library
def test_no_parameter_sized_temporaries_and_nothing_left_behind() -> None:
    params = [torch.randn(1000, 1000).requires_grad_() for _ in range(2)]
    optimizer = DWMGrad(params, lr=1e-3)
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer.step(loss=1.0)
    with torch.profiler.profile(profile_memory=True) as profile:
        for step in range(500):
            optimizer.step(loss=float(step % 2))
    allocated = [e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage > 0]
    assert max(allocated, default=0) < 4096
    assert sum(e.self_cpu_memory_usage for e in profile.events()) < 4096


@needs_library
def test_autograd_sees_that_the_parameters_have_changed() -> None:
    param = torch.ones(3, requires_grad=True)
    loss = (param * param).sum()
    param.grad = torch.ones(3)
    DWMGrad([param], lr=0.1).step(loss=1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@needs_library
def test_the_numbers_do_not_depend_on_the_threads() -> None:
    """Neither PyTorch's nor Python's."""
    step = Coefficients(1e-3, 0.9, 0.5, 1e-8, 1e-4, 1, True, True)
    most = torch.get_num_threads()
    results = []

    def run() -> None:
        tensors = tensors_of(torch.bfloat16, "int8")
        tensors = tensors._replace(grads=[torch.ones_like(param) for param in tensors.params])
        for _ in range(5):
            update(tensors, step)
        results.append(tensors)

    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            run()
    finally:
        torch.set_num_threads(most)
    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 7
    first, *others = (torch.utils._pytree.tree_leaves(each) for each in results)
    for other in others:
        assert all(map(torch.equal, filter(torch.is_tensor, first), filter(torch.is_tensor, other)))


@needs_library
def test_tensors_without_elements_are_no_trouble() -> None:
    empty, full = torch.ones(0, 5), torch.ones(20000)
    for params in ([empty], [empty, full, empty, empty], [full, empty]):
        zeros = [[torch.zeros_like(param) for param in params] for _ in range(2)]
        ones = [torch.ones_like(param) for param in params]
        tensors = Tensors(
            [p.clone() for p in params], ones, zeros[0], zeros[1], list(range(len(params)))
        )
        native.update(tensors, Coefficients(0.5, 0.0, 0.0, 1e-8, 0.0))
        for param in tensors.params:
            assert (param == 0.5).all()


FORK = """
import os, torch
from dwmgrad import DWMGrad
torch.set_num_threads(2)
param = torch.zeros(200_000, requires_grad=True)
param.grad = torch.ones_like(param)
optimizer = DWMGrad([param])
optimizer.step(loss=1.0)
child = os.fork()
optimizer.step(loss=0.5)
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@needs_library
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_does_not_wait_for_its_parents_threads() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    child = subprocess.Popen([sys.executable, "-c", FORK], env=environment, start_new_session=True)
    try:
        assert child.wait(timeout=60) == 0
    finally:
        if child.poll() is None:
            os.killpg(child.pid, 9)
            child.wait()
