"""DeepSpeed ZeRO in bare Accelerate loops, on two CPU processes, beside DDP.

This file is also the script that those processes run: one launch trains every case below in turn,
and the tests read what it has written. Runs where deepspeed is installed.
"""

import contextlib
import math
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

deepspeed = pytest.importorskip("deepspeed")

from accelerate import Accelerator, DeepSpeedPlugin, skip_first_batches  # noqa: E402
from accelerate.state import AcceleratorState, GradientState  # noqa: E402
from accelerate.utils import DistributedType, InitProcessGroupKwargs  # noqa: E402
from ranks import launch, leave  # noqa: E402

from dwmgrad import DWMGrad  # noqa: E402
from dwmgrad.integrations.accelerate import innermost  # noqa: E402

pytestmark = pytest.mark.ecosystem

STEPS = 44
STOPS = (7, 20)  # in the middle of an epoch, before its short last step; and at an epoch's end
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
KEEP = {"zero_force_ds_cpu_optimizer": False}
FP16 = {"enabled": True, "initial_scale_power": 20, "loss_scale_window": 4, "hysteresis": 1}
ZERO: dict[str, dict[str, Any]] = {
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero2-offload": {"stage": 2, "zero": OFFLOAD, **KEEP},
    # last: ZeRO-3 leaves another torch.nn.functional.linear behind, which rounds differently
    "zero3": {"stage": 3},
    "zero3-offload": {"stage": 3, "zero": OFFLOAD, **KEEP},
}


# ---- in the test's process ----


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    return launch(__file__, tmp_path_factory.mktemp("zero"))


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", ZERO)
def test_zero_trains_as_ddp_does(ranks, name: str, accumulation: int) -> None:
    ddp, zero = (ranks[0][f"{case} x{accumulation}"] for case in ("ddp", name))
    assert zero["processes"] == 2 and zero["engine"] == f"DeepSpeedEngine {ZERO[name]['stage']}"
    assert zero["windows"] == ddp["windows"] and len(set(ddp["windows"])) > 4
    assert zero["losses"] == pytest.approx(ddp["losses"], rel=2e-5)
    torch.testing.assert_close(zero["parameters"], ddp["parameters"], rtol=0, atol=2e-6)
    assert (ddp["parameters"] - ddp["initial"]).abs().max() > 0.1  # it has come a long way


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", ZERO)
def test_the_step_inside_backward_sees_its_own_loss_and_moves_the_window_once(
    ranks, name: str, accumulation: int
) -> None:
    zero = ranks[0][f"{name} x{accumulation}"]
    assert len(zero["losses"]) == STEPS
    assert zero["losses"] == pytest.approx(zero["true losses"], rel=1e-6)
    assert zero["after backward"] == zero["losses"]
    moves = [[step, step] for step in range(1, STEPS + 1)]  # two parameter groups
    assert zero["moves"] == moves
    # ZeRO-1 and 2 call step() once per group, ZeRO-3 once per sub-group
    assert zero["calls"] >= (3 if ZERO[name]["stage"] == 3 else 2) * STEPS
    if accumulation == 2:
        assert zero["micro-batches"][:4] == [2, 2, 2, 1]  # a short last step in every epoch


