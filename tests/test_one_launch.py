"""The one-launch kernel equals the plain loop, in Triton's interpreter and on CUDA.

Triton decides at its import whether it interprets, so the first test runs the others in a process
of their own.
"""

import copy
import math
import os
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", minversion="3.3")  # before, `is_right` decides on the device
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's NumPy

from dwmgrad import DWMGrad  # noqa: E402
from dwmgrad.kernels import low_bit, native, one_launch, reference  # noqa: E402
from dwmgrad.kernels.coefficients import Blockwise, Coefficients, Tensors  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in Triton's interpreter")
compiled = [pytest.mark.cuda, pytest.mark.skipif(INTERPRETED, reason="runs compiled")]
DEVICES = [pytest.param("cpu", marks=interpreted), pytest.param("cuda", marks=compiled)]
SHAPES = [(), (1,), (255,), (3, 256), (257,), (1023,), (4, 256), (1025,), (8193,)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KINDS = [torch.float32, torch.bfloat16, torch.int8]


@pytest.mark.skipif(INTERPRETED, reason="is the process that runs the others")
@pytest.mark.hosts
def test_the_tests_of_this_file_in_tritons_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "DWMGRAD_TRITON": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]
    assert " passed" in ran.stdout


def make(
    dtype: torch.dtype, kind: torch.dtype, device: str, shapes: list[tuple] = SHAPES
) -> Tensors:
    rows = []
    for ordinal, shape in enumerate(shapes):
        param = torch.randn(shape).to(device, dtype)
        if kind == torch.int8:
            v, s = low_bit.zeros(param)
        else:
            v, s = torch.zeros_like(param, dtype=kind), torch.zeros_like(param, dtype=kind)
        rows.append((param, torch.randn(shape).to(device, dtype), v, s, 3 * ordinal))
    return Tensors.of(rows)


def coefficients(step: int, **options: bool) -> Coefficients:
    window = 1 + round(4.5 * (1 + math.sin(step)))  # 1 to 10
    return Coefficients(
        step_size=1e-2 / (1 + step),
        decay=(window - 1) / window,
        momentum=0.9 * window / 10,
        eps=1e-8,
        shrink=1e-3 / (1 + step),
        noise=(1 << 33) - 40 + 13 * step,
        **options,
    )


def numbers(tensors: Tensors) -> Tensor:
    """All that a kernel may change, decoded, in float64."""
    found = (*tensors.params, *tensors.momentum_buffers, *tensors.square_avgs)
    wide = (low_bit.decode(each) if isinstance(each, Blockwise) else each for each in found)
    return torch.cat([each.double().flatten() for each in wide]).cpu()


def on_cpu(tensors: Tensors) -> Tensors:
    return torch.utils._pytree.tree_map_only(Tensor, lambda each: each.cpu().clone(), tensors)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stochastic", [False, True], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernel_equals_the_others_while_the_window_moves(
    dtype: torch.dtype, kind: torch.dtype, stochastic: bool, device: str
) -> None:
    actual = make(dtype, kind, device)
    looped, compiled = on_cpu(actual), on_cpu(actual)
    has_twin = native.accepts(compiled.params[0], compiled.momentum_buffers[0])
    for step in range(3):
        for tensors in (actual, looped, compiled):
            torch.manual_seed(step)
            for grad in tensors.grads:
                grad.copy_(torch.randn(grad.shape))
        c = coefficients(step, stochastic_params=stochastic, stochastic_state=stochastic)
        assert not reference.update(looped, c)
        assert not one_launch.update(actual, c)
        if has_twin:
            native.update(compiled, c)
            assert torch.equal(numbers(actual), numbers(compiled)), "not the same bits"
    # the loop rounds float32 in another order, so now and then a 16-bit number differs, too
    fewest_bytes = min(dtype.itemsize, kind.itemsize)
    close = torch.isclose(numbers(actual), numbers(looped), rtol=1e-5, atol=1e-6)
    assert (~close).double().mean() <= (0 if fewest_bytes == 4 else 0.01)


