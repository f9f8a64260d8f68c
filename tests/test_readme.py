"""README's own code runs, its commands exist, and its figures are those of the results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
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
    "glue-mnli": "MNLI",
    "glue-qqp": "QQP",
    "glue-cola-lora": "CoLA, LoRA",
    "glue-mrpc-lora": "MRPC, LoRA",
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
            runs = each.runs(name, "final")
            assert len(each.at_best("adamw")) == 8 and len(runs) in (0, 8)
            told.append(f"{each.difference(name).mean:+.2f}" if len(runs) else "-")
        assert row(README, label)[1:] == told


def test_which_workloads_chose_nothing_is_what_the_results_say(comparisons):
    assert "MNLI and QQP had no part" in " ".join(README.read_text("utf-8").split())
    chosen = {name for name, each in comparisons.items() if "dwmgrad-auto" in each.chosen_on}
    assert comparisons.keys() - chosen == {"glue-mnli", "glue-qqp"}
    for name, each in comparisons.items():
        on = {run for own in ("adamw", "dwmgrad-auto") for run in each.runs(own, "final").on}
        assert on == {"NVIDIA H100 80GB HBM3"} or name == "glue-mrpc-lora"


def test_what_capped_does_at_the_highest_rates_is_what_the_results_say():
    behind: dict[str, list[float]] = {"dwmgrad-capped": [], "adamw": []}
    ran = [each for each in every_comparison().values() if each.swept("dwmgrad-capped")]
    for each in ran:
        for of, found in behind.items():
            means = each.means(of)
            assert means.index.max() == max(each.plan["rates"])
            found.append(each.best_beside("dwmgrad-capped") - means[means.index.max()])
    capped, adamw = (sorted(points) for points in behind.values())
    text = " ".join(README.read_text("utf-8").split())
    told = (
        f"is at most {capped[7]:.1f} points behind AdamW's best on eight, and {capped[8]:.1f} and"
    )
    assert len(capped) == 10 and f"{told} {capped[9]:.1f} on two." in text
    assert adamw[4] < 4 and f"There AdamW is {adamw[5]:.1f} or more behind on five." in text


def every_comparison() -> dict[str, Any]:
    files = sorted((ROOT / "docs/results").glob("comparison-*.json"))
    return {name: compared(name) for name in (f.stem.removeprefix("comparison-") for f in files)}


QUICK = ("cifar10-brief", "cora", "digits", "tiny-sst2")
QUICK += ("small-regression", "small-factors", "small-characters")
SURE = ("glue-stsb", "small-characters", "sentences", "sentences-lora")


def test_its_figures_of_all_workloads_are_those_of_their_new_seeds():
    from experiments import stats

    text = " ".join(README.read_text("utf-8").split())
    every = every_comparison()
    assert len(every) == 17 and all(
        len(each.runs("adamw", "final")) == 8 for each in every.values()
    )
    leads = {name: each.difference("dwmgrad-finetune") for name, each in every.items()}
    assert all(len(each.runs("dwmgrad-finetune", "final")) == 8 for each in every.values())
    means = [lead.mean for lead in leads.values()]
    told = (
        f"{sum(means) / 17:.1f} points ahead of {{}} in the mean, and {-min(means):.1f} behind at"
    )
    assert (
        f"Over 17 workloads, `dwmgrad_finetune` is {told.format('tuned AdamW')} the worst." in text
    )
    assert f"with new seeds, `finetune` is {told.format('AdamW')} the worst." in text
    index = " ".join((ROOT / "docs/index.md").read_text("utf-8").split())
    ahead = (
        f"`finetune` was {sum(means) / 17:.1f} points ahead of AdamW over 17 workloads in the mean"
    )
    assert f"{ahead}, and {-min(means):.1f} behind at the worst." in index
    chances = stats.holm([lead.chance_equal() for lead in leads.values()])
    sure = [name for name, p in zip(leads, chances, strict=True) if p < 0.05]
    assert min(leads[name].mean for name in sure) > 0 and {*sure} == {*SURE}
    assert "It is sure on four, STS-B, a small LSTM, and [a language model](" in text
    assert "in full and with LoRA (p < 0.05 after Holm's correction)." in text
    usage = " ".join((ROOT / "docs/usage.md").read_text("utf-8").split())
    names = "STS-B, a small LSTM, and a language model in full and with LoRA (p < 0.05 after"
    assert f"Of 17 workloads, four had a sure gain, {names}" in usage


def test_its_figures_of_those_without_a_rate_are_those_of_the_evidence():
    import pandas as pd

    every = every_comparison().values()
    text = " ".join(README.read_text("utf-8").split())
    assert sum("dwmgrad-auto" in each.chosen_on for each in every) == 13
    new = [-each.ahead_anew("dwmgrad-auto") for each in every]
    old = [-each.ahead("dwmgrad-auto") for each in every]
    auto_told = sum(new) / 17, max(new)
    told = "{:.1f} points behind in the mean, and {:.1f} at the worst, on Cora.".format(*auto_told)
    assert f"over the same, `auto` is {told}" in text
    assert max(every, key=lambda each: -each.ahead_anew("dwmgrad-auto")).name == "cora"
    told = "{:.1f} points behind tuned AdamW in the mean, and {:.1f} at the worst.".format(
        *auto_told
    )
    assert f"It is {told}" in text
    index = " ".join((ROOT / "docs/index.md").read_text("utf-8").split())
    told = "{:.1f} points behind a tuned AdamW over the 17 in the mean, and {:.1f} at the worst."
    assert f"With new seeds it was {told.format(*auto_told)}" in index
    quick = [compared(name) for name in QUICK]
    quick_told = [
        -sum(each.ahead_anew(of) for each in quick) / 7 for of in ("dwmgrad-auto", "prodigy")
    ]
    assert "it is {:.1f} behind, Prodigy {:.1f}.".format(*quick_told) in text
    auto_told = sum(old) / 17, max(old)
    regrets = {each.name: each.best_beside("adamw") - each.means("adamw") for each in every}
    at_one = pd.DataFrame(regrets).dropna()
    assert [*at_one.index] == [0.001] and len(regrets) == 17
    one = at_one.loc[0.001]
    told = (
        f"With the seeds that chose AdamW's rate it is {auto_told[0]:.1f} behind, and AdamW at "
        f"0.001, the one rate of all plans, {one.mean():.1f}; at the worst {auto_told[1]:.1f} and"
    )
    assert f"{told} {one.max():.1f}." in text


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
    assert (ahead, level) == (["glue-cola-lora", "glue-cola", "glue-stsb"], ["cora"])
    assert len(worse) == 9 and worse[-1] == behind["small-factors"]
    assert (
        "it was ahead on CoLA, STS-B and CoLA with LoRA, level on Cora, and behind on nine other "
        f"workloads, by {worse[0]:.1f} to {worse[-1]:.1f} points" in AUTO_PAGE
    )


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
    how = " ".join((ROOT / "docs/how-it-works.md").read_text("utf-8").split())
    whole, ahead = told[0].split()[0].removeprefix("+"), told[2].removeprefix("+")
    assert (
        f"is {whole} points ahead of AdamW, and {ahead} ahead of AdamW with betas 0.6 and 0.998."
        in how
    )
    assert f"the difference is {told[3].replace(' [', ' points [')}" in how


def test_what_its_page_says_of_auto_is_what_the_results_say():
    import pandas as pd
    from experiments import stats

    every = every_comparison()
    leads = {name: each.difference("dwmgrad-auto") for name, each in every.items()}
    means = {name: lead.mean for name, lead in leads.items()}
    behind = [-lead for lead in means.values()]
    told = f"{sum(behind) / 17:.1f} points behind AdamW at its best rate in the mean, and"
    assert f"`auto` was {told} {max(behind):.1f} at the worst, on Cora." in AUTO_PAGE
    chances = dict(zip(leads, stats.holm([x.chance_equal() for x in leads.values()]), strict=True))
    sure = {name for name, chance in chances.items() if chance < 0.05}
    worse = {name for name in sure if means[name] < 0}
    assert sure - worse == {"sentences-lora", "small-characters"}
    assert worse == {"glue-mnli", "glue-qqp", "sentences", "small-regression", "tiny-sst2"}
    told = (
        "Five losses are sure (p < 0.05 after Holm's correction): MNLI, QQP, the language model in"
    )
    assert f"{told} full, a small perceptron and a tiny RoBERTa from random weights." in AUTO_PAGE
    assert "Two gains are: the language model with LoRA, and a small LSTM." in AUTO_PAGE
    own = {name for name, each in every.items() if "dwmgrad-auto" not in each.chosen_on}
    assert own == {"glue-mnli", "glue-qqp", "sentences", "sentences-lora"}
    untouched = [-means[name] for name in own]
    told = (
        f"it was {sum(untouched) / 4:.1f} behind in the mean, and {max(untouched):.1f} at the worst"
    )
    assert told in AUTO_PAGE and max(own, key=lambda name: -means[name]) == "glue-mnli"
    told = f"it is {sum(untouched) / 4:.1f} and {max(untouched):.1f} behind."
    assert f"(MNLI, QQP, the language models) {told}" in " ".join(README.read_text("utf-8").split())
    regrets = {
        of: pd.DataFrame({n: every[n].best_beside(of) - every[n].means(of) for n in own}).dropna()
        for of in ("adamw", "dwmgrad-auto")
    }
    assert [*regrets["adamw"].index] == [0.00032, 0.001]
    adamw, auto = (each.loc[each.mean(axis=1).idxmin()] for each in regrets.values())
    told = f"it was {auto.mean():.1f} points behind these in the mean, and {auto.max():.1f} at the"
    assert told in AUTO_PAGE
    told = f"AdamW at one rate for all four was {adamw.mean():.1f} and {adamw.max():.1f} behind;"
    assert told in AUTO_PAGE
    tasks = ("stsb", "cola", "mrpc")
    ahead = [
        means[f"glue-{task}"] - every[f"glue-{task}"].difference("prodigy-corrected").mean
        for task in tasks
    ]
    told = "behind `auto` on STS-B ({:.1f} points), CoLA ({:.1f}) and MRPC ({:.1f})."
    assert min(ahead) > 0 and told.format(*ahead) in AUTO_PAGE
    quick = [every[name] for name in QUICK]
    found = [-sum(each.ahead_anew(of) for each in quick) / 7 for of in ("prodigy", "dwmgrad-auto")]
    told = "defaults it was {:.1f} points behind AdamW in the mean of seven quick workloads,"
    told += " `auto` {:.1f};"
    assert told.format(*found) in AUTO_PAGE


def test_which_runs_of_auto_and_capped_learned_is_what_the_results_say():
    lora = compared("glue-cola-lora")
    of_capped = lora.rates("dwmgrad-capped")
    assert len(of_capped) == 10 and of_capped.lr.nunique() == 5 and of_capped.score.min() > 0.05
    runs = {
        name: [*lora.rates("dwmgrad-auto").score] * (name == "dwmgrad-auto")
        + [*lora.runs(name, "final").score]
        for name in ("dwmgrad-auto", "adamw")
    }
    lost = {name: sum(score < 0.05 for score in found) for name, found in runs.items()}
    assert lost == {"dwmgrad-auto": 2, "adamw": 1} and [*map(len, runs.values())] == [10, 8]
    cola = compared("glue-cola")
    whole = [*cola.rates("dwmgrad-auto").score, *cola.runs("dwmgrad-auto", "final").score]
    assert len(whole) == 10 and min(whole) > 0.05
    assert "two of ten runs learned nothing; so did one of eight of AdamW's" in AUTO_PAGE


def test_over_how_many_decades_capped_works_is_what_the_results_say():
    index = " ".join((ROOT / "docs/index.md").read_text("utf-8").split())
    decades = {}
    for name in ("cora", "digits", "sentences", "sentences-lora"):
        each = compared(name)
        for of in ("dwmgrad-capped", "adamw"):
            decades[name, of] = (each.best_beside(of) - each.means(of) <= 3).sum() / 2
    told = "`capped` worked over {} decades on Cora and {} on spoken digits, AdamW"
    capped, adamw = (
        [decades[n, of] for n in ("cora", "digits")] for of in ("dwmgrad-capped", "adamw")
    )
    assert f"{told.format(*capped)} over {adamw[0]} and {adamw[1]}." in index
    capped, adamw = (
        [decades[n, of] for n in ("sentences", "sentences-lora")]
        for of in ("dwmgrad-capped", "adamw")
    )
    told = "On the language model, in full and with LoRA, it worked over {} and {},"
    assert f"{told.format(*capped)} AdamW over {adamw[0]} and {adamw[1]}." in index
    lora = compared("glue-cola-lora")
    regrets = [
        sorted(lora.best_beside(of) - lora.means(of)[lambda means: means.index > 1e-4])
        for of in ("dwmgrad-capped", "adamw")
    ]
    assert len(regrets[0]) == 4
    told = f"it was {regrets[0][0]:.1f} to {regrets[0][-1]:.1f} points behind, AdamW up to"
    assert regrets[0][0] > 3 and f"from 3.2e-4 to 1e-2 {told} {regrets[1][-1]:.1f}." in index


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
