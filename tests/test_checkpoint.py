"""Saving and loading: exact on every path, and refused as a whole where it does not fit."""

import copy
import importlib.util
import io
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from dwmgrad import DWMGrad
from dwmgrad.checkpoint import SCHEMA
from dwmgrad.presets import PAPER

RELEASED = Path(__file__).parent / "checkpoints"
_spec = importlib.util.spec_from_file_location("released", RELEASED / "make.py")
released = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(released)

LOSSES = [2.0, 1.5, 1.7, 1.0, 0.9, 1.2, 0.5, 0.4, 0.6, 0.1]


def through_file(state_dict: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def make(dtype: torch.dtype = torch.float32, **arguments) -> tuple[torch.nn.Module, DWMGrad]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 2)).to(dtype)
    weights, biases = model[0].parameters(), model[1].parameters()
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases}]
    return model, DWMGrad(groups, lr=0.01, **arguments)


def train(model: torch.nn.Module, optimizer: DWMGrad, losses: list[float]) -> None:
    for loss in losses:
        generator = torch.Generator().manual_seed(int(loss * 100))
        for param in model.parameters():
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step(loss=loss)


def by_state_dict(model: torch.nn.Module, optimizer: DWMGrad) -> tuple[torch.nn.Module, DWMGrad]:
    other, loaded = make(next(model.parameters()).dtype)
    other.load_state_dict(model.state_dict())
    loaded.load_state_dict(through_file(optimizer.state_dict()))
    return other, loaded


def by_pickle(model: torch.nn.Module, optimizer: DWMGrad) -> tuple[torch.nn.Module, DWMGrad]:
    return pickle.loads(pickle.dumps((model, optimizer)))


def by_deepcopy(model: torch.nn.Module, optimizer: DWMGrad) -> tuple[torch.nn.Module, DWMGrad]:
    return copy.deepcopy((model, optimizer))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", [by_state_dict, by_pickle, by_deepcopy])
@pytest.mark.parametrize("at", [0, 1, 5])
def test_a_run_goes_on_bit_by_bit(way, at: int, dtype: torch.dtype) -> None:
    model, optimizer = make(dtype)
    train(model, optimizer, LOSSES[:at])
    other, loaded = way(model, optimizer)
    train(model, optimizer, LOSSES[at:])
    train(other, loaded, LOSSES[at:])
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    ours, theirs = optimizer.state_dict(), loaded.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    for key, buffers in ours["state"].items():
        assert all(
            torch.equal(buffer, theirs["state"][key][name]) for name, buffer in buffers.items()
        )


def test_a_group_added_after_loading_joins_the_loaded_window() -> None:
    model, optimizer = make(max_window=100)
    train(model, optimizer, LOSSES)
    other, loaded = make()
    loaded.load_state_dict(optimizer.state_dict())
    loaded.add_param_group({"params": [torch.ones(2, requires_grad=True)]})
    assert [group["max_window"] for group in loaded.param_groups] == [100] * 3
    assert {group["window"] for group in loaded.param_groups} == {optimizer.window}
    fresh = make()[1]
    fresh.add_param_group({"params": [torch.ones(2, requires_grad=True)]})
    fresh.load_state_dict(through_file(loaded.state_dict()))
    with pytest.raises(ValueError, match="max_window is one for the whole optimizer: it is 100"):
        loaded.add_param_group({"params": [torch.ones(2, requires_grad=True)], "max_window": 7})


def test_a_bound_that_was_lowered_in_the_groups_is_saved_and_loaded() -> None:
    """Below the initial window, which is past, and below the window, which the next step moves."""
    model, optimizer = make(max_window=100)
    train(model, optimizer, [9.0, 8.0, 7.0])
    for group in optimizer.param_groups:
        group["max_window"] = 3
    saved = through_file(optimizer.state_dict())
    train(model, optimizer, [6.0])
    optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)]})
    other, loaded = make()
    with pytest.warns(UserWarning, match="max_window is 3 there and"):
        loaded.load_state_dict(saved)
    train(other, loaded, [6.0])
    assert loaded.window == optimizer.window == 3


def test_numpy_numbers_of_a_scheduler_do_not_spoil_a_checkpoint() -> None:
    optimizer = make()[1]
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: np.cos(np.float64(0.1) * step))
    assert type(optimizer.param_groups[0]["lr"]) is not float
    rates = {"max_lr": np.float64(0.1), "total_steps": 9}
    torch.optim.lr_scheduler.OneCycleLR(optimizer, **rates)  # leaves min_lr and others, too
    optimizer.load_state_dict(through_file(optimizer.state_dict()))
    assert type(optimizer.param_groups[0]["lr"]) is float