@pytest.mark.parametrize("device", DEVICES)
def test_8_bit_blocks_of_any_size_are_rounded_alike(device: str) -> None:
    """In blocks of large and of tiny numbers, and beside elements of other sizes."""
    actual = make(torch.float32, torch.int8, device, [(38 * 256 + 100,)])
    looped, compiled = on_cpu(actual), on_cpu(actual)
    size = 10.0 ** torch.arange(-20, 19).repeat_interleave(256)[: actual.params[0].numel()]
    size *= 10.0 ** -torch.arange(9).repeat(2000)[: size.numel()]
    size[2560:2816] = 0.0
    for step in range(3):
        torch.manual_seed(step)
        grad = torch.randn(size.shape) * size
        for tensors in (actual, looped, compiled):
            tensors.grads[0].copy_(grad)
        c = Coefficients(1e-2, 0.75, 0.5, 1e-30, 0.0, noise=step)
        one_launch.update(actual, c)
        reference.update(looped, c)
        if native.accepts(compiled.params[0], compiled.momentum_buffers[0]):
            native.update(compiled, c)
            assert torch.equal(numbers(actual), numbers(compiled)), "not the same bits"
        for a, b in zip(actual.square_avgs[0], looped.square_avgs[0], strict=True):
            assert (~torch.isclose(a.cpu().float(), b.float(), rtol=1e-6)).float().mean() < 0.01
        assert (actual.square_avgs[0].codes.cpu()[grad.abs() > 1e-18] > 0).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_elements_that_cannot_be_squared_are_held(
    dtype: torch.dtype, kind: torch.dtype, device: str
) -> None:
    # the square of the last but one is only too much for a mean square in float16
    bad = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e30, 2000.0, 1.0])
    actual = make(dtype, kind, device, [(300,), (7,), (5,)])
    one_launch.update(actual, coefficients(0))
    actual.grads[0][250:257] = bad
    before, expected = numbers(actual), on_cpu(actual)
    skipped = one_launch.update(actual, coefficients(1))
    assert (
        skipped.dtype == torch.int32
        and skipped.shape == ()
        and skipped.device == actual.params[0].device
    )
    assert skipped and reference.update(expected, coefficients(1))
    after = numbers(actual)
    torch.testing.assert_close(after, numbers(expected), rtol=2e-3, atol=1e-6)
    bad_ones = slice(250, 256 if kind == torch.float16 else 255)
    moved = after[:312] != before[:312]
    assert not moved[bad_ones].any() and moved[: bad_ones.start].all()
    assert moved[bad_ones.stop :].all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_an_inactive_step_writes_nothing(kind: torch.dtype, device: str) -> None:
    tensors = make(torch.float32, kind, device)
    c = coefficients(0, stochastic_state=True)
    one_launch.update(tensors, c)
    tensors.grads[3].fill_(math.nan)
    before = copy.deepcopy(tensors)
    vector = torch.tensor(one_launch.numbers_of(c), device=device)
    vector[7] = 0.0
    skipped = torch.zeros((), dtype=torch.int32, device=device)
    one_launch.launch(tensors, vector, skipped, c, one_launch.Addresses())
    assert skipped == 0
    leaves, old = map(torch.utils._pytree.tree_leaves, (tensors, before))
    for a, b in zip(leaves, old, strict=True):
        assert not isinstance(a, Tensor) or torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_are_unscaled_before_they_are_squared(device: str) -> None:
    actual = make(torch.float32, torch.float32, device, [(300,)])
    actual.grads[0][7] = 2.0**40
    expected = copy.deepcopy(actual)
    actual.grads[0].mul_(2.0**60)
    c = coefficients(0)
    vector = torch.tensor(one_launch.numbers_of(c), device=device)
    vector[6] = 2.0**-60
    skipped = torch.zeros((), dtype=torch.int32, device=device)
    one_launch.launch(actual, vector, skipped, c, one_launch.Addresses())
    one_launch.update(expected, c)
    assert skipped == 0 and torch.equal(numbers(actual), numbers(expected))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_equal_the_plain_loop(dtype: torch.dtype, kind: torch.dtype, device: str) -> None:
    tensors = make(dtype, kind, device, [(0,), *SHAPES, (20000,)])
    one_launch.update(tensors, coefficients(0))
    tensors.grads[-1][7:10] = torch.tensor([math.nan, math.inf, -math.inf])
    c, inverse = coefficients(1), torch.tensor(0.125, device=device)
    for factor in (1.0, inverse):
        norms = one_launch.squared_norms(tensors, c, factor)
        expected = torch.stack(reference.squared_norms(tensors, c, factor))
        torch.testing.assert_close(norms, expected, rtol=1e-6, atol=0.0)
    assert torch.equal(norms, one_launch.squared_norms(tensors, c, inverse)), "not the same bits"


