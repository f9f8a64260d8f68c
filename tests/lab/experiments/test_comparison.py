"""scripts/compare_optimizers.py, its files in configs/comparisons, and the search behind it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from experiments.compact import as_text, check_same_plan, comparison_record, without_folders
from experiments.comparison import Comparison, read_comparison
from experiments.runner import run_once
from experiments.tuning import make_runs, missing, search
from glue.errors import UsageError

from ..conftest import load_script
from .fakes import Peak, counted

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs" / "comparisons").glob("*.yaml"))

VALLEY = """
workload: rosenbrock
options: {steps: 30}
title: The valley
contenders: [adamw, sgd, dwmgrad-decrease]
tuning: {trials: 4, grid: 3, seed: 100}
search: {low: 1e-4, high: 1e30}
seeds: [0, 1]
shared: {lr: 1e-3, seeds: [0]}
target: 0.1
tolerance: 0.05
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
        "tuning": {"trials": 5, "grid": 3, "seed": 100, "by": "score"},
        "search": {"low": 1e-4, "high": 1e-1},
        "reach": {},
        "seeds": [0, 1],
        "shared": None,
        "target": 0.9,
        "tolerance": 0.1,
        "chosen_on": False,
    }
    workload = changes.pop("workload", Peak(data_dir=str(folder)))
    plan["tuning"] |= changes.pop("tuning", {})
    return Comparison(workload, {"workload": workload.name, **plan, **changes}, folder / "root")


def changed(comparison: Comparison, **changes) -> Comparison:
    """By another plan."""
    return replace(comparison, values={**comparison.values, **changes})


def wanted(comparison: Comparison) -> list:
    runs = []
    for name in comparison.contenders:
        state = search(comparison, name)
        runs += [*state.wanted, *comparison.seed_runs(name, state.best_lr)]
        runs += comparison.shared_runs(name)
    return missing(runs, comparison)


def finish(comparison: Comparison) -> None:
    """Make all runs, in this process."""
    while runs := wanted(comparison):
        for run in runs:
            run_once(run, comparison.output_dir)


@pytest.fixture(scope="module")
def valley(main, tmp_path_factory) -> tuple[str, Path, dict]:
    """A finished comparison: its file, its runs and what its command says."""
    folder = tmp_path_factory.mktemp("valley")
    config, out = write(folder, VALLEY), folder / "out"
    finish(read_comparison(config, output_dir=str(out)))
    return config, out, main([config, "--output_dir", str(out)])


def test_the_valley_from_end_to_end(valley):
    _, out, record = valley
    path = out / "rosenbrock" / "comparison.json"
    assert json.loads(path.read_text()) == record
    assert "/" not in path.read_text().replace("scripts/", "")  # no folder
    assert record["kind"] == "comparison" and record["complete"] and record["title"] == "The valley"
    assert record["command"] == "python scripts/compare_optimizers.py valley.yaml"
    assert len(record["machine"]) == len(record["versions"]) == 1
    assert record["plan"]["tuning"] == {"trials": 4, "grid": 3, "seed": 100, "by": "score"}
    assert record["plan"]["search"] == {"low": 1e-4, "high": 1e30}
    for each in record["contenders"].values():
        assert [run["lr"] for run in each["trials"][:3]] == [1e-4, 1e13, 1e30]
        assert len(each["trials"]) == 4 and {run["seed"] for run in each["trials"]} == {100}
        best = min((t for t in each["trials"] if not t["diverged"]), key=lambda t: t["tuned_by"])
        assert {run["lr"] for run in each["seeds"]} == {each["best_lr"]} == {best["lr"]}
        assert [run["seed"] for run in each["seeds"]] == [0, 1] and len(each["shared"]) == 1
        assert len(each["seeds"][0]["losses"]) == 30 and "losses" not in each["trials"][0]
    # told as the worst, and shown
    diverged = record["contenders"]["sgd"]["trials"][2]
    assert diverged["diverged"] and diverged["score"] is diverged["tuned_by"] is None


