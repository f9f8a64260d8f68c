"""scripts/compare_optimizers.py, and its files in configs/comparisons."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from experiments.compact import (
    as_text,
    check_same_plan,
    comparison_record,
    place,
    without_folders,
)
from experiments.comparison import HALF_DECADES, Comparison, read_comparison
from experiments.evidence.compared import mark
from experiments.runner import Failure, run_once
from glue.errors import UsageError

from ..conftest import load_script
from .fakes import Peak, counted, interrupted_when

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs" / "comparisons").glob("*.yaml"))
VALLEY = """
workload: rosenbrock
options: {steps: 30}
title: The valley
contenders: [adamw, dwmgrad-decrease, dwmgrad-auto]
rates: [1e-4, 1e-2, 1e30]
seeds: [0, 1]
final: {seeds: [2, 3, 4], options: {steps: 20}}
"""


@pytest.fixture(scope="module")
def main():
    return load_script("compare_optimizers").main


def write(folder: Path, text: str) -> str:
    (folder / "valley.yaml").write_text(text)
    return str(folder / "valley.yaml")


def a_comparison(folder: Path, **changes) -> Comparison:
    """Of a workload that takes no time and counts its runs in `folder`."""
    plan = {
        "options": {},
        "title": "Peaks",
        "contenders": ["adamw", "adam"],
        "rates": [1e-4, 1e-3, 1e-2, 1e-1],
        "seeds": [0, 1],
        "by": "score",
        "final": {"seeds": [5, 6, 7], "options": {}},
        "chosen_on": [],
    }
    workload = changes.pop("workload", Peak(data_dir=str(folder)))
    plan |= {"workload": workload.name, **changes}
    return Comparison(workload, plan, folder / "root", workload, plan["contenders"])


def finish(comparison: Comparison) -> None:
    """Make all runs, in this process."""
    for stage in (comparison.rate_runs, comparison.final_runs):
        for run in sum(stage().values(), []):
            run_once(run, comparison.output_dir)


@pytest.fixture(scope="module")
def valley(main, tmp_path_factory) -> tuple[str, Path, dict]:
    """A finished comparison: its file, its runs and what its command says."""
    folder = tmp_path_factory.mktemp("valley")
    config, out = write(folder, VALLEY), folder / "out"
    finish(read_comparison(config, output_dir=str(out)))
    return config, out, main([config, "--output_dir", str(out)])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_file_can_be_read_and_says_how_much_it_asks_for(path: Path) -> None:
    for package in ("momo", "prodigyopt", "schedulefree"):
        pytest.importorskip(package)
    encoder = {"model_name_or_path": "encoder"} if path.stem.startswith("glue") else {}
    comparison = read_comparison(path, **encoder)
    runs = comparison.rate_runs()
    seeds = len(comparison.values["seeds"])
    assert len(runs["adamw"]) == len(comparison.values["rates"]) * seeds
    assert len(runs["dwmgrad-auto"]) == seeds
    new = len(comparison.values["final"]["seeds"]) * len(comparison.contenders)
    said = re.search(r"(\d+) runs( a seed)?", path.read_text())
    every = sum(map(len, runs.values()))
    assert int(said[1]) == (every // seeds if said[2] else every + new)


def test_the_packages_of_those_that_run_are_enough(main, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "momo", None)  # as if it were not installed
    config = write(tmp_path, VALLEY.replace("adamw, ", "adamw, momo-adam, "))
    words = [config, "--output_dir", str(tmp_path / "out"), "--processes", "0"]
    with pytest.raises(UsageError, match="momo-adam: .*; pip install momo-opt$"):
        main(words)
    record = main([*words, "--contenders", "adamw", "dwmgrad-auto"])
    assert "momo-adam" in record["plan"]["contenders"] and not record["complete"]


def test_half_decades() -> None:
    assert len(HALF_DECADES) == 11 and math.isclose(HALF_DECADES[1], 3.2e-5)


def test_the_valley_from_end_to_end(valley):
    _, out, record = valley
    path = out / "rosenbrock" / "comparison.json"
    assert json.loads(path.read_text()) == record
    assert "/" not in path.read_text().replace("scripts/", "")  # no folder
    assert record["kind"] == "comparison" and record["complete"] and record["title"] == "The valley"
    assert record["command"] == "python scripts/compare_optimizers.py valley.yaml"
    assert len(record["machine"]) == len(record["versions"]) == 1
    adamw, _, auto = record["contenders"].values()
    assert {(run["lr"], run["seed"]) for run in adamw["runs"]} == {
        (lr, seed) for lr in (1e-4, 1e-2, 1e30) for seed in (0, 1)
    }
    assert len(auto["runs"]) == 2 and auto["rateless"]
    for each in record["contenders"].values():
        assert [run["seed"] for run in each["final"]] == [2, 3, 4]
        assert {run["lr"] for run in each["final"]} == {each["best_lr"]}
        assert {run["steps"] for run in each["final"]} == {20}
        assert all(run["on"] == place(record["machine"][0]) for run in each["runs"])
    best = {}
    for run in adamw["runs"]:
        best[run["lr"]] = math.inf if run["score"] is None else run["score"]
    assert adamw["best_lr"] == min(best, key=best.get)


def test_the_same_command_makes_no_run_again(main, valley, capsys):
    config, out, record = valley
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*-*.json")}
    assert main([config, "--output_dir", str(out)]) == record
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*-*.json")} == before
    shown = capsys.readouterr().out
    assert "| AdamW | " in shown and "new seeds" in shown


def test_only_some_contenders_run_and_the_others_stay(main, valley, tmp_path):
    config, out, record = valley
    path = tmp_path / "kept.json"
    words = [config, "--output", str(path), "--output_dir", str(tmp_path / "out")]
    shutil.copytree(out / "rosenbrock" / "adamw", tmp_path / "out" / "rosenbrock" / "adamw")
    some = main([*words, "--processes", "0"])  # the record of what there is
    assert not list((tmp_path / "out" / "rosenbrock" / "dwmgrad-auto").glob("*"))
    assert some["contenders"] == {"adamw": record["contenders"]["adamw"]}
    assert not some["complete"]
    old = json.loads(json.dumps(record))
    old["versions"][0]["torch"] = "1.0"
    path.write_text(json.dumps(old))
    again = main([*words, "--contenders", "adamw"])
    assert again["contenders"] == record["contenders"] and again["complete"]
    assert again["versions"] == [old["versions"][0], *record["versions"]]
    with pytest.raises(UsageError, match="--contenders sgd: the file has adamw"):
        main([*words, "--contenders", "sgd"])


def test_an_output_by_another_plan_is_refused_before_any_run(main, valley, tmp_path):
    config, _, record = valley
    path = tmp_path / "kept.json"
    words = [config, "--output", str(path), "--output_dir", str(tmp_path / "out")]
    for part, name, value, message in (
        ("plan", "by", "f", "its plan has by 'f', the file asks for 'score'"),
        (
            "plan",
            "final",
            {"seeds": [2, 3, 4], "options": {"steps": 9}},
            "its plan has final.options {'steps': 9}, the file asks for {'steps': 20}",
        ),
        ("description", "steps", 40, "its description has steps 40, the file asks for 30"),
    ):
        path.write_text(json.dumps({**record, part: {**record[part], name: value}}))
        with pytest.raises(UsageError, match=f"--output .*kept.json: {message}"):
            main(words)
    path.write_text("{}")
    with pytest.raises(UsageError, match="--output .*not a file of kind comparison"):
        main(words)
    assert path.read_text() == "{}" and not list((tmp_path / "out").rglob("*-*.json"))


def test_more_seeds_or_rates_are_the_same_plan(tmp_path):
    comparison = a_comparison(tmp_path)
    finish(comparison)
    kept = json.loads(as_text(comparison_record(comparison, [], "x")))
    more = replace(comparison, values={**comparison.values, "seeds": [0, 1, 2]})
    check_same_plan(kept, more)
    record = comparison_record(more, [], "x", kept)
    assert kept["complete"] and not record["complete"]
    assert [len(own["runs"]) for own in record["contenders"].values()] == [8, 8]
    other = replace(
        comparison, values={**comparison.values, "seeds": [0, 9], "rates": [1e-2, 1e-1]}
    )
    record = comparison_record(other, [], "x", kept)
    for own in record["contenders"].values():  # what the plan no longer asks for goes
        assert {(run["lr"], run["seed"]) for run in own["runs"]} == {(1e-2, 0), (1e-1, 0)}


def test_new_seeds_at_a_rate_that_the_plan_no_longer_has_are_not_its_own(tmp_path):
    comparison = a_comparison(tmp_path)
    finish(comparison)
    kept = json.loads(as_text(comparison_record(comparison, [], "x")))
    assert {own["best_lr"] for own in kept["contenders"].values()} == {1e-2}
    fewer = replace(
        comparison, values={**comparison.values, "rates": [1e-4]}, output_dir=tmp_path / "none"
    )
    record = comparison_record(fewer, [], "x", kept)
    assert not record["complete"]
    for own in record["contenders"].values():
        assert {run["lr"] for run in own["runs"]} == {own["best_lr"]} == {1e-4} and not own["final"]


def test_a_plan_without_a_second_stage_has_no_new_seeds(tmp_path):
    text = re.sub("final: .*\n", "", VALLEY)
    comparison = read_comparison(write(tmp_path, text), output_dir=str(tmp_path / "out"))
    assert comparison.values["final"] == {"seeds": [], "options": {}}
    assert comparison.final_runs() == {}
    kept = json.loads(as_text(comparison_record(comparison, [], "x")))
    for final in (None, {}):  # as older records have it
        check_same_plan({**kept, "plan": {**kept["plan"], "final": final}}, comparison)


def test_runs_of_another_preset_are_not_those_of_the_plan(tmp_path):
    comparison = a_comparison(tmp_path)
    finish(comparison)
    kept = json.loads(as_text(comparison_record(comparison, [], "x")))
    gone = replace(comparison, output_dir=tmp_path / "none")
    assert comparison_record(gone, [], "x", kept) == kept
    first, second = kept["contenders"].values()
    first["defaults"] = {"max_window": 7}  # as the preset had been then
    assert list(comparison_record(gone, [], "x", kept)["contenders"].values()) == [second]


def test_runs_of_an_older_rule_stay_marked_until_there_is_one_of_todays(tmp_path):
    comparison = a_comparison(tmp_path)
    finish(comparison)
    kept = json.loads(as_text(comparison_record(comparison, [], "x")))
    gone = replace(comparison, output_dir=tmp_path / "none")
    name, old = next(iter(kept["contenders"].items()))
    old["rule"] = "an older one"
    record = comparison_record(gone, [], "x", kept)
    assert record["contenders"][name] == old and not record["complete"]
    assert mark(name, old) == ", by an older rule"
    run_once(comparison.rate_runs()[name][0], gone.output_dir)
    record = comparison_record(gone, [], "x", kept)
    assert len(record["contenders"][name]["runs"]) == 1 and not record["contenders"][name]["final"]
    assert mark(name, record["contenders"][name]) == ""


def test_new_seeds_are_those_of_the_best_rate_of_all_runs(tmp_path):
    """An older record's first stage chose another rate than it does with the folder's runs."""
    comparison = a_comparison(tmp_path)
    finish(comparison)
    kept = json.loads(as_text(comparison_record(comparison, [], "x")))
    name, old = next(iter(kept["contenders"].items()))
    best = old["best_lr"]
    for run in old["runs"]:
        run["by"] = 2.0 if run["lr"] == 1e-4 else run["by"]
    old["best_lr"], old["final"] = 1e-4, [{**run, "lr": 1e-4} for run in old["final"]]
    record = comparison_record(comparison, [], "x", kept)["contenders"][name]
    assert record["best_lr"] == best and {run["lr"] for run in record["final"]} == {best}
    assert len(record["final"]) == 3


def test_new_seeds_made_elsewhere_take_the_place_of_the_old_ones(tmp_path):
    """Of the folder's runs alone the best rate is not known: an older record has it."""
    comparison = a_comparison(tmp_path)
    finish(comparison)
    kept = json.loads(as_text(comparison_record(comparison, [], "x")))
    other = replace(comparison, output_dir=tmp_path / "other")
    for run in sum(comparison.final_runs().values(), [])[:2]:
        run_once(run, other.output_dir)
    for path in (tmp_path / "other").rglob("*.json"):
        made = json.loads(path.read_text())
        path.write_text(json.dumps({**made, "score": 0.125}))
    assert not comparison_record(other, [], "x")["contenders"]
    record = json.loads(as_text(comparison_record(other, [], "x", kept)))
    scores = [run["score"] for own in record["contenders"].values() for run in own["final"]]
    assert record["complete"] and scores.count(0.125) == 2 and len(scores) == 6
    for name, own in record["contenders"].items():
        assert own["runs"] == kept["contenders"][name]["runs"]