@pytest.mark.parametrize("device", DEVICES)
def test_norms_of_many_pieces_and_of_none(device: str) -> None:
    c = coefficients(1)
    for shapes in ([(260 * 8192 + 5,), (3,)], [(7,)], [(0,), (0,)]):
        tensors = make(torch.float32, torch.float32, device, shapes)
        for column in tensors[:4]:  # none begins where wide loads would be right
            for index, each in enumerate(column):
                column[index] = torch.cat([each.flatten()[:1], each.flatten()])[1:]
        expected = torch.stack(reference.squared_norms(tensors, c))
        norms = one_launch.squared_norms(tensors, c)
        torch.testing.assert_close(norms, expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("device", DEVICES)
def test_norms_that_are_wrong_are_not_used(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = torch.zeros(3, device=device), torch.zeros(3, device=device)
    one_launch.norms_are_right.cache_clear()
    wrong = lambda tensors, *_: torch.full((1,), 0.5, device=device)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(one_launch, "squared_norms", wrong)
        assert one_launch.accepts(*row) and not one_launch.accepts_norms(*row)
    one_launch.norms_are_right.cache_clear()
    assert one_launch.accepts_norms(*row)


@pytest.mark.parametrize("device", DEVICES)
def test_a_limited_step_asks_for_few_launches(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The norms come from launches for all tensors, on the host and on the device."""
    row = torch.zeros(3, device=device), torch.zeros(3, device=device)
    assert one_launch.accepts_norms(*row)  # tried against the plain loop, once
    monkeypatch.setattr(reference, "squared_norms", None)
    found = []
    for capturable in (False, True):
        torch.manual_seed(0)
        params = [torch.randn(shape).to(device).requires_grad_() for shape in ((300,), (3, 5), ())]
        optimizer = DWMGrad(params, lr=1.0, preset="auto", capturable=capturable)
        for loss in (1.0, 0.5, 0.7):
            for param in params:
                param.grad = torch.ones_like(param) * loss
            optimizer.step(loss=loss)
        optimizer.state_dict()
        found.append([optimizer.param_groups[0]["step_limit"], *params])
    assert 0 < found[0][0] < 1
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_no_alignment_is_assumed(device: str) -> None:
    actual = make(torch.float32, torch.float32, device, [(2048,), (2048,)])
    expected = copy.deepcopy(actual)
    memory = torch.zeros(8 * 2049 + 1, device=device)
    views = iter(memory[1:].split(2049))
    for column in actual[:4]:
        for index, each in enumerate(column):
            column[index] = next(views)[:2048].copy_(each)
    for step in range(2):
        one_launch.update(actual, coefficients(step))
        one_launch.update(expected, coefficients(step))
    assert torch.equal(numbers(actual), numbers(expected))
    assert (memory[2049::2049] == 0).all(), "written past the end"


@pytest.mark.parametrize("device", DEVICES)
def test_addresses_are_uploaded_only_when_they_are_new(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = []
    upload = one_launch._uploaded
    monkeypatch.setattr(
        one_launch, "_uploaded", lambda *args: uploads.append(args[1]) or upload(*args)
    )
    addresses = one_launch.Addresses(most=4)
    tensors = make(torch.float32, torch.float32, device, [(3,), (), (700,)])
    c = coefficients(0)
    vector = torch.tensor(one_launch.numbers_of(c), device=device)
    skipped = torch.zeros((), dtype=torch.int32, device=device)

    def launch() -> int:
        uploads.clear()
        one_launch.launch(tensors, vector, skipped, c, addresses)
        return len(uploads)

    assert [launch() for _ in range(3)] == [2, 0, 0]
    first = tensors.grads[1]
    tensors.grads[1] = first.clone()
    assert [launch() for _ in range(2)] == [1, 0], "only the row of the gradients"
    tensors.grads[1] = first
    assert launch() == 0
    kept_alive = []  # so that no address comes twice
    for _ in range(20):
        kept_alive.append(tensors.momentum_buffers[2])
        tensors.momentum_buffers[2] = torch.zeros(700, device=device)
        assert launch() == 1
    assert len(addresses._rows) == 4
    reference_to = weakref.ref(tensors.params[0])
    tensors.params[0] = torch.zeros(3, device=device)
    assert reference_to() is None


@pytest.mark.parametrize("device", DEVICES)
def test_windows_and_rates_are_no_reason_to_compile_again(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = one_launch._triton()
    seen = []

    class Spy:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def call(*args: Any, **options: Any) -> None:
                # what Triton specializes on: dtypes, alignment, and the value of all but tensors
                kinds = [a.dtype if isinstance(a, Tensor) else type(a) for a in args]
                aligned = [a.data_ptr() % 16 == 0 for a in args if isinstance(a, Tensor)]
                assert all(isinstance(a, Tensor) for a in args[:-1]) and all(aligned)
                seen.append((*kinds, *options.items()))
                kernel.update[grid](*args, **options)

            return call

    spied = SimpleNamespace(update=Spy(), tl=kernel.tl)
    monkeypatch.setattr(one_launch, "_triton", lambda: spied)
    tensors = make(torch.float32, torch.float32, device, [(300,), (7,)])
    for step in range(30):
        one_launch.update(tensors, coefficients(step))
    assert len(seen) == 30 and len(set(seen)) == 1
    if device == "cuda":
        compiled = kernel.update.device_caches[torch.cuda.current_device()][0]
        before = len(compiled)
        one_launch.update(tensors, coefficients(1))
        assert len(compiled) == before


@pytest.mark.cuda
@pytest.mark.skipif(INTERPRETED, reason="runs compiled")
def test_no_update_waits_for_the_device() -> None:
    tensors = make(torch.float32, torch.float32, "cuda")
    assert one_launch.accepts(tensors.params[0], tensors.momentum_buffers[0])
    one_launch.update(tensors, coefficients(0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(10):
            tensors.grads[0] = tensors.grads[0].clone()
            one_launch.update(tensors, coefficients(step))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("state_dtype", [None, "int8"], ids=str)
def test_capturable_steps_use_it(
    state_dtype: str | None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = []
    launch = one_launch.launch
    monkeypatch.setattr(one_launch, "launch", lambda *args: launches.append(args) or launch(*args))
    both = []
    for capturable in (True, False):
        torch.manual_seed(0)
        shapes = ((4100,), (3, 5), ())
        params = [torch.randn(shape).to(device).requires_grad_() for shape in shapes]
        groups = [{"params": params[:1]}, {"params": params[1:], "lr": 1e-2}]
        both.append(DWMGrad(groups, state_dtype=state_dtype, capturable=capturable))
    for kind in KINDS:  # whose trials would count
        assert one_launch.accepts(params[0], torch.zeros(1, dtype=kind, device=device))
    for step, loss in enumerate((3.0, 2.0, math.nan, 2.5, 1.0, 0.5)):
        for optimizer in both:
            torch.manual_seed(step)
            for group in optimizer.param_groups:
                for param in group["params"]:
                    param.grad = torch.randn(param.shape).to(device)
            launches.clear()
            optimizer.step(loss=loss)
            if optimizer is both[0]:
                assert len(launches) == 2, "one a group"
    first, second = both
    assert (first.window, first.last_loss) == (second.window, second.last_loss) == (6, 0.5)
    for (a, mine), (b, its) in zip(first.state.items(), second.state.items(), strict=True):
        assert torch.equal(a, b)
        assert all(torch.equal(mine[name], its[name]) for name in its)


@interpreted
def test_the_sizes_of_both_files_are_the_same() -> None:
    from dwmgrad.kernels import one_launch_triton as kernel

    assert kernel.SCALED.value == low_bit.BLOCK
    assert kernel.BLOCKS.value * kernel.ROWS.value * low_bit.BLOCK == one_launch._PIECE


@pytest.mark.parametrize("device", DEVICES)
def test_which_tensors_it_takes(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(param: torch.dtype, buffer: torch.dtype) -> bool:
        tensors = make(param, buffer, device, [(2,)])
        return one_launch.accepts(tensors.params[0], tensors.momentum_buffers[0])

    assert all(taken(param, buffer) for param in DTYPES for buffer in (*KINDS, torch.float16))
    assert not taken(torch.float64, torch.float32) and not taken(torch.float32, torch.float64)
    monkeypatch.setenv("DWMGRAD_TRITON", "0")
    assert not taken(torch.float32, torch.float32)
    monkeypatch.delenv("DWMGRAD_TRITON")
    assert taken(torch.float32, torch.float32) == (device == "cuda")


@pytest.mark.parametrize("device", DEVICES)
def test_a_kernel_that_does_not_run_is_not_used(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no ptxas")

    arguments = (torch.device(device), torch.float32, torch.float32)
    one_launch.is_right.cache_clear()
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="no ptxas"):
        patch.setattr(one_launch, "launch", broken)
        assert not one_launch.is_right(*arguments)
    one_launch.is_right.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(one_launch, "launch", lambda *_: None)
        assert not one_launch.is_right(*arguments)
    one_launch.is_right.cache_clear()
    assert one_launch.is_right(*arguments)


COMPILE = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dwmgrad.kernels.one_launch_triton import norms, totals, update

types = ["*i64", "*i64", "*fp32", "*i32", "i32"] + 4 * ["constexpr"]
signature = dict(zip(update.arg_names, types, strict=True))
for param, state in ((tl.float32, tl.float32), (tl.bfloat16, tl.bfloat16), (tl.float16, tl.int8)):
    constants = dict(PARAM=param, STATE=state, STOCHASTIC_STATE=True, STOCHASTIC_PARAMS=True)
    options = {"num_warps": 8, "enable_fp_fusion": False}
    target = GPUTarget("cuda", 80, 32)
    built = triton.compile(ASTSource(update, signature, constants), target=target, options=options)
    assert "fma.rn" not in built.asm["ptx"]
    assert "ld.global.v" in built.asm["ptx"], "no wide loads"
    types = ["*i64", "*i64", "*fp32", "*fp64", "i32"] + 3 * ["constexpr"]
    signature_of_norms = dict(zip(norms.arg_names, types, strict=True))
    constants = dict(PARAM=param, STATE=state, WIDE=tl.float64)
    built = triton.compile(
        ASTSource(norms, signature_of_norms, constants), target=target, options=options
    )
    assert "ld.global.v" in built.asm["ptx"], "no wide loads"
types = ["*i64", "*fp64", "*fp64", "i32", "i32", "constexpr"]
signature = dict(zip(totals.arg_names, types, strict=True))
triton.compile(ASTSource(totals, signature, dict(WIDE=tl.float64)), target=target)
"""


@pytest.mark.skipif(INTERPRETED, reason="compiles")
def test_it_compiles_for_cuda(tmp_path: Path) -> None:
    """Triton brings its own compiler for that: no device is needed."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", COMPILE], env=environment, check=True, timeout=300)