def test_the_same_command_makes_no_run_again(main, valley, capsys):
    config, out, record = valley
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*-*.json")}
    assert main([config, "--output_dir", str(out)]) == record
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*-*.json")} == before
    shown = capsys.readouterr()
    assert "1e+30: diverged" in shown.out and "At one rate for all" in shown.out
    assert "runs" not in shown.err  # no round


def test_only_some_contenders(main, valley, tmp_path):
    config, out, record = valley
    words = ["--contenders", "sgd", "--output", str(tmp_path / "some.json")]
    some = main([config, "--output_dir", str(out), *words])
    assert some["contenders"] == {"sgd": record["contenders"]["sgd"]}
    assert some["command"].endswith("valley.yaml --contenders sgd")
    assert json.loads((tmp_path / "some.json").read_text()) == some


def test_what_the_output_has_of_other_contenders_stays(main, valley, tmp_path):
    """One contender's runs made again, beside those of a file without any run's own files."""
    config, out, record = valley
    path = tmp_path / "kept.json"
    shutil.copytree(out / "rosenbrock" / "sgd", tmp_path / "out" / "rosenbrock" / "sgd")
    old = json.loads(json.dumps(record))
    old["contenders"]["sgd"]["best_lr"] = 5.0  # of an earlier form
    old["versions"][0]["torch"] = "1.0"
    path.write_text(json.dumps(old))
    words = [config, "--output", str(path), "--output_dir", str(tmp_path / "out")]
    again = main([*words, "--contenders", "sgd"])
    assert json.loads(path.read_text()) == again
    assert again.pop("versions") == [old["versions"][0], *record["versions"]]
    assert again == {name: value for name, value in record.items() if name != "versions"}
    assert list(again["contenders"]) == list(record["contenders"])
    # one with a run less, and one that is not there at all
    for change in (lambda each: each["adamw"]["seeds"].pop(), lambda each: each.pop("adamw")):
        part = json.loads(json.dumps(record))
        change(part["contenders"])
        path.write_text(json.dumps(part))
        assert main([*words, "--contenders", "sgd"])["complete"] is False


def test_an_output_by_another_plan_is_refused_before_any_run(main, valley, tmp_path):
    config, _, record = valley
    path = tmp_path / "kept.json"
    words = [config, "--output", str(path), "--output_dir", str(tmp_path / "out")]
    for part, name, value, message in (
        ("plan", "seeds", [0], r"its plan has seeds \[0\], the file asks for \[0, 1\]"),
        ("description", "steps", 40, "its description has steps 40, the file asks for 30"),
    ):
        path.write_text(json.dumps({**record, part: {**record[part], name: value}}))
        with pytest.raises(UsageError, match=f"--output .*kept.json: {message}"):
            main([*words, "--contenders", "sgd"])
    path.write_text("{}")
    with pytest.raises(UsageError, match="--output .*not a file of kind comparison"):
        main([*words, "--contenders", "sgd"])
    assert path.read_text() == "{}" and not list((tmp_path / "out").rglob("*-*.json"))


def test_ctrl_c_leaves_what_there_is_and_the_rest_gives_the_same(main, valley, tmp_path):
    config, out, record = valley
    shutil.copytree(out, tmp_path / "out")
    out = tmp_path / "out"
    removed = sorted((out / "rosenbrock" / "adamw").glob("*.json"))[:2]
    for path in removed:
        path.rename(path.with_suffix(".kept"))
    (out / "workers.log").unlink(missing_ok=True)

    def interrupt() -> None:
        while not (out / "workers.log").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        main([config, "--output_dir", str(out), "--processes", "1"])
    thread.join()
    stopped = json.loads((out / "rosenbrock" / "comparison.json").read_text())
    assert not stopped["complete"]
    assert stopped["contenders"]["sgd"] == record["contenders"]["sgd"]
    for path in removed:  # as the same command would make them, but for their seconds
        path.with_suffix(".kept").rename(path)
    assert main([config, "--output_dir", str(out)]) == record


