"""README's own code runs, its commands exist, and its figures are those of the results."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from pages import README, ROOT, anchors, blocks, commands, links, row

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


def steps(shapes: str, state: str) -> dict[str, Any]:
    rows = json.loads((ROOT / "docs/results/step-cpu.json").read_text())["rows"]
    (found,) = (r for r in rows if (r["shapes"], r["state"]) == (shapes, state))
    return found


def test_its_figures_are_those_of_the_results():
    _, speed, _ = row(README, "speed")
    assert speed.startswith(f"{steps('roberta-base', 'float32')['ratio']['median']:.2f} times")
    _, memory, _ = row(README, "memory")
    size = steps("roberta-base", "int8")["state_bytes_per_parameter"]
    assert memory.startswith(f"{size:.2f} bytes")
    faults = json.loads((ROOT / "docs/results/faults.json").read_text())
    assert row(README, "resume")[1].startswith(
        f"{faults['equal_ends']} of {faults['kills']} killed"
    )


TASKS = {
    "glue-stsb": "STS-B",
    "glue-cola": "CoLA",
    "glue-mrpc": "MRPC",
    "cora": "Cora",
    "digits": "spoken digits",
}


@pytest.fixture(scope="module")
def comparisons() -> dict[str, Any]:
    pytest.importorskip("pandas")
    from experiments.evidence.compared import Compared

    found = {}
    for name in TASKS:
        text = (ROOT / f"docs/results/comparison-{name}.json").read_text()
        found[name] = Compared("comparison", name, json.loads(text))
    return found


def told(text: str) -> dict[str, float]:
    """Task: points, of a sentence with `+1.00 on TASK`."""
    names = "|".join(TASKS.values())
    return {task: float(number) for number, task in re.findall(rf"([+-][\d.]+) on ({names})", text)}


def test_its_figures_of_quality_are_those_of_the_results(comparisons):
    from experiments import stats

    found, units = {}, []
    for name, each in comparisons.items():
        assert len(each.at_best("dwmgrad-finetune")) == len(each.at_best("adamw")) == 8
        found[TASKS[name]] = round(each.difference("dwmgrad-finetune").mean, 2)
        units.append(each.in_deviations("dwmgrad-finetune"))
    quality = row(README, "quality")[1]
    assert told(quality) == found
    mean = stats.equal_weights(units)
    low, high = mean.interval
    assert f"the mean is {mean.mean:+.2f} [{low:+.2f}, {high:+.2f}] standard" in quality
    leads = {name: each.difference("dwmgrad-finetune") for name, each in comparisons.items()}
    behind = [2 * min(lead.chance_below(0), 1 - lead.chance_below(0)) for lead in leads.values()]
    sure = [name for name, p in zip(leads, stats.holm(behind), strict=True) if p < 0.05]
    assert sure == ["glue-stsb"] and leads["glue-stsb"].mean > 0
    assert "of five workloads, one had a sure gain, STS-B" in README.read_text("utf-8")


def test_its_figures_of_no_rate_are_those_of_the_results(comparisons):
    found = {}
    for name, each in comparisons.items():
        new = len(each.runs("dwmgrad-auto", "final"))
        points = each.means("dwmgrad-auto").max() - each.best
        found[TASKS[name]] = round(each.difference("dwmgrad-auto").mean if new else points, 2)
        assert new == (0 if name.startswith("glue") else 8)
        assert new or each.rates("dwmgrad-auto").seed.nunique() == 2
        assert each.apart("dwmgrad-auto") == (not new)  # it says on which machines
    assert told(row(README, "no rate")[1]) == found
    index = (ROOT / "docs/index.md").read_text("utf-8")
    assert f"at most {-min(found.values()):.1f} points behind" in index


def test_its_figures_of_wrong_rates_are_those_of_the_results(comparisons):
    wrong = row(README, "wrong rates")[1]
    rates = {"cora": 11, "digits": 11, "glue-cola": 7, "glue-mrpc": 5, "glue-stsb": 5}
    for name, count in rates.items():
        every = comparisons[name].rates()
        seeds = [0] if name.startswith("glue") else [0, 1, 2]
        runs = every.assign(score=every.score.fillna(every.score.min()))[every.seed.isin(seeds)]
        scores = [runs[runs["of"] == own] for own in ("dwmgrad-capped", "adamw")]
        assert [(own.lr.nunique(), len(own)) for own in scores] == 2 * [(count, count * len(seeds))]
        means = [100 * own.score.mean() for own in scores]
        assert "{:.2f} / {:.2f} % on ".format(*means) + TASKS[name] in wrong


def test_what_it_says_of_the_control_is_what_the_results_say(comparisons):
    _, _, text = README.read_text("utf-8").partition("the control, is ahead of AdamW, too: ")
    sentence, _, rest = text.partition(". `auto`")
    found = {}
    for name in ("glue-stsb", "glue-cola", "digits"):
        assert len(comparisons[name].runs("adamw-control", "final")) == 8
        found[TASKS[name]] = round(comparisons[name].difference("adamw-control").mean, 2)
    assert told(sentence) == found
    assert rest.startswith(" was chosen on CoLA and STS-B.")
    chosen = [name for name, each in comparisons.items() if "dwmgrad-auto" in each.chosen_on]
    assert sorted(chosen) == ["glue-cola", "glue-stsb"]


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
