"""scripts/run_experiment.py and the files in configs/experiments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from experiments.cli import parse
from experiments.config import read_experiment
from experiments.evidence.results import Result
from experiments.table import spread
from experiments.workloads import make_workload
from glue.errors import UsageError

from ..conftest import load_script

ROOT = Path(__file__).parents[3]
CONFIGS = sorted(
    path
    for kind in ("experiments", "studies")
    for path in (ROOT / "configs" / kind).rglob("*.yaml")
)


@pytest.fixture(scope="module")
def main():
    return load_script("run_experiment").main


def write(folder: Path, text: str) -> str:
    (folder / "experiment.yaml").write_text(text)
    return str(folder / "experiment.yaml")


ROSENBROCK = """
workload: rosenbrock
title: The valley
kind: ablation
options: {steps: 30}
settings: {lr: 1e-3}
contenders:
  ours: {contender: dwmgrad-decrease, max_window: 15}
  sgd: {lr: 1e30}
  adam:
seeds: [0, 1]
"""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_file_can_be_read(path):
    if "schedule-free" in path.read_text():
        pytest.importorskip("schedulefree")
    experiment = read_experiment(path)
    assert experiment.contenders and experiment.seeds
    assert any(name.startswith("dwmgrad") for name, _ in experiment.contenders.values())


def test_a_run_ends_with_table_json_and_pictures(main, tmp_path, capsys):
    config, out = write(tmp_path, ROSENBROCK), tmp_path / "out"
    (whole,) = main([config, "--output_dir", str(out)])
    runs = {label: each["runs"] for label, each in whole["results"].items()}
    assert {label: len(each) for label, each in runs.items()} == {"ours": 2, "sgd": 2, "adam": 2}
    table = (out / "table.md").read_text()
    assert table.strip() in capsys.readouterr().out
    assert "| sgd | 1e+30 | - | 2, 2 diverged | - |" in table
    assert json.loads((out / "results.json").read_text()) == whole
    for name in ("curves.png", "valley.png"):
        assert (out / name).read_bytes()[:4] == b"\x89PNG"
    small = tmp_path / "new" / "small.json"
    (again,) = main(
        [
            config,
            "--output_dir",
            str(out),
            *"--contenders ours --seeds 1 --output".split(),
            str(small),
        ]
    )
    assert again["results"] == {"ours": {**whole["results"]["ours"], "runs": runs["ours"][1:]}}
    record = json.loads(small.read_text())
    assert record == again
    assert (record["title"], record["kind"], record["steps"]) == ("The valley", "ablation", 30)
    assert record["command"] == (
        "python scripts/run_experiment.py experiment.yaml --seeds 1 --contenders ours"
    )
    ours = read_experiment(config).contenders["ours"]
    workload = make_workload("rosenbrock", steps=30)
    assert record["results"]["ours"]["settings"] == workload.settings(*ours)
    (run,) = record["results"]["ours"]["runs"]
    assert run["score"] == runs["ours"][1]["score"] and run["seed"] == 1
    assert len(run["losses"]) == len(run["windows"]) == 30 and len(run["path"]) == 31
    assert run["scores"] == [[30, pytest.approx(run["score"], rel=1e-4)]]
    assert "/" not in small.read_text().replace("scripts/", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give the file first"),
        (["no.yaml"], "cannot read no.yaml"),
        (["FILE", "--output-dri", "x"], "--output-dri"),
        (["FILE", "--processes", "-1"], "--processes -1"),
        (["FILE", "--output", "/"], "--output /: cannot be written: it is a folder"),
        (["FILE", "--seeds", "1", "1"], "--seeds 1 1: expected different"),
        (["FILE", "--contenders", "adamw"], "the file has ours, sgd, adam"),
        (["FILE", "--workload", "rosenbrok"], "Did you mean rosenbrock"),
        (["FILE", "--workload", "cora"], "--data_dir|steps"),
        (["FILE", "--model_name_or_path", "x"], "model_name_or_path"),
    ],
)
def test_mistakes_are_one_line(main, words, message, tmp_path):
    config = write(tmp_path, ROSENBROCK)
    with pytest.raises(UsageError, match=message) as caught:
        main([config if word == "FILE" else word for word in words])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected lines"),
        ("workload: [", "not YAML"),
        ("contenders: {adam: {lr: 1}}", "workload is missing"),
        ("workload: rosenbrock", "contenders is missing"),
        ("workload: rosenbrock\nsteps: 3", "unknown 'steps'"),
        (
            "workload: rosenbrock\nkind: survey\ncontenders: {adam: {lr: 1}}",
            "kind 'survey': expected experiment or ablation",
        ),
        ("workload: rosenbrock\ncontenders: {adam: 3}", "contenders: adam 3: expected"),
        ("workload: rosenbrock\ncontenders: [adam]", "contenders .*: expected"),
        ("workload: rosenbrock\ncontenders: {adm: {lr: 1}}", "Did you mean adam"),
        ("workload: rosenbrock\ncontenders: {adam: {lr: fast}}", "lr must be a number"),
        ("workload: rosenbrock\ncontenders: {adam: {lr: 1}}\nseeds: [-1]", "seeds"),
        ("workload: rosenbrock\noptions: {size: 3}\ncontenders: {adam: {lr: 1}}", "size"),
    ],
)
def test_mistakes_in_a_file_are_one_line(text, message, tmp_path):
    with pytest.raises(UsageError, match=message) as caught:
        read_experiment(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_numbers_and_a_single_seed_are_taken_as_people_write_them(tmp_path):
    text = "workload: rosenbrock\ncontenders: {adam: {lr: 1e-3, eps: 1.5E-8}}\nseeds: 3"
    experiment = read_experiment(write(tmp_path, text))
    assert experiment.contenders == {"adam": ("adam", {"lr": 1e-3, "eps": 1.5e-8})}
    assert experiment.seeds == (3,)


def test_shares_are_in_percent_and_other_numbers_are_not():
    assert spread([0.8, 0.82], "accuracy") == "81.00 ± 1.41"
    assert spread([66.01, 67.03], "perplexity") == "66.52 ± 0.72"
    assert spread([0.5]) == "0.5" and spread([]) == "-"
    assert Result("experiment", "x", {"results": {"a": {}}}).markdown() == "no results"


def test_several_workloads_have_a_report_each(main, tmp_path, cora_dir, capsys):
    text = "workload: cora\ntitle: Two\noptions: {steps: 3}\ncontenders: {adam: {lr: 0.01}}\n"
    words = [
        write(tmp_path, text),
        "--output_dir",
        str(tmp_path / "out"),
        "--data_dir",
        str(cora_dir),
        *"--workload cora rosenbrock --processes 1".split(),
    ]
    with pytest.raises(UsageError, match=r"write \{workload\} in it, there are 2 of them"):
        main([*words, "--output", str(tmp_path / "all.json")])
    assert not (tmp_path / "out").exists()
    found = main([*words, "--output", str(tmp_path / "{workload}.json")])
    assert [record["workload"] for record in found] == ["cora", "rosenbrock"]
    assert all(len(record["results"]["adam"]["runs"]) == 1 for record in found)
    for name in ("cora", "rosenbrock"):
        record = json.loads((tmp_path / f"{name}.json").read_text())
        assert (record["title"], record["workload"]) == (f"Two: {name}", name)
        assert record["command"].endswith(f"--workload {name}")
        assert (tmp_path / "out" / name / "table.md").is_file()


def test_some_contenders_alone_leave_the_others_in_the_file(main, tmp_path):
    config, file = write(tmp_path, ROSENBROCK), tmp_path / "kept.json"
    main([config, "--output_dir", str(tmp_path / "first"), "--output", str(file)])
    first = json.loads(file.read_text())
    words = ["--contenders", "adam", "--output", str(file)]
    main([config, "--output_dir", str(tmp_path / "second"), "--seeds", "3", *words])
    second = json.loads(file.read_text())
    assert [*second["results"]] == ["ours", "sgd", "adam"]
    runs = second["results"]["adam"]["runs"]
    assert [run["seed"] for run in runs] == [0, 1, 3]
    assert runs[:2] == first["results"]["adam"]["runs"]
    for label in ("ours", "sgd"):
        assert second["results"][label] == first["results"][label]
    assert second["machine"] == first["machine"] and "--" not in second["command"]
    other = write(tmp_path, ROSENBROCK.replace("steps: 30", "steps: 31"))
    with pytest.raises(UsageError, match="kept.json: it is of another workload"):
        main([other, "--output_dir", str(tmp_path / "third"), *words])
    assert json.loads(file.read_text()) == second


@pytest.mark.parametrize("name", ["run_experiment", "compare_optimizers"])
def test_a_folder_for_the_runs_that_is_a_file(name, tmp_path):
    text = "workload: rosenbrock\ntitle: One\ncontenders: [adam]\nrates: [1e-2]\nseeds: [0]\n"
    text = text if name == "compare_optimizers" else ROSENBROCK
    (tmp_path / "file").touch()
    words = ["--output_dir", str(tmp_path / "file"), "--output", str(tmp_path / "all.json")]
    with pytest.raises(UsageError, match="--output_dir .*file.* cannot be written"):
        load_script(name).main([write(tmp_path, text), "--processes", "0", *words])
    assert not (tmp_path / "all.json").exists()


def test_an_encoder_that_cannot_be_had_is_found_before_the_first_run():
    workload = make_workload("glue-sst2", model_name_or_path="./nope")
    with pytest.raises(UsageError, match="--model_name_or_path ./nope: cannot be loaded"):
        workload.check()


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    _, values = parse(["file.yaml", "--output_dir=~/runs"], "", "file.yaml")
    assert values["output_dir"] == str(tmp_path / "runs")


@pytest.mark.parametrize("steps", [0, -3, 10.5, "10"])
def test_steps_are_a_whole_number(steps):
    with pytest.raises(UsageError, match=f"workload rosenbrock: steps {steps!r}: must be a whole"):
        make_workload("rosenbrock", steps=steps)
