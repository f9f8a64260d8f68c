"""FSDP2 on gloo processes: equal to DDP, and a checkpoint goes on with any number of ranks."""

import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from ranks import run
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from dwmgrad import DWMGrad
from dwmgrad.distributed import assert_ranks_agree

fsdp = pytest.importorskip("torch.distributed.fsdp")
if not hasattr(fsdp, "fully_shard"):
    pytest.skip("this torch has no torch.distributed.fsdp.fully_shard", allow_module_level=True)

STEPS, STOP = 40, 17
ROUNDING = 3e-6
"""Of losses and parameters; 1.1e-6 was measured with LoRA, whose first gradients are tiny."""
FORMATS = {
    "sharded": StateDictOptions(),
    "full": StateDictOptions(full_state_dict=True),
    "flat": StateDictOptions(flatten_optimizer_state_dict=True),
}

PRESETS_OF = {"sharded": None, "full": "finetune", "flat": "finetune"}


class Lora(torch.nn.Module):
    """A frozen layer with a trained update of rank 2."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = torch.nn.Parameter(torch.randn(base.in_features, 2))
        self.up = torch.nn.Parameter(torch.zeros(2, base.out_features))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.base(rows) + rows @ self.down @ self.up


def build(
    mesh_shape: tuple[int, ...] | None,
    lora: bool = False,
    late: bool = False,
    thaws: bool = False,
    **options: Any,
) -> tuple[torch.nn.Module, DWMGrad]:
    """The model under FSDP2 on a mesh of that shape (of two dimensions: HSDP), or under DDP."""
    torch.manual_seed(0)
    # 5 rows and 1 row: shards of 2 and 4 ranks are uneven, some are empty
    layers: list[torch.nn.Module] = [torch.nn.Linear(6, 5), torch.nn.Linear(5, 1)]
    if lora:
        layers = [Lora(layer) for layer in layers]
    if thaws:
        layers[0].requires_grad_(False)
    model: torch.nn.Module = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1])
    if mesh_shape is None:
        model = DistributedDataParallel(model)
    else:
        names = ("replicate", "shard")[-len(mesh_shape) :]
        mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=names)
        for part in (*layers, model):
            fsdp.fully_shard(part, mesh=mesh)
    settings = {"lr": 1e-2, "weight_decay": 0.1, "missing_loss": "error", **options}
    optimizer = DWMGrad(model.parameters(), **settings)
    if late:  # two parameters begin again in the middle, with ages of their own
        begins = iter([False] * (STEPS // 2) + [True])
        optimizer.register_step_pre_hook(lambda *_: begin_again(optimizer, next(begins, False)))
    return model, optimizer


def begin_again(optimizer: DWMGrad, now: bool) -> None:
    for param in optimizer.param_groups[0]["params"][-2:] if now else []:
        optimizer.state[param].clear()


def train(
    model: torch.nn.Module, optimizer: DWMGrad, begin: int = 0, end: int = STEPS
) -> dict[str, Any]:
    """Trains on this rank's rows of each joined batch; what was seen, and the whole parameters."""
    frozen = {p: whole(p) for p in model.parameters() if not p.requires_grad}
    windows, losses = [], []
    for step in range(begin, end):
        rows = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        rows = rows.chunk(dist.get_world_size())[dist.get_rank()]
        loss = (model(rows) - rows.sum(1, keepdim=True).sin()).square().mean()
        loss.backward()
        optimizer.step(loss=loss)
        optimizer.zero_grad()
        windows.append(optimizer.window)
        losses.append(optimizer.last_loss)
    assert_ranks_agree(optimizer)
    assert all(torch.equal(whole(p), before) for p, before in frozen.items())
    return {"windows": windows, "losses": losses, "params": list(map(whole, model.parameters()))}


def whole(param: torch.Tensor) -> torch.Tensor:
    return (param.full_tensor() if hasattr(param, "full_tensor") else param).detach().clone()