def test_from_any_point_on_the_rest_gives_the_same(tmp_path):
    whole = a_comparison(tmp_path)
    finish(whole)
    text = as_text(comparison_record(whole, [], "x"))
    assert len(counted(tmp_path)) == 2 * 5 + 2 * 2
    for kept in (0, 1, 3, 6, 9, 13):
        part = replace(whole, output_dir=tmp_path / f"part-{kept}")
        for path in sorted(whole.output_dir.rglob("*.json"), key=lambda p: p.stat().st_mtime_ns)[
            :kept
        ]:
            copy = part.output_dir / path.relative_to(whole.output_dir)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        assert not comparison_record(part, [], "x")["complete"]
        finish(part)
        assert as_text(comparison_record(part, [], "x")) == text


def test_a_contender_that_fails_and_one_that_diverges(tmp_path, capsys):
    """In processes; the other one's search and seeds go to their end."""
    comparison = a_comparison(
        tmp_path,
        contenders=["adamw", "adam"],
        search={"low": 1e-2, "high": 1.0},
        tuning={"trials": 3, "grid": 2, "by": "loss"},
        workload=Peak(data_dir=str(tmp_path), failing="adam"),
    )
    finish(changed(comparison, contenders=["adamw"]))
    of_the_grid = comparison.grid_runs("adamw")[1].path(comparison.output_dir)
    of_the_seeds = comparison.run("adamw", 1e-2, 1).path(comparison.output_dir)
    of_the_grid.unlink(), of_the_seeds.unlink()
    (tmp_path / "runs").unlink()
    failures = make_runs(comparison, processes=1)
    assert [failure.run.contender for failure in failures] == ["adam", "adam"]
    assert counted(tmp_path) == ["1", "100"]
    record = comparison_record(comparison, failures, "x")
    assert not record["complete"]
    good, bad = record["contenders"].values()
    assert good["best_lr"] == 1e-2 and len(good["seeds"]) == 2 and good["error"] is None
    assert [run["tuned_by"] for run in good["trials"]][:2] == [0.0, None]
    assert bad["error"] == "RuntimeError: cannot read some.file"
    assert bad["trials"] == bad["seeds"] == [] and bad["best_lr"] is None
    shown = capsys.readouterr().err
    assert "grids and shared rate: 3 runs" in shown and "seeds: 1 runs" in shown


def test_what_the_runs_do_not_measure_is_told_after_one_run(tmp_path):
    comparison = a_comparison(tmp_path, tuning={"trials": 3, "grid": 3, "by": "f1"})
    with pytest.raises(UsageError, match="tuning.by 'f1': a run of peak has score, loss, speed"):
        make_runs(comparison, processes=2, show=False)
    assert counted(tmp_path) == ["100"]


def test_where_every_rate_diverges_there_is_no_best(tmp_path):
    comparison = a_comparison(tmp_path, search={"low": 0.6, "high": 1.0})
    finish(comparison)
    record = comparison_record(comparison, [], "x")
    for each in record["contenders"].values():
        assert len(each["trials"]) == 5 and each["best_lr"] is None and each["seeds"] == []
        assert each["error"] == "every learning rate of its search diverged"
    assert record["complete"]


@pytest.mark.parametrize(
    ("by", "higher", "best"),
    [("score", True, 1e-2), ("score", False, 1e-2), ("loss", True, 1e-2), ("speed", True, 1.0e-1)],
)
def test_the_best_is_best_by_what_is_asked_for(by, higher, best, tmp_path):
    workload = Peak(data_dir=str(tmp_path), higher_is_better=higher)
    tuning = {"trials": 4, "grid": 4, "by": by}
    comparison = a_comparison(tmp_path, workload=workload, tuning=tuning, contenders=["adam"])
    finish(comparison)
    assert search(comparison, "adam").best_lr == best


