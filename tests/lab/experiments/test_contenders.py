"""The optimizers of the comparison, their settings, and the schedules."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from experiments.comparison import WITHOUT
from experiments.contenders import CONTENDERS, SCHEDULES, get_contender
from experiments.runner import Run
from experiments.workloads import WORKLOADS, make_workload
from glue.errors import UsageError

from dwmgrad import DWMGrad, rule
from dwmgrad.presets import PRESETS
from dwmgrad.rule import SIGNALS

ROOT = Path(__file__).parents[3]


def needs(contender):
    """Skip where the contender's package is not installed."""
    packages = {
        "schedule-free-adamw": "schedulefree",
        "momo-adam": "momo",
        "prodigy": "prodigyopt",
        "prodigy-corrected": "prodigyopt",
    }
    if contender in packages:
        pytest.importorskip(packages[contender])


PLAIN = {"lr": 0.1, "weight_decay": 0.0, "schedule": "constant", "warmup": 0.0}


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_lowers_a_quadratic(name):
    needs(name)
    contender = get_contender(name)
    given = {"lr": WITHOUT if contender.rateless else 0.01}
    if name == "dwmgrad-replayed":
        given["windows_of"] = ["docs/results/machine-stsb.json", "finetune", 17]
    own = make_workload("rosenbrock").settings(name, given)
    point = torch.nn.Parameter(torch.ones(3))
    optimizer = contender.build([point], own, 50)
    getattr(optimizer, "train", lambda: None)()
    # with both corrections Prodigy's distance grows from 1e-6 more slowly
    for _ in range(200 if name == "prodigy-corrected" else 50):
        optimizer.zero_grad()
        loss = point.square().sum()
        loss.backward()
        takes_loss = contender.needs_loss or name.startswith("dwmgrad")
        optimizer.step(**({"loss": loss} if takes_loss else {}))
    assert point.square().sum() < 2.5


def test_a_replayed_window_is_the_other_runs_whatever_the_loss():
    results = ROOT / "docs" / "results" / "machine-stsb.json"
    runs = json.loads(results.read_text())["results"]["finetune"]["runs"]
    (run,) = (run for run in runs if run["seed"] == 11)
    point = torch.nn.Parameter(torch.ones(2))
    given = {"lr": 1e-3, "windows_of": ["docs/results/machine-stsb.json", "finetune", 11]}
    own = make_workload("rosenbrock").settings("dwmgrad-replayed", given)
    optimizer = get_contender("dwmgrad-replayed").build([point], own, run["steps"])
    made = {}
    for step in range(1, run["steps"] + 1):
        point.grad = torch.ones(2)
        optimizer.step(loss=1.0 + step % 7)
        made[step] = optimizer.window
    assert [[step, made[step]] for step, _ in run["windows"]] == run["windows"]
    assert optimizer.param_groups[0]["second_moment_window"] == 500  # finetune's other settings


@pytest.mark.parametrize(
    ("windows_of", "message"),
    [
        (["docs/results/none.json", "finetune", 11], "none.json: .*No such file"),
        (["docs/evidence.md", "finetune", 11], "evidence.md: "),
        (["docs/results/machine-stsb.json", "fine", 11], "label fine: no such one. Did you mean"),
        (["docs/results/machine-stsb.json", "finetune", 3], "finetune: seed 3: no such one.*11"),
        (["docs/results/machine-stsb.json", "AdamW", 11], "AdamW: seed 11: no such one"),
    ],
)
def test_a_window_that_is_not_there_to_replay_is_told(windows_of, message):
    given = {"lr": 1e-3, "windows_of": windows_of}
    with pytest.raises(UsageError, match=f"dwmgrad-replayed: windows_of .*{message}"):
        make_workload("rosenbrock").settings("dwmgrad-replayed", given)


def test_dwmgrad_is_there_with_each_signal():
    for signal in SIGNALS:
        optimizer = get_contender(f"dwmgrad-{signal}").build(
            [torch.nn.Parameter(torch.zeros(2))], PLAIN | {"max_window": 100}, 10
        )
        assert optimizer.param_groups[0]["window_signal"] == signal
        assert optimizer.param_groups[0]["max_window"] == 100


@pytest.mark.parametrize(
    ("name", "adamw", "adam"), [("tiny-sst2", 0.01, 0.0), ("cifar10", 1e-4, 1e-4)]
)
def test_a_decoupled_decay_is_not_added_to_gradients(name, adamw, adam):
    work = make_workload(name)
    for contender, expected in (("adamw", adamw), ("dwmgrad-loss", adamw), ("adam", adam)):
        assert work.settings(contender, {"lr": 0.1})["weight_decay"] == expected
        given = {"lr": 0.1, "weight_decay": 0.3}
        assert work.settings(contender, given)["weight_decay"] == 0.3