def test_ctrl_c_leaves_what_there_is_and_the_rest_gives_the_same(main, valley, tmp_path):
    config, out, record = valley
    shutil.copytree(out, tmp_path / "out")
    out = tmp_path / "out"
    (out / "rosenbrock" / "comparison.json").unlink()
    removed = sorted((out / "rosenbrock" / "adamw").glob("*.json"))[:2]
    for path in removed:
        path.rename(path.with_suffix(".kept"))
    (out / "workers.log").unlink(missing_ok=True)
    with interrupted_when((out / "workers.log").exists):
        main([config, "--output_dir", str(out), "--processes", "1"])
    stopped = json.loads((out / "rosenbrock" / "comparison.json").read_text())
    assert not stopped["complete"]
    assert stopped["contenders"]["dwmgrad-auto"] == record["contenders"]["dwmgrad-auto"]
    for path in removed:  # as the same command would make them, but for their seconds
        path.with_suffix(".kept").rename(path)
    assert main([config, "--output_dir", str(out)]) == record


def test_a_contender_that_fails_costs_the_others_nothing(main, tmp_path, monkeypatch, capsys):
    """Through the script: one error at the end, and the others' record."""
    comparison = a_comparison(tmp_path, workload=Peak(data_dir=str(tmp_path), failing="adam"))
    script = load_script("compare_optimizers")
    monkeypatch.setattr(script, "read_comparison", lambda *args, **values: comparison)
    with pytest.raises(UsageError, match="8 runs failed, the first with: RuntimeError") as caught:
        script.main(["peak.yaml"])
    log = tmp_path / "root" / "workers.log"
    assert str(caught.value).endswith(f"For tracebacks see {log}")
    assert "RuntimeError: cannot read" in log.read_text()
    record = json.loads((tmp_path / "root" / "peak" / "comparison.json").read_text())
    assert list(record["contenders"]) == ["adamw"] and not record["complete"]
    assert record["contenders"]["adamw"]["best_lr"] == 1e-2
    assert len(record["contenders"]["adamw"]["final"]) == 3
    assert record["failures"][0]["error"] == "RuntimeError: cannot read some.file"
    assert counted(tmp_path) == sorted(["0", "1"] * 4 + ["5", "6", "7"])