def furthest(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest difference of two runs, over their losses and parameters."""
    losses = zip(found["losses"], expected["losses"], strict=True)
    params = zip(found["params"], expected["params"], strict=True)
    return max(*(abs(a - b) for a, b in losses), *((a - b).abs().max().item() for a, b in params))


CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "2 ranks": ((2,), {}),
    "2 ranks, fused": ((2,), {"fused": True}),
    "2 ranks, foreach": ((2,), {"foreach": True}),
    "2 ranks, lora": ((2,), {"lora": True}),
    "2 ranks, preset": ((2,), {"preset": "finetune"}),
    "2 ranks, late": ((2,), {"preset": "finetune", "late": True}),
    "4 ranks": ((4,), {}),
    "4 ranks, hybrid": ((2, 2), {}),
    "4 ranks, lora": ((4,), {"lora": True}),
}
"""The mesh and the options of each run."""


def beside_ddp(rank: int) -> dict[str, Any]:
    same: dict[str, Any] = {
        "lora": False,
        "preset": None,
        "late": False,
    }  # what DDP's run shares with the others
    ddp: dict[str, dict[str, Any]] = {}
    found = {}
    for name, (shape, options) in CASES.items():
        if math.prod(shape) == dist.get_world_size():
            shared = {key: options.get(key, value) for key, value in same.items()}
            if str(shared) not in ddp:
                ddp[str(shared)] = train(*build(None, **shared))
            found[name] = (train(*build(shape, **options)), ddp[str(shared)])
    return found


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_fsdp2_equals_ddp(ranks: int, tmp_path: Path) -> None:
    for cases in run(beside_ddp, tmp_path, ranks):
        assert len(cases) >= 3
        for name, (sharded, ddp) in cases.items():
            assert sharded["windows"] == ddp["windows"], name
            assert furthest(sharded, ddp) < ROUNDING, name


def state_of(model: torch.nn.Module, optimizer: DWMGrad, options: StateDictOptions) -> dict:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # creating the state must not warn
        model_state, optimizer_state = get_state_dict(model, optimizer, options=options)
    return {"model": model_state, "optimizer": optimizer_state}


def progress_of(optimizer: DWMGrad) -> dict[str, Any]:
    losses = ("last_loss", "mean_loss", "loss_left", "quarter_loss", "slow_loss")
    names = ("window", *losses, "observations", "increases", "steps")
    return {name: optimizer.param_groups[0][name] for name in names}


def write(rank: int, folder: Path) -> dict[str, dict]:
    """Writes a checkpoint in each format after 17 steps, and goes on to the end."""
    found = {}
    for name, options in FORMATS.items():
        model, optimizer = build((dist.get_world_size(),), preset=PRESETS_OF[name])
        train(model, optimizer, 0, STOP)
        dcp.save(state_of(model, optimizer, options), checkpoint_id=folder / name)
        found[name] = {"progress": progress_of(optimizer), **train(model, optimizer, STOP)}
    return found


def load(
    model: torch.nn.Module, optimizer: DWMGrad, options: StateDictOptions, checkpoint: Path
) -> None:
    """Lets a new model and optimizer go on from a checkpoint."""
    state = state_of(model, optimizer, options)
    dcp.load(state, checkpoint_id=checkpoint)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=options,
    )


def resume(rank: int, folder: Path) -> dict[str, dict]:
    found = {}
    for name, options in FORMATS.items():
        model, optimizer = build((dist.get_world_size(),), preset=PRESETS_OF[name])
        load(model, optimizer, options, folder / name)
        found[name] = {"progress": progress_of(optimizer), **train(model, optimizer, STOP)}
    return found


def unfreeze_then_resume(rank: int, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Runs whose first layer begins at step 10, saved at 17 and gone on with; then their copies."""
    found = {}
    for name, options in {**FORMATS, "ddp": StateDictOptions()}.items():
        shape = None if name == "ddp" else (dist.get_world_size(),)
        model, optimizer = build(shape, max_window=100, thaws=True)
        layer = next(part for part in model.modules() if isinstance(part, torch.nn.Linear))
        train(model, optimizer, 0, 10)
        layer.requires_grad_()
        if name == "ddp":
            model = DistributedDataParallel(model.module)
        train(model, optimizer, 10, STOP)
        if name != "ddp":
            dcp.save(state_of(model, optimizer, options), checkpoint_id=folder / name)
        found[name] = [train(model, optimizer, STOP)]
        if name != "ddp":
            model, optimizer = build(shape, max_window=100)
            load(model, optimizer, options, folder / name)
            found[name].append(train(model, optimizer, STOP))
    return found


def test_a_layer_that_began_late_keeps_its_age_in_a_checkpoint(tmp_path: Path) -> None:
    """A new optimizer, which has no late parameter, is asked for the keys to load."""
    for found in run(partial(unfreeze_then_resume, folder=tmp_path), tmp_path):
        (ddp,) = found.pop("ddp")
        for name, (gone_on, resumed) in found.items():
            assert furthest(resumed, gone_on) == 0, name
            assert furthest(gone_on, ddp) < ROUNDING, name


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, dict[str, dict]]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return folder, run(partial(write, folder=folder), folder)[0]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_checkpoint_of_2_ranks_goes_on_with(ranks: int, written, tmp_path: Path) -> None:
    folder, uninterrupted = written
    for found in run(partial(resume, folder=folder), tmp_path, ranks):
        for name, expected in uninterrupted.items():
            assert found[name]["progress"] == expected["progress"], name
            assert found[name]["windows"] == expected["windows"], name
            far = furthest(found[name], expected)
            assert far == 0 if ranks == 2 else far < ROUNDING, name


