"""scripts/compare_runs.py: several optimizers and seeds, and what a user can get wrong."""

from __future__ import annotations

import re
import sys

import pytest
from glue.errors import UsageError

from .conftest import load_script, read_json

CONFIG = """
config_name: {tiny}
task_name: sst2
use_sample: true
max_train_samples: 16
max_eval_samples: 8
do_train: true
do_eval: {evaluates}
num_train_epochs: 1
save_strategy: epoch
report_to: none
use_cpu: true
"""


@pytest.fixture
def compare(tiny, tmp_path, monkeypatch):
    """Runs the script with one seed and these words."""

    def run(*words: str, evaluates: str = "true") -> None:
        config = tmp_path / "small.yaml"
        config.write_text(CONFIG.format(tiny=tiny, evaluates=evaluates))
        every = [str(config), "--seeds", "0", "--work", str(tmp_path / "work"), *words]
        monkeypatch.setattr(sys, "argv", ["compare_runs.py", *every])
        load_script("compare_runs").main()

    return run


def test_the_same_command_again_gives_the_same_table(compare, tmp_path, capsys):
    tables = []
    for name in ("one.json", "two.json"):  # the second time all runs have ended
        compare("--output", str(tmp_path / name))
        lines = capsys.readouterr().out.splitlines()
        tables.append([line for line in lines if line.startswith("| ")])
    assert tables[0] == tables[1] and len(tables[0]) == 3
    one, two = (read_json(tmp_path / name)["rows"] for name in ("one.json", "two.json"))
    for label in one:
        assert one[label][0]["eval_accuracy"] == two[label][0]["eval_accuracy"]
        assert one[label][0]["train_loss"] == two[label][0]["train_loss"]


def test_the_states_precisions_have_the_recommended_preset():
    contenders = load_script("compare_runs").CONTENDERS["state"]
    assert list(contenders.values()) == [
        ["--optim", "dwmgrad_finetune", "--optim_args", ""],
        ["--optim", "dwmgrad_bf16", "--optim_args", "preset=finetune"],
        ["--optim", "dwmgrad_8bit", "--optim_args", "preset=finetune"],
    ]


@pytest.mark.parametrize("word", ["--seed=5", "--optim", "--optim-args", "--output_dir=x"])
def test_what_the_script_sets_itself_is_refused(compare, tmp_path, word):
    with pytest.raises(UsageError, match=f"{word}: this script sets .* itself"):
        compare(word, "sgd")
    assert not (tmp_path / "work").exists()


def test_an_output_that_cannot_be_written_is_found_before_any_run(compare, tmp_path):
    with pytest.raises(UsageError, match="--output .* it is a folder"):
        compare("--output", str(tmp_path))
    assert not (tmp_path / "work").exists()


def test_a_metric_that_no_run_has_is_named_before_the_first(compare, tmp_path):
    with pytest.raises(UsageError, match="--metric acuracy: sst2 has loss, accuracy"):
        compare("--metric", "acuracy")
    with pytest.raises(UsageError, match="the runs need --do_train and --do_eval"):
        compare(evaluates="false")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("words", "metric", "mean"),
    [
        (["--metric", "loss"], "loss", r"0\.\d{4}"),
        (["--task_name", "cola"], "matthews_correlation", r"-?\d+\.\d %"),
    ],
)
def test_the_metric_is_the_tasks_and_a_loss_is_no_share(
    compare, glue_dir, capsys, words, metric, mean
):
    compare(*words, "--data_dir", str(glue_dir), "--use_sample", "false")
    shown = capsys.readouterr().out
    assert f"mean {metric} |" in shown
    assert len(re.findall(rf"\| {mean} \| \d+ s \|", shown)) == 2