def test_each_gets_the_same_number_of_trials_and_the_grid_first(tmp_path):
    comparison = a_comparison(tmp_path, search=None, contenders=["adamw", "sgd", "rmsprop"])
    finish(comparison)
    for name in comparison.contenders:
        low, high = comparison.range(name)
        rates = [result["settings"]["lr"] for result in search(comparison, name).trials]
        assert len(rates) == 5 and rates[0] == low and rates[2] == high
        assert all(low <= lr <= high for lr in rates)
        assert len(set(rates)) >= 4 and all(lr == float(f"{lr:.3g}") for lr in rates)


def test_rates_beyond_the_search_are_run_and_never_chosen(tmp_path):
    """The best of all is among them; the search goes on as without them."""
    near = a_comparison(tmp_path, search={"low": 1e-4, "high": 1e-3}, contenders=["adamw"])
    finish(near)
    far = changed(near, reach={"adamw": [1e-2, 1.0]})
    assert not comparison_record(far, [], "x")["complete"]
    assert make_runs(far, processes=1, show=False) == []
    before, after = (comparison_record(each, [], "x") for each in (near, far))
    assert after["complete"] and after["plan"]["reach"] == {"adamw": [1e-2, 1.0]}
    (old,), (new,) = (record["contenders"].values() for record in (before, after))
    assert [(run["lr"], run["score"]) for run in new["reach"]] == [(1e-2, 1.01), (1.0, None)]
    assert {**new, "reach": []} == old and old["best_lr"] == 1e-3


def test_one_more_contender_leaves_the_runs_of_the_others(tmp_path):
    comparison = a_comparison(tmp_path)
    finish(comparison)
    before = comparison_record(comparison, [], "x")["contenders"]
    more = changed(comparison, contenders=["sgd", "adamw", "adam"])
    assert {run.contender for run in wanted(more)} == {"sgd"}
    finish(more)
    after = comparison_record(more, [], "x")["contenders"]
    assert len(counted(tmp_path)) == 3 * 7
    assert {name: after[name] for name in before} == before


def test_no_folder_is_told(tmp_path):
    comparison = read_comparison(
        ROOT / "configs/comparisons/rte.yaml",
        data_dir="/my/data",
        model_name_or_path="/my/models/small",
        output_dir=str(tmp_path),
    )
    text = as_text(comparison_record(comparison, [], "x"))
    assert "/" not in text and "my" not in text
    assert json.loads(text)["plan"]["options"]["model_name_or_path"] == "small"
    assert json.loads(text)["description"]["model_name_or_path"] == "small"
    said = "--data_dir /my/data: no 'my/glue/rte', C:\\me\\x"
    assert without_folders(said) == "--data_dir data: no 'rte', x"


