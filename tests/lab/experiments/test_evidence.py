"""The page of evidence: all tables, no miss left out, the same files the same page."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from pathlib import Path

import pytest
from experiments.compact import check_same_plan
from experiments.comparison import read_comparison
from experiments.contenders import get_contender
from experiments.evidence.compared import Compared
from experiments.evidence.page import config_of, page, read_results
from experiments.evidence.results import Result
from experiments.evidence.tables import (
    final_table,
    heads,
    overall,
    rateless,
    rates_table,
    verdicts,
)
from glue.errors import UsageError

from ..conftest import load_script
from . import fake_results

ROOT = Path(__file__).parents[3]
OURS = {"dwmgrad-finetune": "finetune", "dwmgrad-auto": "auto"}


@pytest.fixture(scope="module")
def main():
    return load_script("make_report").main


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> Path:
    """Two comparisons, one of which is not run, and the package's experiments."""
    folder = tmp_path_factory.mktemp("configs")
    shutil.copytree(ROOT / "configs" / "experiments", folder / "experiments")
    (folder / "comparisons").mkdir()
    for name in ("cora", "mrpc"):
        (folder / "comparisons" / f"{name}.yaml").write_text(f"title: Planned {name}\n")
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    return fake_results.write(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def made(main, results, configs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    words = ["--results", str(results), "--configs", str(configs)]
    return main([*words, "--output", str(folder / "evidence.md")])


@pytest.fixture
def page_of(configs, tmp_path, monkeypatch):
    """The page of some results, without its pictures, which take the most time."""
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda figure, path, **options: path.touch()
    )
    return lambda *some: page(some, configs, tmp_path / "evidence.md")


def section(text: str, heading: str) -> str:
    """From a heading to the next of its level or above."""
    level = heading.partition(" ")[0]
    lines = text[text.index(f"\n{heading}\n") + 1 :].splitlines()
    ends = ["#" * n + " " for n in range(1, len(level) + 1)]
    stop = next((n for n, line in enumerate(lines[1:], 1) if line.startswith(tuple(ends))), None)
    return "\n".join(lines[:stop])


def rows(text: str, start: str) -> list[list[str]]:
    """The cells of the table rows that begin with `start`."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_begins_with_the_scores(made):
    scores = section(made.read_text(), "## In ten seconds")
    cora, digits, language, mean = (
        rows(scores, start)[0] for start in ("A cora", "A digits", "A language", "**mean")
    )
    assert cora[:2] == ["A cora (accuracy, %)", "5, new"]
    assert [cell.endswith(", chosen on") for cell in cora[3:]] == [True, False, False]
    assert "±" in cora[2] and cora[2].endswith("at 0.001")
    assert " at 0.001 (+" in cora[3] and cora[4] == "not run"
    assert cora[5].count(" at ") == 0 and " (-" in cora[5]
    assert digits[1] == "3, those that chose the rate"
    assert "perplexity (lower is better)" in language[0] and "[" in language[3]
    assert mean[3].endswith("(1 of 2)")  # cora took part in choosing, digits has no second stage


def test_each_comparison_has_its_tables_picture_and_facts(made):
    text = made.read_text()
    for name in ("cora", "digits", "language"):
        own = section(text, f"### A {name}")
        assert f"](evidence-{name}.png)" in own and "Settings: schedule linear" in own
        assert f"configs/comparisons/{name}.yaml`" in own and "torch 2.13" in own
        assert (made.parent / f"evidence-{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert ("**Incomplete:**" in own) == (name == "digits")
        assert ("New seeds at each one's best rate" in own) == (name != "digits")
    assert len(rows(text, "SGD, momentum 0.9 | 1 of 3")) == 1


def test_every_table_is_whole(made):
    for text in (made.read_text(), (ROOT / "docs" / "evidence.md").read_text()):
        head, tables = 0, 0
        for line in text.splitlines():
            cells = line.replace("\\|", "").count("|")
            assert not head or not cells or (cells == head and line.endswith("|")), line
            tables, head = tables + (cells > head), cells
            assert line != "."
        assert tables > 8


def test_studies_are_on_the_page_with_the_steps_that_a_guard_skipped(page_of, results):
    data = json.loads((results / "ablation-window.json").read_text())
    (label, entry), *_ = data["results"].items()
    entry["runs"][0]["skipped"] = [3, 4, 9]
    text = page_of(Result("guard", "digits", {**data, "title": "Broken batches"}))
    own = section(text, "### Broken batches")
    (row,), head = rows(own, label), rows(own, "label")[0]
    assert dict(zip(head, row, strict=True))["steps skipped"] == f"{3 / len(entry['runs']):.1f}"
    assert {"guard-digits-brief.json", "machine-stsb.json"} <= {
        each.file for each in read_results(ROOT / "docs" / "results")
    }


def of(name: str, scores: dict[str, dict[float, float | None]], **changes) -> Compared:
    """Contender: learning rate: score, of one seed; `auto` has no rate."""
    entries = {
        contender.lower(): {
            "title": contender,
            "rateless": contender == "auto",
            "best_lr": None,
            "runs": [
                {
                    **{"lr": lr, "seed": 0, "score": score, "diverged": score is None},
                    "seconds": 2.0 if contender == "auto" else 1.0,
                }
                for lr, score in own.items()
            ],
            "final": [],
        }
        for contender, own in scores.items()
    }
    head = {"title": name, "metric": "accuracy", "higher_is_better": True, "steps": 10}
    rates = [*scores.get("AdamW", ())]
    plan = {"seeds": [0], "rates": rates, "contenders": [*entries], "chosen_on": [], "final": None}
    return Compared("comparison", name, {**head, "plan": plan, "contenders": entries, **changes})


ONE = of(
    "one", {"AdamW": {1e-3: 0.9, 1e-2: 0.8, 1e-1: 0.1}, "auto": {1.0: 0.88}, "B": {1e-2: None}}
)
TWO = of("two", {"AdamW": {1e-3: 0.5, 1e-2: 0.7, 1e-1: 0.1}, "auto": {1.0: 0.75}, "B": {1e-2: 0.7}})


def row(text: str, name: str) -> list[str]:
    (found,) = rows(text, f"{name} |")
    return found


def test_regret_is_to_adamw_at_its_best_rate_of_each_workload():
    text = overall([ONE, TWO])
    assert row(text, "AdamW")[1:7] == ["2 of 2", "0.01", "5.0", "10.0 (one)", "0.5", "0.5"]
    assert row(text, "auto")[2:5] == ["none", "-1.5", "2.0 (one)"]
    alone = overall([ONE, of("three", {"AdamW": {1e-3: 0.9}})])
    assert row(alone, "auto")[1:5] == ["1 of 2", "none", "2.0", "2.0 (one)"]


def test_a_run_that_diverged_is_as_bad_as_the_worst():
    assert ONE.means("b").item() == pytest.approx(10)
    worse = {"metric": "perplexity", "higher_is_better": False}
    lower = of("lower", {"AdamW": {1e-3: 2.0, 1e-2: 1.0, 1e-1: None}}, **worse)
    assert list(lower.means("adamw")) == pytest.approx([-100 * math.log(2), 0, -100 * math.log(2)])


def test_a_run_that_diverged_is_shown_and_counts_as_the_worst():
    lost = of("one", {"AdamW": {1e-3: 0.9, 1e-2: 0.5, 1e-1: None}, "B": {1e-3: None}})
    assert row(rates_table(lost), "AdamW")[3:5] == ["50.00, diverged", "63.33"]
    assert row(rates_table(lost), "B")[1:5] == ["50.00, diverged", "-", "-", "50.00"]
    nowhere = compared([0.5] * 3, [0.5] * 3)
    nowhere.entries["dwmgrad-finetune"]["final"].clear()
    for run in nowhere.entries["dwmgrad-finetune"]["runs"]:
        run.update(score=None, diverged=True)
    assert "every rate diverged" in heads([nowhere], OURS)


def test_what_there_is_nothing_to_compare_with_has_no_regret():
    alone = of("alone", {"auto": {1.0: 0.9}})
    assert overall([alone]) == "" and row(rates_table(alone), "auto")[2] == "-"
    apart = of("apart", {"AdamW": {5e-3: 0.9}, "B": {1e-2: 0.7}})
    text = overall([ONE, apart])
    assert row(text, "AdamW")[1:5] == ["2 of 2", "none is in all plans", "-", "-"]


def test_a_workload_counts_for_those_who_ran_at_every_rate():
    scores = {"AdamW": {1e-3: 0.1, 1e-2: 0.2}, "auto": {1.0: 0.4}}
    half = of("half", {**scores, "B": {1e-3: 0.3}})
    assert not rows(overall([half]), "B |") and row(overall([half]), "auto")[1] == "1 of 1"
    whole = of("half", {**scores, "B": {1e-3: 0.3, 1e-2: 0.1}})
    assert row(overall([whole]), "B")[1:4] == ["1 of 1", "0.001", "-10.0"]
    half.plan["rates"].append(1e-1)  # which AdamW lacks
    assert overall([ONE, half]) == overall([ONE])


def test_decades_that_work():
    text = rates_table(ONE)
    assert row(text, "AdamW")[4:6] == ["60.00", "0.5"]  # the mean of 90, 80 and 10
    assert row(text, "auto")[4:6] == ["88.00", "all"]
    assert rates_table(of("none", {"AdamW": {}})) == "no results"


def compared(*scores: list[float], metric: str = "accuracy") -> Compared:
    """AdamW, finetune and auto with these scores of new seeds."""
    names = ["adamw", *OURS]
    data = fake_results.a_comparison("w", names, new_seeds=len(scores[0]))
    for name, own in zip(names, scores, strict=False):
        for run, score in zip(data["contenders"][name]["final"], own, strict=True):
            run["score"] = score
    return Compared("comparison", "w", data | {"metric": metric})


def test_who_has_no_new_seeds_is_shown_by_the_first_stage():
    data = json.loads(json.dumps(compared([0.5] * 3, [0.6] * 3, [0.7] * 3).data))
    for name, scores in (("adamw", [0.4, 0.5]), ("dwmgrad-auto", [0.6, 0.7])):
        own = data["contenders"][name]
        own["runs"] = [{**run, "score": s} for run, s in zip(own["runs"][:2], scores, strict=True)]
    data["contenders"]["dwmgrad-auto"]["final"] = []
    (row,) = rows(heads([Compared("comparison", "w", data)], OURS), "A w")
    assert row[4] == "+20.00, of the 2 seeds that chose the rate"
    del data["contenders"]["dwmgrad-auto"]["runs"][0]
    one = Compared("comparison", "w", data)
    (row,) = rows(heads([one], OURS), "A w")
    assert row[4] == "+20.00, of the 1 seed that chose the rate"  # beside AdamW's 0.5 of that seed
    assert one.best_beside("dwmgrad-auto") == pytest.approx(50)
    assert one.best_beside("adamw") == pytest.approx(45)


def test_those_without_a_rate_stand_side_by_side():
    rates = {1e-3: 0.50, 1e-2: 0.60}
    one = of("one", {"adamw": rates, "auto": {1.0: 0.58}})
    two = of("two", {"adamw": rates, "auto": {1.0: 0.65}})
    three = of("three", {"adamw": rates})
    text = rateless([one, two, three])
    assert [row(text, name)[1] for name in ("one", "two")] == ["2.0", "-5.0"]
    assert "three" not in text
    assert row(text, "**mean (workloads)**")[1] == "-1.5 (2)"
    assert row(text, "**worst (workloads)**")[1] == "2.0 (2)"
    assert rateless([three]) == ""
    assert rateless([one, two], Compared.ahead_anew) == "", "no new seeds"
    new = compared([0.5] * 3, [0.6] * 3, [0.7] * 3)
    free = json.loads(json.dumps(new.data))
    free["contenders"]["dwmgrad-auto"]["rateless"] = True
    text = rateless([one, Compared("comparison", "w", free)], Compared.ahead_anew)
    assert row(text, "**mean (workloads)**")[1] == "-20.0 (1)"
    assert row(text, "A w")[1] == "-20.0"
    free["contenders"]["dwmgrad-auto"]["rule"] = "another"
    text = rateless([one, Compared("comparison", "w", free)], Compared.ahead_anew)
    assert row(text, "A w")[1] == "-20.0, by an older rule"


def test_who_ran_on_another_machine_than_adamw_is_marked():
    one = compared([0.5] * 3, [0.6] * 3, [0.7] * 3)
    assert "| on |" not in rates_table(one) + final_table(one), "not known"
    data = json.loads(json.dumps(one.data))
    for name, own in data["contenders"].items():
        for run in (*own["runs"], *own["final"]):
            run["on"] = "a GPU" if name == "adamw" else "a CPU"
    data["contenders"]["dwmgrad-finetune"]["final"][0]["on"] = "a GPU"
    data["contenders"]["dwmgrad-auto"]["final"] = []
    some = Compared("comparison", "w", data)
    found = row(heads([some], OURS).replace("A w (accuracy, %)", "A w"), "A w")
    marked = [cell.endswith(", not all on AdamW's machine") for cell in found]
    assert marked == [False, False, False, True, True]
    last = row(final_table(some), "DWMGrad, preset finetune")[-1]
    assert sorted(last.split(", ")) == ["a CPU (2)", "a GPU (1)"]
    assert [row(rates_table(some), name)[-1] for name in ("AdamW", "DWMGrad, preset auto")] == [
        "a GPU",
        "a CPU",
    ]


def test_differences_are_welchs():
    """By the textbook's formula, on numbers of unlike spread."""
    adamw, ours = [0.50, 0.51, 0.52, 0.53], [0.60, 0.66, 0.63, 0.61]
    found = compared(adamw, ours, adamw).difference("dwmgrad-finetune")
    parts = [statistics.variance([100 * x for x in some]) / 4 for some in (adamw, ours)]
    assert found.mean == pytest.approx(11)
    assert found.variance == pytest.approx(sum(parts))
    assert found.freedom == pytest.approx(sum(parts) ** 2 / sum(p**2 / 3 for p in parts))
    assert compared(adamw[:2], ours[:2]).difference("dwmgrad-finetune").interval is None


def test_not_worse_needs_the_interval_above_the_margin():
    adamw = [0.80, 0.81, 0.82, 0.80, 0.81]
    same, worse = [0.803, 0.812, 0.82, 0.81, 0.815], [0.77, 0.78, 0.76, 0.77, 0.78]
    (found,) = rows(verdicts([compared(adamw, same, worse)], OURS, margin=1), "A w")
    assert found[1].startswith("shown (p = ") and found[2].startswith("not shown (p = ")
    both = [compared(adamw, same, worse), compared(adamw, adamw, adamw)]
    assert len(rows(verdicts(both, OURS, margin=1), "A w")) == 2
    assert verdicts([ONE], OURS, margin=1) == ""


def test_a_difference_is_tested_on_both_sides():
    adamw = [0.80, 0.81, 0.82, 0.80, 0.81]
    better, worse = [[x + d for x in adamw] for d in (0.05, -0.05)]
    (found,) = rows(verdicts([compared(adamw, better, worse)], OURS), "A w")
    assert found[1] == found[2] and found[1].startswith("shown (p = ")
    (found,) = rows(verdicts([compared(adamw, adamw, adamw)], OURS), "A w")
    assert found[1:] == ["not shown (p = 1)"] * 2


def test_the_mean_is_in_deviations_of_adamws_seeds():
    adamw, ours = [0.50, 0.52, 0.54], [0.52, 0.54, 0.56]
    one, other = compared(adamw, ours, adamw), compared([0.1, 0.5, 0.9], [0.2, 0.6, 1.0], adamw)
    (mean,) = rows(heads([one, other], OURS), "**mean")
    assert mean[3].startswith(f"{(1 + 0.25) / 2:+.2f}"[:5])
    table = final_table(one)
    assert rows(table, "DWMGrad, preset finetune")[0][1:3] == ["0.001", "54.00 ± 2.00"]


def test_experiments_stand_beside_the_paper(made):
    text = made.read_text()
    rosenbrock = section(text, "### Our rosenbrock")
    assert "| 1.00528951 | 1.01149244 | 1.0638e-04 |" in rosenbrock
    assert "| 1.005 | 1.011 |" in rosenbrock
    assert rosenbrock.count("](evidence-experiment-rosenbrock") == 2
    cora = section(text, "### Our cora")
    assert "79.80 % accuracy" in cora and "% over 10 seeds." in cora
    left = section(text, "### Not run")
    assert "- `cifar10.yaml` (the paper reports F1 90.67 %): not run: needs a GPU." in left


def test_a_label_that_was_not_run_is_named(results, page_of):
    data = json.loads((results / "experiment-cora.json").read_text())
    data["results"]["Adam"]["runs"] = []
    data["failures"] = [{"run": "Adam", "error": "none left"}]
    text = page_of(Result("experiment", "cora", data))
    assert "**Incomplete** by `experiment-cora.json`: 1 run failed; not run: Adam." in text


def test_a_bar_in_a_label_does_not_end_its_cell(results, page_of):
    data = json.loads((results / "ablation-window.json").read_text())
    data["results"] = {f"{label} | x": entry for label, entry in data["results"].items()}
    text = page_of(Result("ablation", "window", data))
    (line,) = [line for line in text.splitlines() if line.startswith("| window 400")]
    assert line.startswith("| window 400 \\| x | max_window=400 |")


def test_what_was_run_where(made):
    where = section(made.read_text(), "## What was run where")
    assert rows(where, "`comparisons/mrpc.yaml`")[0][1] == "not run"
    assert rows(where, "`comparisons/cora.yaml`")[0][1:3] == ["run", "`comparison-cora.json`"]
    assert rows(where, "`experiments/cifar10.yaml`")[0][1] == "not run: needs a GPU"
    assert rows(where, "`experiments/rosenbrock.yaml`")[0][4].startswith("Fake 1, 2 cores")
    assert "incomplete" in where and len(rows(where, "- ")) == 3  # results without a file


def test_ablations_stand_beside_their_first(made):
    own = section(made.read_text(), "## Ablations and studies")
    assert rows(own, "window 15")[0][1] == "-"
    (last,) = rows(own, "window 400")
    assert (
        last[1] == "max_window=400" and "[" in last[4] and last[5:] == ["5.0", "80 %", "40 %", "-"]
    )


def test_the_same_files_give_the_same_page(made, results, page_of, tmp_path):
    assert page_of(*read_results(results)) == made.read_text()
    names = {path.name for path in made.parent.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} | {"evidence.md"} == names


def test_the_committed_page_is_that_of_the_committed_results(main, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda figure, path, **options: path.touch()
    )
    docs = ROOT / "docs"
    words = ["--results", str(docs / "results"), "--configs", str(ROOT / "configs")]
    page = main([*words, "--output", str(tmp_path / "evidence.md")])
    hint = "run: python scripts/make_report.py"
    assert page.read_text() == (docs / "evidence.md").read_text(), hint
    for picture in tmp_path.glob("*.png"):
        assert (docs / picture.name).is_file(), hint


@pytest.mark.parametrize("path", sorted((ROOT / "docs/results").glob("comparison-*.json")), ids=str)
def test_committed_comparisons_are_of_todays_plans(path):
    for package in ("momo", "prodigyopt", "schedulefree"):
        pytest.importorskip(package)
    kept = json.loads(path.read_text())
    config = config_of(Result("comparison", path.stem, kept), ROOT / "configs")
    encoder = kept["description"].get("model_name_or_path")
    planned = read_comparison(config, model_name_or_path=encoder)
    check_same_plan(kept, planned)
    assert kept["plan"] == json.loads(json.dumps(planned.values))


@pytest.mark.parametrize("path", sorted((ROOT / "docs/results").glob("comparison-*.json")), ids=str)
def test_committed_comparisons_are_of_todays_presets(path):
    for name, entry in json.loads(path.read_text())["contenders"].items():
        own = get_contender(name)
        assert (entry["rule"], entry["defaults"]) == (own.rule, own.defaults)


def test_results_find_their_configuration_by_their_command(tmp_path):
    for name in ("glue", "glue_lora"):
        (tmp_path / "configs" / "experiments").mkdir(parents=True, exist_ok=True)
        (tmp_path / "configs" / "experiments" / f"{name}.yaml").touch()
        line = f"python scripts/run_experiment.py configs/experiments/{name}.yaml --workload x"
        result = Result("experiment", "glue-rte-lora", {"command": line})
        assert config_of(result, tmp_path / "configs").stem == name
    assert (
        config_of(Result("experiment", "glue", {"command": "make"}), tmp_path / "configs") is None
    )


def test_a_folder_without_results_empties_no_page(main, configs, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "page.md").write_text("all figures")
    words = ["--results", str(tmp_path / "empty"), "--configs", str(configs)]
    with pytest.raises(UsageError, match="--results .*empty: has no results"):
        main([*words, "--output", str(tmp_path / "page.md")])
    assert (tmp_path / "page.md").read_text() == "all figures"


def test_without_results_all_is_not_run(main, configs, tmp_path):
    (tmp_path / "empty").mkdir()
    words = ["--results", str(tmp_path / "empty")]
    page = main([*words, "--configs", str(configs), "--output", str(tmp_path / "e.md")])
    text = page.read_text()
    assert text.count("None was run.") == 3
    assert [path.name for path in tmp_path.glob("*.png")] == []


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("comparison-cora", lambda data: "{", "cannot be read"),
        ("comparison-cora", lambda data: "[]", "not a file of kind comparison"),
        ("comparison-cora", lambda data: data | {"kind": "experiment"}, "kind comparison"),
        ("comparison-cora", lambda data: data | {"metric": None}, "metric: expected str, got None"),
        ("comparison-cora", lambda data: data | {"plan": {}}, "plan: contenders is missing"),
        (
            "comparison-cora",
            lambda data: data | {"plan": {**data["plan"], "final": {"seeds": [1]}}},
            "plan: final: options is missing",
        ),
        ("comparison-cora", lambda data: data | {"machine": [3]}, "machine: expected dict, got 3"),
        (
            "comparison-cora",
            lambda data: data | {"contenders": {"adamw": {"title": "A", "rateless": False}}},
            "contenders: adamw: best_lr is missing",
        ),
        ("experiment-cora", lambda data: data | {"results": {"a": 3}}, "results: a"),
        ("experiment-cora", lambda data: data | {"results": None}, "results: expected dict"),
        ("ablation-window", lambda data: data | {"kind": "experiment"}, "kind ablation"),
    ],
)
def test_a_bad_file_is_named(name, change, message, main, results, tmp_path):
    path = tmp_path / f"{name}.json"
    new = change(json.loads((results / path.name).read_text()))
    path.write_text(new if isinstance(new, str) else json.dumps(new))
    with pytest.raises(UsageError, match=message) as caught:
        read_results(tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [-1, float("nan"), "fast", None])
def test_a_learning_rate_must_be_a_number(wrong, results, tmp_path):
    data = json.loads((results / "comparison-cora.json").read_text())
    data["contenders"]["adamw"]["runs"][0]["lr"] = wrong
    (tmp_path / "comparison-cora.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match="comparison-cora.json: .*adamw: runs: lr"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--results", "no"], "--results no: no such folder"),
        (["--configs", "no"], "--configs no: no such folder"),
        (["--outptu", "x"], "--outptu"),
    ],
)
def test_mistakes_are_one_line(main, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    with pytest.raises(UsageError, match=message):
        main(words)
