"""Plans without tuning: every optimizer over the same learning rates."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from experiments.evidence.any_rate import any_rate_page, overall
from experiments.rates import HALF_DECADES, frame, points, rates_table, read_rate_plan
from glue.errors import UsageError

from ..conftest import load_script

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs" / "rates").glob("*.yaml"))
VALLEY = """
workload: rosenbrock
options: {steps: 30}
title: The valley
contenders: [adamw, adamw-control, dwmgrad-auto]
rates: [1e-4, 1e-2, 1]
seeds: [0, 1]
"""


def a_record(workload: str, scores: dict[str, dict[float, float | None]], **changes) -> dict:
    """Contender: learning rate: score, of one seed; `auto` has no rate."""
    return {
        "kind": "rates",
        "workload": workload,
        "title": workload,
        "metric": "accuracy",
        "higher_is_better": True,
        "steps": 10,
        "command": "none",
        "plan": {"seeds": [0], "chosen_on": False},
        "contenders": {
            name.lower(): {
                "title": name,
                "rateless": name == "auto",
                "runs": [
                    {"lr": lr, "seed": 0, "score": score, "seconds": 2.0 if name == "auto" else 1.0}
                    for lr, score in own.items()
                ],
            }
            for name, own in scores.items()
        },
        **changes,
    }


ONE = a_record(
    "one", {"AdamW": {1e-3: 0.9, 1e-2: 0.8, 1e-1: 0.1}, "auto": {1.0: 0.88}, "B": {1e-2: None}}
)
TWO = a_record(
    "two", {"AdamW": {1e-3: 0.5, 1e-2: 0.7, 1e-1: 0.1}, "auto": {1.0: 0.75}, "B": {1e-2: 0.7}}
)


def row(text: str, name: str) -> list[str]:
    (found,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_file_can_be_read(path: Path) -> None:
    pytest.importorskip("momo")
    pytest.importorskip("prodigyopt")
    pytest.importorskip("schedulefree")
    plan = read_rate_plan(path)
    runs = plan.runs()
    assert len(HALF_DECADES) == 11 and math.isclose(HALF_DECADES[1], 3.2e-5)
    assert len(runs["adamw"]) == 11 * len(plan.values["seeds"])
    assert len(runs["dwmgrad-auto"]) == len(plan.values["seeds"])
    head = path.read_text().splitlines()[0]
    assert f"{sum(map(len, runs.values()))} runs" in head


def test_a_plan_runs_and_goes_on(tmp_path, capsys) -> None:
    (tmp_path / "valley.yaml").write_text(VALLEY)
    words = [str(tmp_path / "valley.yaml"), "--output_dir", str(tmp_path / "runs")]
    main = load_script("compare_optimizers").main
    record = main(words)
    assert {name: len(own["runs"]) for name, own in record["contenders"].items()} == {
        "adamw": 6,
        "adamw-control": 6,
        "dwmgrad-auto": 2,
    }
    shown = capsys.readouterr().out
    assert len(row(shown, "AdamW")) == 6
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*-0.json")}
    assert main(words) == record
    assert {path: path.stat().st_mtime_ns for path in times} == times, "nothing is run twice"
    results = tmp_path / "results"
    results.mkdir()
    (results / "rates-valley.json").write_text(json.dumps(record))
    text = any_rate_page(results, tmp_path / "page.md")
    assert "## The valley" in text
    assert (tmp_path / "rates-valley.png").stat().st_size > 10_000


def test_regret_is_to_adamw_at_its_best_rate_of_each_workload() -> None:
    text = overall([ONE, TWO])
    assert row(text, "AdamW")[1:6] == ["1e-02", "5.0", "10.0 (one)", "0.5", "0.5"]
    assert row(text, "auto")[1:4] == ["none", "-1.5", "2.0 (one)"]
    assert row(text, "auto")[-1] == "2.00"


def test_a_run_that_diverged_is_as_bad_as_the_worst() -> None:
    runs = frame(ONE)
    assert runs[runs.contender == "b"].points.item() == pytest.approx(10)
    scores = pd.Series([2.0, 1.0, None])
    found = points(scores, {"metric": "perplexity", "higher_is_better": False})
    assert list(found) == pytest.approx([-100 * math.log(2), 0, -100 * math.log(2)])


def test_decades_that_work() -> None:
    text = rates_table(ONE)
    assert row(text, "AdamW")[4] == "0.5"
    assert row(text, "auto")[4] == "all"
    assert rates_table(a_record("none", {"AdamW": {}})) == "no results"


def test_without_results_there_is_no_page(tmp_path) -> None:
    assert any_rate_page(tmp_path, tmp_path / "page.md") == ""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("adamw-control", "adamw-contrl", "Did you mean adamw-control"),
        ("[1e-4, 1e-2, 1]", "[0]", "rates"),
        ("seeds: [0, 1]", "", "seeds is missing"),
    ],
)
def test_mistakes_are_named(old: str, new: str, message: str, tmp_path) -> None:
    (tmp_path / "valley.yaml").write_text(VALLEY.replace(old, new))
    with pytest.raises(UsageError, match=message):
        read_rate_plan(tmp_path / "valley.yaml")