def test_without_optuna_the_remedy_is_told_before_any_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match="pip install optuna, or set tuning.trials to tuning.grid"):
        make_runs(a_comparison(tmp_path), processes=1)
    assert counted(tmp_path) == []
    finish(a_comparison(tmp_path, tuning={"trials": 3, "grid": 3}))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_file_can_be_read(path):
    if "\ncontenders:" not in path.read_text():  # all of them
        pytest.importorskip("schedulefree")
    comparison = read_comparison(path)
    assert {"adamw", "dwmgrad-decrease"} <= set(comparison.contenders)
    assert comparison.title != comparison.workload.name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give the file first, as configs/comparisons/tiny_sst2.yaml"),
        (["no.yaml"], "cannot read no.yaml"),
        (["FILE", "--trials", "3"], "--trials"),
        (["FILE", "--processes", "0"], "--processes 0"),
        (["FILE", "--contenders", "adamv"], "the file has adamw, sgd, dwmgrad-decrease"),
        (["FILE", "--model_name_or_path", "x"], "model_name_or_path"),
        (["FILE", "--output", "OUT"], "--output .*: cannot be written: it is a folder"),
        (["FILE", "--output", "FILE/x.json"], "--output .*: cannot be written"),
        (["FILE", "--output_dir", "FILE"], "cannot be written"),
        ([str(ROOT / "configs/comparisons/cora.yaml")], "--data_dir is missing"),
        ([str(ROOT / "configs/comparisons/cora.yaml"), "--data_dir", "OUT"], "--data_dir"),
        ([str(ROOT / "configs/comparisons/rte.yaml")], "--data_dir is missing"),
    ],
)
def test_mistakes_are_one_line(main, words, message, tmp_path):
    if any("cora" in word for word in words):
        pytest.importorskip("schedulefree")
    config = write(tmp_path, VALLEY)
    (tmp_path / "out").mkdir()
    words = [w.replace("FILE", config).replace("OUT", str(tmp_path / "out")) for w in words]
    with pytest.raises(UsageError, match=message) as caught:
        main(words)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").rglob("*"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("workload: rosenbrock", "workload: rosenbrok", "Did you mean rosenbrock"),
        ("workload: rosenbrock", "", "workload is missing"),
        ("options: {steps: 30}", "options: {stpes: 30}", "stpes"),
        ("title:", "titel:", "unknown 'titel'; it may have workload, options, title"),
        ("[adamw, sgd,", "[adamv, sgd,", "contender adamv: .* Did you mean adam"),
        ("[adamw, sgd,", "[sgd, sgd,", "a list of different names"),
        ("[adamw, sgd, dwmgrad-decrease]", "adamw", "a list of different names"),
        ("trials: 4", "trails: 4", "tuning: unknown 'trails'; it may have trials, grid, seed, by"),
        ("trials: 4", "trials: 2", "tuning: trials 2 is less than grid 3"),
        ("grid: 3", "grid: 0", "tuning: grid 0: expected a whole number from 1 on"),
        ("trials: 4", "trials: 4.5", "tuning: trials 4.5"),
        ("seed: 100", "seed: 100, by: 3", "tuning: by 3"),
        ("seed: 100", "seed: 1", "seeds have tuning.seed 1"),
        ("low: 1e-4", "low: 0", "search: low 0: expected a positive number"),
        ("low: 1e-4", "low: 1e31", "low 1e[+]31 must be less than high"),
        (", high: 1e30", "", "search: high is missing"),
        ("seeds: [0, 1]\n", "seeds: [0, 1]\nreach: {adam: [1]}\n", "reach: unknown 'adam'"),
        (
            "seeds: [0, 1]\n",
            "seeds: [0, 1]\nreach: {sgd: 1}\n",
            "reach: sgd 1: expected a list of rates",
        ),
        (
            "seeds: [0, 1]\n",
            "seeds: [0, 1]\nreach: {sgd: [0]}\n",
            r"reach: sgd \[0\]: expected a list of rates",
        ),
        ("seeds: [0, 1]", "seeds: [0, 0]", r"seeds \[0, 0\]"),
        ("lr: 1e-3", "lr: fast", "shared: lr 'fast'"),
        ("lr: 1e-3, ", "", "shared: lr is missing"),
        ("target: 0.1", "", "target is missing"),
        ("target: 0.1", "target: .nan", "target nan: expected a number"),
        ("tolerance: 0.05", "tolerance: 0.05\nchosen_on: 1", "chosen_on 1: expected true or false"),
        ("tolerance: 0.05", "tolerance: -1", "tolerance -1: expected a positive number"),
    ],
)
def test_mistakes_in_a_file_are_one_line(old, new, message, tmp_path):
    assert old in VALLEY
    with pytest.raises(UsageError, match=message) as caught:
        read_comparison(write(tmp_path, VALLEY.replace(old, new)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cora", "digits", "cifar10_brief", "tiny_sst2", "language"])
def test_committed_runs_are_those_of_today(name: str) -> None:
    """A new field of a workload must not make other runs of the same ones."""
    plan = ROOT / "configs" / "comparisons" / f"{name}.yaml"
    record = ROOT / "docs" / "results" / f"comparison-{name.replace('_', '-')}.json"
    comparison = read_comparison(plan, contenders=["adamw"])
    check_same_plan(json.loads(record.read_text("utf-8")), comparison)
