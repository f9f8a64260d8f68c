"""capturable=True does what the default does, without the host ever reading the device."""

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dwmgrad import DWMGrad, capturable
from dwmgrad.rule import SIGNALS

pytestmark = [
    pytest.mark.filterwarnings("ignore:the loss is not finite"),
    pytest.mark.filterwarnings("ignore:step\\(\\) got no loss"),
]
SHAPES = [(300,), (), (4, 5), (33, 70)]
LOSSES = ("last_loss", "mean_loss", "loss_left", "quarter_loss", "slow_loss")
PROGRESS = ("window", *LOSSES, "observations", "increases", "steps")
LIMITS = pytest.mark.parametrize(
    "limit",
    [{}, {"loss_limit": 0.1, "limit_growth": 0.6, "limit_slope": 4.0}],
    ids=["free", "limited"],
)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def make(captures: bool, device: str = "cpu", shapes: list = SHAPES, **arguments: Any) -> DWMGrad:
    generator = torch.Generator().manual_seed(0)
    dtype = arguments.pop("dtype", torch.float32)
    params = [
        torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()
        for shape in shapes
    ]
    arguments = {"lr": 1e-2, "weight_decay": 0.1, **arguments}
    groups = [{"params": params[:2], "momentum": 0.8}, {"params": params[2:], "maximize": True}]
    return DWMGrad(groups, capturable=captures, **arguments)


def params_of(optimizer: DWMGrad) -> list[torch.Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def new_gradients(optimizer: DWMGrad, step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in params_of(optimizer):
        grad = torch.randn(param.shape, generator=generator) * scale
        param.grad = grad.to(param.device, param.dtype)


def progress(optimizer: DWMGrad) -> list[dict[str, Any]]:
    optimizer._read_device()
    return [{name: group[name] for name in PROGRESS} for group in optimizer.param_groups]


def assert_equal(actual: DWMGrad, expected: DWMGrad, outliers: float = 0.0) -> None:
    """The windows exactly; the rest but for the last bit, which PyTorch's square root may miss."""
    assert progress(actual) == progress(expected)
    for a, b in zip(params_of(actual), params_of(expected), strict=True):
        pairs = [
            (a, b),
            *((actual.state[a][name], each) for name, each in expected.state[b].items()),
        ]
        for one, other in pairs:
            assert one.dtype == other.dtype
            close = torch.isclose(one.double().cpu(), other.double().cpu(), rtol=1e-5, atol=1e-6)
            assert (~close).double().mean() <= outliers


def loss_of(step: int) -> float | None:
    """A loss that moves up and down, is missing at times, and at others not finite."""
    if step % 13 == 5:
        return None
    if step % 17 == 3:
        return (math.nan, math.inf, -math.inf)[step % 3]
    return math.cos(0.7 * step) + 0.5 * math.sin(2.3 * step)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
def test_200_steps_equal_those_of_the_default(as_tensor: bool, signal: str, device: str) -> None:
    arguments = {"window_signal": signal, "missing_loss": "hold"}
    actual, expected = make(True, device, **arguments), make(False, **arguments)
    for step in range(200):
        for optimizer in (actual, expected):
            new_gradients(optimizer, step)
            loss: Any = loss_of(step)
            if as_tensor and loss is not None:
                loss = torch.tensor(loss, device=params_of(optimizer)[0].device)
            optimizer.step(loss=loss)
        if step % 20 == 0:
            assert_equal(actual, expected)
    assert_equal(actual, expected)
    assert 1 < actual.param_groups[0]["observations"] < 200


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("signal", SIGNALS)
def test_the_preset_does_the_same_on_the_device(signal: str, device: str) -> None:
    arguments = {"preset": "finetune", "window_signal": signal, "missing_loss": "hold"}
    actual, expected = make(True, device, **arguments), make(False, **arguments)
    for step in range(60):
        for optimizer in (actual, expected):
            new_gradients(optimizer, step)
            optimizer.step(loss=loss_of(step))
        assert_equal(actual, expected)
    shares = [
        float(optimizer.state_dict()["state"][2]["zero_share"]) for optimizer in (actual, expected)
    ]
    assert shares[0] == pytest.approx(shares[1], rel=1e-6)
    assert 0 < shares[1] < 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16, "int8"], ids=str)
