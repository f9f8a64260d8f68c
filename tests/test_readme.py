"""README's own code runs, its commands exist, and its figures are those of the results."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from pages import README, ROOT, anchors, blocks, commands, compared, links, row

pytest.importorskip("peft")
from accelerate.state import AcceleratorState, GradientState
from transformers import TrainingArguments

import dwmgrad
from dwmgrad.wrappers import dwmgrad_in

PYTHON = dict(
    zip(("trainer", "own optimizer", "loop", "lora"), blocks(README, "python"), strict=True)
)
"""Each setting's block."""


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What README calls yours: `model`, `dataset`, `loader`, `args`."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "integrations"))
    from tiny import tiny_roberta

    dwmgrad.register()  # a test before this one may have taken the name away
    monkeypatch.chdir(tmp_path)
    tokens = torch.randint(5, 40, (16, 8))
    data = [{"input_ids": each, "labels": int(each[0] > 20)} for each in tokens]
    with mock.patch.dict(os.environ):  # TrainingArguments leave their precision behind
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        yield {
            "model": tiny_roberta(),
            "dataset": data,
            "loader": torch.utils.data.DataLoader(data, batch_size=4),
            "args": TrainingArguments("own", report_to="none", learning_rate=1e-3),
        }


@pytest.mark.parametrize("setting", PYTHON)
def test_its_python_trains_with_the_preset(setting, names):
    exec(compile(PYTHON[setting], f"README.md, {setting}", "exec"), names)
    trained = names["trainer"].optimizer if "trainer" in names else names["optimizer"]
    optimizer = dwmgrad_in(trained)
    (group, *_) = optimizer.param_groups
    assert (group["max_window"], group["second_moment_window"]) == (100, 500)
    assert group["observations"] >= 4 and optimizer.last_loss > 0
    moved = [p for each in optimizer.param_groups for p in each["params"]]
    assert moved and all(len(optimizer.state[p]) > 0 for p in moved)
    if setting == "lora":
        trained = [n for n, p in names["trainer"].model.named_parameters() if p.requires_grad]
        assert all("lora_" in name or "classifier" in name for name in trained)


SCRIPT = """
    import torch
    from transformers import HfArgumentParser, Trainer, TrainingArguments

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 2)

        def forward(self, x, labels):
            return {"loss": torch.nn.functional.cross_entropy(self.linear(x), labels)}

    if __name__ == "__main__":
        (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
        data = [{"x": torch.randn(4), "labels": i % 2} for i in range(16)]
        trainer = Trainer(Model(), args, train_dataset=data)
        trainer.train()
        print("TRAINED", type(trainer.optimizer.optimizer).__name__, args.learning_rate)
"""