@pytest.mark.parametrize("case", [f"{name} x{n}" for name in ("ddp", *ZERO) for n in (1, 2)])
def test_all_ranks_agree(ranks, case: str) -> None:
    first, second = (rank[case] for rank in ranks)
    for key in ("windows", "losses", "moves"):
        assert first[key] == second[key]
    assert torch.equal(first["parameters"], second["parameters"])


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("name", ZERO)
def test_a_resumed_run_is_the_run(ranks, name: str, stop: int) -> None:
    for rank in ranks:
        whole, resumed = rank[f"{name} x2"], rank[f"{name} from {stop}"]
        for key in ("windows", "losses", "moves"):
            assert resumed[key] == whole[key][stop:]
        assert torch.equal(resumed["parameters"], whole["parameters"])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_leaves_the_state_in_float32(ranks, stage: int) -> None:
    run = ranks[0][f"bf16 {stage}"]
    assert run["model dtype"] == "torch.bfloat16" and run["state dtypes"] == {"torch.float32"}
    assert run["losses"] == pytest.approx(run["true losses"], rel=1e-6)
    assert run["losses"][-1] < run["losses"][0] / 4
    assert run["warnings"] == []


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_overflow_of_fp16_leaves_no_trace(ranks, stage: int) -> None:
    run = ranks[0][f"fp16 {stage}"]
    skipped = run["skipped"]
    # the initial scale is too large; later DeepSpeed tries larger ones
    assert (
        skipped[:3] == [True] * 3 and not all(skipped) and True in skipped[skipped.index(False) :]
    )
    expected, last, count = [], None, 0
    for loss, skip in zip(run["true losses"], skipped, strict=True):
        last, count = (last, count) if skip else (loss, count + 1)
        expected.append((last, [count, count]))
    seen = [math.nan if loss is None else loss for loss in run["losses"]]
    true = [math.nan if loss is None else loss for loss, _ in expected]  # unscaled
    assert seen == pytest.approx(true, rel=1e-6, nan_ok=True)
    assert run["moves"] == [moves for _, moves in expected]
    assert run["changed"] == [not skip for skip in skipped]
    for step in range(1, len(skipped)):
        assert not skipped[step] or run["windows"][step] == run["windows"][step - 1]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offload_that_would_take_another_optimizer_is_refused(ranks, stage: int) -> None:
    """Accelerate would put DeepSpeedCPUAdam in DWMGrad's place, and build it for minutes first."""
    for rank in ranks:
        assert rank[f"refused {stage}"].startswith("RuntimeError")
        assert '"zero_force_ds_cpu_optimizer": false' in rank[f"refused {stage}"]


# ---- in the launched processes ----


def no_extensions() -> None:
    """Lets DeepSpeed's communication on the CPU do without the C++ extension it would build.

    That takes 3 minutes; without it, the same calls go to gloo.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def allow_fp16() -> None:
    """DeepSpeed refuses it on CPUs without fast instructions for it; torch computes it anyway."""
    type(deepspeed.accelerator.get_accelerator()).is_fp16_supported = lambda self: True


def new_accelerator(stage: int, accumulation: int, zero: dict, **config: Any) -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)  # the last Accelerator's
    if stage == 0:
        return Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    plugin = DeepSpeedPlugin(
        hf_ds_config={
            "train_micro_batch_size_per_gpu": 4,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": 0.0,  # 1.0 otherwise, and DDP does not clip
            "zero_optimization": {
                "stage": stage,
                "sub_group_size": 20,  # several sub-groups, so several step() calls, in ZeRO-3
                "stage3_param_persistence_threshold": 0,  # shards small parameters, too
                **zero,
            },
            **config,
        }
    )
    accelerator = Accelerator(
        # Not cpu=True, with which Accelerate ignores the plugin in silence and does DDP. And
        # without a back end by name it takes every rank for the only one.
        deepspeed_plugin=plugin,
        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")],
        gradient_accumulation_steps=accumulation,
    )
    assert accelerator.distributed_type == DistributedType.DEEPSPEED
    return accelerator


def parts(**settings: Any) -> tuple[torch.nn.Module, DWMGrad, torch.utils.data.DataLoader]:
    """Model, optimizer, and 14 batches, 7 for each rank."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    lr = settings.pop("lr", 1e-2)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim == 1]},
    ]
    groups[1]["lr"] = settings.pop("bias_lr", lr)
    inner = DWMGrad(groups, lr=lr, missing_loss="error", **settings)
    data = torch.randn(56, 6, generator=torch.Generator().manual_seed(5))
    return model, inner, torch.utils.data.DataLoader(data, batch_size=4)


def prepare(accelerator: Accelerator, **settings: Any) -> tuple[Any, Any, Any, DWMGrad]:
    model, inner, loader = parts(**settings)
    model, optimizer, loader = accelerator.prepare(model, inner, loader)
    assert innermost(optimizer) is inner
    return model, optimizer, loader, inner


def full_parameters(model: Any, stage: int) -> torch.Tensor:
    parameters = list(model.parameters())
    whole = (
        deepspeed.zero.GatheredParameters(parameters) if stage == 3 else contextlib.nullcontext()
    )
    with whole:
        return torch.cat([p.detach().float().flatten().clone() for p in parameters])


def _limits(group: dict[str, Any]) -> list[float]:
    return [group[name] for name in ("step_limit", "effective_lr", "clipped_to")]