def test_state_in_fewer_bits_equals_that_of_the_default(
    state_dtype: Any, dtype: torch.dtype, device: str
) -> None:
    arguments = {
        "shapes": [(5000,), (), (3, 5), (70, 70)],
        "state_dtype": state_dtype,
        "stochastic_rounding": dtype == torch.bfloat16,
        "dtype": dtype,
        "missing_loss": "hold",
    }
    actual, expected = make(True, device, **arguments), make(False, **arguments)
    for step in range(20):
        for optimizer in (actual, expected):
            new_gradients(optimizer, step)
            optimizer.step(loss=loss_of(step + 40))
    narrow = torch.bfloat16 in (dtype, state_dtype) or state_dtype == "int8"
    assert_equal(actual, expected, outliers=0.01 if narrow else 0.0)


class _NoOperators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "item")
        assert func.overloadpacket.__name__ not in reads, f"the host reads: {func}"
        return func(*args, **kwargs or {})


class _NoMethods(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # on the CPU they read memory past all operators
        assert func not in (Tensor.tolist, Tensor.numpy), f"the host reads: {func}"
        return func(*args, **kwargs or {})


@contextmanager
def no_reads() -> Iterator[None]:
    """Raises where the host reads a tensor's number, for which it would wait on a GPU."""
    with _NoOperators(), _NoMethods():
        yield


@pytest.mark.parametrize("state_dtype", [None, "int8"], ids=str)
def test_no_step_reads_the_device(state_dtype: Any) -> None:
    optimizer = make(True, shapes=[(5000,), (), (3, 5), (7,)], state_dtype=state_dtype)
    new_gradients(optimizer, 0)
    optimizer.step(loss=1.0)  # reads the ages that new state has on the host
    for step in range(3):
        new_gradients(optimizer, step)
        losses = torch.tensor([0.5 * step, math.nan]).unbind()
        params_of(optimizer)[0].grad[1] = math.inf
        with no_reads():
            optimizer.observe_loss(losses[0])
            optimizer.observe_loss(losses[step % 2])
            optimizer.step()
            optimizer.step()
    with pytest.raises(AssertionError, match="the host reads"), no_reads():
        optimizer.state_dict()


@pytest.mark.parametrize("signal", SIGNALS)
def test_steps_of_unlike_numbers_of_losses_are_not_compared_there_either(signal: str) -> None:
    arguments = {"window_signal": signal, "loss_smoothing": 0.5}
    actual, expected = make(True, **arguments), make(False, **arguments)
    for step, count in enumerate((2, 2, 1, 1, 3, 2, 2, *(4, 5) * 5)):
        for optimizer in (actual, expected):
            new_gradients(optimizer, step)
            for _ in range(count):
                optimizer.observe_loss(math.cos(step) / 2)
            optimizer.step()
        assert_equal(actual, expected)
        passed = [each.param_groups[0]["passed_over"] for each in (actual, expected)]
        assert passed[0] == passed[1] and type(passed[0]) is int
        numbers = [each.param_groups[0]["micro_batches"] for each in (actual, expected)]
        assert numbers == [count, count] and type(numbers[0]) is int


def test_a_lr_on_the_device_is_followed() -> None:
    lr = torch.tensor(1e-2, dtype=torch.float64)
    actual, expected = make(True, lr=lr), make(False)
    for step in range(5):
        lr.fill_(1e-2 / (1 + step))
        for group in expected.param_groups:
            group["lr"] = 1e-2 / (1 + step)
        for optimizer in (actual, expected):
            new_gradients(optimizer, step)
            optimizer.step(loss=1.0 / (1 + step))
    assert_equal(actual, expected)


def test_only_a_lr_on_another_device_is_never_read() -> None:
    far, near = torch.empty((), device="meta"), torch.tensor(0.1)
    assert not capturable.reads_lr({"lr": far, "capturable": True})
    assert capturable.reads_lr({"lr": near, "capturable": True})
    assert capturable.reads_lr({"lr": far, "capturable": False})
    optimizer = make(True)
    optimizer.param_groups[1]["lr"] = -1.0
    new_gradients(optimizer, 0)
    with pytest.raises(ValueError, match="lr of parameter group 1"):
        optimizer.step(loss=1.0)


@pytest.mark.parametrize("how", ["switched on", "expect_steps"])
def test_to_look_at_the_state_changes_nothing(how: str) -> None:
    """The ages that a step found before belong to another window on the device."""

    def run(looks: bool, capturable: bool) -> list[Tensor]:
        params = [torch.linspace(-1, 1, 5 + i).requires_grad_() for i in range(3)]
        preset, begins = ("auto", capturable) if how == "expect_steps" else ("finetune", False)
        optimizer = DWMGrad(params, lr=1e-2, preset=preset, capturable=begins)
        for step in range(12):
            for i, param in enumerate(params):
                param.grad = torch.full_like(param, 1.0 if how == "expect_steps" else step - i)
            if step == 1 and how == "expect_steps":
                optimizer.expect_steps(1000)
            elif step == 3 and capturable:
                for group in optimizer.param_groups:
                    group["capturable"] = True
            if step == 6 and looks:
                optimizer.state_dict()
            first = step == 0 and how == "expect_steps"
            optimizer.step(loss=math.nan if first else 2.0 / (step + 1))
        return [param.detach() for param in params]

    expected = run(looks=False, capturable=False)
    for looks in (False, True):
        torch.testing.assert_close(run(looks, capturable=True), expected)


@pytest.mark.parametrize("preset", [None, "finetune"])
@pytest.mark.parametrize("from_capturable", [True, False])
@pytest.mark.parametrize("to_capturable", [True, False])
def test_a_state_dict_continues_in_the_other_form(
    from_capturable: bool, to_capturable: bool, preset: str | None, tmp_path: Path
) -> None:
    first, expected = make(from_capturable, preset=preset), make(False, preset=preset)
    for step in range(6):
        for optimizer in (first, expected):
            new_gradients(optimizer, step)
            optimizer.step(loss=loss_of(step))
    saved = first.state_dict()
    for group, of_default in zip(
        saved["param_groups"], expected.state_dict()["param_groups"], strict=True
    ):
        assert group == {**of_default, "capturable": from_capturable}
        found = [type(group[name]) for name in PROGRESS if group[name] is not None]
        assert found == [int, *3 * [float], *3 * [int]]
    torch.save(saved, tmp_path / "saved.pt")
    second = make(to_capturable)
    new_gradients(second, 99)
    second.step(loss=9.0)  # which is to be forgotten
    second.load_state_dict(torch.load(tmp_path / "saved.pt"))
    assert second.param_groups[0]["capturable"] == to_capturable
    for ours, theirs in zip(params_of(second), params_of(first), strict=True):
        ours.data.copy_(theirs)
    for step in range(6, 12):
        for optimizer in (second, expected):
            new_gradients(optimizer, step)
            optimizer.step(loss=loss_of(step))
    assert_equal(second, expected)


@pytest.mark.parametrize("preset", [None, "finetune", "auto"])
def test_switched_off_in_the_groups_the_host_goes_on_from_there(preset: str | None) -> None:
    switched, expected = make(True, preset=preset), make(False, preset=preset)
    for step in range(12):
        if step == 6:
            for group in switched.param_groups:
                group["capturable"] = False
        for optimizer in (switched, expected):
            new_gradients(optimizer, step)
            optimizer.step(loss=loss_of(step))
    assert_equal(switched, expected)
    assert progress(switched) == progress(expected)


def test_a_copy_goes_on_by_itself() -> None:
    first = make(True)
    new_gradients(first, 0)
    first.step(loss=3.0)
    second = copy.deepcopy(first)
    for loss in (2.0, 1.0):
        new_gradients(second, 1)
        second.step(loss=loss)
    assert (first.window, first.last_loss) == (4, 3.0)
    assert (second.window, second.last_loss) == (6, 1.0)
    assert first.effective_momentum == pytest.approx(0.8 * 4 / 10)


def test_a_group_added_later_joins_at_the_present_window() -> None:
    optimizer = make(True)
    for loss in (3.0, 2.0, 1.0):
        new_gradients(optimizer, 0)
        optimizer.step(loss=loss)
    optimizer.add_param_group({"params": [torch.ones(3, requires_grad=True)]})
    assert [group["window"] for group in optimizer.param_groups] == [6, 6, 6]
    new_gradients(optimizer, 1)
    optimizer.step(loss=0.5)
    assert [each["window"] for each in progress(optimizer)] == [7, 7, 7]
    with pytest.raises(ValueError, match="capturable is one for the whole optimizer"):
        optimizer.add_param_group({"params": [torch.ones(3)], "capturable": False})


# ---- gradient scalers ----


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("clips", [False, True])
def test_under_a_gradient_scaler_an_overflow_changes_nothing(clips: bool, device: str) -> None:
    found = []
    for captures in (True, False):
        optimizer = make(captures, device, missing_loss="error")
        scaler = torch.amp.GradScaler(device, init_scale=1024.0, growth_interval=4)
        seen = []
        for step in range(12):
            scaler.scale(torch.zeros(1, device=device))
            new_gradients(optimizer, step, scale=scaler.get_scale())
            if step in (0, 4, 5):
                params_of(optimizer)[2].grad[1] = math.inf
            optimizer.observe_loss(math.cos(step))
            if clips:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(params_of(optimizer), 1.0)
            scaler.step(optimizer)
            scaler.update()
            seen.append((scaler.get_scale(), progress(optimizer)))
        found.append((optimizer, seen))
    assert found[0][1] == found[1][1]
    assert_equal(found[0][0], found[1][0])


def test_a_scaler_that_leaves_its_work_to_the_step_is_not_waited_for() -> None:
    optimizer = make(True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(1))
    new_gradients(optimizer, 0)
    optimizer.step(loss=2.0)  # makes the state
    for step in range(2):
        new_gradients(optimizer, step, scale=math.inf if step else 4.0)
        with no_reads():
            optimizer.observe_loss(torch.tensor(1.0 + step))
            scaler.step(optimizer)
        scaler.update()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the loss of the skipped step was all right
        assert (optimizer.last_loss, optimizer.window) == (1.0, 5)
    assert not hasattr(optimizer, "found_inf")


@pytest.mark.parametrize("overflows", [False, True])
def test_a_step_that_raises_leaves_nothing_of_its_scaler(overflows: bool) -> None:
    """GradScaler forgets scale and overflow after a step that returns, and multiplies with both."""
    found = []
    for raises in (False, True):
        optimizer = make(True)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        scaler.scale(torch.zeros(1))
        if raises:
            new_gradients(optimizer, 0, scale=math.inf if overflows else 4.0)
            optimizer.observe_loss(2.0)
            with pytest.raises(RuntimeError, match="keep one of the two"):
                scaler.step(optimizer, loss=1.0)
            optimizer.discard_loss()
        new_gradients(optimizer, 1)
        optimizer.step(loss=1.0)
        found.append(optimizer)
    assert_equal(*found)


def test_accelerate_sees_that_a_step_was_skipped() -> None:
    accelerate = pytest.importorskip("accelerate")
    from accelerate.optimizer import AcceleratedOptimizer

    accelerate.Accelerator(cpu=True)
    optimizer = make(True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    wrapped = AcceleratedOptimizer(optimizer, device_placement=False, scaler=scaler)
    scaler.scale(torch.zeros(1))
    for overflows in (False, True, False):
        new_gradients(optimizer, 0, scale=math.inf if overflows else scaler.get_scale())
        optimizer.observe_loss(2.0 if overflows else 1.0)
        wrapped.step()
        assert wrapped.step_was_skipped == overflows
    assert progress(optimizer)[0]["observations"] == 2 and optimizer.last_loss == 1.0


def test_a_scaler_of_another_kind_does_its_own_work() -> None:
    class Sharded(torch.amp.GradScaler):
        """As FSDP's: its ranks agree on an overflow in unscale_()."""

    optimizer = make(True)
    scaler = Sharded("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(1))
    new_gradients(optimizer, 0, scale=4.0)
    scaled = params_of(optimizer)[0].grad.clone()
    optimizer.observe_loss(1.0)
    scaler.step(optimizer)
    assert torch.equal(params_of(optimizer)[0].grad, scaled / 4)


# ---- several ranks ----


def on_two_ranks(rank: int) -> list:
    found = []
    sent, all_reduce = [], dist.all_reduce

    def counted(tensor: torch.Tensor, **options: Any) -> Any:
        sent.append(tensor.nbytes)
        return all_reduce(tensor, **options)

    dist.all_reduce = counted
    for captures in (True, False):
        optimizer = make(captures, missing_loss="hold")
        seen = []
        for step in range(40):
            new_gradients(optimizer, step)
            loss = loss_of(step + 7 * rank)  # missing and not finite at different steps
            optimizer.step(loss=None if loss is None else torch.tensor(loss) * (1 + rank))
            seen.append(progress(optimizer)[0])
        found.append((seen, [param.detach() for param in params_of(optimizer)]))
    assert sent == 80 * [48]
    return found


def test_two_ranks_have_one_window(tmp_path: Path) -> None:
    found = ranks.run(on_two_ranks, tmp_path)
    (actual, expected), other = found[0], found[1]
    for seen, params in (expected, *other):
        assert seen == actual[0]
        for a, b in zip(params, actual[1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert 1 < actual[0][-1]["observations"] < 40


# ---- what it says, and what it refuses ----


def test_what_was_skipped_or_held_is_told_when_the_device_is_read() -> None:
    optimizer = make(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for bad_loss in (True, False):
            new_gradients(optimizer, 0)
            params_of(optimizer)[0].grad[0] = math.nan
            optimizer.step(loss=math.nan if bad_loss else 1.0)
    with pytest.warns(UserWarning) as told:
        assert optimizer.window == 4
    assert len(told) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert optimizer.window == 4


def test_a_missing_loss_is_told_or_refused() -> None:
    optimizer = make(True)
    new_gradients(optimizer, 0)
    with pytest.warns(UserWarning, match="got no loss"):
        optimizer.step()
    optimizer = make(True, missing_loss="error")
    new_gradients(optimizer, 0)
    with pytest.raises(RuntimeError, match="got no loss"):
        optimizer.step()
    assert progress(optimizer)[0]["steps"] == 0


def test_one_step_takes_all_parameters() -> None:
    """DeepSpeed makes a step for each group, all with one loss."""
    optimizer = make(True)
    new_gradients(optimizer, 0)
    groups = optimizer.param_groups
    optimizer.observe_loss(1.0)
    optimizer.param_groups = groups[:1]
    optimizer.step()
    optimizer.param_groups = groups[1:]
    with pytest.raises(RuntimeError, match="one step\\(\\) a loss"):
        optimizer.step()


def test_parameters_of_two_devices_are_refused() -> None:
    params = [torch.ones(2, requires_grad=True), torch.ones(2, device="meta", requires_grad=True)]
    optimizer = DWMGrad(params, capturable=True)
    params[0].grad = torch.ones(2)
    with pytest.raises(RuntimeError, match="parameters of one device"):
        optimizer.step(loss=1.0)


def test_capturable_is_true_or_false() -> None:
    with pytest.raises(TypeError, match="capturable must be True or False, got 1"):
        make(1)  # type: ignore[arg-type]


# ---- CUDA ----


@pytest.mark.cuda
@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16, "int8"], ids=str)
@pytest.mark.parametrize("keeps_gradients", [True, False])
@LIMITS
def test_a_graph_of_the_whole_training_step_equals_the_default(
    limit: dict[str, float], keeps_gradients: bool, state_dtype: Any
) -> None:
    def build(captures: bool) -> tuple[torch.nn.Module, DWMGrad]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 1)).cuda()
        lr = torch.tensor(1e-2, device="cuda") if captures else 1e-2
        arguments: Any = {"state_dtype": state_dtype, "missing_loss": "error", **limit}
        return model, DWMGrad(model.parameters(), lr, capturable=captures, **arguments)

    def train(model: torch.nn.Module, optimizer: DWMGrad, x: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=not keeps_gradients)
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step(loss=loss)

    torch.manual_seed(1)
    batches = torch.randn(30, 32, 64, device="cuda")
    model, optimizer = build(True)
    static, stream = batches[0].clone(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for batch in batches[:3]:
            static.copy_(batch)
            train(model, optimizer, static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        train(model, optimizer, static)
    rates = [1e-2 if step < 15 else 3e-3 for step in range(30)]
    for step in range(3, 30):
        optimizer.param_groups[0]["lr"].fill_(rates[step])
        static.copy_(batches[step])
        graph.replay()
    other, expected = build(False)
    for step in range(30):
        expected.param_groups[0]["lr"] = rates[step]
        train(other, expected, batches[step])
    # the losses are of parameters that may differ by rounding
    assert progress(optimizer) == [pytest.approx(each, rel=1e-5) for each in progress(expected)]
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.cuda
@LIMITS
def test_no_step_waits_for_the_device(limit: dict[str, float]) -> None:
    optimizer = make(True, "cuda", lr=torch.tensor(1e-2, device="cuda"), **limit)
    loss = torch.tensor(1.0, device="cuda")
    for step in range(10):
        new_gradients(optimizer, step)
        torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")
        try:
            optimizer.step(loss=loss * step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert optimizer.last_loss == 9.0


@pytest.mark.cuda
def test_a_capture_without_a_step_before_it_is_refused() -> None:
    optimizer = make(True, "cuda")
    new_gradients(optimizer, 0)
    loss = torch.tensor(1.0, device="cuda")
    with pytest.raises(RuntimeError, match="take a few steps before it"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            optimizer.step(loss=loss)