def test_numpy_arguments_do_not_spoil_a_checkpoint() -> None:
    model = torch.nn.Linear(2, 1)
    settings = {"lr": np.float64(0.1), "momentum": np.float32(0.5), "max_window": np.int64(9)}
    optimizer = DWMGrad(model.parameters(), **settings)
    optimizer.load_state_dict(through_file(optimizer.state_dict()))
    assert type(optimizer.param_groups[0]["lr"]) is float


def test_a_half_open_batch_stays_out() -> None:
    model, optimizer = make()
    train(model, optimizer, LOSSES[:3])
    before = optimizer.state_dict()["param_groups"]
    optimizer.observe_loss(100.0)
    assert optimizer.state_dict()["param_groups"] == before
    _, loaded = by_state_dict(model, optimizer)
    train(model, loaded, [0.5])
    assert loaded.last_loss == 0.5


def test_only_plain_values_beside_the_buffers() -> None:
    model, optimizer = make()
    train(model, optimizer, LOSSES[:2])
    for group in optimizer.state_dict()["param_groups"]:
        assert all(type(v) in (int, float, str, bool, list, type(None)) for v in group.values())
    for buffers in optimizer.state_dict()["state"].values():
        assert all(type(buffer) is torch.Tensor for buffer in buffers.values())


def test_a_scheduler_may_have_left_its_key() -> None:
    model, optimizer = make()
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    _, fresh = make()
    fresh.load_state_dict(optimizer.state_dict())
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=3)
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh.param_groups[0]["max_lr"] == 0.1


def test_what_others_keep_beside_the_parameters_state_is_saved() -> None:
    model, optimizer = make()
    optimizer.state["lookahead"] = 3
    train(model, optimizer, LOSSES[:2])
    optimizer.step()  # asks whether there is state
    assert optimizer.state_dict()["state"]["lookahead"] == 3


@pytest.mark.parametrize("whose", ["the saved one's", "its own"])
def test_what_loops_keep_in_a_group_is_theirs(whose: str) -> None:
    """timm's `lr_scale`, a name for the group; the state dict's wins, as with AdamW."""
    saved, loaded = (make()[1] for _ in range(2))
    (loaded if whose == "its own" else saved).param_groups[0]["lr_scale"] = 0.5
    loaded.load_state_dict(through_file(saved.state_dict()))
    assert loaded.param_groups[0].get("lr_scale") == (None if whose == "its own" else 0.5)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_parameter_given_twice_is_loaded_once() -> None:
    param, other = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer, loaded = (DWMGrad([p, p], lr=0.1, preset="finetune") for p in (param, other))
    param.grad = other.grad = torch.ones(3)
    optimizer.step(loss=1.0)
    other.data.copy_(param)
    loaded.load_state_dict(through_file(optimizer.state_dict()))
    optimizer.step(loss=0.5)
    loaded.step(loss=0.5)
    assert torch.equal(param, other)


def broken(case: str) -> dict:
    model, optimizer = make()
    train(model, optimizer, LOSSES[:2])
    state_dict = copy.deepcopy(optimizer.state_dict())
    changed = REFUSED[case][0](state_dict)
    return changed if case in ("no state dict", "no state") else state_dict


def in_group(index: int, **values):
    return lambda sd: sd["param_groups"][index].update(values)


def in_state(key: int, **values):
    return lambda sd: sd["state"][key].update(values)