def accumulate(rank: int, synchronizes: bool) -> dict[str, list]:
    """Two optimizers over four micro-batches a step; what each has seen.

    The layer of the second is not used in every second micro-batch.
    """
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    first, second = torch.nn.Linear(6, 5), torch.nn.Linear(5, 1)
    models = [fsdp.fully_shard(layer, mesh=mesh) for layer in (first, second)]
    made = [DWMGrad(each.parameters(), lr=1e-2, missing_loss="error") for each in models]
    optimizers = accelerator.prepare(*made)
    seen: dict[str, list] = {"losses": [], "micro-batches": [], "expected": []}
    for _ in range(2):
        expected = [0.0, 0.0]
        for number in range(4):
            last = synchronizes or number == 3
            accelerator.gradient_state._set_sync_gradients(number == 3)
            for each in models:  # as Accelerate's `no_sync` does
                each.set_requires_gradient_sync(last)
            out = first(torch.full((2, 6), float(rank + number)))
            loss = (second(out) if number % 2 else out).square().mean()
            accelerator.backward(loss)
            total = loss.detach().clone()
            dist.all_reduce(total)
            expected[0] += total.item() / 2 / 4
            expected[1] += total.item() / 2 / 4 * (number % 2)
        for each in optimizers:
            each.step()
            each.zero_grad()
        groups = [each.param_groups[0] for each in made]
        seen["losses"].append([group["last_loss"] for group in groups])
        seen["micro-batches"].append([group["micro_batches"] for group in groups])
        seen["expected"].append(expected)
    return seen


@pytest.mark.parametrize("synchronizes", [False, True])
def test_each_optimizer_gets_the_losses_whose_gradients_are_kept_apart(
    synchronizes: bool, tmp_path: Path
) -> None:
    """FSDP2 keeps them out of `.grad` until it synchronizes."""
    for seen in run(partial(accumulate, synchronizes=synchronizes), tmp_path):
        assert seen["micro-batches"] == [[4, 2], [4, 2]]
        for losses, expected in zip(seen["losses"], seen["expected"], strict=True):
            assert losses == pytest.approx(expected, rel=1e-5)


def warm_up(rank: int) -> tuple[list[int], torch.Tensor]:
    """A rank without elements, lr 0 at first, no loss: as torch's checkpoint makes state."""
    model = fsdp.fully_shard(torch.nn.Linear(6, 1), mesh=init_device_mesh("cpu", (2,)))
    optimizer = DWMGrad(model.parameters(), lr=1e-2, missing_loss="hold")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, step / 3))
    begin = whole(model.weight)
    for _ in range(6):
        model(torch.ones(2, 6)).square().mean().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    assert_ranks_agree(optimizer)
    sizes = [param.to_local().numel() for param in model.parameters()]
    return sizes, (whole(model.weight) - begin).abs().max()


def test_a_rank_without_elements_steps_with_the_others_in_a_warm_up_from_0(tmp_path: Path) -> None:
    (some, moved), (none, also) = run(warm_up, tmp_path)
    assert all(some) and not any(none)
    assert moved == also > 0


def make_state_alone(rank: int) -> tuple[float, int]:
    """One rank asks for the optimizer's state before the first step; the other does not."""
    model = torch.nn.Linear(6, 1)
    optimizer = DWMGrad(model.parameters(), lr=1e-2)
    loss = model(torch.ones(2, 6)).square().mean()
    optimizer.observe_loss(loss)
    if rank == 0:
        get_optimizer_state_dict(model, optimizer)
        assert optimizer.state
    loss.backward()
    optimizer.step()
    group = optimizer.param_groups[0]
    return group["last_loss"] / loss.item(), group["steps"]


def test_a_rank_that_makes_its_state_alone_asks_no_other_and_keeps_its_loss(tmp_path) -> None:
    for share, steps in run(make_state_alone, tmp_path):
        assert 0 < share < 2 and steps == 1