def test_its_script_stays_as_it_is(tmp_path):
    (tmp_path / "train.py").write_text(textwrap.dedent(SCRIPT))
    words = next(words for words in commands(README) if words[:3] == ["python", "-m", "dwmgrad"])
    process = subprocess.run(
        [sys.executable, *words[1:]], cwd=tmp_path, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert "TRAINED DWMGrad 2e-05" in process.stdout


def test_it_is_short():
    text = README.read_text("utf-8")
    assert len(text.splitlines()) <= 150 and len(text.split()) <= 1200


def test_its_links_lead_somewhere():
    for target in links(README):
        path, _, anchor = target.partition("#")
        assert (ROOT / path).is_file(), target
        assert not anchor or anchor in anchors(ROOT / path), target


MODEL = ("roberta-base", "float32")


def rows_of(name: str) -> list[dict[str, Any]]:
    return json.loads((ROOT / f"docs/results/{name}.json").read_text())["rows"]


def steps(shapes: str, state: str) -> dict[str, Any]:
    every = rows_of("step-cpu")
    (found,) = (each for each in every if (each["shapes"], each["state"]) == (shapes, state))
    return found


def test_its_figures_are_those_of_the_results():
    text = README.read_text("utf-8")
    limited = [each for each in rows_of("step-cpu-limit") if "limit" in each["optimizer"]]
    ours = [each for each in rows_of("step-h100") if each["kernel"] == "one_launch"]
    limited_there = [each for each in rows_of("step-h100-limit") if "limit" in each["optimizer"]]
    ratios = [
        next(r["ratio"]["median"] for r in rows if (r["shapes"], r["state"]) == MODEL)
        for rows in (rows_of("step-cpu"), ours, limited, limited_there)
    ]
    speed = "**Speed:** {:.2f} times fused AdamW's step on a CPU, {:.2f} on an H100; "
    speed += "with `auto` or `capped` {:.2f} and {:.2f} (RoBERTa-base)."
    assert speed.format(*ratios) in text
    size = steps("roberta-base", "int8")["state_bytes_per_parameter"]
    assert f"{size:.2f} bytes of state per parameter" in text
    faults = json.loads((ROOT / "docs/results/faults.json").read_text())
    assert f"{faults['equal_ends']} of {faults['kills']} killed trainings" in text


TASKS = {
    "glue-cola": "CoLA",
    "glue-stsb": "STS-B",
    "glue-mrpc": "MRPC",
    "cora": "Cora",
    "digits": "spoken digits",
}


AUTO_PAGE = " ".join((ROOT / "docs/auto.md").read_text("utf-8").split())


@pytest.fixture(scope="module")
def comparisons() -> dict[str, Any]:
    return {name: compared(name) for name in TASKS}


def test_its_table_is_that_of_the_results(comparisons):
    assert f"\n| | {' | '.join(TASKS.values())} |\n" in README.read_text("utf-8")
    for name, label in (
        ("dwmgrad-finetune", "`dwmgrad_finetune`, best rate"),
        ("adamw-control", "AdamW, betas 0.6 and 0.998, best rate"),
        ("dwmgrad-auto", "`dwmgrad_auto`, without a rate"),
        ("prodigy-corrected", "Prodigy, without a rate"),
    ):
        told = []
        for each in comparisons.values():
            assert len(each.runs(name, "final")) == len(each.at_best("adamw")) == 8
            told.append(f"{each.difference(name).mean:+.2f}")
        assert row(README, label)[1:] == told
    rates = {"cora": 11, "digits": 11, "glue-cola": 7, "glue-mrpc": 5, "glue-stsb": 5}
    for name, label in (
        ("dwmgrad-capped", "`dwmgrad_capped`, mean over all rates, %"),
        ("adamw", "AdamW, mean over all rates, %"),
    ):
        told = []
        for task, each in comparisons.items():
            seeds = [0] if task.startswith("glue") else [0, 1, 2]
            every = each.rates().fillna({"score": each.rates().score.min()})
            runs = every[(every["of"] == name) & every.seed.isin(seeds)]
            assert (runs.lr.nunique(), len(runs)) == (rates[task], rates[task] * len(seeds))
            told.append(f"{100 * runs.score.mean():.2f}")
        assert row(README, label)[1:] == told


def test_what_it_says_below_the_table_is_what_the_results_say(comparisons):
    text = " ".join(README.read_text("utf-8").split())
    others = {}
    for name, each in comparisons.items():
        glue = name.startswith("glue")
        places = each.runs("dwmgrad-finetune", "final").on.value_counts()
        others |= {name: places[1:].to_dict()} if len(places) > 1 else {}
        assert not glue or set(each.runs("adamw", "final").on) == {"NVIDIA H100 80GB HBM3"}
        assert not glue or places.index[0] == "NVIDIA H100 80GB HBM3"
        for own in ("dwmgrad-auto", "dwmgrad-capped", "prodigy-corrected", "adamw-control"):
            assert each.apart(own) == glue
        for own in ("dwmgrad-auto", "prodigy-corrected"):
            assert not glue or sorted(each.rates(own).seed) == [0, 1]
        assert sorted(each.chosen_on) == ["dwmgrad-auto", "dwmgrad-capped"] * glue
    assert others == {"glue-cola": {"AMD EPYC": 1}}
    assert (
        "ran on an H100 (but for one of `finetune`'s seeds of CoLA), and the others on a CPU"
        in text
    )


def test_its_figures_of_lora_are_those_of_the_results():
    found = []
    for each in map(compared, ("glue-cola-lora", "glue-mrpc-lora")):
        for name in ("dwmgrad-finetune", "dwmgrad-auto"):
            lead = each.difference(name)
            assert len(each.runs(name, "final")) == len(each.runs("adamw", "final")) == 8
            assert lead.interval[0] < 0 < lead.interval[1] and not each.apart(name)
            found.append(lead.mean)
    finetune, auto, finetune_mrpc, auto_mrpc = found
    assert (
        f"(8 new seeds) `finetune` was {finetune:.1f} points ahead of AdamW at its best rate on "
        f"CoLA, and {finetune_mrpc:.1f} on MRPC; `auto` was {-auto:.1f} behind, and "
        f"{auto_mrpc:.1f} ahead; none of it surely."
    ) in " ".join(README.read_text("utf-8").split())
    told = f"it was {-auto:.1f} points behind on CoLA, and {auto_mrpc:.1f} ahead on MRPC."
    assert told in AUTO_PAGE


def every_comparison() -> dict[str, Any]:
    files = sorted((ROOT / "docs/results").glob("comparison-*.json"))
    return {name: compared(name) for name in (f.stem.removeprefix("comparison-") for f in files)}


SURE = {"glue-stsb": "STS-B", "small-characters": "a small LSTM", "cifar10-short": "ResNet-20"}


def test_its_figures_of_all_workloads_are_those_of_their_new_seeds():
    from experiments import stats

    text = " ".join(README.read_text("utf-8").split())
    every = every_comparison()
    assert len(every) == 13 and all(
        len(each.runs("adamw", "final")) == 8 for each in every.values()
    )
    leads = {name: each.difference("dwmgrad-finetune") for name, each in every.items()}
    assert all(len(each.runs("dwmgrad-finetune", "final")) == 8 for each in every.values())
    means = [lead.mean for lead in leads.values()]
    told = (
        f"{sum(means) / 13:.1f} points ahead of {{}} in the mean, and {-min(means):.1f} behind at"
    )
    assert (
        f"Over 13 workloads, `dwmgrad_finetune` is {told.format('tuned AdamW')} the worst." in text
    )
    assert f"with new seeds, `finetune` is {told.format('AdamW')} the worst." in text
    index = " ".join((ROOT / "docs/index.md").read_text("utf-8").split())
    ahead = (
        f"`finetune` was {sum(means) / 13:.1f} points ahead of AdamW over 13 workloads in the mean"
    )
    assert f"{ahead}, and {-min(means):.1f} behind at the worst." in index
    own = [each for each in every.values() if "dwmgrad-finetune" not in each.chosen_on]
    unit = stats.equal_weights(
        [each.deviations(each.difference("dwmgrad-finetune")) for each in own]
    )
    told = "mean lead is {:.2f} [{:.2f}, {:.2f}] standard".format(unit.mean, *unit.interval)
    assert len(own) == 11 and f"Over the 11 that did not choose it, the {told}" in text
    chances = stats.holm([lead.chance_equal() for lead in leads.values()])
    sure = [name for name, p in zip(leads, chances, strict=True) if p < 0.05]
    assert min(leads[name].mean for name in sure) > 0
    *most, last = (SURE[name] for name in SURE if name in sure)
    assert len(sure) == len(most) + 1
    count = {2: "two", 3: "three"}[len(sure)]
    names = f"{', '.join(most)} and {last}"
    assert f"It is sure on {count}, {names} (p < 0.05 after Holm's correction)." in text
    usage = " ".join((ROOT / "docs/usage.md").read_text("utf-8").split())
    assert f"Of 13 workloads, {count} had a sure gain, {names} (p < 0.05 after" in usage


def test_its_figures_of_those_without_a_rate_are_those_of_the_evidence():
    every = every_comparison().values()
    text = " ".join(README.read_text("utf-8").split())
    assert sum("dwmgrad-auto" in each.chosen_on for each in every) == 9
    new, old = [], []
    for name in ("dwmgrad-auto", "prodigy-corrected"):
        for found, ahead in ((new, "ahead_anew"), (old, "ahead")):
            behind = [-getattr(each, ahead)(name) for each in every]
            behind = [points for points in behind if not math.isnan(points)]
            found.append((len(behind), sum(behind) / len(behind), max(behind)))
    (auto, *auto_told), (prodigy, *prodigy_told) = new
    assert (auto, prodigy) == (13, 8)
    assert (
        "`auto` is {:.1f} points behind in the mean, and {:.1f} at the worst, on "
        "[ResNet-20]".format(*auto_told)
        in text
    )
    assert max(every, key=lambda each: -each.ahead_anew("dwmgrad-auto")).name == "cifar10-short"
    assert "is {:.1f} and {:.1f} behind, over eight.".format(*prodigy_told) in text
    auto, *auto_told = old[0]
    told = "with the seeds that chose AdamW's rate {:.1f} and {:.1f}. Nine of them helped"
    assert auto == 13 and told.format(*auto_told) in text


def test_how_far_prodigy_is_behind_auto_is_what_the_results_say():
    files = sorted((ROOT / "docs/results").glob("comparison-*.json"))
    behind = {}
    for name in (file.stem.removeprefix("comparison-") for file in files):
        each = compared(name)
        if len(each.rates("prodigy-corrected")):
            auto, prodigy = (
                each.best_beside(of) - each.means(of).max()
                for of in ("dwmgrad-auto", "prodigy-corrected")
            )
            behind[name] = prodigy - auto
    ahead = [name for name, points in behind.items() if points < -0.5]
    level = [name for name, points in behind.items() if abs(points) <= 0.5]
    worse = sorted(points for points in behind.values() if points > 0.5)
    assert (ahead, level) == (["glue-cola", "glue-stsb"], ["small-regression"])
    assert len(worse) == 8 and worse[-1] == behind["small-factors"]
    assert (
        "it was ahead on CoLA and STS-B, level on a small perceptron, and behind on eight other "
        f"workloads, by {worse[0]:.1f} to {worse[-1]:.1f} points" in AUTO_PAGE
    )
    assert f"On spoken digits it was {behind['digits']:.1f} behind;" in AUTO_PAGE


def test_what_one_machine_says_of_the_gain_on_stsb_is_what_was_measured():
    pytest.importorskip("pandas")
    from experiments import stats

    points = {
        name: [100 * run["score"] for run in each["runs"]]
        for file in ("machine-stsb", "replay-stsb")
        for name, each in json.loads((ROOT / f"docs/results/{file}.json").read_text())[
            "results"
        ].items()
    }
    assert {*map(len, points.values())} == {8}
    told = []
    for one, other in (
        ("finetune", "AdamW"),
        ("AdamW, betas 0.6 and 0.998", "AdamW"),
        ("finetune", "AdamW, betas 0.6 and 0.998"),
        ("replayed", "finetune"),
        ("replayed", "AdamW"),
    ):
        lead = stats.welch(points[one], points[other])
        told.append("{:+.2f} [{:+.2f}, {:+.2f}]".format(lead.mean, *lead.interval))
    plan = " ".join((ROOT / "docs/plans/glue.md").read_text("utf-8").split())
    assert (
        f"finetune less AdamW {told[0]}, the control less AdamW {told[1]}, "
        f"finetune less the control {told[2]}." in plan
    )
    ahead = told[4].removeprefix("+")
    assert (
        f"The difference is {told[3]}," in plan and f"It is {ahead} points ahead of AdamW" in plan
    )
    text = " ".join(README.read_text("utf-8").split())
    whole, ahead = told[0].split()[0].removeprefix("+"), told[2].removeprefix("+")
    assert (
        f"is {whole} points ahead of AdamW, and {ahead} ahead of AdamW with betas 0.6 and 0.998."
        in text
    )
    assert f"With another run's window it does as well ({told[3]})." in text
    how = " ".join((ROOT / "docs/how-it-works.md").read_text("utf-8").split())
    assert f"the difference is {told[3].replace(' [', ' points [')}" in how


def test_what_the_index_says_of_auto_is_what_the_results_say(comparisons):
    leads = {name: each.difference("dwmgrad-auto").mean for name, each in comparisons.items()}
    index = " ".join((ROOT / "docs/index.md").read_text("utf-8").split())
    best = f"and {leads['glue-cola']:.1f} ahead on CoLA"
    assert (
        f"at most {-min(leads.values()):.1f} points behind a tuned AdamW on these five, {best}"
        in index
    )
    auto = " ".join((ROOT / "docs/auto.md").read_text("utf-8").split())
    names = ("cora", "digits", "glue-mrpc", "glue-stsb", "glue-cola")
    assert [leads[name] > 0 for name in names] == [False, False, False, True, True]
    told = [f"{abs(leads[name]):.1f}" for name in names]
    assert (
        "`auto` was {} points behind AdamW at its best rate on Cora, {} on spoken digits and {} on "
        "MRPC, and ahead by {} on STS-B and {} on CoLA.".format(*told)
        in auto
    )
    ahead = {
        name: lead - comparisons[name].difference("prodigy-corrected").mean
        for name, lead in leads.items()
    }
    told = [f"{abs(ahead[f'glue-{task}']):.1f}" for task in ("stsb", "cola", "mrpc")]
    assert "behind `auto` on STS-B ({} points), CoLA ({}) and MRPC ({})".format(*told) in auto
    assert min(ahead[f"glue-{task}"] for task in ("stsb", "cola", "mrpc")) > 0


def test_what_a_limited_step_costs_is_what_was_measured() -> None:
    found = json.loads((ROOT / "docs/results/step-cpu-limit.json").read_text("utf-8"))
    rows = {each["shapes"]: each for each in found["rows"] if "loss_limit" in each["optimizer"]}
    ratios, bounds = [], []
    for each in (rows["100m"], rows["roberta-base"]):
        ratios.append(each["ratio"]["median"])
        reading = 8 * each["parameters"] / each["read_gb_per_second"] / 1e6  # ms
        bounds.append(1 + reading / each["adamw_fused_ms"]["median"])
    text = " ".join((ROOT / "docs/auto.md").read_text("utf-8").split())
    assert (
        "takes {:.2f} times that of fused AdamW at 100 M parameters, and {:.2f} ".format(*ratios)
        in text
    )
    assert "the 8 bytes alone make it {:.2f} and {:.2f}.".format(*bounds) in text


AUTO, SLOPE = "0.2 + 0.4 + 2", "0.2 + 0 + 8"


def mean_of(study: str, share: str, of: Callable[[float], float] = lambda score: score) -> float:
    """100 times the mean score of three runs."""
    found = json.loads((ROOT / f"docs/results/limit-form-{study}.json").read_text())["results"]
    assert len(found[share]["runs"]) == 3
    return 100 * sum(of(run["score"]) for run in found[share]["runs"]) / 3


def test_what_it_says_of_small_networks_is_what_the_results_say():
    pytest.importorskip("pandas")
    behind: dict[str, list[float]] = {"auto": [], "slope": []}
    for name in ("cifar10-short", "small-factors", "small-regression", "small-characters"):
        each = compared(name)
        best = each.means("adamw").max()
        assert sorted(each.rates("dwmgrad-auto").seed) == [0, 1, 2]
        behind["auto"].append(best - each.means("dwmgrad-auto").max())
        own = name if name == "cifar10-short" else f"others-{name}"
        behind["slope"].append(best - mean_of(f"10-{own}", SLOPE))
    resnet, factors, regression, characters = (f"{abs(each):.1f}" for each in behind["auto"])
    assert behind["auto"][-1] < 0 < min(behind["auto"][:-1])
    text = " ".join((ROOT / "docs/auto.md").read_text("utf-8").split())
    assert f"`auto` was {resnet} points behind AdamW at its best rate, with" in text
    assert (
        f"factorization it was {factors} points behind, on a small perceptron {regression};" in text
    )
    assert f"on a small LSTM it was {characters} ahead." in text
    resnet, factors, regression, characters = behind["slope"]
    assert abs(factors) < 0.05 and characters < 0
    told = f"ResNet-20 was then {resnet:.1f} points behind, the perceptron {regression:.1f}, the "
    assert f"{told}factorization level, and the LSTM {-characters:.1f} ahead." in text
    cora = mean_of("11-cora", AUTO) - mean_of("10-cora", SLOPE)
    language = mean_of("10-language", SLOPE, math.log) - mean_of("11-language", AUTO, math.log)
    found = json.loads((ROOT / "docs/results/limit-form-10-glue-mrpc.json").read_text())["results"]
    slope = 50 * sum(run["score"] for run in found[SLOPE]["runs"])
    mrpc = 100 * compared("glue-mrpc").rates("dwmgrad-auto").score.mean() - slope
    assert (
        f"{cora:.1f} points less on Cora, {mrpc:.1f} on MRPC and {language:.1f} on a small GPT-2"
        in text
    )