def test_ctrl_c_leaves_what_had_failed(tmp_path, monkeypatch):
    comparison = a_comparison(tmp_path, workload=Peak(data_dir=str(tmp_path)))
    script = load_script("compare_optimizers")

    def interrupted(runs, root, processes, failures):
        failures.append(Failure(runs[0], "RuntimeError: it failed", root / "workers.log"))
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "read_comparison", lambda *args, **values: comparison)
    monkeypatch.setattr(script, "sweep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        script.main(["peak.yaml"])
    record = json.loads((tmp_path / "root" / "peak" / "comparison.json").read_text())
    assert [failure["error"] for failure in record["failures"]] == ["RuntimeError: it failed"]


@pytest.mark.parametrize(
    ("by", "higher", "best"),
    [("score", True, 1e-2), ("score", False, 1e-2), ("loss", True, 1e-2), ("speed", True, 1e-1)],
)
def test_the_best_is_best_by_what_is_asked_for(by, higher, best, tmp_path):
    workload = Peak(data_dir=str(tmp_path), higher_is_better=higher)
    comparison = a_comparison(tmp_path, workload=workload, by=by, contenders=["adam"])
    assert comparison.best_lr("adam") is None and comparison.final_runs() == {}
    finish(comparison)
    assert comparison.best_lr("adam") == best


def test_what_the_runs_do_not_measure_is_told(tmp_path):
    comparison = a_comparison(tmp_path, by="f1")
    with pytest.raises(UsageError, match="by 'f1': a run of peak has score, loss, speed"):
        finish(comparison)


def test_a_rate_that_diverged_is_not_the_best_and_where_all_do_there_is_none(tmp_path):
    comparison = a_comparison(tmp_path, rates=[1e-2, 1.0])
    finish(comparison)
    record = comparison_record(comparison, [], "x")
    assert record["complete"]
    assert [each["best_lr"] for each in record["contenders"].values()] == [1e-2, 1e-2]
    lost = replace(comparison, values={**comparison.values, "rates": [0.6, 1.0]})
    finish(lost)
    record = comparison_record(lost, [], "x")
    assert record["complete"]
    for each in record["contenders"].values():
        assert len(each["runs"]) == 4 and each["best_lr"] is None and each["final"] == []


def test_no_folder_is_told(tmp_path):
    text = (ROOT / "configs/comparisons/glue_mrpc.yaml").read_text()
    comparison = read_comparison(
        write(tmp_path, re.sub("  - prodigy.*\n", "", text)),  # which may not be installed
        data_dir="/my/data",
        model_name_or_path="/my/models/small",
        output_dir=str(tmp_path),
    )
    text = as_text(comparison_record(comparison, [], "x"))
    assert "/" not in text and "my" not in text
    assert json.loads(text)["plan"]["options"]["model_name_or_path"] == "small"
    assert json.loads(text)["description"]["model_name_or_path"] == "small"
    assert comparison.final.holdout == 0 and comparison.workload.holdout == 0.1
    assert comparison.final.model_name_or_path == "/my/models/small"
    said = "--data_dir /my/data: no 'my/glue/rte', C:\\me\\x"
    assert without_folders(said) == "--data_dir data: no 'rte', x"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("dwmgrad-decrease", "dwmgrad-decrese", "Did you mean dwmgrad-decrease"),
        ("[1e-4, 1e-2, 1e30]", "[0]", "rates"),
        ("seeds: [0, 1]", "", "seeds is missing"),
        ("seeds: [2, 3, 4]", "seeds: [1, 2]", r"final: seeds \[1\] are among those that choose"),
        ("options: {steps: 20}", "options: {stepz: 20}", "stepz"),
        ("options: {steps: 20}", "options: {name: x}", "name is none of its options"),
        ("options: {steps: 20}", "options: {batch_size: 0}", "batch_size 0: must be a whole"),
        ("final: {seeds: [2, 3, 4], options: {steps: 20}}", "final: {}x", "final"),
        ("title: The valley", "titel: x", "unknown 'titel'"),
    ],
)
def test_mistakes_are_named(old: str, new: str, message: str, tmp_path) -> None:
    with pytest.raises(UsageError, match=message):
        read_comparison(write(tmp_path, VALLEY.replace(old, new)))


def test_a_preset_that_was_chosen_on_it_is_among_the_contenders(tmp_path):
    text = VALLEY + "chosen_on: [dwmgrad-auto]\n"
    assert read_comparison(write(tmp_path, text)).values["chosen_on"] == ["dwmgrad-auto"]
    for none in ("", "chosen_on: []\n"):
        assert read_comparison(write(tmp_path, VALLEY + none)).values["chosen_on"] == []
    with pytest.raises(UsageError, match="chosen_on dwmgrad-capped: no such one.*adamw"):
        read_comparison(write(tmp_path, VALLEY + "chosen_on: [dwmgrad-capped]\n"))