def test_a_rule_that_was_changed_makes_other_runs(tmp_path, monkeypatch):
    work = make_workload("rosenbrock")
    runs = [Run(work, name, {"lr": 0.1}, 0) for name in ("adamw", "dwmgrad-loss")]
    before = [run.path(tmp_path) for run in runs]
    assert before == [run.path(tmp_path) for run in runs]
    monkeypatch.setattr(rule, "RULE_VERSION", rule.RULE_VERSION + 1)
    after = [run.path(tmp_path) for run in runs]
    assert after[0] == before[0] and after[1] != before[1]


def test_the_preset_is_a_contender_whose_settings_say_what_it_is():
    settings = make_workload("rosenbrock").settings("dwmgrad-finetune", {"lr": 1e-3})
    assert settings.items() >= PRESETS["finetune"].items()
    built = get_contender("dwmgrad-finetune").build(
        [torch.nn.Parameter(torch.zeros(2))], settings, 10
    )
    assert built.param_groups[0].items() >= PRESETS["finetune"].items()


def test_defaults_can_be_changed_and_what_is_fixed_cannot():
    workload = make_workload("rosenbrock")
    assert workload.settings("sgd", {"lr": 1})["momentum"] == 0.9
    assert workload.settings("sgd", {"lr": 1, "momentum": 0.0})["momentum"] == 0.0
    with pytest.raises(UsageError, match="window_signal is fixed to 'loss'"):
        workload.settings("dwmgrad-loss", {"lr": 1, "window_signal": "increase"})


@pytest.mark.parametrize(
    ("contender", "settings", "message"),
    [
        ("adamv", {"lr": 1}, "Did you mean adam"),
        ("adam", {}, "lr must be a number, got None"),
        ("adam", {"lr": "1e-3"}, "lr must be a number, got '1e-3'"),
        ("adam", {"lr": math.nan}, "out of range"),
        ("adam", {"lr": 1, "warmup": 1.0}, "warmup 1.0 is out of range"),
        ("adam", {"lr": 1, "schedule": "linea"}, "choose from constant, linear"),
        ("adam", {"lr": 1, "max_window": 3}, "max_window"),
        ("dwmgrad-loss", {"lr": 1, "max_window": 0}, "max_window"),
        ("schedule-free-adamw", {"lr": 1, "schedule": "linear"}, "choose from constant$"),
    ],
)
def test_bad_settings_are_told_in_one_line(contender, settings, message):
    needs(contender)
    with pytest.raises(UsageError, match=message):
        make_workload("rosenbrock").settings(contender, settings)


def test_schedule_free_takes_its_warm_up_itself():
    needs("schedule-free-adamw")
    workload = make_workload("language", steps=200)
    settings = workload.settings("schedule-free-adamw", {"lr": 1e-2})
    contender = get_contender("schedule-free-adamw")
    assert settings["schedule"] == "constant"
    assert contender.arguments(settings, 200)["warmup_steps"] == 10
    optimizer = contender.build([torch.nn.Parameter(torch.zeros(1))], settings, 200)
    contender.scheduler(optimizer, settings, 200)
    assert optimizer.param_groups[0]["lr"] == 1e-2


def test_schedules_rise_to_the_rate_and_end_low():
    for name, ends in (("constant", 1.0), ("linear", 0.0), ("cosine", 0.0), ("step", 0.01)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
        settings = {"schedule": name, "warmup": 0.2}
        schedule = get_contender("sgd").scheduler(optimizer, settings, steps=20)
        rates = []
        for _ in range(20):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert rates[:5] == [0.0, 0.5, 1.0, 1.5, 2.0]
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2 * ends)
        assert max(rates[4:]) == 2.0 and rates[4:] == sorted(rates[4:], reverse=True)
    assert set(SCHEDULES) == {"constant", "linear", "cosine", "step"}


def test_every_workload_can_be_made_and_described():
    for name in WORKLOADS:
        workload = make_workload(name, "somewhere")
        assert workload.name == name and workload.steps > 0 and workload.metric
        assert "somewhere" not in str(workload.description())
    with pytest.raises(UsageError, match="Did you mean cora"):
        make_workload("corra")
    with pytest.raises(UsageError, match="wide"):
        make_workload("cora", None, wide=3)


def test_where_a_model_lies_does_not_matter_and_which_it_is_does():
    def of(model):
        return make_workload("glue-rte", None, model_name_or_path=model).description()

    assert of("/a/roberta") == of("/b/roberta") != of("/b/other")


def test_a_ramp_is_the_share_of_the_run_over_which_the_window_grows():
    work = make_workload("tiny-sst2")
    settings = work.settings("dwmgrad-auto", {"lr": WITHOUT, "ramp": 0.2})
    built = get_contender("dwmgrad-auto").build(
        [torch.nn.Parameter(torch.zeros(2))], settings, work.steps
    )
    asked = DWMGrad([torch.nn.Parameter(torch.zeros(2))], preset="auto")
    asked.expect_steps(work.steps)  # as the Trainer does for the preset
    for name in ("max_window", "window"):
        assert built.param_groups[0][name] == asked.param_groups[0][name]