def train(
    stage: int,
    accumulation: int = 1,
    begin: int = 0,
    end: int = STEPS,
    load: Path | None = None,
    save: dict[int, Path] | None = None,
    zero: dict | None = None,
    settings: dict | None = None,
    **config: Any,
) -> dict[str, Any]:
    """Trains from one step to another and tells what was to be seen after each."""
    accelerator = new_accelerator(stage, accumulation, zero or {}, **config)
    model, optimizer, loader, inner = prepare(accelerator, **settings or {})
    if load is not None:
        accelerator.load_state(str(load))
    dtype = next(model.parameters()).dtype
    calls: list[int] = []
    inner.register_step_post_hook(lambda *_: calls.append(1))
    told: dict[str, Any] = {
        "processes": accelerator.num_processes,
        "engine": f"{type(model).__name__} {stage}",
        "model dtype": str(dtype),
        "initial": full_parameters(model, stage),
    }
    for key in ("windows", "losses", "true losses", "moves", "micro-batches", "limits"):
        told[key] = []
    told |= {"after backward": [], "skipped": [], "changed": []}
    watch = "fp16" in config
    before = told["initial"]
    pending: list[torch.Tensor] = []
    step = begin
    while step < end:
        done = step % -(-len(loader) // accumulation) * accumulation  # in this epoch
        for batch in skip_first_batches(loader, done) if done else loader:
            with accelerator.accumulate(model):
                loss = (model(batch.to(dtype)).float() - 1).square().mean()
                pending.append(loss.detach())
                accelerator.backward(loss)
                after_backward = inner.last_loss
                optimizer.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            step += 1
            mean = torch.stack(pending).sum() / accumulation  # in a short last step, too
            dist.all_reduce(mean)
            told["windows"].append(inner.window)
            told["losses"].append(inner.last_loss)
            told["true losses"].append(float(mean) / 2)
            told["after backward"].append(after_backward)
            told["limits"].append([_limits(group) for group in inner.param_groups])
            told["moves"].append([group["observations"] for group in inner.param_groups])
            told["micro-batches"].append(len(pending))
            told["skipped"].append(optimizer.step_was_skipped)
            if watch:
                now = full_parameters(model, stage)
                told["changed"].append(not torch.equal(before, now))
                before = now
            pending = []
            if save and step in save:
                accelerator.save_state(str(save[step]))
            if step == end:
                break
    told["calls"] = len(calls)
    told["parameters"] = full_parameters(model, stage)
    buffers = [v for state in inner.state.values() for v in state.values() if v.dim()]
    told["state dtypes"] = {str(v.dtype) for v in buffers}
    return told


def failure(function: Callable, *args: Any, **options: Any) -> str:
    """How a call fails that must not let Accelerate put another optimizer in DWMGrad's place."""
    built = AssertionError("the replacement would be built here")
    with mock.patch("accelerate.accelerator.map_pytorch_optim_to_deepspeed", side_effect=built):
        try:
            function(*args, **options)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return "no failure"


def offload_by_accelerate(stage: int) -> None:
    """Off-load that leaves the choice of the optimizer to Accelerate."""
    prepare(new_accelerator(stage, 1, OFFLOAD))


def main(folder: Path) -> None:
    no_extensions()
    told: dict[str, Any] = {}
    for accumulation in (1, 2):
        told[f"ddp x{accumulation}"] = train(0, accumulation)
    for name, settings in ZERO.items():
        for accumulation in (1, 2):
            told[f"{name} x{accumulation}"] = train(accumulation=accumulation, **settings)
        folders = {stop: folder / f"{name}-{stop}" for stop in STOPS}
        train(accumulation=2, end=STOPS[-1], save=folders, **settings)
        for stop, saved in folders.items():
            resumed = train(accumulation=2, begin=stop, load=saved, **settings)
            told[f"{name} from {stop}"] = resumed
    for stage in (1, 2, 3):
        with warnings.catch_warnings(record=True) as caught:
            warnings.filterwarnings("always", message=".*the loss.*")
            told[f"bf16 {stage}"] = train(stage, end=21, bf16={"enabled": True})
        told[f"bf16 {stage}"]["warnings"] = [str(w.message) for w in caught]
        told[f"refused {stage}"] = failure(offload_by_accelerate, stage)
    allow_fp16()
    for stage in (1, 2, 3):
        told[f"fp16 {stage}"] = train(stage, end=21, fp16=FP16)
    leave(told, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
