"""The page of evidence: all tables, no miss left out, the same files the same page."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from experiments.compact import check_same_plan
from experiments.comparison import read_comparison
from experiments.evidence.measures import Measured, Result, mean_lead, read_results
from experiments.evidence.page import config_of, page, planned
from glue.errors import UsageError

from dwmgrad.rule import PRESETS

from ..conftest import load_script
from . import fake_results

ROOT = Path(__file__).parents[3]
OURS, FAITHFUL = "dwmgrad-finetune", "dwmgrad-decrease"


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
    scores = section(made.read_text(), "## The scores")
    (cora,) = rows(scores, "A cora")
    assert cora[0] == "A cora (accuracy, %), chosen on" and "±" in cora[1]
    assert cora[4].startswith("+") and cora[5].startswith("-")
    assert "A language (perplexity, lower is better)" in scores
    assert rows(scores, "Planned mrpc")[0][1] == "not run"
    everything, confirming, learned = rows(scores, "**mean")
    assert all("not measured" in row[4] for row in (everything, confirming, learned))
    assert "those not chosen on" in confirming[0]


def test_the_verdicts_follow(made):
    goals = section(made.read_text(), "## The goals")
    (equal,), (ahead_all, ahead_rest, _), (sooner, faster), (wide,) = (
        rows(goals, f"({letter})") for letter in "abcd"
    )
    (told,) = rows(goals, "what can be told")
    assert told[1:] == ["ahead on 2, behind on 0 of 5", "ahead on 0, behind on 3 of 5"]
    assert "(AdamW itself: " in sooner[0]
    assert sooner[1].startswith("**not measured** (2 of 5 met")
    assert sooner[2].startswith("**not met**")
    assert equal[1].startswith("**not measured** (2 of 5 met, 3 not measured)")
    assert equal[2].startswith("**not met** (0 of 5 met")
    assert ahead_all[1].startswith("**not measured** (+") and "2 of 5 workloads" in ahead_all[1]
    assert "1 of 4 workloads" in ahead_rest[1]  # cora took part in the choice
    assert faster[2].startswith("**not met**") and wide[2].startswith("**not met**")
    for name in (OURS, FAITHFUL):
        assert f"(`{name}`)" in goals
    ours, faithful = rows(goals, "A cora (chosen on)")
    assert "interval above 0" in ours[1] and ours[2] == "met" and ours[3].startswith("met: 0.")
    assert "interval below 0" in faithful[1] and faithful[2] == "not met"
    assert faithful[3].startswith("not met: never, missed by 5 of 5 (")
    assert rows(goals, "Planned mrpc")[0][1:] == ["not run", *["not measured"] * 3]
    assert "not all seeds were run" in rows(goals, "A tiny_sst2")[0][1]
    assert "at least" in ours[4]


def test_each_comparison_has_its_tables_picture_and_facts(made):
    text = made.read_text()
    for name, parts in (("cora", 2), ("digits", 2), ("language", 1), ("tiny_sst2", 2)):
        own = section(text, f"### A {name}")
        assert own.count("\n#### ") == parts and f"](evidence-{name}.png)" in own
        assert f"configs/comparisons/{name}.yaml`" in own and "torch 2.13" in own
        assert (made.parent / f"evidence-{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert ("**Incomplete:**" in own) == (name in ("digits", "tiny_sst2"))
    assert "This workload took part in choosing" in section(text, "### A cora")
    assert section(text, "### Planned mrpc").endswith("Not run.\n")


def test_rows_tell_what_diverged_was_missed_or_was_not_run(made):
    text = made.read_text()
    tuned = section(section(text, "### A cora"), "#### Tuned")
    (sgd,) = rows(tuned, "SGD")
    assert sgd[1] == "0.0001, an end of its range" and "(4 pairs)" in sgd[3]
    assert sgd[5] == sgd[6] == "missed by 5 of 5"
    assert sgd[8] == "1 of 6 trials, 1 of 5 seeds"
    digits = section(text, "### A digits")
    assert "- Adam stopped with: MemoryError: none left" in digits
    assert rows(digits, "Adam ")[0][2] == "not run"
    assert rows(digits, "AdamW")[0][5].endswith("missed by 1 of 5")
    language = section(text, "### A language")
    assert "lower is better" in language and "% of AdamW's" in language
    tiny = section(text, "### A tiny_sst2")
    assert rows(tiny, "DWMGrad")[0][2] == "not run" and rows(tiny, "SGD")[0][2] == "not run"


def test_differences_are_those_of_the_seeds(results):
    data = json.loads((results / "comparison-language.json").read_text())
    comparison = Measured("comparison", "language", data)
    ours, theirs = (
        [run["score"] for run in data["contenders"][name]["seeds"]] for name in (FAITHFUL, "adamw")
    )
    known = [100 * (b - a) / b for a, b in zip(ours, theirs, strict=True)]
    assert comparison.difference(FAITHFUL).mean == pytest.approx(sum(known) / 3)
    best = min(run["score"] for run in data["contenders"]["adamw"]["trials"])
    assert comparison.mark == pytest.approx(best + 5)


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
    assert "incomplete" in where and len(rows(where, "- ")) == 4  # results without a file


def test_ablations_stand_beside_their_first(made):
    own = section(made.read_text(), "## Ablations")
    assert rows(own, "window 15")[0][1] == "-"
    (row,) = rows(own, "window 400")
    assert row[1] == "max_window=400" and "[" in row[4] and row[5:] == ["5.0", "80 %", "40 %"]


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
def test_committed_comparisons_are_of_todays_plans_and_preset(path):
    kept = json.loads(path.read_text())
    if "schedule-free-adamw" in kept["contenders"]:
        pytest.importorskip("schedulefree")
    config = config_of(Result("comparison", path.stem, kept), ROOT / "configs")
    encoder = kept["description"].get("model_name_or_path")
    planned = read_comparison(config, model_name_or_path=encoder)
    check_same_plan(kept, planned)
    assert list(planned.contenders) == kept["plan"]["contenders"] and kept["complete"]
    assert kept["contenders"][OURS]["defaults"] == PRESETS["finetune"]


def test_a_contender_that_was_changed_since_is_named(results, page_of):
    data = json.loads((results / "comparison-cora.json").read_text())
    for change, said in ({}, False), ({"max_window": 7}, True):
        data["contenders"][OURS]["defaults"] = {**PRESETS["finetune"], **change}
        text = page_of(Measured("comparison", "cora", data))
        assert ("was run in another form than it has today" in text) == said
    first = data["contenders"][OURS]["trials"][0]
    data["contenders"][OURS]["reach"] = [{**first, "lr": 0.3, "tuned_by": 0.99, "score": 0.99}]
    text = section(page_of(Measured("comparison", "cora", data)), "#### Tuned")
    assert "not as good as 0.3 beyond it" in rows(text, "DWMGrad, preset")[0][1]


def measured(data: dict) -> Measured:
    return Measured("comparison", "w", data)


def above_by(*differences: float) -> dict:
    """A comparison in which the preset's scores are above AdamW's by `differences`."""
    data = fake_results.a_comparison("w", ["adamw", OURS], seeds=len(differences))
    for contender, ours in (("adamw", 0), (OURS, 1)):
        for run, more in zip(data["contenders"][contender]["seeds"], differences, strict=True):
            run["score"] = 0.5 + ours * more
    return data


def test_ahead_means_an_interval_above_zero(tmp_path):
    clear, unclear, behind, one = (
        measured(above_by(*differences))
        for differences in ((0.02, 0.021, 0.019), (-0.5, 0.6), (-0.02, -0.021, -0.019), (0.1,))
    )
    assert mean_lead([clear], OURS)[0] == "met"
    assert mean_lead([unclear], OURS)[0] == mean_lead([behind], OURS)[0] == "not met"
    assert mean_lead([], OURS)[0] == mean_lead([one], OURS)[0] == "not measured"
    (tmp_path / "other.yaml").touch()
    assert mean_lead([clear, planned(tmp_path / "other.yaml")], OURS)[0] == "not measured"
    assert [w.equal(OURS) for w in (clear, unclear, behind)] == ["met", "met", "not met"]


def test_a_seed_that_diverged_meets_no_goal():
    """What is left of the pairs would otherwise look all the better."""
    data = above_by(0.02, 0.021, 0.019)
    runs = data["contenders"][OURS]["seeds"]
    runs[0] = fake_results.diverged(runs[0])
    each = measured(data)
    assert each.equal(OURS) == mean_lead([each], OURS)[0] == "not met"
    assert each.loss_shares(OURS).iloc[0] == math.inf


def test_a_search_in_which_all_diverged_meets_no_goal():
    data = above_by(0.02, 0.021, 0.019)
    ours = data["contenders"][OURS]
    ours["trials"] = [fake_results.diverged(run) for run in ours["trials"]]
    ours |= {"seeds": [], "best_lr": None}
    each = measured(data)
    verdicts = {each.equal(OURS), each.sooner(OURS), each.faster(OURS), each.robust(OURS)}
    assert verdicts == {"not met"} and each.side(OURS) == ""
    assert mean_lead([each], OURS)[0] == "not met"


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        ("_xxx__", "_xxxx_", "met"),
        ("_xxx__", "_xx___", "not met"),
        ("_xxx__", "xxxx__", "met"),  # at least as wide as it looks
        ("_xxx__", "xx____", "not measured"),  # beyond the search it may be wider
        ("xxx___", "_xxxx_", "not measured"),  # and so may AdamW's
        ("_xxx__", "______", "not met"),
        ("xxxxx_", "_xx___", "not met"),  # narrower than AdamW's, however wide that is
        ("_xx__x", "_xxx__", "not measured"),  # AdamW's second one may be the wider
    ],
)
def test_a_range_that_the_search_cut_off_settles_nothing(theirs, ours, expected):
    data = above_by(0.0, 0.0)
    for name, works in (("adamw", theirs), (OURS, ours)):
        template = data["contenders"][name]["trials"][0]
        data["contenders"][name]["trials"] = [
            {**template, "lr": 10.0 ** (place - 5), "score": 0.9 if mark == "x" else 0.1}
            for place, mark in enumerate(works)
        ]
    assert measured(data).robust(OURS) == expected


def test_rates_beyond_the_search_end_a_range_that_it_cut_off():
    data = above_by(0.0, 0.0)
    contenders = data["contenders"]
    for name in ("adamw", OURS):
        template = contenders[name]["trials"][0]
        contenders[name]["trials"] = [
            {**template, "lr": lr, "score": score} for lr, score in ((1e-4, 0.1), (1e-3, 0.9))
        ]
        contenders[name]["reach"] = [{**template, "lr": 1e-2, "score": 0.1}]
    data["plan"] |= {"tuning": {"trials": 2}, "reach": {"adamw": [1e-2], OURS: [1e-2]}}
    each = measured(data)
    assert each.robust(OURS) == "met" and not each.working(OURS).at_least
    contenders[OURS]["reach"] = []  # planned and not run
    each = measured(data)
    assert each.robust(OURS) == "not measured" and each.working(OURS).at_least


def test_where_adamw_never_reached_the_target_says_so(page_of):
    data = above_by(0.02, 0.021, 0.019)
    assert measured(data).learned
    for run in data["contenders"]["adamw"]["seeds"]:
        run["scores"] = [[200, 0.6]]
    assert not measured(data).learned
    other = Measured("comparison", "v", above_by(-0.02, -0.021, -0.019) | {"title": "Other"})
    goals = section(page_of(measured(data), other), "## The goals")
    assert "AdamW missed the target" in rows(goals, "A w")[0][1]
    assert "AdamW missed the target" not in rows(goals, "Other")[0][1]
    everything, *_, learned = rows(goals, "(b)")
    assert learned[0].endswith("whose target AdamW reached with a seed")
    assert "(-2.00" in learned[1] and "(+" in everything[1]


def test_what_can_be_told():
    sides = {
        (-0.02, -0.021, -0.019): "interval below 0",
        (-0.02, 0.01, -0.01): "includes 0",
        (-0.02,): "",  # one seed has no interval
        (0.02, 0.021, 0.019): "interval above 0",
    }
    for differences, side in sides.items():
        assert measured(above_by(*differences)).side(OURS) == side


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


def test_without_results_all_is_not_run(main, configs, tmp_path):
    (tmp_path / "empty").mkdir()
    words = ["--results", str(tmp_path / "empty")]
    page = main([*words, "--configs", str(configs), "--output", str(tmp_path / "e.md")])
    text = page.read_text()
    assert "**not measured** (0 of 2 met, 2 not measured)" in text and "None was run." in text
    assert [path.name for path in tmp_path.glob("*.png")] == []


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("comparison-cora", lambda data: "{", "cannot be read"),
        ("comparison-cora", lambda data: "[]", "not a file of kind comparison"),
        ("comparison-cora", lambda data: data | {"kind": "experiment"}, "kind comparison"),
        ("comparison-cora", lambda data: data | {"metric": None}, "metric: expected str, got None"),
        ("comparison-cora", lambda data: data | {"plan": {}}, "plan: seeds"),
        (
            "comparison-cora",
            lambda data: data | {"plan": data["plan"] | {"tuning": {"trials": 6, "grid": 5}}},
            "plan: tuning: seed is missing",
        ),
        ("comparison-cora", lambda data: data | {"machine": [3]}, "machine: expected dict, got 3"),
        (
            "comparison-cora",
            lambda data: data | {"contenders": {"adamw": {"seeds": [{"lr": 1}]}}},
            "contenders: adamw: seeds: score is missing",
        ),
        (
            "comparison-cora",
            lambda data: data | {"plan": data["plan"] | {"shared": {"lr": 1}}},
            "plan: shared",
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
    data["contenders"]["adamw"]["trials"][0]["lr"] = wrong
    (tmp_path / "comparison-cora.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match="comparison-cora.json: .*adamw: trials: lr"):
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