REFUSED = {
    "no state dict": (lambda sd: [1, 2], "must be a dict with the keys"),
    "no state": (lambda sd: {"param_groups": sd["param_groups"]}, "'state' and 'param_groups'"),
    "a group less": (lambda sd: sd["param_groups"].pop(), "1 parameter groups.*has 2"),
    "a parameter less": (lambda sd: sd["param_groups"][0]["params"].pop(), "has 1 parameters"),
    "a key less": (lambda sd: sd["param_groups"][1].pop("window"), r"missing keys \['window'\]"),
    "one key for two": (
        lambda sd: sd["param_groups"][1]["params"].__setitem__(0, 0),
        "one key, 0, for two parameters",
    ),
    "newer schema": (
        in_group(0, schema=SCHEMA + 1),
        f"'schema'] is {SCHEMA + 1}.*reads 1 to {SCHEMA}: update dwmgrad",
    ),
    "schema as a truth": (in_group(0, schema=True), "'schema'] is True"),
    "schema as text": (in_group(0, schema="1"), "'schema'] is '1'"),
    "window as text": (in_group(0, window="5"), r"\[0\]: window must be a whole number, got '5'"),
    "window 0": (in_group(0, window=0), "window must be at least 1, got 0"),
    "window beyond": (in_group(0, window=11), "window must be at most 10, got 11"),
    "nan last_loss": (in_group(0, last_loss=float("nan")), "last_loss must be finite"),
    "more loss left than all": (in_group(0, loss_left=1.1), "loss_left must be at most 1, got 1.1"),
    "infinite slow_loss": (in_group(0, slow_loss=float("inf")), "slow_loss must be finite"),
    "infinite mean_loss": (in_group(0, mean_loss=float("inf")), "mean_loss must be finite"),
    "zero_share": (
        in_state(0, zero_share=torch.tensor(1.5)),
        r"'zero_share'\] must be at most 1, got 1.5",
    ),
    "no zero_share": (in_state(0, zero_share=None), r"'zero_share'\] must be a number, got None"),
    "bad smoothing": (in_group(0, loss_smoothing=1.0), r"loss_smoothing must be in \[0, 1\)"),
    "two windows of s": (in_group(1, second_moment_window=9), "is 9 but None in the first group"),
    "text last_loss": (in_group(0, last_loss="2"), "last_loss must be a number or None"),
    "bad lr": (in_group(1, lr="fast"), r"\[1\]: lr must be a number"),
    "increases": (in_group(0, increases=3), "increases must be at most 2, got 3"),
    "two windows": (in_group(1, window=9), r"\['window'\] is 9 but 5 in the first group"),
    "stray state": (lambda sd: sd["state"].update({99: sd["state"][0]}), "key 99.*no group"),
    "buffer less": (lambda sd: sd["state"][0].pop("square_avg"), "must have the keys"),
    "buffer no tensor": (in_state(0, square_avg=[0.0]), "real tensor, got list"),
    "wrong shape": (
        in_state(0, square_avg=torch.zeros(3)),
        r"has the shape \(3,\), the parameter \(4, 6\)",
    ),
    "expanded buffer": (
        in_state(0, square_avg=torch.zeros(1).expand(4, 6)),
        r"\['square_avg'\] has elements that share memory",
    ),
    "one buffer twice": (
        lambda sd: sd["state"][0].update(square_avg=sd["state"][0]["momentum_buffer"].abs_()),
        r"\[0\]\['square_avg'\] is the same memory as .*\[0\]\['momentum_buffer'\]",
    ),
    "a tensor for a group": (
        lambda sd: sd["param_groups"].__setitem__(1, torch.zeros(2)),
        r"\[1\] must be a dict, got Tensor",
    ),
    "a tensor of steps": (in_group(1, steps=torch.zeros(2)), "steps must be a whole number"),
    "two steps apart": (in_group(1, steps=4), r"\['steps'\] is 4 but 2 in the first group"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(case: str) -> None:
    bad, message = broken(case), REFUSED[case][1]
    model, optimizer = make()
    train(model, optimizer, LOSSES[:4])
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises((TypeError, ValueError), match=message):
        optimizer.load_state_dict(bad)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for key, buffers in before["state"].items():
        assert all(
            torch.equal(buffer, after["state"][key][name]) for name, buffer in buffers.items()
        )


def test_what_others_keep_in_the_state_is_left_alone() -> None:
    """Lookahead, averages and other wrappers write into `optimizer.state[p]`."""
    model, optimizer = make()
    params = list(model.parameters())
    kept = {param: torch.full((3,), float(i)) for i, param in enumerate(params)}
    for param in params:
        optimizer.state[param]["initial"] = kept[param]
    train(model, optimizer, LOSSES[:2])
    for param in params:
        optimizer.state[param]["step"] = 7
    optimizer.state["of all"] = 1
    state_dict = through_file(optimizer.state_dict())
    _, plain = make()
    _, converted = make(state_dtype=torch.bfloat16)
    for loaded in (plain, converted):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded.load_state_dict(copy.deepcopy(state_dict))
        assert loaded.state.pop("of all") == 1
        for own in loaded.state.values():
            assert own["step"] == 7 and own["initial"].shape == (3,)
    train(model, optimizer, LOSSES[2:4])
    assert all(optimizer.state[param]["initial"] is kept[param] for param in params)


def test_parameters_without_state_get_it_at_their_first_step() -> None:
    """A checkpoint from before a layer was unfrozen."""
    model, optimizer = make()
    model[0].requires_grad_(False)
    for loss in LOSSES[:3]:
        model[1].weight.grad = torch.ones_like(model[1].weight)
        optimizer.step(loss=loss)
    saved = through_file(optimizer.state_dict())
    assert len(saved["state"]) == 2
    other, loaded = make()
    loaded.load_state_dict(saved)
    train(other, loaded, LOSSES[3:5])
    assert len(loaded.state) == 4 and loaded.param_groups[0]["steps"] == 5


def test_numbers_without_any_state_do_not_load_in_silence() -> None:
    model, optimizer = make()
    train(model, optimizer, LOSSES[:3])
    saved = {**optimizer.state_dict(), "state": {}}
    _, loaded = make()
    with pytest.warns(UserWarning, match="has made 3 steps and has no state for any parameter"):
        loaded.load_state_dict(saved)


def test_settings_that_differ_are_named_once_with_both_values() -> None:
    model, optimizer = make(max_window=20, momentum=0.8)
    train(model, optimizer, LOSSES[:3])
    saved = through_file(optimizer.state_dict())
    _, loaded = make(preset="finetune", state_dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="other settings") as said:
        loaded.load_state_dict(saved)
    (text,) = [str(each.message) for each in said]
    assert "max_window is 20 there and 100 here (the state dict's holds)" in text
    assert "momentum is 0.8 there and 0.9 here" in text
    assert "state_dtype is None there and 'bfloat16' here (the optimizer's holds)" in text
    assert loaded.param_groups[0]["max_window"] == 20
    _, same = make(max_window=20, momentum=0.8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same.load_state_dict(saved)


def test_a_checkpoint_of_adamw_is_called_one() -> None:
    model, optimizer = make()
    stranger = torch.optim.AdamW([{"params": g["params"]} for g in optimizer.param_groups])
    with pytest.raises(ValueError, match="a group of Adam or AdamW, not of this DWMGrad"):
        optimizer.load_state_dict(stranger.state_dict())


HOSTILE = {
    "expanded scales": (
        "momentum_scale",
        lambda t: torch.ones(1).expand(t.shape),
        "has elements that share memory",
    ),
    "strided scales": (
        "square_scale",
        lambda t: torch.stack([t, t], 1)[:, 0],
        "must be contiguous",
    ),
    "transposed codes": (
        "momentum_buffer",
        lambda t: t.t().contiguous().t(),
        "must be contiguous",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_8_bit_state_of_a_hostile_layout_is_refused_by_key(case: str) -> None:
    """The kernel would write past the end of the four bytes of an expanded scale."""
    param = torch.nn.Parameter(torch.zeros(64, 512))
    param.grad = torch.randn(64, 512)
    optimizer = DWMGrad([param], lr=0.1, state_dtype="int8")
    optimizer.step(loss=1.0)
    saved = copy.deepcopy(optimizer.state_dict())
    name, change, message = HOSTILE[case]
    saved["state"][0][name] = change(saved["state"][0][name])
    with pytest.raises(ValueError, match=rf"\[0\]\['{name}'\] {message}"):
        optimizer.load_state_dict(through_file(saved))


@pytest.mark.parametrize("other", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_the_state_of_another_optimizer_is_refused(other) -> None:
    model, optimizer = make()
    stranger = other([{"params": g["params"]} for g in optimizer.param_groups], lr=0.1)
    with pytest.raises(ValueError, match=r"missing keys \[.*'window'.*\], unknown keys \["):
        optimizer.load_state_dict(stranger.state_dict())


def test_a_truncated_file_is_torchs_error_and_changes_nothing(tmp_path) -> None:
    model, optimizer = make()
    train(model, optimizer, LOSSES[:2])
    path = tmp_path / "optimizer.pt"
    torch.save(optimizer.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises((RuntimeError, EOFError, OSError)):
        optimizer.load_state_dict(torch.load(path, weights_only=True))
    assert optimizer.window == 5


def test_torch_distributed_checkpoint_round_trips_with_and_without_flattening() -> None:
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    for flatten in (False, True):
        options = StateDictOptions(flatten_optimizer_state_dict=flatten)
        model, optimizer = make(missing_loss="error")
        train(model, optimizer, LOSSES[:5])
        saved = through_file(get_optimizer_state_dict(model, optimizer, options=options))
        other, loaded = make(missing_loss="error")
        other.load_state_dict(model.state_dict())
        set_optimizer_state_dict(other, loaded, saved, options=options)
        assert (loaded.window, loaded.last_loss) == (optimizer.window, optimizer.last_loss)
        train(model, optimizer, LOSSES[5:])
        train(other, loaded, LOSSES[5:])
        assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_torch_distributed_checkpoint_leaves_a_loss_that_waits() -> None:
    """It makes the state, where there is none, by a step."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model, optimizer = make(preset="auto", missing_loss="error")
    optimizer.observe_loss(LOSSES[0])
    get_optimizer_state_dict(model, optimizer)
    group = optimizer.param_groups[0]
    assert optimizer.state and (group["steps"], group["last_loss"]) == (0, None)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert group["steps"] == 1 and group["last_loss"] == pytest.approx(LOSSES[0])
    assert group["step_limit"] > 0


@pytest.mark.parametrize("path", sorted(RELEASED.glob("schema-*.pt")), ids=lambda p: p.stem)
def test_a_checkpoint_of_every_released_schema_goes_on_as_it_would_have(path: Path) -> None:
    saved = torch.load(path, weights_only=True)
    params, optimizer = released.build()
    for param, value in zip(params, saved["params"], strict=True):
        param.data.copy_(value)
    optimizer.load_state_dict(saved["optimizer"])
    released.train(params, optimizer, 12, 30)
    for param, value in zip(params, saved["then"], strict=True):
        torch.testing.assert_close(param.detach(), value)
    assert [optimizer.window, optimizer.last_loss] == saved["windows_then"]


@pytest.mark.parametrize("schema", [1, 2])
def test_a_pickle_that_an_earlier_version_made_goes_on(schema: int) -> None:
    """All but what its groups did not have yet is the same."""
    since_2 = ("steps", "state_dtype", "stochastic_rounding", "capturable")
    losses = ("mean_loss", "loss_left", "quarter_loss", "slow_loss")
    new = (*PAPER.keys() - {"initial_window", "max_window"}, *losses)
    model, optimizer = make()
    train(model, optimizer, LOSSES[:5])
    other, older = by_pickle(model, optimizer)
    for group in older.param_groups:
        group["schema"] = schema
        for name in (*new, *(since_2 if schema == 1 else ())):
            del group[name]
    other, loaded = by_pickle(other, older)
    train(model, optimizer, LOSSES[5:])
    train(other, loaded, LOSSES[5:])
    assert loaded.window == optimizer.window
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_there_is_a_checkpoint_of_the_present_schema() -> None:
    assert (RELEASED / f"schema-{SCHEMA}.pt").is_file()


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16], ids=str)
def test_a_float32_state_of_a_16_bit_parameter_stays_float32(narrow: torch.dtype) -> None:
    model, optimizer = make()
    train(model, optimizer, LOSSES[:5])
    wide = copy.deepcopy(optimizer.state_dict())
    other, loaded = make(narrow)
    loaded.load_state_dict(through_file(wide))
    for param, key in zip(other.parameters(), wide["state"], strict=True):
        for name in ("momentum_buffer", "square_avg"):
            assert torch.equal(loaded.state[param][name], wide["state"][key][name])
    train(other, loaded, LOSSES[5:])
    again = through_file(loaded.state_dict())["state"]
    buffers = [own[name] for own in again.values() for name in ("momentum_buffer", "square_avg")]
    assert all(buffer.dtype == torch.float32 for buffer in buffers)
    for param, reference in zip(other.parameters(), model.parameters(), strict=True):
        assert param.dtype == narrow and param.isfinite().all() and param.shape == reference.shape


def test_a_loaded_state_is_the_optimizers_own() -> None:
    model, optimizer = make()
    train(model, optimizer, LOSSES[:3])
    saved = copy.deepcopy(optimizer.state_dict())
    _, loaded = make(torch.bfloat16)
    loaded.load_state_dict(saved)
    buffers = {b.data_ptr() for state in saved["state"].values() for b in state.values()}
    assert not buffers & {b.data_ptr() for s in loaded.state.values() for b in s.values()}


def test_a_group_at_rest_does_not_part_from_the_others() -> None:
    model, optimizer = make()
    optimizer.param_groups[1]["lr"] = 0.0
    train(model, optimizer, LOSSES[:3])
    assert [group["steps"] for group in optimizer.param_groups] == [3, 3]
    _, loaded = make()
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
